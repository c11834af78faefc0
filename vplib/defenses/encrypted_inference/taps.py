"""One image at a time: packed taps, on SEAL's own operations (`tenseal.sealapi`).

A ciphertext holds taps of the kernel, two in real and imaginary parts, for every position and every
map of the convolution. Its spare room holds copies: some with further taps, which rotations add,
others that the client has shifted, so that the dense layer by diagonals rotates once for many
diagonals. What is better depends on the network; `Packing` counts.
"""

from collections.abc import Iterator

import numpy as np

from vplib.defenses.encrypted_inference import network as networks
from vplib.defenses.encrypted_inference import seal
from vplib.defenses.encrypted_inference.messages import MessageError

from tenseal import sealapi  # isort: skip  (`seal` says what to do where it is missing)

# The last prime is larger than the first: a rotation's noise grows with their ratio, and SEAL's
# digits are not centered, which puts most of it into a few slots.
PARAMETERS = seal.Parameters(8192, (36, 28, 28, 28, 28, 28, 42), 28)
LAYOUT = "maps", "kernel", "stride", "padding", "width", "hidden", "classes"


class Packing:
    """Where everything lies: slot `i * copies + j` is of activation `i + step * (j // sharing)`.

    Each `sharing` neighbours hold different taps of one activation; after the convolution the
    first of them holds their sum, the others what nobody weighs.

    Args:
        slots: numbers in a ciphertext.
        layout: maps, kernel, stride, padding, width, hidden, classes.

    Raises:
        ValueError: the network is too wide for the slots.
    """

    def __init__(self, slots: int, layout: dict):
        self.__dict__.update(layout)
        self.slots = slots
        self.wide = 1 << (self.maps * self.width**2 - 1).bit_length()
        self.narrow = 1 << (self.hidden - 1).bit_length()
        self.copies = min(slots // self.wide, self.narrow)
        self.blocks = self.wide // self.narrow
        self.groups = -(-self.classes // self.blocks) if self.blocks else slots
        if self.groups > self.copies:
            raise ValueError(
                f"{self.maps * self.width**2} activations, {self.hidden} hidden units and "
                f"{self.classes} classes do not fit into {slots} slots; use lanes"
            )
        self._share(min((1 << n for n in range(self.copies.bit_length())), key=self._share))
        index = np.arange(slots)
        self.row, self.copy = index // self.copies % self.wide, index % self.copies
        self.activation = (self.row + self.step * (self.copy // self.sharing)) % self.wide

    def _share(self, sharing: int) -> float:
        """Lets so many neighbours share the taps; the server's work in rotations (measured)."""
        self.sharing, shifts = sharing, self.copies // sharing
        self.step = self.narrow // shifts
        self.baby = 1 << self.step.bit_length() // 2
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

    def elements(self) -> list[int]:
        """The same as powers of the root that SEAL's keys are named by, and the conjugation."""
        double = 4 * self.slots
        return [pow(3, step, double) for step in self.rotations()] + [double - 1]

    def by_activation(self, values: np.ndarray) -> np.ndarray:
        """(..., slots) of (..., maps * width^2) activations; zero where there is none."""
        padded = np.zeros((*values.shape[:-1], self.wide), values.dtype)
        padded[..., : values.shape[-1]] = values
        return padded[..., self.activation]

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
        padded = np.zeros((2 * self.num_ciphertexts * self.sharing, taps.shape[1]))
        padded[: len(taps)] = taps
        pairs = self.by_activation(padded[::2] + 1j * padded[1::2])
        pairs = pairs.reshape(self.num_ciphertexts, self.sharing, self.slots)
        return pairs[:, self.copy % self.sharing, np.arange(self.slots)]

    def diagonals(self, weight: np.ndarray) -> np.ndarray:
        """(giant steps, baby steps, slots) of a dense layer from `wide` to `narrow`."""
        padded = np.zeros((self.narrow, self.wide))
        padded[: weight.shape[0], : weight.shape[1]] = weight
        giant = np.arange(self.step // self.baby)[:, None, None] * self.baby
        column = (self.activation + np.arange(self.baby)[:, None]) % self.wide
        return padded[(self.row - giant) % self.narrow, column] * (self.copy % self.sharing == 0)

    def last_layer(self, weight: np.ndarray) -> np.ndarray:
        """(groups, slots): class `group * blocks + block` weighs the hidden units of its block."""
        padded = np.zeros((self.groups * self.blocks, self.narrow))
        padded[: weight.shape[0], : weight.shape[1]] = weight
        block, unit = self.row // self.narrow, self.row % self.narrow
        group = np.arange(self.groups)[:, None] * self.blocks
        return padded[group + block, unit] * (self.copy == 0)

    def answers(self) -> np.ndarray:
        """(classes,) slots of the logits."""
        classes = np.arange(self.classes)
        return classes % self.blocks * self.narrow * self.copies + classes // self.blocks


class TapSecret(seal.Secret):
    """The client's side: one image to its taps, the answer to logits.

    Args:
        parameters: the offer's.
        image_size: in pixels.
        layout: as for `Packing`.
    """

    batch_size = parts = 1

    def __init__(self, parameters: seal.Parameters, image_size: int, layout: dict):
        networks.check_layout(layout, LAYOUT, image_size)
        super().__init__(parameters)
        self.packing = Packing(parameters.slots, layout)

    def keys(self) -> list[bytes]:
        """Evaluation keys: to relinearize, to conjugate, and for the rotations that are used."""
        elements = self.packing.elements()
        made = self.generator.create_relin_keys(), self.generator.create_galois_keys(elements)
        return [self.files.save(part) for part in made]

    def encrypt(self, images: np.ndarray) -> Iterator[list[bytes]]:
        """The ciphertexts of one image, (1, H, W)."""
        taps = self.packing.pack_taps(images[0])
        yield [self.files.save_plain(self.encrypt_slots(values)) for values in taps]

    def decrypt(self, bodies: list, num_classes: int) -> np.ndarray:
        """(1, classes) numbers of the answer."""
        return self.decrypt_slots(bodies[0]).real[self.packing.answers()][None]


class Taps:
    """The server's side: SEAL's operations, under a client's evaluation keys.

    Args:
        network: in floats.

    Raises:
        OverBudget: the logits leave less than 12 bits for their fraction.
        ValueError: the network is too wide for the slots.
    """

    name, keyed, parts, parameters, Secret = "taps", True, 1, PARAMETERS, TapSecret

    def __init__(self, network: networks.SquareNetwork):
        self.network, parameters = network, self.parameters
        sizes = len(network.kernel), network.kernel.shape[-1], network.stride, network.padding
        sizes += network.width, len(network.fc1), len(network.fc2)
        self.layout = dict(zip(LAYOUT, sizes, strict=True))
        Packing(parameters.slots, self.layout)
        self.enlarged, self.scale = network.enlarged()  # small weights would drown in the noise
        bits = np.floor(parameters.coeff_bits[0] - 1.5 - np.log2(self.enlarged.logit_bound()))
        if bits < 12:
            raise networks.OverBudget(
                f"logits up to {network.logit_bound():.3g} leave {bits:.0f} of 12 bits for their "
                f"fraction in {parameters.coeff_bits[0]} bits; use a larger first prime"
            )
        self.answer_scale = 2.0**bits

    def tolerance(self, logits: np.ndarray, image: np.ndarray) -> float:
        """How far decrypted logits may be off, as measured.

        The last rescaling leaves up to 2^13 units, all else 2^-12 of the largest logit.
        """
        return 2.0**15 / self.answer_scale / self.scale + 2.0**-9 * np.abs(logits).max()

    def read_keys(self, body: list[bytes]) -> "_Evaluation":
        """SEAL's objects with the keys of a client."""
        return _Evaluation(self, *body)

    def evaluate(self, body: list[bytes], part: int, keys: "_Evaluation") -> bytes:
        """The bytes of encrypted logits, of a request's."""
        return keys.evaluate(body)


class _Evaluation:
    """SEAL's side of `Taps`, for the keys of one client."""

    def __init__(self, form: Taps, relin: bytes, galois: bytes):
        context, self.primes = form.parameters.context()
        self.form, self.context = form, context
        self.files, self.packing = seal.Files(), Packing(form.parameters.slots, form.layout)
        self.relin = self.files.load(sealapi.RelinKeys(), context, relin)
        self.galois = self.files.load(sealapi.GaloisKeys(), context, galois)
        if not all(map(self.galois.has_key, self.packing.elements())):
            raise MessageError("keys of rotations that this network needs are missing")
        self.evaluator, self.encoder = sealapi.Evaluator(context), sealapi.CKKSEncoder(context)
        net, pack = form.enlarged, self.packing
        self.taps, self.diagonals = pack.taps(net.kernel), pack.diagonals(net.fc1)
        self.last = pack.last_layer(net.fc2)
        hidden, last = np.zeros(pack.narrow), np.zeros(pack.slots)
        hidden[: pack.hidden], last[pack.answers()] = net.fc1_bias, net.fc2_bias
        conv = pack.by_activation(net.conv_bias.repeat(net.width**2))
        self.biases = conv, hidden[pack.row % pack.narrow], last
        self._plain, self._next = [], 0

    def plain(self, values, like, scale: float):
        """Numbers encoded at a ciphertext's level; kept, since each image goes the same way."""
        if self._next == len(self._plain):
            self._plain.append(plain := sealapi.Plaintext())
            self.encoder.encode(values.tolist(), like.parms_id(), scale, plain)
            if plain.is_zero():  # SEAL refuses such a product ("transparent"): a unit of the scale
                ones = np.full(len(values), 1 / scale)
                self.encoder.encode(ones.tolist(), like.parms_id(), scale, plain)
        self._next += 1
        return self._plain[self._next - 1]

    def rotate(self, cipher, steps: int):
        found = sealapi.Ciphertext(self.context)
        self.evaluator.rotate_vector(cipher, steps, self.galois, found)
        return found

    def sum_of_products(self, ciphers, values, scale: float):
        total = None
        for cipher, numbers in zip(ciphers, values, strict=True):
            product = sealapi.Ciphertext(self.context)
            self.evaluator.multiply_plain(cipher, self.plain(numbers, cipher, scale), product)
            total = self.plus(product, total)
        return total

    def plus(self, cipher, total):
        if total is not None:
            self.evaluator.add_inplace(cipher, total)
        return cipher

    def sum_rotated(self, cipher, first: int, count: int):
        """The sum of `count` (a power of two) rotations by multiples of `first`."""
        for m in range(count.bit_length() - 1):
            self.evaluator.add_inplace(cipher, self.rotate(cipher, first << m))
        return cipher

    def top_prime(self, cipher) -> float:
        return float(self.primes[cipher.coeff_modulus_size() - 1])

    def square_with_bias(self, cipher, bias: np.ndarray):
        self.evaluator.add_plain_inplace(cipher, self.plain(bias, cipher, cipher.scale))
        self.evaluator.square_inplace(cipher)
        self.evaluator.relinearize_inplace(cipher, self.relin)
        self.evaluator.rescale_to_next_inplace(cipher)
        return cipher

    def evaluate(self, parts: list) -> bytes:
        """A request's ciphertexts, to the answer's bytes."""
        pack, run, self._next = self.packing, self.evaluator, 0
        if not isinstance(parts, list) or len(parts) != pack.num_ciphertexts:
            raise MessageError(f"the taps of this kernel are {pack.num_ciphertexts} ciphertexts")
        parameters = self.form.parameters
        taps = [seal.fresh(self.files, self.context, part, parameters) for part in parts]
        x = self.sum_of_products(taps, self.taps, self.top_prime(taps[0]))
        mirrored = sealapi.Ciphertext(self.context)
        run.complex_conjugate(x, self.galois, mirrored)
        run.add_inplace(x, mirrored)
        run.rescale_to_next_inplace(x)
        self.sum_rotated(x, 1, pack.sharing)
        x = self.square_with_bias(x, self.biases[0])
        turned = [self.rotate(x, pack.copies * b) for b in range(pack.baby)]
        hidden, top = None, self.top_prime(x)
        for q, values in enumerate(self.diagonals):
            part = self.sum_of_products(turned, values, top)
            hidden = self.plus(self.rotate(part, pack.copies * pack.baby * q), hidden)
        run.rescale_to_next_inplace(hidden)
        self.sum_rotated(hidden, pack.sharing, pack.copies // pack.sharing)
        self.sum_rotated(hidden, pack.copies * pack.narrow, pack.blocks)
        hidden = self.square_with_bias(hidden, self.biases[1])
        scale = self.form.answer_scale * self.top_prime(hidden) / hidden.scale
        found = None
        for g, values in enumerate(self.last):
            part = self.sum_of_products([hidden], [values], scale)
            found = self.plus(self.rotate(part, -g), found)
        self.sum_rotated(found, pack.copies, pack.narrow)  # before rescaling: tenfold less noise
        run.rescale_to_next_inplace(found)
        run.add_plain_inplace(found, self.plain(self.biases[2], found, found.scale))
        return self.files.save(found)
