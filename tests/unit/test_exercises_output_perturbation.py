"""Exercises of defenses/output_perturbation: each mistake is named."""

import pytest
import torch

from vplib.defenses.output_perturbation import exercises as ex


def test_solutions_are_right():
    for name in ("chance", "aware", "nats"):
        solution, check = getattr(ex, f"solve_{name}"), getattr(ex, f"check_{name}")
        assert check(solution).startswith("right: "), name
        assert check(lambda *_: None) is None, name


def nearer(before, after):
    return (after - 0.5).abs() < (before - 0.5).abs()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda b, a, d, e: torch.where(nearer(b, a), e / d, 0.0), "at most 1"),
        (lambda b, a, d, e: (e / d).clamp(max=1), "no nearer to one half"),
        (
            lambda b, a, d, e: torch.where(nearer(b, a) & (a >= 0.5), (e / d).clamp(max=1), 0.0),
            "on either side",
        ),
        (lambda b, a, d, e: torch.where(nearer(b, a), (d / e).clamp(max=1), 0.0), "solve for"),
    ],
)
def test_wrong_chances_are_named(wrong, said):
    assert said in ex.check_chance(wrong)


def test_learning_from_open_answers_is_named():
    found = ex.check_aware(lambda mask, a, m, train: train(a.flatten(0, 1), m.flatten()))
    assert "mask the shadows' alike" in found
    found = ex.check_aware(lambda mask, a, m, train: train(mask(a), m))
    assert "return train" in found


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda m, v: (m**2 + v.exp() - v - 1).sum(-1), "one half"),
        (lambda m, v: (m**2 + v.exp() - v - 1).mean(-1) / 2, "add up"),
        (lambda m, v: (m**2 + v.exp() + v - 1).sum(-1) / 2, "mean^2"),
    ],
)
def test_wrong_divergences_are_named(wrong, said):
    assert said in ex.check_nats(wrong)
