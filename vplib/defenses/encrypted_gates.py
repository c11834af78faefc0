"""A binary network as a circuit of boolean gates, evaluated gate by gate, and counted.

Under TFHE every gate of two encrypted bits takes the same time, whatever its table; NOT is free,
and so is a gate with a bit that the server knows. Bits here are arrays of truth values, one an
image, so that a circuit answers a whole test set exactly.
"""

import numpy as np


class Circuit:
    """Counts the gates of two encrypted bits that pass through it, and the longest chain of them.

    A bit is a pair: its values, (N,), and the depth at which it is known.
    """

    def __init__(self):
        self.gates, self.depth = 0, 0

    def _gate(self, values: np.ndarray, *inputs):
        depth = 1 + max(bit[1] for bit in inputs)
        self.gates, self.depth = self.gates + 1, max(self.depth, depth)
        return values, depth

    def xor(self, a, b):
        """One gate."""
        return self._gate(a[0] ^ b[0], a, b)

    def both(self, a, b):
        """One gate: AND."""
        return self._gate(a[0] & b[0], a, b)

    def either(self, a, b):
        """One gate: OR."""
        return self._gate(a[0] | b[0], a, b)

    def add(self, a: list, b: list) -> list:
        """The sum of two numbers, least bit first: a ripple-carry adder of five gates a bit."""
        if len(a) < len(b):
            a, b = b, a
        total, carry = [], None
        for i, bit in enumerate(a):
            if i < len(b):
                half = self.xor(bit, b[i])
                both = self.both(bit, b[i])
                if carry is None:
                    total, carry = [*total, half], both
                    continue
                total.append(self.xor(half, carry))
                carry = self.either(both, self.both(half, carry))
            else:
                total.append(self.xor(bit, carry))
                carry = self.both(bit, carry)
        return [*total, carry]

    def count_tree(self, bits: list) -> list:
        """How many bits are set: pairs of numbers are added until one is left (reduce tree)."""
        numbers = [[bit] for bit in bits]
        while len(numbers) > 1:
            pairs = zip(numbers[::2], numbers[1::2], strict=False)
            odd = numbers[-1:] if len(numbers) % 2 else []
            numbers = [self.add(a, b) for a, b in pairs] + odd
        return numbers[0]

    def count_chain(self, bits: list) -> list:
        """How many bits are set: one after the other is added to a running sum."""
        total = [bits[0]]
        for i, bit in enumerate(bits[1:], 2):
            total = self.add(total, [bit])[: i.bit_length()]
        return total

    def at_least(self, number: list, threshold: int):
        """Whether an encrypted number is at least a known one: a gate a bit.

        Source:
            Sanyal et al., TAPAS, ICML 2018, algorithm 1, whose MUX with a known bit is one gate.
        """
        result = None  # nothing decided: equal so far, which counts as reached
        for i, bit in enumerate(number):
            if threshold >> i & 1:
                result = bit if result is None else self.both(bit, result)
            elif result is not None:
                result = self.either(bit, result)
        true = np.ones_like(number[0][0])
        if threshold >= 1 << len(number):
            return ~true, 0
        return (true, 0) if result is None else result

    def at_least_number(self, a: list, b: list):
        """Whether one encrypted number is at least another: the carry of a - b."""
        result = None
        width = max(len(a), len(b))
        zero = np.zeros_like(a[0][0]), 0
        for i in range(width):
            x, y = (n[i] if i < len(n) else zero for n in (a, b))
            opposite = ~y[0], y[1]
            if result is None:
                result = self.either(x, opposite)
            else:
                differ, mine = self.xor(x, opposite), self.both(x, opposite)
                result = self.either(mine, self.both(differ, result))
        return result


def binary_layer(
    circuit: Circuit, bits: list, weights: np.ndarray, thresholds: np.ndarray, sparse: bool = True,
    tree: bool = True,
) -> list:  # fmt: skip
    """Neurons of weights -1 and 1 on bits that stand for -1 and 1: sign(w . x - threshold).

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
        Sanyal et al., TAPAS, ICML 2018, section 4.
    """
    count = circuit.count_tree if tree else circuit.count_chain
    everything, found = count(bits) if sparse else None, []
    for row, threshold in zip(weights, thresholds, strict=True):
        plus = np.flatnonzero(row > 0)
        if not sparse:
            agree = [b if w > 0 else (~b[0], b[1]) for b, w in zip(bits, row, strict=True)]
            # w . x = 2 * agreements - n >= t
            least = max(0, -(-(len(bits) + int(threshold)) // 2))
            found.append(circuit.at_least(count(agree), least))
            continue
        # with x = 2 b - 1: w . x = 4 S - 2 A - 2 |plus| + n, S and A the sums of b over plus and all
        need = -(-(int(threshold) + 2 * len(plus) - len(bits)) // 2)  # 2 S - A >= need
        double = [(np.zeros_like(bits[0][0]), 0), *count([bits[i] for i in plus])]
        left, right = double, everything
        offset = _known(abs(need), left[0][0]) if need else []
        if need > 0:
            right = _add_known(circuit, right, offset)
        elif need < 0:
            left = _add_known(circuit, left, offset)
        found.append(circuit.at_least_number(left, right))
    return found


def _known(value: int, like: np.ndarray) -> list[bool]:
    return [bool(value >> i & 1) for i in range(value.bit_length())]


def _add_known(circuit: Circuit, number: list, known: list[bool]) -> list:
    """A number plus one that the server knows: two gates a bit at most."""
    width = max(len(number), len(known)) + 1
    zero, carry, total = (np.zeros_like(number[0][0]), 0), None, []
    for i in range(width):
        bit = number[i] if i < len(number) else zero
        one = i < len(known) and known[i]
        if carry is None:
            total.append((~bit[0], bit[1]) if one else bit)
            carry = bit if one else None
        else:
            total.append(circuit.xor((~bit[0], bit[1]) if one else bit, carry))
            carry = circuit.either(bit, carry) if one else circuit.both(bit, carry)
    return total
