"""Exercises of defenses/membership_training: references, and checks that name mistakes."""

import torch
import torch.nn.functional as F

from vplib.exercises import judge


def solve_coin_risk(accuracy, first, second):
    """The mean AUC of an owner who tosses a coin between two settings."""
    share = (accuracy - first[0]) / (second[0] - first[0])
    return (1 - share) * first[1] + share * second[1]


def check_coin_risk(attempt) -> str | None:
    """Checks the number a quarter of the way from the first setting to the second."""
    found = attempt(0.5, (0.4, 0.52), (0.8, 0.6))
    mistakes = {
        "the other way round: at the first setting's accuracy its own risk must come out": 0.58,
        "that is the middle: the coin is biased, so that the mean accuracy is the asked one": 0.56,
        "this is the share of the second setting: mix the risks with it": 0.25,
    }
    why = "one owner in four publishes the second model, and accuracy and AUC mix alike"
    hint = "find the share of the second setting that gives this accuracy, then mix the risks"
    return judge(found, 0.54, why, mistakes, hint)


def solve_gain(inside, outside):
    """Minus the adversary's binary cross-entropy, one number a network, from logits."""
    return (F.logsigmoid(inside).mean(-1) + F.logsigmoid(-outside).mean(-1)) / 2


def check_gain(attempt) -> str | None:
    """Checks two networks with batches of unequal size, then logits that overflow."""
    draws = torch.Generator().manual_seed(0)
    inside, outside = (3 * torch.randn(2, n, generator=draws) for n in (5, 3))
    value, right = attempt(inside, outside), solve_gain(inside, outside)
    if value is None:
        return None
    found = F.logsigmoid(inside), F.logsigmoid(-outside)
    mistakes = {
        "one number a network: take means over the last axis alone": right.mean(),
        "the sign: an adversary that knows more has the larger gain": -right,
        "each group counts one half, whatever its size": torch.cat(found, -1).mean(-1),
        "half of it: the two means each count one half": 2 * right,
        "the references are to be called 'out': log(1 - h) for them": solve_gain(inside, -outside),
    }
    why = "minus the adversary's cross-entropy: members up, references down"
    hint = "mean of log h over members, of log(1 - h) over references, half of their sum; h is a "
    hint += "sigmoid of the logit"
    said = judge(value, right, why, mistakes, hint)
    sure = torch.full((1, 4), 200.0)
    if said.startswith("right: ") and not torch.isfinite(attempt(-sure, sure)).all():
        return "right on small logits, infinite where the adversary is sure: use F.logsigmoid"
    return said


def solve_surest(probabilities, number):
    """The references with the lowest entropy of each teacher's answer."""
    entropy = torch.special.entr(probabilities).sum(-1)
    return entropy.argsort(dim=-1)[:, :number]


def check_surest(attempt) -> str | None:
    """Checks the rows of two teachers, where the largest probability orders otherwise."""
    answers = torch.tensor(
        [
            [[0.5, 0.5, 0.0], [0.9, 0.1, 0.0], [0.54, 0.23, 0.23], [0.0, 1.0, 0.0]],
            [[0.34, 0.33, 0.33], [0.0, 0.0, 1.0], [0.54, 0.23, 0.23], [0.5, 0.5, 0.0]],
        ]
    )
    right = torch.tensor([[3, 1, 0], [1, 3, 2]])
    mistakes = {
        "the other end: low entropy is wanted": torch.tensor([[2, 0, 1], [0, 2, 3]]),
        "the largest probability orders otherwise: take the entropy": torch.tensor(
            [[3, 1, 2], [1, 2, 3]]
        ),
        "zero times the logarithm of zero counts as zero: torch.special.entr": lambda rows: (
            rows[0, 0] != 3
        ),
        "each teacher chooses for itself: sort along the last axis": lambda rows: rows[0].equal(
            rows[1]
        ),
    }
    why = "those about which the teacher is surest"
    hint = "the entropy of each answer, sorted for each teacher, the first `number` rows"
    return judge(attempt(answers, 3), right, why, mistakes, hint)
