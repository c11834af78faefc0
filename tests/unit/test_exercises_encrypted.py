"""The checks of defenses/encrypted_inference: right on the solution, a sentence on each mistake."""

import itertools
import math

import numpy as np
import pytest
import torch

from vplib.defenses.encrypted_inference import exercises as ex


def layer(weight, bias, c, p, places=(0,), before=True, after=True, twice=2):
    """The layer with a mistake: the bias elsewhere, or something not taken mod p."""
    z = weight @ c
    for k in places:
        z[k] += bias[:, None]
    z = z % p if before else z
    found = np.zeros((5, *z.shape[1:]), int)
    for i, j in itertools.combinations_with_replacement(range(3), 2):
        found[i + j] += (twice if i < j else 1) * z[i] * z[j]
    return found % p if after else found


def linear(weight, bias, c, p):
    return np.stack([weight @ c[0] + bias[:, None], *(weight @ c[1:])]) % p


def wrong(**mistake):
    return lambda w, b, c, p: layer(w, b, c, p, **mistake)


CASES = [
    (ex.check_square_layer, ex.solve_square_layer, "right"),
    (ex.check_square_layer, wrong(), "right"),
    (ex.check_square_layer, lambda w, b, c, p: torch.from_numpy(layer(w, b, c, p)), "right"),
    (ex.check_square_layer, lambda w, b, c, p: None, None),
    (ex.check_square_layer, wrong(places=(0, 1, 2)), "to the coefficient of 1"),
    (ex.check_square_layer, wrong(places=()), "bias is missing"),
    (ex.check_square_layer, wrong(before=False), "before you square them"),
    (ex.check_square_layer, wrong(after=False), "take each coefficient mod p"),
    (ex.check_square_layer, wrong(twice=1), "counts twice"),
    (ex.check_square_layer, lambda w, b, c, p: layer(w, b, c, p)[:2], "return numbers of shape"),
    (ex.check_square_layer, lambda w, b, c, p: linear(w, b, c, p), "its square is missing"),
    (
        ex.check_square_layer,
        lambda w, b, c, p: linear(w, b, c, p) ** 2 % p,
        "not that of its coefficients",
    ),
    (ex.check_square_layer, lambda w, b, c, p: layer(w, b, c, p) + 1, "z = weight @ c"),
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
