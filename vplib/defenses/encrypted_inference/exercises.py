"""Exercises of defenses/encrypted_inference: reference solutions, and checks."""

import math


def solve_square(c0, c1, p):
    """(c0 + c1 s)^2, coefficient by coefficient: no key is needed, the degree in s doubles."""
    return c0 * c0 % p, 2 * c0 * c1 % p, c1 * c1 % p


def check_square(attempt) -> str | None:
    """Checks the three residues, on numbers whose products exceed the prime."""
    p, c0, c1, s = 66011137, 51234567, 60000001, 12345
    found = attempt(c0, c1, p)
    if found is None:
        return None
    found = [int(v) for v in found]
    if len(found) == 2:
        return "a square of c0 + c1 s has three coefficients: those of 1, s and s^2"
    if len(found) != 3:
        return f"give three residues, not {len(found)}"
    if tuple(found) == solve_square(c0, c1, p):
        right = sum(v * s**i for i, v in enumerate(found)) % p == (c0 + c1 * s) ** 2 % p
        return "right: whoever knows s reads the square of the message" if right else None
    if tuple(v % p for v in found) == solve_square(c0, c1, p):
        return "nearly, up to the reduction: take each coefficient mod p, or it outgrows the lane"
    if found[1] % p == c0 * c1 % p:
        return "the middle coefficient counts twice: c0 c1 s and c1 s c0"
    if found[1] % p == 0:
        return "a square of a sum is not the sum of squares: the coefficient of s is missing"
    return "multiply out (c0 + c1 s)(c0 + c1 s), and take each coefficient mod p"


def solve_bits(input_bits, conv_bits, fc1_bits, fc2_bits, largest):
    """Bits of the result: squares double what came before them, and one bit is the sign."""
    return 4 * (input_bits + conv_bits) + 2 * fc1_bits + fc2_bits + math.log2(largest) + 1


def check_bits(attempt) -> str | None:
    """Checks the budget on numbers that tell the usual mistakes apart."""
    given = 20, 10, 12, 9, 64.0
    value = attempt(*given)
    if value is None:
        return None
    near = lambda other: abs(float(value) - other) < 1e-6  # noqa: E731
    right = solve_bits(*given)
    if near(right):
        return "right: two squares, so what enters first counts four times"
    if near(right - 1):
        return "the sign needs a bit too: results lie between -q/2 and q/2"
    if near(right - 6) or near(right - 6 + 64):
        return "take the logarithm of the largest logit: a factor of 64 costs 6 bits"
    if near(sum(given[:4]) + 7):
        return "a square doubles the bits of its input's scale; there are two of them"
    if near(2 * (20 + 10) + 12 + 9 + 7):
        return "there are two squares: the second doubles what the first one doubled"
    return "follow the scale: (2^input * 2^conv)^2, times 2^fc1, squared, times 2^fc2"


def solve_merge(a, b, c):
    """(scale, shift, rest) with a z^2 + b z + c = (scale z + shift)^2 + rest, for a > 0."""
    scale = math.sqrt(a)
    shift = b / (2 * scale)
    return scale, shift, c - shift**2


def check_merge(attempt) -> str | None:
    """Checks the completed square at several points."""
    for a, b, c in ((4.0, 2.0, 1.0), (0.25, -0.5, 0.0), (2.0, 3.0, -1.0)):
        found = attempt(a, b, c)
        if found is None:
            return None
        scale, shift, rest = (float(v) for v in found)
        miss = [(scale * z + shift) ** 2 + rest - (a * z * z + b * z + c) for z in (-1.0, 0.0, 2.0)]
        if max(map(abs, miss)) > 1e-9:
            if abs(scale - a) < 1e-9:
                return "the scale is squared too: it is the root of a"
            if max(miss) - min(miss) < 1e-9:
                return "scale and shift are right; the rest must take back the square of the shift"
            return "complete the square: a z^2 + b z = (scale z + b / (2 scale))^2 - ..., at all z"
    return "right: scale and shift go into the layer before, the rest into the bias after"
