"""The checks of defenses/encrypted_inference: right on the solution, a sentence on each mistake."""

import math

import pytest

from vplib.defenses.encrypted_inference import exercises as ex

CASES = [
    (ex.check_square, ex.solve_square, "right"),
    (ex.check_square, lambda a, b, p: None, None),
    (ex.check_square, lambda a, b, p: (a * a % p, b * b % p), "three coefficients"),
    (ex.check_square, lambda a, b, p: (a * a, 2 * a * b, b * b), "take each coefficient mod p"),
    (ex.check_square, lambda a, b, p: (a * a % p, a * b % p, b * b % p), "counts twice"),
    (ex.check_square, lambda a, b, p: (a * a % p, 0, b * b % p), "is missing"),
    (ex.check_square, lambda a, b, p: (1, 2, 3), "multiply out"),
    (ex.check_square, lambda a, b, p: (1,), "return 3 values, not numbers of shape (1,)"),
    (ex.check_bits, ex.solve_bits, "right"),
    (ex.check_bits, lambda *a: None, None),
    (ex.check_bits, lambda i, c, f, g, m: ex.solve_bits(i, c, f, g, m) - 1, "sign needs a bit"),
    (
        ex.check_bits,
        lambda i, c, f, g, m: ex.solve_bits(i, c, f, g, 1) + m,
        "take the logarithm",
    ),
    (ex.check_bits, lambda i, c, f, g, m: i + c + f + g + math.log2(m) + 1, "a square doubles"),
    (ex.check_bits, lambda i, c, f, g, m: 2 * (i + c) + f + g + math.log2(m) + 1, "two squares"),
    (ex.check_bits, lambda *a: 0, "follow the scale"),
    (ex.check_merge, ex.solve_merge, "right"),
    (ex.check_merge, lambda a, b, c: None, None),
    (ex.check_merge, lambda a, b, c: (a, b / 2, c), "root of a"),
    (
        ex.check_merge,
        lambda a, b, c: (math.sqrt(a), b / (2 * math.sqrt(a)), c),
        "must take back",
    ),
    (ex.check_merge, lambda a, b, c: (0, 0, 0), "complete the square"),
]


@pytest.mark.parametrize(("check", "attempt", "wanted"), CASES)
def test_checks(check, attempt, wanted):
    said = check(attempt)
    assert said is None if wanted is None else wanted in said
