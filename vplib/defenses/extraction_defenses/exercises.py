"""Exercises of defenses/extraction_defenses: reference solutions, and checks."""

import numpy as np
import torch

from vplib.defenses.extraction_defenses.prada import normality
from vplib.exercises import judge


def solve_alarm(distances, delta):
    """Whether a user's (N,) distances raise an alarm."""
    return normality(distances) < delta


def check_alarm(attempt) -> str | None:
    """Checks lists of distances: too few, a bell, even ones, with outliers, of two values."""
    bell = 9 + np.sqrt(2) * torch.erfinv(torch.linspace(-0.99, 0.99, 150).double()).numpy()
    two = np.arange(150) % 2 + 1.0
    cases = [two[:100], bell, np.linspace(1, 9, 400), np.append(bell, [90, 80]), two]
    cases.insert(4, np.append(bell, [0.0, 0.1, 0.2]))
    mistakes = {
        "up to 100 distances are not tested": lambda said: said[0],
        "compare W, the statistic, not the p-value": lambda said: said[2],
        "outliers first: 3 deviations away, on both sides": lambda said: said[3] or said[4],
    }
    why = "two values are no bell; a few strange distances do not make a stream strange"
    hint = "True or False for each user: W of what is left without outliers, below delta"
    right = [solve_alarm(case, 0.9) for case in cases]
    return judge([attempt(case.copy(), 0.9) for case in cases], right, why, mistakes, hint)


def solve_growing_distances(queries, labels):
    """The distance of each query to the nearest of its class's growing set, firsts left out."""
    sets, entered, thresholds, distances = {}, {}, {}, []
    for query, label in zip(queries, labels, strict=True):
        c = int(label)
        if c not in sets:
            sets[c], entered[c], thresholds[c] = [query], [0.0], 0.0
            continue
        nearest = min(float((query - other).norm()) for other in sets[c])
        distances.append(nearest)
        if nearest > thresholds[c]:
            sets[c].append(query)
            entered[c].append(nearest)
            thresholds[c] = max(thresholds[c], float(np.mean(entered[c]) - np.std(entered[c])))
    return torch.tensor(distances)


def check_growing_distances(attempt) -> str | None:
    """Checks the distances on points of a line, of two classes, that tell the rules apart."""
    points = [0.0, 10.0, 4.0, 5.0, 5.4, 100.0, 104.0, 107.0, 5.5]
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 0])
    queries = torch.tensor(points)[:, None] * torch.tensor([[0.6, 0.8]])
    every = [min(abs(p - q) for q in points[:i]) for i, p in enumerate(points) if i]
    mistakes = {
        "each class has a set of its own, which its first query only starts": torch.tensor(every),
        "a query that is too near does not enter": torch.tensor([10, 4, 1, 0.4, 4, 3, 0.1]),
    }
    why = "near ones do not enter, so a set does not fill up with copies"
    hint = "the distance to the nearest of the set; enter only above mean less standard deviation"
    right = solve_growing_distances(queries, labels)
    return judge(attempt(queries.clone(), labels.clone()), right, why, mistakes, hint)


def solve_undo(answer, budget):
    """The answer before MAD moved it, for a budget of 1 or more."""
    index = int(answer.argmax())
    before = answer[index] - budget / 2
    found = answer / (1 - budget / 2 / (1 - before))
    found[index] = before
    return found


def check_undo(attempt) -> str | None:
    """Moves an answer half of the way to a class, and wants it back."""
    y, budget = torch.tensor([0.7, 0.05, 0.2, 0.05]), 1.0
    goal = torch.tensor([0.0, 0.0, 0.0, 1.0])
    moved = y + budget / (goal - y).abs().sum() * (goal - y)
    scaled = moved - budget / 2 * goal
    mistakes = {
        "scale the other classes back, too: they lost a part of each": scaled,
    }
    why = "one number, the budget, is all of the secret"
    hint = "the largest entry is 1/2 budget too large; alpha follows from what it was before"
    return judge(attempt(moved.clone(), budget), y, why, mistakes, hint)
