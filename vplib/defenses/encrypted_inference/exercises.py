"""Exercises of defenses/encrypted_inference: reference solutions, and checks."""

import math

from vplib.exercises import judge


def solve_square(c0, c1, p):
    """(c0 + c1 s)^2, coefficient by coefficient: no key is needed, the degree in s doubles."""
    return c0 * c0 % p, 2 * c0 * c1 % p, c1 * c1 % p


def check_square(attempt) -> str | None:
    """Checks the three residues, on numbers whose products exceed the prime."""
    p, c0, c1 = 66011137, 51234567, 60000001
    right, product = solve_square(c0, c1, p), c0 * c1 % p
    three = "a square of c0 + c1 s has three coefficients: those of 1, s and s^2"
    large = "take each coefficient mod p, or it outgrows the lane"
    missing = "a square of a sum is not the sum of squares: the coefficient of s is missing"
    twice = "the middle coefficient counts twice: c0 c1 s and c1 s c0"
    mistakes = {
        three: (c0 * c0 % p, c1 * c1 % p),
        large: lambda found: tuple(int(v) % p for v in found) == right,
        twice: lambda found: int(found[1]) % p == product,
        missing: lambda found: int(found[1]) % p == 0,
    }
    why = "whoever knows s reads the square of the message"
    hint = "multiply out (c0 + c1 s)(c0 + c1 s) to three coefficients, and take each mod p"
    return judge(attempt(c0, c1, p), right, why, mistakes, hint)


def solve_bits(input_bits, conv_bits, fc1_bits, fc2_bits, largest):
    """Bits of the result: squares double what came before them, and one bit is the sign."""
    return 4 * (input_bits + conv_bits) + 2 * fc1_bits + fc2_bits + math.log2(largest) + 1


def check_bits(attempt) -> str | None:
    """Checks the budget on numbers that tell the usual mistakes apart."""
    given = 20, 10, 12, 9, 64.0
    right = solve_bits(*given)
    unlogged = "take the logarithm of the largest logit: a factor of 64 costs 6 bits"
    one_square = "there are two squares: the second doubles what the first one doubled"
    mistakes = {
        "the sign needs a bit too: results lie between -q/2 and q/2": right - 1,
        unlogged: lambda value: float(value) in (right - 6, right - 6 + 64),
        "a square doubles the bits of its input's scale; there are two": sum(given[:4]) + 7,
        one_square: 2 * (20 + 10) + 12 + 9 + 7,
    }
    why = "two squares, so what enters first counts four times"
    hint = "follow the scale: (2^input * 2^conv)^2, times 2^fc1, squared, times 2^fc2"
    return judge(attempt(*given), right, why, mistakes, hint)


def solve_merge(a, b, c):
    """(scale, shift, rest) with a z^2 + b z + c = (scale z + shift)^2 + rest, for a > 0."""
    scale = math.sqrt(a)
    shift = b / (2 * scale)
    return scale, shift, c - shift**2


def check_merge(attempt) -> str | None:
    """Checks the completed squares by multiplying them out."""
    polynomials = [(4.0, 2.0, 1.0), (0.25, -0.5, 0.0), (2.0, 3.0, -1.0)]
    found = [attempt(*polynomial) for polynomial in polynomials]
    if None in found:
        return None
    found = [(scale**2, 2 * scale * shift, shift**2 + rest) for scale, shift, rest in found]
    unrested = "scale and shift are right; the rest must take back the square of the shift"
    mistakes = {
        "the scale is squared too: it is the root of a": lambda found: found[0][0] == 4.0**2,
        unrested: lambda found: math.isclose(found[0][0], 4) and math.isclose(found[0][1], 2),
    }
    why = "scale and shift go into the layer before, the rest into the bias after"
    hint = "complete the square: a z^2 + b z = (scale z + b / (2 scale))^2 - ..., at all z"
    return judge(found, polynomials, why, mistakes, hint, tolerance=1e-9)
