"""Exercises of defenses/membership_training: each mistake is named."""

import pytest
import torch
import torch.nn.functional as F

from vplib.defenses.membership_training import exercises as ex


def from_probabilities(inside, outside):
    said_in, said_out = inside.sigmoid().log().mean(-1), (1 - outside.sigmoid()).log().mean(-1)
    return (said_in + said_out) / 2


def by_top(probabilities, number):
    return probabilities.amax(-1).argsort(dim=-1, descending=True)[:, :number]


def with_nan(probabilities, number):
    entropy = -(probabilities * probabilities.log()).sum(-1)
    return entropy.argsort(dim=-1)[:, :number]


def of_first(probabilities, number):
    return ex.solve_surest(probabilities[:1], number).expand(len(probabilities), -1)


@pytest.mark.parametrize(
    ("check", "attempt", "said"),
    [
        (ex.check_coin_risk, ex.solve_coin_risk, "right: "),
        (ex.check_coin_risk, lambda a, f, s: ex.solve_coin_risk(a, (f[0], s[1]), (s[0], f[1])),
         "the other way round"),
        (ex.check_coin_risk, lambda a, f, s: (f[1] + s[1]) / 2, "that is the middle"),
        (ex.check_coin_risk, lambda a, f, s: (a - f[0]) / (s[0] - f[0]), "the share of the second"),
        (ex.check_coin_risk, lambda a, f, s: 0.0, "find the share"),
        (ex.check_gain, ex.solve_gain, "right: "),
        (ex.check_gain, from_probabilities, "infinite where the adversary is sure"),
        (ex.check_gain, lambda i, o: -ex.solve_gain(i, o), "the sign"),
        (ex.check_gain, lambda i, o: 2 * ex.solve_gain(i, o), "half of it"),
        (ex.check_gain, lambda i, o: ex.solve_gain(i, o).mean(), "one number a network"),
        (ex.check_gain, lambda i, o: ex.solve_gain(i, -o), "are to be called 'out'"),
        (ex.check_gain, lambda i, o: torch.cat([F.logsigmoid(i), F.logsigmoid(-o)], -1).mean(-1),
         "whatever its size"),
        (ex.check_gain, lambda i, o: i.mean(-1), "mean of log h over members"),
        (ex.check_surest, ex.solve_surest, "right: "),
        (ex.check_surest, lambda p, n: ex.solve_surest(p, 4).flip(-1)[:, :n], "the other end"),
        (ex.check_surest, by_top, "the largest probability orders otherwise"),
        (ex.check_surest, of_first, "each teacher chooses for itself"),
        (ex.check_surest, with_nan, "zero times the logarithm of zero"),
        (ex.check_surest, lambda p, n: ex.solve_surest(p, n)[:, :1], "numbers of shape (2, 3)"),
    ],
)  # fmt: skip
def test_each_answer_gets_its_sentence(check, attempt, said):
    found = check(attempt)
    assert said in found
    assert found.startswith("right: ") == (said == "right: ")


@pytest.mark.parametrize("check", [ex.check_coin_risk, ex.check_gain, ex.check_surest])
def test_a_stub_is_not_attempted(check):
    assert check(lambda *given: None) is None
