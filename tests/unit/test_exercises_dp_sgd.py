"""Exercises of defenses/dp_sgd: each mistake that the checks name is told apart."""

import math

import pytest
import torch

from vplib.defenses.dp_sgd import exercises as ex


def batch_clipped(g, c, s, z):
    total = g.sum(0)
    return total * min(1.0, c / total.norm().item()) + s * c * z


def stretched(g, c, s, z):
    return torch.nan_to_num(g * c / g.norm(dim=1)[:, None]).sum(0) + s * c * z


def noise_each(g, c, s, z):
    return ex.solve_private_sum(g, c, 0, z) + len(g) * s * c * z


WRONG = [
    ("private_sum", batch_clipped, "not each example's"),
    ("private_sum", lambda g, c, s, z: ex.solve_private_sum(g, c, s, z) / len(g), "is the mean"),
    ("private_sum", lambda g, c, s, z: g.clamp(-c, c).sum(0) + s * c * z, "each coordinate"),
    ("private_sum", lambda g, c, s, z: (g * c / g.norm(dim=1)[:, None]).sum(0), "norm zero"),
    ("private_sum", stretched, "stay as they are"),
    ("private_sum", lambda g, c, s, z: ex.solve_private_sum(g, c, 0, z), "noise is missing"),
    ("private_sum", lambda g, c, s, z: ex.solve_private_sum(g, c, s / c, z), "a multiple of"),
    ("private_sum", noise_each, "not for each example"),
    ("private_sum", lambda g, c, s, z: g, "sum the rows"),
    ("private_sum", lambda g, c, s, z: g.sum(0), "scale each row"),
    ("noise_of_mean", lambda s, c, b: s * c, "noise on the sum"),
    ("noise_of_mean", lambda s, c, b: s / b, "multiple of the clip norm"),
    ("noise_of_mean", lambda s, c, b: s * c / b**0.5, "one noise vector"),
    ("noise_of_mean", lambda s, c, b: 0.1, "has standard deviation sigma * clip"),
    ("highest_tpr", lambda f, e, d: math.exp(e) * f + d, "a rate is at most 1"),
    ("highest_tpr", lambda f, e, d: min(math.exp(e) * f + d, 1), "to the complement"),
    ("highest_tpr", lambda f, e, d: math.exp(e) * f, "delta is missing"),
    ("highest_tpr", lambda f, e, d: e * f + d, "not epsilon"),
    ("highest_tpr", lambda f, e, d: f, "and its complement"),
]


@pytest.mark.parametrize(("name", "attempt", "said"), WRONG)
def test_a_mistake_is_named(name, attempt, said):
    assert said in getattr(ex, f"check_{name}")(attempt)
