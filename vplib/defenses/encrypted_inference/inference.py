"""Encrypted inference in its plain form, on TenSEAL's public API: one pixel a ciphertext.

The thousands of numbers in a ciphertext are the same pixel of thousands of images, so the server
computes with "pixels" and answers the whole batch. `encrypted_lanes` and `encrypted_taps` are fast
forms; where their self-check fails, `batch_server` and `connect` lead here.
"""

import itertools
import secrets
from collections.abc import Iterable, Iterator

import numpy as np

from vplib.defenses.encrypted_inference import messages
from vplib.defenses.encrypted_inference import network as networks
from vplib.defenses.encrypted_inference.messages import MessageError, Parameters

import tenseal  # isort: skip  (encrypted_messages says what to do where it is missing)

# Six products need five primes between the outer two. The first prime holds the logits, whose
# bound is far above what real images reach.
PARAMETERS = Parameters(8192, (44, 26, 26, 26, 26, 26, 44), 26)


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


class TensorServer:
    """Answers batches with TenSEAL under a client's evaluation keys; never holds a secret key.

    Args:
        network: in floats.
        session_key: of the HMAC, shared with the client.
        known: an image of the server's, (H, W) in [0, 1], whose answer the offer promises.

    Raises:
        OverBudget: the first prime leaves the logits too little room for their fraction.
    """

    form, parameters = "tensor", PARAMETERS

    def __init__(self, network: networks.SquareNetwork, session_key: bytes, known: np.ndarray):
        self.session_key, parameters = session_key, self.parameters
        room = parameters.coeff_bits[0] - 1 - parameters.scale_bits
        self.factor = 2.0 ** np.floor(room - np.log2(network.logit_bound()))
        if self.factor < 2.0**-5:  # measured: noise is some 2^-8 of the last scale
            raise networks.OverBudget(
                f"logits up to {network.logit_bound():.3g} leave no fraction in "
                f"{parameters.coeff_bits[0]} bits; use a larger first prime"
            )
        self.known, self.network = np.asarray(known, float), network
        tiny = 2.0**-20  # TenSEAL refuses a product with what encodes to zero
        # TenSEAL divides each product by a prime and takes it for 2^scale_bits, which is some 0.5 %
        # more. Squares have no weight to put that right, so the next product does it for them.
        _, primes = parameters.seal_context()
        drift = [prime / 2.0**parameters.scale_bits for prime in primes[-2:-7:-1]]
        repairs = drift[0], drift[1] * drift[2], drift[3] * drift[4] * self.factor
        layers = [
            (np.where(np.abs(weight) < tiny, tiny, weight) * repair, bias)
            for (weight, bias), repair in zip(network.layers(), repairs, strict=True)
        ]
        layers[2] = layers[2][0], layers[2][1] * self.factor
        self.scaled, self.keys = network.with_layers(layers), {}
        # Measured, 20 networks: at most 0.4 % of the largest logit, 0.1 % for most.
        self.tolerance = 0.01 * np.abs(network.logits(self.known)).max() + 0.5 / self.factor

    def offer(self) -> bytes:
        """The server's public description."""
        return messages.write_offer(
            self.session_key, self.form, self.network, self.parameters, self.factor, self.known,
            self.tolerance, stride=self.network.stride, padding=self.network.padding,
        )  # fmt: skip

    def answer(self, message: bytes) -> bytes:
        """The answer to a client's keys ("ready") or to its request.

        Raises:
            MessageError: it is not of this server's, holds a secret key, or comes before the keys.
        """
        return messages.answer_under_keys(self, message)

    def read_keys(self, header: dict, body):
        """TenSEAL's context with the keys of a client."""
        context = tenseal.context_from(bytes(body), n_threads=1)
        if context.is_private():
            raise MessageError("the keys hold the secret key, which must stay with the client")
        return context

    def evaluate(self, keys, header: dict, body) -> bytes:
        """The bytes of encrypted logits, of a request's."""
        return evaluate(tenseal.ckks_tensor_from(keys, bytes(body)), self.scaled).serialize()


