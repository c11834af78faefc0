"""Exercises of attacks/membership_label_only: reference solutions, checks that name mistakes."""

import torch
import torch.nn.functional as F

from vplib.exercises import judge
from vplib.victims import endpoint


def solve_with_budget(predict_label, budget):
    """The library's endpoint: it counts under a lock before it asks, or refuses."""
    return endpoint.Endpoint(predict_label, answers="labels", budget=budget)


def check_with_budget(attempt) -> str | None:
    """Asks about 5, 5, 3, 2 and 1 images of a budget of seven."""
    asked, answered = [], []

    def predict_label(images):
        asked.append(len(images))
        return torch.zeros(len(images), dtype=torch.int64)

    ask = attempt(predict_label, 7)
    if not callable(ask):
        return None if ask is None else "return a function from images to labels"
    for number in (5, 5, 3, 2, 1):
        try:
            answered.append(len(ask(torch.zeros(number, 1, 2, 2))))
        except endpoint.BudgetSpent:
            answered.append(0)
    mistakes = {
        "each image is a query: 5 and 5 exceed 7 (did you count calls?)": [5, 5, 3, 2, 1, 16],
        "check before you ask the victim: those answers were already paid for": [5, 0, 0, 2, 0, 16],
        "a refused request costs nothing, and 5 and 2 are within 7": [5, 0, 0, 0, 0, 5],
    }
    why = "exact, and nothing is answered over budget"
    hint = "within the budget, answer as the victim does"
    return judge([*answered, sum(asked)], [5, 0, 0, 2, 0, 7], why, mistakes, hint)


def solve_bisect(predict_label, image, start, label, num_steps):
    """The point on the line from image to start that is nearest to the image and outside."""
    low, high = 0.0, 1.0
    for _ in range(num_steps):
        middle = (low + high) / 2
        inside = predict_label(torch.lerp(image, start, middle)[None])[0] == label
        low, high = (middle, high) if inside else (low, middle)
    return torch.lerp(image, start, high)


def check_bisect(attempt) -> str | None:
    """Looks for a boundary at 30 % of the way, with ten queries."""
    asked = []

    def predict_label(images):
        asked.append(len(images))
        return (images.flatten(1).mean(1) > 0.38).long()

    line = torch.full((1, 2, 2), 0.2), torch.full((1, 2, 2), 0.8)
    point, allowed = attempt(predict_label, *line, 0, 10), sum(asked) <= 10
    mistakes = {
        "ten queries were allowed": lambda p: not allowed,
        "your point still has the record's label: return the outer end": lambda p: p.mean() <= 0.38,
    }
    why, hint = "near to the boundary, on the far side", "too far out; halve the interval each time"
    return judge(point, solve_bisect(predict_label, *line, 0, 10), why, mistakes, hint)


def solve_direction(left, directions):
    """The Monte Carlo estimate of the normal of the boundary, with its baseline."""
    sign = 2.0 * left - 1
    if sign.mean().abs() < 1:
        sign = sign - sign.mean()
    return F.normalize(sign @ directions, dim=0)


def check_direction(attempt) -> str | None:
    """Checks the estimate on five directions: three of them leave the label, then all do."""
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0], [0.8, -0.6]])
    left, everywhere = torch.tensor([True, True, True, False, False]), torch.ones(5).bool()
    right = solve_direction(left, directions)
    signs, part = (F.normalize(w @ directions, dim=0) for w in (2.0 * left - 1, 1.0 * left))
    mistakes = {
        "the wrong way round: go where the label is left": -right,
        "subtract the mean of the signs: without it the estimate is noisier": signs,
        "the directions that keep the label tell something too: they count with minus one": part,
        "scale it to length one": lambda found: F.cosine_similarity(found, right, 0) > 0.9999,
    }
    why = "and where all directions leave, their mean is the best guess"
    hint = "sum the directions, weighted with +1 where the label is left, -1 else, minus the mean"
    said = judge(attempt(left, directions), right, why, mistakes, hint)
    if said and said.startswith("right"):
        hint = "nearly: when all answers are equal the baseline leaves nothing; drop it then"
        right = solve_direction(everywhere, directions)
        return judge(attempt(everywhere, directions), right, why, {}, hint)
    return said
