"""A whole batch at once: each residue lane of a ciphertext runs the plain network mod one prime.

A CKKS ciphertext in SEAL's number-theoretic form is, for each prime p and each of N points, a
polynomial in the secret s: c0 + c1 s, with c0 and c1 mod p. Sums, products with whole numbers and
squares of such polynomials are those of the messages, so a server without a single key evaluates
the network on the lanes as they are. With primes of 26 bits and weights of 14 a dot product stays
below 2^53, where float64 is exact, and a layer is a matrix product of BLAS. Nothing is ever
relinearized or rescaled: the answer has degree 4 in s, which SEAL's decryptor takes.
"""

import secrets
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import zstandard
from tenseal import sealapi

from vplib import experiment, threads
from vplib.defenses.encrypted_inference import messages
from vplib.defenses.encrypted_inference import network as networks
from vplib.defenses.encrypted_inference.messages import MessageError, Parameters

PARAMETERS = Parameters(8192, (26,) * 8, 20)
CHUNK = 64  # points at a time, so that what a layer works on stays in the processor's cache


def reduce(values: np.ndarray, p: int) -> np.ndarray:
    """In place: whole numbers up to 2^52 in size, mod p, near zero (within p / 2 + 2)."""
    quotient = values * (1.0 / p)
    np.rint(quotient, out=quotient)
    quotient *= p
    values -= quotient
    return values


