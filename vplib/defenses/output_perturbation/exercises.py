"""Exercises of defenses/output_perturbation: reference solutions, checks that name mistakes."""

import torch

from vplib.exercises import judge


def solve_chance(before, after, distortion, budget):
    """The largest chance within the budget, where the noise leads nearer to one half."""
    nearer = (after - 0.5).abs() < (before - 0.5).abs()
    return torch.where(nearer, (budget / distortion).clamp(max=1), 0.0)


def check_chance(attempt) -> str | None:
    """Checks five answers: budgets that suffice and do not, noise that leads the wrong way."""
    before, after = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.9], [0.5, 0.5, 0.5, 0.9, 0.2]])
    distortion, budget = torch.tensor([0.1, 0.4, 0.8, 0.4, 0.4]), 0.2
    mistakes = {
        "a chance is at most 1, also where the budget is the larger": [2, 0.5, 0.25, 0, 0.5],
        "no noise where the classifier is no nearer to one half after it": [1, 0.5, 0.25, 0.5, 0.5],
        "compare distances from one half, on either side of it": [1, 0.5, 0.25, 0, 0],
    }
    mistakes = {said: torch.tensor(chances) for said, chances in mistakes.items()}
    right, why = torch.tensor([1, 0.5, 0.25, 0, 0.5]), "budget over distortion, at most 1"
    hint = "chance times distortion is the expected distortion: solve for the chance"
    return judge(attempt(before, after, distortion, budget), right, why, mistakes, hint)


def solve_aware(mask, answers, members, train):
    """A classifier that learns from shadows behind a copy of the mask."""
    return train(mask(answers).flatten(0, 1), members.flatten())


def check_aware(attempt) -> str | None:
    """Checks what the classifier was given, by one that returns it."""
    answers, members = torch.rand(3, 4, 2), torch.arange(12).view(3, 4) % 2 == 0
    given = attempt(lambda a: a / 2, answers, members, lambda *seen: list(seen))
    said = "it learned from open answers: the victim's will be masked, so mask the shadows' alike"
    mistakes = {said: [answers.flatten(0, 1), members.flatten()]}
    right, why = [answers.flatten(0, 1) / 2, members.flatten()], "masked answers, true members"
    return judge(given, right, why, mistakes, "return train(...) of (M, classes) and (M,)")


def solve_nats(mean, log_variance):
    """The KL divergence of each code from a standard normal."""
    return (mean**2 + log_variance.exp() - log_variance - 1).sum(-1) / 2


def check_nats(attempt) -> str | None:
    """Checks two codes of three numbers."""
    mean, logs = torch.tensor([[0.0, 1, 2], [1, 0, 0]]), torch.tensor([[0.0, 0, 1], [-1, 0, 0]])
    right = solve_nats(mean, logs)
    mistakes = {
        "the formula has a factor of one half": 2 * right,
        "divergences of independent numbers add up: sum over the code, no mean": right / 3,
    }
    why = "nothing where the code is a standard normal, more the surer it is"
    return judge(attempt(mean, logs), right, why, mistakes, "(mean^2 + var - log var - 1) / 2")
