"""Encrypted inference in its plain form, on TenSEAL's public API: one pixel a ciphertext.

The thousands of numbers in a ciphertext are the same pixel of thousands of images, so the server
computes with "pixels" and answers the whole batch. `lanes` and `taps` are the fast forms; where
they do not work on a machine, `session.start` leads here.
"""

import itertools
import struct
from collections.abc import Iterator

import numpy as np

from vplib.defenses.encrypted_inference import network as networks
from vplib.defenses.encrypted_inference import seal
from vplib.defenses.encrypted_inference.messages import MessageError

import tenseal  # isort: skip  (`seal` says what to do where it is missing)
from tenseal import sealapi  # isort: skip

# Six products need five primes between the outer two. The first prime holds the logits, whose
# bound is far above what real images reach.
PARAMETERS = seal.Parameters(8192, (44, 26, 26, 26, 26, 26, 44), 26)


def evaluate(x, network: networks.SquareNetwork):
    """The network on a `CKKSTensor` whose elements are ciphertexts: sums and products alone.

    Args:
        x: (stride, stride, h, h), as `phases` orders the pixels.
        network: its weights are not encrypted.

    Returns:
        A `CKKSTensor` of (1, classes) logits.
    """
    k, s, w = network.kernel.shape[-1], network.stride, network.width
    hidden = 0
    parts = np.split(network.fc1, len(network.kernel), axis=1)
    for kernel, bias, weight in zip(network.kernel, network.conv_bias, parts, strict=True):
        y = float(bias)
        for i, j in itertools.product(range(k), repeat=2):
            top, left = i // s, j // s
            seen = x[i % s : i % s + 1, j % s : j % s + 1, top : top + w, left : left + w]
            y = seen.reshape([1, w * w]) * float(kernel[i, j]) + y
        hidden = y.square().mm(weight.T.tolist()) + hidden
    hidden = hidden + network.fc1_bias[None].tolist()
    return hidden.square().mm(network.fc2.T.tolist()) + network.fc2_bias[None].tolist()


def phases(images: np.ndarray, network_layout: dict) -> np.ndarray:
    """(N, stride, stride, h, h): padded images, so that what a kernel sees is a plain slice.

    Args:
        images: (N, H, W).
        network_layout: stride and padding, as the offer has them.
    """
    s, pad = network_layout["stride"], network_layout["padding"]
    size = images.shape[1] + 2 * pad
    more = (0, 0), (pad, pad + -size % s), (pad, pad + -size % s)
    padded = np.pad(images, more)
    h = padded.shape[1] // s
    return padded.reshape(len(images), h, s, h, s).transpose(0, 2, 4, 1, 3)


class TensorSecret(seal.Secret):
    """The client's side: one pixel of all images a ciphertext, the answer to logits.

    Args:
        parameters: the offer's.
        image_size: in pixels.
        layout: stride and padding.
    """

    parts = 1

    def __init__(self, parameters: seal.Parameters, image_size: int, layout: dict):
        networks.check_layout(layout, ("stride", "padding"), image_size)
        self.layout = layout
        self.batch_size = parameters.slots - 1  # one slot holds the known-answer image
        super().__init__(parameters)

    def keys(self) -> bytes:
        """What the server needs to multiply: relinearization keys, without the secret key."""
        return self.files.save(self.generator.create_relin_keys())

    def encrypt(self, images: np.ndarray) -> Iterator[list[bytes]]:
        """One ciphertext a pixel, of (images, H, W), in the order of `phases`."""
        pixels = phases(images, self.layout).reshape(len(images), -1).T
        yield [self.files.save(self.encrypt_slots(column)) for column in pixels]

    def decrypt(self, bodies: list, num_classes: int) -> np.ndarray:
        """(slots, classes) numbers of the answer, a ciphertext a class."""
        return np.array([self.decrypt_slots(cipher).real for cipher in bodies[0]]).T


