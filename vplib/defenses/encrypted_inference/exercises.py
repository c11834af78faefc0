"""Exercises of defenses/encrypted_inference: reference solutions, and checks."""

import math

import numpy as np

from vplib.exercises import judge


def solve_square_layer(weight, bias, c, p):
    """A linear layer and a square, on polynomials in the secret: degrees add up, all mod p."""
    z = weight @ c
    z[0] += bias[:, None]
    z %= p
    found = np.zeros((2 * len(z) - 1, *z.shape[1:]), int)
    for i, left in enumerate(z):
        for j, right in enumerate(z):
            found[i + j] = (found[i + j] + left * right) % p
    return found


def check_square_layer(attempt) -> str | None:
    """Checks the coefficients at two points, on numbers whose products exceed the prime."""
    p, weight, bias = 66011137, np.array([[900, -731], [-512, 64]]), np.array([66011132, 77])
    c = np.random.default_rng(0).integers(0, p, (3, 2, 4))
    everywhere, z = weight @ c + bias[:, None], weight @ c
    z[0] = everywhere[0]

    def square(z, twice=2):
        a, b, c = z
        return np.stack([a**2, twice * a * b, twice * a * c + b**2, twice * b * c, c**2]) % p

    right = solve_square_layer(weight, bias, c, p)
    mistakes = {
        "the bias is a known number, so it goes to the coefficient of 1": square(everywhere % p),
        "the bias is missing": square(weight @ c % p),
        "take sums mod p before you square them: products outgrow 64 bits": square(z),
        "that is the layer; its square is missing": z % p,
        "the square of a polynomial is not that of its coefficients": (z % p) ** 2 % p,
        "a product of two different coefficients counts twice": square(z % p, 1),
        "take each coefficient mod p, or it outgrows the lane": (
            lambda found: np.array_equal(np.mod(found, p), right)
        ),
    }
    why = "no key is needed, and whoever knows s reads the square of the layer's outputs"
    hint = "z = weight @ c, the bias into z[0], all mod p; z[i] z[j] belongs to s^(i + j), mod p"
    return judge(attempt(weight, bias, c.copy(), p), right, why, mistakes, hint)


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
