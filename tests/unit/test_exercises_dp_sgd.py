"""Exercises of defenses/dp_sgd: each mistake that the checks name is told apart."""

import math

import pytest
import torch

from vplib.defenses.dp_sgd import exercises as ex


def batch_clipped(g, c):
    total = g.sum(0)
    return total * min(1.0, c / total.norm().item())


def unguarded(g, c):
    return (g * c / g.norm(dim=1, keepdim=True)).sum(0)


WRONG = [
    ("clipped_sum", batch_clipped, "not each example's"),
    ("clipped_sum", lambda g, c: ex.solve_clipped_sum(g, c) / len(g), "that is the mean"),
    ("clipped_sum", lambda g, c: g.clamp(-c, c).sum(0), "clipped each coordinate"),
    ("clipped_sum", unguarded, "norm zero"),
    ("clipped_sum", lambda g, c: torch.nan_to_num(g * c / g.norm(dim=1)[:, None]).sum(0), "short"),
    ("clipped_sum", lambda g, c: g, "one sum for the batch"),
    ("clipped_sum", lambda g, c: g.sum(0), "scale each row"),
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