class Tensors:
    """The server's side: TenSEAL, under a client's evaluation keys.

    TenSEAL's reader ends the process on some bytes, so it never reads a stranger's: SEAL checks
    keys and ciphertexts one by one, and the buffers that hold them are written here.

    Args:
        network: in floats.

    Raises:
        OverBudget: the first prime leaves the logits too little room for their fraction.
    """

    name, keyed, parts, parameters, Secret = "tensor", True, 1, PARAMETERS, TensorSecret

    def __init__(self, network: networks.SquareNetwork):
        self.network, parameters = network, self.parameters
        self.layout = dict(stride=network.stride, padding=network.padding)
        enlarged, gain = network.enlarged()
        room = parameters.coeff_bits[0] - 1 - parameters.scale_bits
        bits = np.ceil(room - np.log2(enlarged.logit_bound())) - 1  # one to spare, or less
        factor = 2.0**bits
        if factor < 2.0**-5:  # measured: noise is some 2^-8 of the last scale
            raise networks.OverBudget(
                f"logits up to {network.logit_bound():.3g} leave no fraction in "
                f"{parameters.coeff_bits[0]} bits; use a larger first prime"
            )
        tiny = 2.0**-20  # TenSEAL refuses a product with what encodes to zero
        # TenSEAL divides each product by a prime and takes it for 2^scale_bits, which is some 0.5 %
        # more. Squares have no weight to put that right, so the next product does it for them.
        drift = [prime / 2.0**parameters.scale_bits for prime in parameters.context()[1][-2:-7:-1]]
        repairs = drift[0], drift[1] * drift[2], drift[3] * drift[4] * factor
        layers = [
            (np.where(np.abs(weight) < tiny, tiny, weight) * repair, bias)
            for (weight, bias), repair in zip(enlarged.layers(), repairs, strict=True)
        ]
        layers[2] = layers[2][0], layers[2][1] * factor
        self.scaled, self.scale = network.with_layers(layers), factor * gain

    def tolerance(self, logits: np.ndarray, image: np.ndarray) -> float:
        """How far decrypted logits may be off; measured on 20 networks: 0.4 % at most."""
        return 0.01 * np.abs(logits).max() + 0.5 / self.scale

    def read_keys(self, body: bytes):
        """TenSEAL's context with the relinearization keys of a client, and no other key."""
        parameters, files = self.parameters, seal.Files()
        files.load(sealapi.RelinKeys(), parameters.context()[0], body)
        ours = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS,
            parameters.poly_modulus_degree,
            coeff_mod_bit_sizes=list(parameters.coeff_bits),
            encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
        )
        ours.global_scale = 2.0**parameters.scale_bits
        empty = ours.serialize(False, False, False, False)  # of protobuf, which merges what follows
        return tenseal.context_from(empty + field(2, field(4, body)), n_threads=1)

    def evaluate(self, body: list[bytes], part: int, keys) -> list[bytes]:
        """The bytes of encrypted logits, a ciphertext a class, of a request's pixels."""
        parameters, files, size = self.parameters, seal.Files(), self.network.image_size
        shape = phases(np.zeros((1, size, size)), self.layout).shape[1:]
        context = parameters.context()[0]
        if not isinstance(body, list) or len(body) != np.prod(shape):
            raise MessageError(f"a request of this form is {np.prod(shape)} ciphertexts")
        for cipher in body:
            seal.fresh(files, context, cipher, parameters)
        scale = b"\x19" + struct.pack("<d", 2.0**parameters.scale_bits)  # field 3, a double
        shape, body = field(1, b"".join(map(varint, shape))), [field(2, cipher) for cipher in body]
        x = tenseal.ckks_tensor_from(keys, b"".join([shape, *body, scale]))
        logits = evaluate(x, self.scaled)
        return [files.save(cipher) for cipher in logits.ciphertext()]


def varint(value: int) -> bytes:
    """A whole number as protobuf writes it: seven bits a byte, the lowest first."""
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def field(number: int, data: bytes) -> bytes:
    """Bytes as protobuf's field of this number, in TenSEAL's tensors.proto and its context's."""
    return bytes([number << 3 | 2]) + varint(len(data)) + data