class TensorClient(messages.Client):
    """Holds the secret key in a TenSEAL context; encrypts a batch, decrypts the answer."""

    form = TensorServer.form

    def __init__(self, offer: bytes, session_key: bytes):
        super().__init__(offer, session_key)
        self.batch_size = self.parameters.slots - 1  # one slot holds the known-answer image
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS,
            self.parameters.poly_modulus_degree,
            coeff_mod_bit_sizes=list(self.parameters.coeff_bits),
            encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
        )
        self._context.global_scale = 2.0**self.parameters.scale_bits
        self._context.generate_relin_keys()
        self._count = 0

    def keys(self) -> bytes:
        """What the server needs to multiply: relinearization keys, without the secret key."""
        public = self._context.serialize(save_secret_key=False, save_galois_keys=False)
        return messages.pack_message(self.session_key, "keys", public, **self.about())

    def check(self, ask) -> None:
        """Nothing to ask: the known-answer image has a slot in each request."""

    def encrypt(self, images) -> Iterator[bytes]:
        """The request for up to `batch_size` images: one ciphertext a pixel.

        Args:
            images: (N, 1, H, W) in [0, 1].

        Raises:
            ValueError: the images are not as above.
        """
        images = messages.check_images(images, self.offer.image_size, self.batch_size)
        self._count, self.nonce = len(images), secrets.token_hex(16)
        batch = phases(np.concatenate([images, self.offer.known_image[None]]), self.offer.layout)
        x = tenseal.ckks_tensor(self._context, batch.tolist(), batch=True)
        yield messages.pack_message(
            self.session_key, "request", x.serialize(), nonce=self.nonce, **self.about()
        )

    def decrypt(self, answers: Iterable[bytes]) -> np.ndarray:
        """(N, classes) logits of the images encrypted last.

        Args:
            answers: the one answer.

        Raises:
            MessageError: it is altered, not to this request, or the known-answer image came back
                wrong.
        """
        (message,) = answers
        _, body = messages.unpack_message(
            self.session_key, message, "answer", nonce=self.nonce, **self.about()
        )
        found = tenseal.ckks_tensor_from(self._context, bytes(body)).decrypt()
        found = np.array(found.tolist())[: self._count + 1, 0] / self.offer.scale
        messages.check_known_answer(found[-1], self.offer.known_logits, self.offer.tolerance)
        return found[:-1]


def batch_server(network: networks.SquareNetwork, session_key: bytes, known: np.ndarray, **bits):
    """The fastest batch server that works here: lanes, or the plain form with a word of why.

    Args:
        network: in floats.
        session_key: of the HMAC.
        known: the known-answer image.
        **bits: for `encrypted_network.quantize`.

    Returns:
        The server, and why it is the plain form (None for lanes).

    Raises:
        OverBudget: a result could overflow.
    """
    from vplib.defenses.encrypted_inference import lanes as encrypted_lanes

    if why := encrypted_lanes.self_check():
        return TensorServer(network, session_key, known), why
    quantized = networks.quantize(network, **bits)
    return encrypted_lanes.LaneServer(quantized, session_key, known), None


def single_server(network: networks.SquareNetwork, session_key: bytes, known: np.ndarray):
    """The fastest server of single images that works here: packed taps, or the plain form.

    Args:
        network: in floats.
        session_key: of the HMAC.
        known: the known-answer image.

    Returns:
        The server, and why it is the plain form (None for packed taps).

    Raises:
        OverBudget: the logits leave too little of the modulus.
    """
    from vplib.defenses.encrypted_inference import taps as encrypted_taps

    if why := encrypted_taps.self_check():
        return TensorServer(network, session_key, known), why
    return encrypted_taps.TapServer(network, session_key, known), None


def connect(offer: bytes, session_key: bytes):
    """The client for a server's offer, whichever form it is of.

    Args:
        offer: the server's, as bytes.
        session_key: of the HMAC.

    Raises:
        MessageError: the offer is not of this session.
    """
    from vplib.defenses.encrypted_inference import lanes as encrypted_lanes
    from vplib.defenses.encrypted_inference import taps as encrypted_taps

    form = messages.Offer(session_key, offer).form
    clients = TensorClient, encrypted_lanes.LaneClient, encrypted_taps.TapClient
    return next(client for client in clients if client.form == form)(offer, session_key)
