"""A binary network as a circuit of boolean gates, evaluated gate by gate, and counted.

Under TFHE every gate of two encrypted bits takes the same time, whatever its table; NOT is free,
and so is a gate with a bit that the server knows. Bits here are arrays of truth values, one an
image, so that a circuit answers a whole test set exactly.
"""

import itertools

import numpy as np


class Circuit:
    """Counts the gates of two encrypted bits that pass through it, and the longest chain of them.

    A bit is True or False where the server knows it, else a pair: its values, (N,), and the number
    of gates before it. Numbers are lists of bits, least bit first.
    """

    def __init__(self):
        self.gates, self.depth = 0, 0

    def _gate(self, values: np.ndarray, a, b):
        depth = 1 + max(a[1], b[1])
        self.gates, self.depth = self.gates + 1, max(self.depth, depth)
        return values, depth

    def flip(self, a):
        """NOT: free."""
        return not a if isinstance(a, bool) else (~a[0], a[1])

    def xor(self, a, b):
        """One gate, or none with a known bit."""
        if isinstance(a, bool):
            a, b = b, a
        if isinstance(b, bool):
            return self.flip(a) if b else a
        return self._gate(a[0] ^ b[0], a, b)

    def both(self, a, b):
        """AND: one gate, or none with a known bit."""
        if isinstance(a, bool):
            a, b = b, a
        if isinstance(b, bool):
            return a if b else False
        return self._gate(a[0] & b[0], a, b)

    def either(self, a, b):
        """OR: one gate, or none with a known bit."""
        return self.flip(self.both(self.flip(a), self.flip(b)))

    def add(self, a: list, b: list) -> list:
        """The sum of two numbers: a ripple-carry adder, five gates a bit."""
        total, carry = [], False
        for x, y in itertools.zip_longest(a, b, fillvalue=False):
            half = self.xor(x, y)
            total.append(self.xor(half, carry))
            carry = self.either(self.both(x, y), self.both(half, carry))
        return [*total, carry]

    def count_tree(self, bits: list) -> list:
        """How many bits are set: numbers are added in pairs until one is left (reduce tree)."""
        numbers = [[bit] for bit in bits] or [[False]]
        while len(numbers) > 1:
            odd = numbers[-1:] if len(numbers) % 2 else []
            pairs = zip(numbers[::2], numbers[1::2], strict=False)
            numbers = [self.add(a, b) for a, b in pairs] + odd
        return numbers[0]

    def count_chain(self, bits: list) -> list:
        """How many bits are set: one after the other is added to a running sum."""
        total = [False]
        for i, bit in enumerate(bits, 1):
            total = self.add(total, [bit])[: i.bit_length()]
        return total

    def at_least(self, a: list, b: list):
        """Whether a >= b: the carry of a - b; one gate a bit where b is known.

        Source:
            Sanyal et al., TAPAS, ICML 2018, algorithm 1, for a known b.
        """
        result = True
        for x, y in itertools.zip_longest(a, b, fillvalue=False):
            y = self.flip(y)
            result = self.either(self.both(x, y), self.both(self.either(x, y), result))
        return result


def binary_layer(
    circuit: Circuit,
    bits: list,
    weights: np.ndarray,
    thresholds: np.ndarray,
    sparse: bool,
    tree: bool,
) -> list:
    """Neurons of weights -1 and 1 on bits that stand for -1 and 1.

    Args:
        circuit: counts the gates.
        bits: the inputs.
        weights: (neurons, inputs) of -1 and 1, known to the server.
        thresholds: (neurons,) whole numbers.
        sparse: the "+1 trick": with w = 2 v - 1, v in {0, 1}, w . x is twice the sum over the
            inputs with v = 1, minus the sum over all, which is computed once for all neurons.
        tree: add in a tree; else one after another.

    Returns:
        One bit a neuron: whether w . x >= threshold.

    Source:
        Sanyal et al., TAPAS, ICML 2018.
    """
    count, n = circuit.count_tree if tree else circuit.count_chain, len(bits)
    everything, found = count(bits) if sparse else None, []
    for row, threshold in zip(weights, thresholds, strict=True):
        if sparse:  # w . x = 4 S - 2 A - 2 |plus| + n, with S and A the bits set in plus and in all
            plus = np.flatnonzero(row > 0)
            need = -(-(int(threshold) + 2 * len(plus) - n) // 2)
            twice, offset = [False, *count([bits[i] for i in plus])], _known(abs(need))
            left = twice if need >= 0 else circuit.add(twice, offset)
            right = everything if need <= 0 else circuit.add(everything, offset)
            found.append(circuit.at_least(left, right))
        else:  # w . x = 2 * agreements - n
            agree = [b if w > 0 else circuit.flip(b) for b, w in zip(bits, row, strict=True)]
            least = max(0, -(-(n + int(threshold)) // 2))
            found.append(circuit.at_least(count(agree), _known(least)))
    return found


def _known(value: int) -> list[bool]:
    return [bool(value >> i & 1) for i in range(value.bit_length())]