def square(c: np.ndarray, p: int) -> np.ndarray:
    """The square of polynomials in the secret, coefficient by coefficient mod p.

    Args:
        c: (nodes, degree + 1, points) residues near zero.
        p: the lane's prime, of 26 bits at most.

    Returns:
        (nodes, 2 * degree + 1, points).
    """
    size = c.shape[1]
    found = np.zeros((len(c), 2 * size - 1, *c.shape[2:]))
    for k in range(2 * size - 1):
        into = found[:, k]
        for i in range(max(0, k - size + 1), (k + 1) // 2):
            into += c[:, i] * c[:, k - i]  # below 2^50 each, two at most before doubling
        into *= 2
        if k % 2 == 0:
            into += c[:, k // 2] ** 2
        reduce(into, p)
    return found


class LaneServer:
    """Answers batches with the network's whole numbers and the session key; holds no other key.

    Args:
        network: made by `encrypted_network.quantize`.
        session_key: of the HMAC, shared with the client.
        known: an image of the server's, (H, W) in [0, 1], whose answer the offer promises.

    Raises:
        OverBudget: a result could overflow; nothing was encrypted yet.
        ValueError: a dot product could leave float64's exact range.
    """

    form = "lanes"

    def __init__(self, network: networks.IntegerNetwork, session_key: bytes, known: np.ndarray):
        parameters = replace(PARAMETERS, scale_bits=int(np.log2(network.input_scale)))
        self.session_key, self.parameters, self.network = session_key, parameters, network
        self.primes = parameters.seal_context()[1][:-1]
        networks.check_budget(network, sum(np.log2(self.primes)))
        sums = [np.abs(w.reshape(len(w), -1)).sum(1).max() for w in network.weights]
        if max(2 * sums[0], *sums[1:]) * (max(self.primes) / 2 + 2) + 2**26 > 2**52:
            raise ValueError("a dot product could exceed 2^52; use fewer weight_bits")
        rounded = network.rounded
        noise = networks.slot_noise(parameters.poly_modulus_degree, network.input_scale)
        copies = np.repeat(np.asarray(known, float)[None], 64, 0)
        self.tolerance = 10 * networks.predict_error(rounded, copies, noise)
        self.known, self._band = np.asarray(known, float), self._row_band()
        count, width = len(network.weights[0]), rounded.width
        fc1 = network.weights[1].reshape(-1, count, width, width).transpose(0, 2, 1, 3)
        self._fc1 = np.ascontiguousarray(fc1).reshape(len(fc1), -1)

    def offer(self) -> bytes:
        """The server's public description."""
        return messages.write_offer(
            self.session_key, self.form, self.network.rounded, self.parameters,
            self.network.scale, self.known, self.tolerance, lanes=len(self.primes),
        )  # fmt: skip

    def _row_band(self) -> np.ndarray:
        """The convolution of one row of positions, as a matrix on the k rows of pixels it sees."""
        net, kernel = self.network.rounded, self.network.weights[0]
        count, k, _ = kernel.shape
        band = np.zeros((count, net.width, k, net.image_size + 2 * net.padding))
        for j in range(net.width):
            band[:, j, :, j * net.stride : j * net.stride + k] = kernel
        inside = slice(net.padding, net.padding + net.image_size)
        return np.ascontiguousarray(band[..., inside]).reshape(count * net.width, k, -1)

    @threads.one_thread()
    def answer(self, message: bytes) -> bytes:
        """The answer to one lane's request.

        Raises:
            MessageError: the request is not one of this server's.
        """
        header, lane = messages.unpack_message(
            self.session_key, message, "request", form=self.form, parameters=self.parameters.id
        )
        p = self.primes[_part(header, len(self.primes))]
        degree = self.parameters.poly_modulus_degree
        shape = degree // CHUNK, self.network.rounded.image_size**2, 2, CHUNK
        if not isinstance(lane, np.ndarray) or lane.shape != shape or lane.dtype != "<u4":
            raise MessageError(f"a lane must be uint32 of shape {shape}")
        if lane.max() >= p:
            raise MessageError(f"a residue is not below its prime {p}")
        found = np.empty((len(self.network.weights[2]), 5, degree // CHUNK, CHUNK), "<u4")
        for i, block in enumerate(lane):
            y = self._evaluate(block.astype(float), p)
            y[y < 0] += p
            found[:, :, i] = y
        about = {name: header[name] for name in ("key", "nonce", "part", "parts")}
        about |= dict(form=self.form, parameters=self.parameters.id)
        found = found.reshape(*found.shape[:2], degree)
        return messages.pack_message(self.session_key, "answer", found, **about)

    def _evaluate(self, x: np.ndarray, p: int) -> np.ndarray:
        """The network mod p: (pixels, 2, points) to (classes, 5, points)."""
        net, count, k = self.network.rounded, *self.network.weights[0].shape[:2]
        points, rows = x.shape[2], x.reshape(self.network.rounded.image_size, -1)
        y = np.empty((net.width, count * net.width, 2 * points))
        for i in range(net.width):  # rows of positions first, so that nothing is copied
            top = i * net.stride - net.padding
            seen = slice(max(top, 0), min(top + k, net.image_size))
            band = self._band[:, seen.start - top : seen.stop - top].reshape(len(self._band), -1)
            np.matmul(band, rows[seen].reshape(-1, 2 * points), out=y[i])
        y = self._with_bias(y.reshape(-1, 2, points), 0, p)
        for layer in (1, 2):
            c = square(y, p)
            y = (self._fc1 if layer == 1 else self.network.weights[2]) @ c.reshape(len(c), -1)
            y = self._with_bias(y.reshape(-1, c.shape[1], points), layer, p)
        return y

    def _with_bias(self, y: np.ndarray, layer: int, p: int) -> np.ndarray:
        bias = np.array([float(b % p) for b in self.network.biases[layer]])
        if layer == 0:
            width = self.network.rounded.width
            bias = np.tile(np.repeat(bias, width), width)
        y[:, 0] += bias[:, None]
        return reduce(y, p)


class LaneClient(messages.Client):
    """Holds the secret key; encrypts batches into requests, one a lane, and decrypts answers."""

    form = LaneServer.form

    def __init__(self, offer: bytes, session_key: bytes):
        super().__init__(offer, session_key)
        self.batch_size = self.parameters.slots - 1  # one slot holds the known-answer image
        self._context, primes = self.parameters.seal_context()
        self.primes = primes[:-1]
        key = sealapi.KeyGenerator(self._context).secret_key()
        self._encryptor = sealapi.Encryptor(self._context, key)
        self._decryptor = sealapi.Decryptor(self._context, key)
        self._encoder = sealapi.CKKSEncoder(self._context)
        self._head, self._count = b"", 0

    def encrypt(self, images) -> Iterator[bytes]:
        """Requests for up to `batch_size` images, one for each prime.

        Args:
            images: (N, 1, H, W) in [0, 1].

        Raises:
            ValueError: the images are not as above.
        """
        images = messages.check_images(images, self.offer.image_size, self.batch_size)
        columns = np.concatenate([images, self.offer.known_image[None]])
        columns = np.ascontiguousarray(columns.reshape(len(columns), -1).T)
        self._count, self.nonce = len(images), secrets.token_hex(16)
        return self._requests(columns, self.nonce)

    def _requests(self, columns: np.ndarray, nonce: str) -> Iterator[bytes]:
        blocks = self.parameters.poly_modulus_degree // CHUNK
        lanes = np.empty((len(self.primes), blocks, len(columns), 2, CHUNK), "<u4")
        with tempfile.TemporaryDirectory() as folder:
            for i, column in enumerate(experiment.progress(columns, "encrypting pixels")):
                found = self.encrypt_slots(column, Path(folder) / "ciphertext")
                lanes[:, :, i] = found.reshape(*found.shape[:2], blocks, CHUNK).swapaxes(1, 2)
        for part, lane in enumerate(lanes):
            yield messages.pack_message(
                self.session_key, "request", lane, nonce=nonce, part=part, parts=len(self.primes),
                **self.about(),
            )  # fmt: skip

    def encrypt_slots(self, values: np.ndarray, path: Path) -> np.ndarray:
        """(lanes, 2, N) residues of a fresh ciphertext; only its bytes touch the file.

        Args:
            values: up to N / 2 numbers.
            path: a file that may be overwritten.
        """
        plain, cipher = sealapi.Plaintext(), sealapi.Ciphertext(self._context)
        self._encoder.encode(values.tolist(), 2.0**self.parameters.scale_bits, plain)
        self._encryptor.encrypt_symmetric(plain, cipher)
        cipher.save(str(path))
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()[16:])
        shape = 2, len(self.primes), self.parameters.poly_modulus_degree
        size = 8 * np.prod(shape)
        self._head = raw[:-size]
        residues = np.frombuffer(raw, "<u8", offset=len(raw) - size).reshape(shape)
        return residues.swapaxes(0, 1)

    def decrypt(self, answers: Iterable[bytes]) -> np.ndarray:
        """(N, classes) logits of the images encrypted last.

        Args:
            answers: one a lane, in any order.

        Raises:
            MessageError: an answer is missing, double, altered or not to these requests, or the
                known-answer image came back wrong.
        """
        lanes = {}
        for message in answers:
            header, lane = messages.unpack_message(
                self.session_key, message, "answer", **self.about(), nonce=self.nonce
            )
            part = _part(header, len(self.primes))
            degree = self.parameters.poly_modulus_degree
            fits = isinstance(lane, np.ndarray) and lane.dtype == "<u4" and lane.ndim == 3
            if part in lanes or not fits or lane.shape[1:] != (5, degree):
                raise MessageError(f"the answer of lane {part} came twice, or is of a wrong shape")
            if lane.max() >= self.primes[part]:
                raise MessageError(f"lane {part} holds a residue that is not below its prime")
            lanes[part] = lane
        if len(lanes) != len(self.primes):
            missing = sorted(set(range(len(self.primes))) - set(lanes))
            raise MessageError(f"the answers of lanes {missing} are missing")
        stacked = np.stack([lanes[part] for part in sorted(lanes)], 2)  # (classes, 5, lanes, N)
        known = len(self.offer.known_logits)
        if len(stacked) != known:
            raise MessageError(f"{len(stacked)} classes came back, not {known}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ciphertext"
            found = np.array([self.decrypt_slots(c, self.offer.scale, path) for c in stacked]).T
        messages.check_known_answer(
            found[self._count], self.offer.known_logits, self.offer.tolerance
        )
        return found[: self._count]

    def decrypt_slots(self, residues: np.ndarray, scale: float, path: Path) -> np.ndarray:
        """(N / 2,) numbers of a ciphertext of any size, written into SEAL's own byte layout.

        Args:
            residues: (size, lanes, N).
            scale: of the message.
            path: a file that may be overwritten.
        """
        body, head = residues.astype("<u8").tobytes(), bytearray(self._head)
        struct.pack_into("<Q", head, 33, len(residues))
        struct.pack_into("<d", head, 57, scale)
        struct.pack_into("<QQ", head, len(head) - 16, 24 + len(body), len(body) // 8)
        major, minor = (int(v) for v in messages.seal_version().split()[1].strip(",").split("."))
        front = struct.pack("<HBBBBHQ", 0xA15E, 16, major, minor, 0, 0, 16 + len(head) + len(body))
        path.write_bytes(front + head + body)
        cipher, plain = sealapi.Ciphertext(self._context), sealapi.Plaintext()
        cipher.load(self._context, str(path))
        self._decryptor.decrypt(cipher, plain)
        return np.array(self._encoder.decode_double(plain))


def _part(header: dict, parts: int) -> int:
    part = header.get("part")
    if header.get("parts") != parts or type(part) is not int or not 0 <= part < parts:
        raise MessageError(f"part {part!r} of {header.get('parts')!r} is no lane of {parts}")
    return part


@cache
def self_check() -> str | None:
    """Why the lanes cannot be used on this machine, or None: a tiny network, end to end."""
    rng = np.random.default_rng(0)
    tiny = networks.SquareNetwork(
        rng.normal(size=(2, 2, 2)), rng.normal(size=2), rng.normal(size=(3, 8)),
        rng.normal(size=3), rng.normal(size=(2, 3)), rng.normal(size=2),
        image_size=4, stride=2, padding=0,
    )  # fmt: skip
    key, images = messages.new_session_key(), rng.random((5, 4, 4))
    try:
        server = LaneServer(networks.quantize(tiny), key, images[0])
        client = LaneClient(server.offer(), key)
        found = client.decrypt([server.answer(request) for request in client.encrypt(images)])
        error = np.abs(found - server.network.rounded.logits(images)).max()
    except Exception as error:  # whatever SEAL's other layout makes of it
        return f"{type(error).__name__}: {error} ({messages.seal_version()})"
    return None if error < 0.1 else f"a tiny network came back {error:.3g} off"
