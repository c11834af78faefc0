"""A whole batch at once: each residue lane of a ciphertext runs the plain network mod one prime.

A CKKS ciphertext in SEAL's number-theoretic form is, for each prime p and each of N points, a
polynomial in the secret s: c0 + c1 s, with c0 and c1 mod p. Sums, products with whole numbers and
squares of such polynomials are those of the messages, so a server without a single key evaluates
the network on the lanes as they are. With primes of 26 bits and weights of 14 a dot product stays
below 2^53, where float64 is exact, and a layer is a matrix product of BLAS. Nothing is ever
relinearized or rescaled: the answer has degree 4 in s, which SEAL's decryptor takes.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from vplib import experiment, threads
from vplib.defenses.encrypted_inference import network as networks
from vplib.defenses.encrypted_inference import seal
from vplib.defenses.encrypted_inference.messages import MessageError

PARAMETERS = seal.Parameters(8192, (26,) * 8, 20)
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


class LaneSecret(seal.Secret):
    """The client's side: pixels to lanes, answered lanes to logits.

    Args:
        parameters: the offer's.
        image_size: in pixels.
        layout: nothing.
    """

    def __init__(self, parameters: seal.Parameters, image_size: int, layout: dict):
        networks.check_layout(layout, (), image_size)
        super().__init__(parameters)
        self.batch_size = parameters.slots - 1  # one slot holds the known-answer image
        self.lanes = self.primes[:-1]
        self.parts = len(self.lanes)

    def keys(self) -> bytes:
        """None are needed."""
        return b""

    def encrypt(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """One lane after another, (N / 64, pixels, 2, 64) residues, of (images, H, W)."""
        columns = np.ascontiguousarray(images.reshape(len(images), -1).T)
        blocks = self.parameters.poly_modulus_degree // CHUNK
        lanes = np.empty((self.parts, blocks, len(columns), 2, CHUNK), "<u4")
        for i, column in enumerate(experiment.progress(columns, "encrypting pixels")):
            found = self.residues(self.encrypt_slots(column))
            lanes[:, :, i] = found.reshape(self.parts, 2, blocks, CHUNK).swapaxes(1, 2)
        yield from lanes

    def residues(self, cipher) -> np.ndarray:
        """(lanes, 2, N) residues of a ciphertext of SEAL's."""
        raw = self.files.save_plain(cipher)
        shape = 2, self.parts, self.parameters.poly_modulus_degree
        found = np.frombuffer(raw, "<u8", offset=len(raw) - 8 * math.prod(shape)).reshape(shape)
        return found.swapaxes(0, 1)

    def decrypt(self, bodies: list, num_classes: int) -> np.ndarray:
        """(slots, classes) whole numbers of the answers, one array a lane."""
        for lane, prime in zip(bodies, self.lanes, strict=True):
            _check_residues(lane, (num_classes, 5, self.parameters.poly_modulus_degree), prime)
        return np.array([self.decrypted(c) for c in np.stack(bodies, 2)]).T  # (5, lanes, N) each

    def decrypted(self, residues: np.ndarray) -> np.ndarray:
        """(N / 2,) numbers, times their scale, of a ciphertext's (size, lanes, N) residues.

        They are written into SEAL's own byte layout: that of a fresh ciphertext, with the size and
        the scale changed.
        """
        raw = self.files.save_plain(self.encrypt_slots(np.zeros(1)))
        fresh = 2 * 8 * math.prod(residues.shape[1:])
        body, head = residues.astype("<u8").tobytes(), bytearray(raw[:-fresh])
        struct.pack_into("<Q", head, 8, len(head) + len(body))
        struct.pack_into("<Q", head, 16 + 33, len(residues))
        struct.pack_into("<d", head, 16 + 57, 1.0)
        struct.pack_into("<QQ", head, len(head) - 16, 24 + len(body), len(body) // 8)
        return self.decrypt_slots(bytes(head) + body).real


class Lanes:
    """The server's side: the network's whole numbers, and no key of any kind.

    Args:
        network: in floats; what is computed is `integer`, its rounded form.
        weight_bits: as for `network.quantize`.
        input_bits: as for `network.quantize`.

    Raises:
        OverBudget: a result could overflow; nothing was encrypted yet.
        ValueError: a dot product could leave float64's exact range.
    """

    name, keyed, layout, parameters, Secret = "lanes", False, {}, PARAMETERS, LaneSecret

    def __init__(self, network, weight_bits=(10, 10, 10), input_bits=20):
        self.integer = networks.quantize(network, weight_bits, input_bits)
        self.network, self.scale = self.integer.rounded, self.integer.scale
        self.parameters = replace(PARAMETERS, scale_bits=input_bits)
        self.primes = self.parameters.context()[1][:-1]
        self.parts = len(self.primes)
        networks.check_budget(self.integer, sum(np.log2(self.primes)))
        weights = self.integer.weights
        sums = [np.abs(w.reshape(len(w), -1)).sum(1).max() for w in weights]
        if max(2 * sums[0], *sums[1:]) * (max(self.primes) / 2 + 2) + 2**26 > 2**52:
            raise ValueError("a dot product could exceed 2^52; use fewer weight_bits")
        self._band, count, width = self._row_band(), len(weights[0]), self.network.width
        fc1 = weights[1].reshape(-1, count, width, width).transpose(0, 2, 1, 3)
        self._fc1 = np.ascontiguousarray(fc1).reshape(len(fc1), -1)

    def tolerance(self, logits: np.ndarray, image: np.ndarray) -> float:
        """How far the decrypted logits of one image, (1, H, W), may be off."""
        noise = networks.slot_noise(self.parameters.poly_modulus_degree, self.integer.input_scale)
        error = networks.predict_error(self.network, image.repeat(64, 0), noise)
        return 10 * error + 1e-6 * np.abs(logits).max()

    def _row_band(self) -> np.ndarray:
        """The convolution of one row of positions, as a matrix on the k rows of pixels it sees."""
        net, kernel = self.network, self.integer.weights[0]
        count, k, _ = kernel.shape
        band = np.zeros((count, net.width, k, net.image_size + 2 * net.padding))
        for j in range(net.width):
            band[:, j, :, j * net.stride : j * net.stride + k] = kernel
        inside = slice(net.padding, net.padding + net.image_size)
        return np.ascontiguousarray(band[..., inside]).reshape(count * net.width, k, -1)

    @threads.one_thread()
    def evaluate(self, lane: np.ndarray, part: int, keys: None = None) -> np.ndarray:
        """One lane's answer, (classes, 5, N) residues.

        Args:
            lane: (N / 64, pixels, 2, 64) residues mod the prime.
            part: which prime.
            keys: none are needed.

        Raises:
            MessageError: these are no residues of this prime.
        """
        degree = self.parameters.poly_modulus_degree
        shape = degree // CHUNK, self.network.image_size**2, 2, CHUNK
        _check_residues(lane, shape, p := self.primes[part])
        found = np.empty((len(self.integer.weights[2]), 5, degree // CHUNK, CHUNK), "<u4")
        for i, block in enumerate(lane):
            y = self._evaluate(block.astype(float), p)
            y[y < 0] += p
            found[:, :, i] = y
        return found.reshape(*found.shape[:2], degree)

    def _evaluate(self, x: np.ndarray, p: int) -> np.ndarray:
        """The network mod p: (pixels, 2, points) to (classes, 5, points)."""
        net, (count, k, _) = self.network, self.integer.weights[0].shape
        points, rows = x.shape[2], x.reshape(net.image_size, -1)
        y = np.empty((net.width, count * net.width, 2 * points))
        for i in range(net.width):  # rows of positions first, so that nothing is copied
            top = i * net.stride - net.padding
            seen = slice(max(top, 0), min(top + k, net.image_size))
            band = self._band[:, seen.start - top : seen.stop - top].reshape(len(self._band), -1)
            np.matmul(band, rows[seen].reshape(-1, 2 * points), out=y[i])
        y = self._with_bias(y.reshape(-1, 2, points), 0, p)
        for layer in (1, 2):
            c = square(y, p)
            y = (self._fc1 if layer == 1 else self.integer.weights[2]) @ c.reshape(len(c), -1)
            y = self._with_bias(y.reshape(-1, c.shape[1], points), layer, p)
        return y

    def _with_bias(self, y: np.ndarray, layer: int, p: int) -> np.ndarray:
        bias = np.array([float(b % p) for b in self.integer.biases[layer]])
        if layer == 0:
            bias = np.tile(np.repeat(bias, self.network.width), self.network.width)
        y[:, 0] += bias[:, None]
        return reduce(y, p)


def _check_residues(lane, shape: tuple, p: int) -> None:
    if not isinstance(lane, np.ndarray) or lane.shape != shape or lane.dtype != "<u4":
        raise MessageError(f"a lane must be uint32 of shape {shape}")
    if lane.max() >= p:
        raise MessageError(f"a residue is not below its prime {p}")
