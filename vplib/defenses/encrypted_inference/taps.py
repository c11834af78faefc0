"""One image at a time: packed taps, on SEAL's own operations (`tenseal.sealapi`).

A ciphertext holds taps of the kernel, two in real and imaginary parts, for every position and every
map of the convolution. Its spare room holds copies: some with further taps, which rotations add,
others that the client has shifted, so that the dense layer by diagonals rotates once for many
diagonals. What is better depends on the network; `Packing` counts.
"""

import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import zstandard
from tenseal import sealapi

from vplib.defenses.encrypted_inference import messages
from vplib.defenses.encrypted_inference import network as networks
from vplib.defenses.encrypted_inference.messages import MessageError, Parameters

# The last prime is larger than the first: a rotation's noise grows with their ratio, and SEAL's
# digits are not centered, which puts most of it into a few slots.
PARAMETERS = Parameters(8192, (36, 28, 28, 28, 28, 28, 42), 28)


class Packing:
    """Where everything lies: slot `i * copies + j` is of activation `i + step * (j // sharing)`.

    Each `sharing` neighbours hold different taps of one activation; after the convolution the
    first of them holds their sum, the others what nobody weighs.

    Args:
        slots: numbers in a ciphertext.
        layout: image_size, maps, kernel, stride, padding, width, hidden, classes.

    Raises:
        ValueError: the network is too wide for the slots.
    """

    def __init__(self, slots: int, layout: dict):
        self.__dict__.update(layout)
        self.slots = slots
        self.wide = 1 << (self.maps * self.width**2 - 1).bit_length()
        self.narrow = 1 << (self.hidden - 1).bit_length()
        if self.wide > slots or self.narrow > self.wide:
            raise ValueError(
                f"{self.maps * self.width**2} activations and {self.hidden} hidden units do not "
                f"fit into {slots} slots; use encrypted_lanes"
            )
        self.copies = min(slots // self.wide, self.narrow)
        self._share(min((1 << n for n in range(self.copies.bit_length())), key=self._share))
        self.blocks = self.wide // self.narrow
        self.groups = -(-self.classes // self.blocks)
        if self.groups > self.copies:
            raise ValueError(f"{self.classes} classes do not fit; use encrypted_lanes")
        index = np.arange(slots)
        self.row, self.copy = index // self.copies % self.wide, index % self.copies
        self.activation = (self.row + self.step * (self.copy // self.sharing)) % self.wide

    def _share(self, sharing: int) -> float:
        """Lets so many neighbours share the taps; the server's work in rotations (measured)."""
        self.sharing, shifts = sharing, self.copies // sharing
        self.step = self.narrow // shifts
        self.baby = 1 << (self.step.bit_length()) // 2
        self.num_ciphertexts = -(-(self.kernel**2) // (2 * sharing))
        dense = self.baby + self.step // self.baby + np.log2(shifts)
        return self.num_ciphertexts / 2 + 2 * np.log2(sharing) + dense

    def rotations(self) -> list[int]:
        """Every rotation that the server makes."""
        c, powers = self.copies, lambda top: [1 << m for m in range(top.bit_length() - 1)]
        found = {c * b for b in range(1, self.baby)}
        found |= {c * self.baby * q for q in range(1, self.step // self.baby)}
        found |= set(powers(c)) | {c * self.narrow * m for m in powers(self.blocks)}
        found |= {-p for p in range(1, self.groups)} | {c * m for m in powers(self.narrow)}
        return sorted(found)

    def by_activation(self, values: np.ndarray) -> np.ndarray:
        """Values of the maps * width^2 activations, spread over the slots; zero elsewhere."""
        padded = np.zeros(self.wide, values.dtype)
        padded[: len(values)] = values
        return padded[self.activation]

    def pack_taps(self, image: np.ndarray) -> np.ndarray:
        """(ciphertexts, slots) complex numbers, in each two taps of one image."""
        pad, k = self.padding, self.kernel
        seen = np.lib.stride_tricks.sliding_window_view(np.pad(image, pad), (k, k))
        seen = seen[:: self.stride, :: self.stride].reshape(-1, k * k).T  # (taps, positions)
        return self._by_share(np.tile(seen, self.maps))

    def taps(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel in the same place; half of it, for the sum with the conjugate doubles."""
        flat = kernel.reshape(len(kernel), -1).T.repeat(self.width**2, axis=1)
        return self._by_share(flat / 2).conj()

    def _by_share(self, taps: np.ndarray) -> np.ndarray:
        """(ciphertexts, slots) of (taps, activations): two in a number, `sharing` neighbours."""
        padded = np.zeros((self.num_ciphertexts * self.sharing * 2, taps.shape[1]))
        padded[: len(taps)] = taps
        pairs = np.stack([self.by_activation(pair) for pair in padded[::2] + 1j * padded[1::2]])
        pairs = pairs.reshape(self.num_ciphertexts, self.sharing, self.slots)
        return pairs[:, self.copy % self.sharing, np.arange(self.slots)]

    def diagonals(self, weight: np.ndarray) -> np.ndarray:
        """(giant steps, baby steps, slots) of a dense layer from `wide` to `narrow`."""
        padded = np.zeros((self.narrow, self.wide))
        padded[: weight.shape[0], : weight.shape[1]] = weight
        giant = np.arange(self.step // self.baby)[:, None, None] * self.baby
        column = (self.activation + np.arange(self.baby)[:, None]) % self.wide
        first = self.copy % self.sharing == 0
        return padded[(self.row - giant) % self.narrow, column] * first

    def last_layer(self, weight: np.ndarray) -> np.ndarray:
        """(groups, slots): class `group * blocks + block` weighs the hidden units of its block."""
        padded = np.zeros((self.groups * self.blocks, self.narrow))
        padded[: weight.shape[0], : weight.shape[1]] = weight
        block, unit = self.row // self.narrow, self.row % self.narrow
        first = self.copy == 0
        return np.stack([padded[g * self.blocks + block, unit] * first for g in range(self.groups)])

    def answers(self) -> np.ndarray:
        """(classes,) slots of the logits."""
        classes = np.arange(self.classes)
        return classes % self.blocks * self.narrow * self.copies + classes // self.blocks


class _Files:
    """SEAL's objects to bytes and back, by way of one file in a folder of its own."""

    def __init__(self):
        memory = "/dev/shm"  # Linux keeps files there in memory
        folder = tempfile.mkdtemp(dir=memory if os.access(memory, 2) else None)
        self._path = Path(folder) / "object"
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def save(self, item) -> bytes:
        item.save(str(self._path))
        return self._path.read_bytes()

    def save_plain(self, item) -> bytes:
        """Without compression, which takes longer to undo than what is saved takes to send."""
        raw = self.save(item)
        body = zstandard.ZstdDecompressor().decompressobj().decompress(raw[16:])
        return raw[:5] + b"\0" + raw[6:8] + (16 + len(body)).to_bytes(8, "little") + body

    def load(self, item, context, data):
        self._path.write_bytes(data)
        item.load(context, str(self._path))
        return item


class TapServer:
    """Answers one image under a client's evaluation keys; never holds a secret key.

    Args:
        network: in floats.
        session_key: of the HMAC, shared with the client.
        known: an image of the server's, (H, W) in [0, 1], whose answer the offer promises.

    Raises:
        OverBudget: the logits leave less than 12 bits for their fraction.
        ValueError: the network is too wide for the slots.
    """

    form, parameters = "taps", PARAMETERS

    def __init__(self, network: networks.SquareNetwork, session_key: bytes, known: np.ndarray):
        self.session_key, self.network, parameters = session_key, network, self.parameters
        self.layout = dict(
            image_size=network.image_size, maps=len(network.kernel),
            kernel=network.kernel.shape[-1], stride=network.stride, padding=network.padding,
            width=network.width, hidden=len(network.fc1), classes=len(network.fc2),
        )  # fmt: skip
        Packing(parameters.slots, self.layout)
        bits = np.floor(parameters.coeff_bits[0] - 1.5 - np.log2(network.logit_bound()))
        if bits < 12:
            raise networks.OverBudget(
                f"logits up to {network.logit_bound():.3g} leave {bits:.0f} of 12 bits for their "
                f"fraction in {parameters.coeff_bits[0]} bits; use a larger first prime"
            )
        self.scale, self.known, self.keys = 2.0**bits, np.asarray(known, float), {}
        # Measured: the last rescaling leaves up to 2^13, all else 2^-12 of the largest logit.
        largest = np.abs(network.logits(self.known)).max()
        self.tolerance = 2.0**15 / self.scale + 2.0**-9 * largest

    def __getstate__(self):
        """What travels to another process: no object of SEAL's, and keys are sent there anew."""
        return self.__dict__ | {"keys": {}}

    def offer(self) -> bytes:
        """The server's public description."""
        return messages.write_offer(
            self.session_key, self.form, self.network, self.parameters, self.scale, self.known,
            self.tolerance, **self.layout,
        )  # fmt: skip

    def answer(self, message: bytes) -> bytes:
        """The answer to a client's keys ("ready") or to its request.

        Raises:
            MessageError: it is not of this server's, or comes before the keys.
        """
        return messages.answer_under_keys(self, message)

    def read_keys(self, header: dict, body) -> "_Evaluation":
        """SEAL's objects with the keys of a client."""
        return _Evaluation(self, header, body)

    def evaluate(self, keys: "_Evaluation", header: dict, body) -> bytes:
        """The bytes of encrypted logits, of a request's."""
        return keys.evaluate(_parts(header, body))


class _Evaluation:
    """SEAL's side of a `TapServer`, for the keys of one client."""

    def __init__(self, server: TapServer, header: dict, body):
        context, self.primes = server.parameters.seal_context()
        self.server, self.context = server, context
        self.files, self.packing = _Files(), Packing(server.parameters.slots, server.layout)
        relin, galois = _parts(header, body)
        self.relin = self.files.load(sealapi.RelinKeys(), context, relin)
        self.galois = self.files.load(sealapi.GaloisKeys(), context, galois)
        self.evaluator, self.encoder = sealapi.Evaluator(context), sealapi.CKKSEncoder(context)
        net, pack = server.network, self.packing
        self.taps, self.diagonals = pack.taps(net.kernel), pack.diagonals(net.fc1)
        self.last = pack.last_layer(net.fc2)
        hidden, last = np.zeros(pack.narrow), np.zeros(pack.slots)
        hidden[: pack.hidden], last[pack.answers()] = net.fc1_bias, net.fc2_bias
        conv = pack.by_activation(net.conv_bias.repeat(net.width**2))
        self.biases = conv, hidden[pack.row % pack.narrow], last
        self._plain = {}

    def plain(self, name, values, like, scale: float):
        """Numbers encoded at a ciphertext's level; kept, since levels repeat from call to call."""
        if name not in self._plain:
            self._plain[name] = sealapi.Plaintext()
            self.encoder.encode(values.tolist(), like.parms_id(), scale, self._plain[name])
        return self._plain[name]

    def rotate(self, cipher, steps: int):
        found = sealapi.Ciphertext(self.context)
        self.evaluator.rotate_vector(cipher, steps, self.galois, found)
        return found

    def sum_of_products(self, ciphers, names, values, scale: float):
        total = None
        for cipher, name, numbers in zip(ciphers, names, values, strict=True):
            product = sealapi.Ciphertext(self.context)
            self.evaluator.multiply_plain(cipher, self.plain(name, numbers, cipher, scale), product)
            if total is None:
                total = product
            else:
                self.evaluator.add_inplace(total, product)
        return total

    def sum_rotated(self, cipher, first: int, count: int):
        """The sum of `count` (a power of two) rotations by multiples of `first`."""
        for m in range(count.bit_length() - 1):
            self.evaluator.add_inplace(cipher, self.rotate(cipher, first << m))
        return cipher

    def top_prime(self, cipher) -> float:
        return float(self.primes[cipher.coeff_modulus_size() - 1])

    def square_with_bias(self, cipher, name: str, bias: np.ndarray):
        self.evaluator.add_plain_inplace(cipher, self.plain(name, bias, cipher, cipher.scale))
        self.evaluator.square_inplace(cipher)
        self.evaluator.relinearize_inplace(cipher, self.relin)
        self.evaluator.rescale_to_next_inplace(cipher)
        return cipher

    def evaluate(self, parts: list) -> bytes:
        """A request's ciphertexts, to the answer's bytes."""
        pack, run = self.packing, self.evaluator
        if len(parts) != pack.num_ciphertexts:
            raise MessageError(f"{len(parts)} ciphertexts are not the taps of this kernel")
        taps = [self.files.load(sealapi.Ciphertext(self.context), self.context, p) for p in parts]
        names = [("tap", t) for t in range(len(taps))]
        x = self.sum_of_products(taps, names, self.taps, self.top_prime(taps[0]))
        mirrored = sealapi.Ciphertext(self.context)
        run.complex_conjugate(x, self.galois, mirrored)
        run.add_inplace(x, mirrored)
        run.rescale_to_next_inplace(x)
        self.sum_rotated(x, 1, pack.sharing)
        x = self.square_with_bias(x, "conv bias", self.biases[0])
        turned = [x] + [self.rotate(x, pack.copies * b) for b in range(1, pack.baby)]
        hidden, top = None, self.top_prime(x)
        for q, values in enumerate(self.diagonals):
            names = [("fc1", q, b) for b in range(pack.baby)]
            part = self.sum_of_products(turned, names, values, top)
            if q == 0:
                hidden = part
            else:
                run.add_inplace(hidden, self.rotate(part, pack.copies * pack.baby * q))
        run.rescale_to_next_inplace(hidden)
        self.sum_rotated(hidden, pack.sharing, pack.copies // pack.sharing)
        self.sum_rotated(hidden, pack.copies * pack.narrow, pack.blocks)
        hidden = self.square_with_bias(hidden, "fc1 bias", self.biases[1])
        scale = self.server.scale * self.top_prime(hidden) / hidden.scale
        found = None
        for g, values in enumerate(self.last):
            part = self.sum_of_products([hidden], [("fc2", g)], [values], scale)
            if g == 0:
                found = part
            else:
                run.add_inplace(found, self.rotate(part, -g))
        self.sum_rotated(found, pack.copies, pack.narrow)  # before rescaling: tenfold less noise
        run.rescale_to_next_inplace(found)
        run.add_plain_inplace(found, self.plain("fc2 bias", self.biases[2], found, found.scale))
        return self.files.save(found)


class TapClient(messages.Client):
    """Holds the secret key; encrypts one image, decrypts its logits."""

    form, batch_size = TapServer.form, 1

    def __init__(self, offer: bytes, session_key: bytes):
        super().__init__(offer, session_key)
        self._packing = Packing(self.parameters.slots, self.offer.layout)
        self._context, _ = self.parameters.seal_context()
        self._generator = sealapi.KeyGenerator(self._context)
        key = self._generator.secret_key()
        self._encryptor = sealapi.Encryptor(self._context, key)
        self._decryptor = sealapi.Decryptor(self._context, key)
        self._encoder, self._files = sealapi.CKKSEncoder(self._context), _Files()

    def keys(self) -> bytes:
        """Evaluation keys: to relinearize, to conjugate, and for the rotations that are used."""
        double = 2 * self.parameters.poly_modulus_degree
        elements = [pow(3, step, double) for step in self._packing.rotations()] + [double - 1]
        parts = [
            self._files.save(self._generator.create_relin_keys()),
            self._files.save(self._generator.create_galois_keys(elements)),
        ]
        return _pack_parts(self.session_key, "keys", parts, **self.about())

    def check(self, ask) -> None:
        """Asks the known-answer image as a query of its own: a packed image leaves no slot free.

        Args:
            ask: from request bytes to answer bytes.

        Raises:
            MessageError: the answer is wrong.
        """
        (found,) = self.decrypt(map(ask, self.encrypt(self.offer.known_image[None])))
        messages.check_known_answer(found, self.offer.known_logits, self.offer.tolerance)

    def encrypt(self, images) -> Iterator[bytes]:
        """The request for one image.

        Args:
            images: (1, 1, H, W) in [0, 1].

        Raises:
            ValueError: the images are not as above.
        """
        (image,) = messages.check_images(images, self.offer.image_size, 1)
        self.nonce, parts = secrets.token_hex(16), []
        for values in self._packing.pack_taps(image):
            plain, cipher = sealapi.Plaintext(), sealapi.Ciphertext(self._context)
            self._encoder.encode(values.tolist(), 2.0**self.parameters.scale_bits, plain)
            self._encryptor.encrypt_symmetric(plain, cipher)
            parts.append(self._files.save_plain(cipher))
        yield _pack_parts(self.session_key, "request", parts, nonce=self.nonce, **self.about())

    def decrypt(self, answers: Iterable[bytes]) -> np.ndarray:
        """(1, classes) logits of the image encrypted last.

        Args:
            answers: the one answer.

        Raises:
            MessageError: it is altered, or not to this request.
        """
        (message,) = answers
        _, body = messages.unpack_message(
            self.session_key, message, "answer", nonce=self.nonce, **self.about()
        )
        cipher, plain = sealapi.Ciphertext(self._context), sealapi.Plaintext()
        self._files.load(cipher, self._context, bytes(body))
        self._decryptor.decrypt(cipher, plain)
        numbers = np.array(self._encoder.decode_double(plain))
        return numbers[self._packing.answers()][None]


def _pack_parts(session_key: bytes, kind: str, parts: list[bytes], **about) -> bytes:
    sizes = [len(part) for part in parts]
    return messages.pack_message(session_key, kind, b"".join(parts), sizes=sizes, **about)


def _parts(header: dict, body) -> list:
    sizes = header.get("sizes")
    if not isinstance(sizes, list) or not all(type(n) is int and n >= 0 for n in sizes):
        raise MessageError("the message does not say where its parts end")
    if sum(sizes) != len(body):
        raise MessageError("the message's parts do not fill its body")
    ends = np.cumsum(sizes)
    return [body[end - size : end] for size, end in zip(sizes, ends, strict=True)]


@cache
def self_check() -> str | None:
    """Why the packed form cannot be used on this machine, or None: a tiny network, end to end."""
    network, key = networks.random_network(), messages.new_session_key()
    image = np.random.default_rng(0).random((1, 7, 7))
    try:
        server = TapServer(network, key, image[0])
        client = TapClient(server.offer(), key)
        server.answer(client.keys())
        client.check(server.answer)
    except Exception as error:
        return f"{type(error).__name__}: {error} ({messages.seal_version()})"
    return None
