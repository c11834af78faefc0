"""Exercises of attacks/membership_label_only: each mistake is named."""

import pytest
import torch

from vplib.attacks.membership_label_only import exercises as ex
from vplib.victims import endpoint as api


def counts_calls(predict_label, budget):
    left = [budget]

    def ask(images):
        left[0] -= 1
        if left[0] < 0:
            raise api.BudgetSpent
        return predict_label(images)

    return ask


def answers_first(predict_label, budget):
    spent = [0]

    def ask(images):
        found = predict_label(images)
        if spent[0] + len(images) > budget:
            raise api.BudgetSpent
        spent[0] += len(images)
        return found

    return ask


def charges_refusals(predict_label, budget):
    spent = [0]

    def ask(images):
        spent[0] += len(images)
        if spent[0] > budget:
            raise api.BudgetSpent
        return predict_label(images)

    return ask


def inner_end(predict_label, image, start, label, num_steps):
    low, high = 0.0, 1.0
    for _ in range(num_steps):
        middle = (low + high) / 2
        inside = predict_label((image + middle * (start - image))[None])[0] == label
        low, high = (middle, high) if inside else (low, middle)
    return image + low * (start - image)


def walks(predict_label, image, start, label, num_steps):
    for share in torch.linspace(0, 1, num_steps):
        point = image + share * (start - image)
        if predict_label(point[None])[0] != label:
            return point


def thorough(predict_label, image, start, label, num_steps):
    return ex.solve_bisect(predict_label, image, start, label, num_steps + 5)


def direction(weigh):
    def attempt(left, directions):
        found = (weigh(left)[:, None] * directions).sum(0)
        return found / found.norm()

    return attempt


def unequal(left, directions):
    sign = 2.0 * left - 1
    return ((sign - sign.mean())[:, None] * directions).sum(0)


@pytest.mark.parametrize(
    ("check", "attempt", "said"),
    [
        (ex.check_with_budget, lambda p, b: p, "each image is a query"),
        (ex.check_with_budget, counts_calls, "did you count calls"),
        (ex.check_with_budget, answers_first, "check before you ask"),
        (ex.check_with_budget, charges_refusals, "a refused request costs nothing"),
        (ex.check_with_budget, lambda p, b: lambda x: p(x)[:1], "answer as the victim does"),
        (ex.check_bisect, inner_end, "still has the record's label"),
        (ex.check_bisect, walks, "too far out"),
        (ex.check_bisect, thorough, "ten queries were allowed"),
        (ex.check_bisect, lambda p, i, s, y, n: s, "too far out"),
        (ex.check_direction, direction(lambda left: 1 - 2.0 * left + (2.0 * left - 1).mean()),
         "wrong way round"),
        (ex.check_direction, direction(lambda left: 2.0 * left - 1), "subtract the mean"),
        (ex.check_direction, direction(lambda left: 1.0 * left), "count with minus one"),
        (ex.check_direction, direction(lambda left: 2.0 * left - 1 - (2.0 * left - 1).mean()),
         "drop it then"),
        (ex.check_direction, unequal, "scale it to length one"),
        (ex.check_direction, lambda left, d: torch.tensor([1.0, -1.0]), "sum the directions"),
    ],
)  # fmt: skip
def test_mistakes_are_named(check, attempt, said):
    assert said in check(attempt)
