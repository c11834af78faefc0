"""Exercises of images/obfuscation: reference solutions, and checks that name mistakes."""

import torch

from vplib.exercises import judge


def solve_mosaic(images, number):
    """Each of number x number cells takes its mean."""
    size = images.shape[-1] // number
    means = images.unflatten(-1, (number, size)).unflatten(-3, (number, size)).mean((-3, -1))
    return means.repeat_interleave(size, -1).repeat_interleave(size, -2)


def check_mosaic(attempt) -> str | None:
    """Checks a mosaic of 2x2 cells."""
    images = torch.arange(32.0).view(1, 2, 4, 4) / 32
    right = solve_mosaic(images, 2)
    mistakes = {
        "each channel has its own mean": right.mean(1, keepdim=True).expand_as(right),
        "that is one pixel of each cell: take the mean of all": images[..., ::2, ::2]
        .repeat_interleave(2, -1)
        .repeat_interleave(2, -2),
        "keep the size of the photo: repeat each mean over its cell": right[..., ::2, ::2],
        "`number` is how many cells stand side by side, not their size": solve_mosaic(images, 1),
    }
    hint = "average over each cell, then repeat the mean over its rows and columns"
    return judge(attempt(images, 2), right, "a mean a cell and channel", mistakes, hint)


def solve_rate(named, truth):
    """The mean over people of each one's share of photos with the right name."""
    shares = [(named[truth == who] == who).double().mean() for who in truth.unique()]
    return torch.stack(shares).mean().item()


def check_rate(attempt) -> str | None:
    """Checks the rate of people with unequally many photos."""
    truth, named = torch.tensor([0, 0, 0, 0, 1, 4]), torch.tensor([0, 0, 0, 1, 0, 4])
    mistakes = {
        "that is the share of photos: a person with many photos must not count for more": 4 / 6,
        "there are three people here, not five: names may be missing": 1.75 / 5,
        "you divide by how often a name was said, not by how often it is true": 7 / 16 + 1 / 3,
    }
    why = "3/4, 0 and 1, on average 7/12"
    hint = "for each person in `truth`, the share of their photos named right; then the mean"
    return judge(attempt(named, truth), 7 / 12, why, mistakes, hint)


def solve_update(scores, alike, beliefs):
    """Each person's own score, and what the others' beliefs say of those who look alike."""
    return (scores + alike @ beliefs).softmax(1)


def check_update(attempt) -> str | None:
    """Checks one step on three people, two of whom look alike."""
    scores = torch.tensor([[2.0, 0.0], [0.5, 0.6], [0.0, 1.0]])
    alike = torch.tensor([[0.0, 3.0, -8.0], [3.0, 0.0, 0.0], [-8.0, 0.0, 0.0]])
    beliefs = scores.softmax(1)
    mistakes = {
        "you left the scores out: each photo also speaks for itself": (alike @ beliefs).softmax(1),
        "you left the others out": beliefs,
        "normalize over the names (dim 1), not over the photos": (scores + alike @ beliefs).softmax(
            0
        ),
        "these are not probabilities yet: take the softmax over names": scores + alike @ beliefs,
        "scores are logarithms: add to them, and take the softmax once": beliefs + alike @ beliefs,
        "weigh with the beliefs, not with the scores": (scores + alike @ scores).softmax(1),
    }
    why = "alike photos pull each other to one name, two people on a photo push each other apart"
    hint = "softmax over names of: own scores + sum over the others of alike x belief"
    return judge(
        attempt(scores, alike, beliefs), solve_update(scores, alike, beliefs), why, mistakes, hint
    )


def solve_gain(kept, penalty):
    """What a component of the photo is multiplied with, of which the blur has kept this much."""
    return kept / (kept.square() + penalty)


def check_gain(attempt) -> str | None:
    """Checks the gain where much, little and nothing is kept."""
    kept = torch.tensor([1.0, 0.1, 0.0])
    mistakes = {
        "dividing by what is kept blows the rounding up, and divides by zero": lambda g: bool(
            (g[0] - 1).abs() < 1e-6
        ),
        "the penalty stands beside the square": kept / (kept + 0.01),
        "multiply by what is kept once: this is the share that comes back": kept.square()
        / (kept.square() + 0.01),
    }
    why = "1/kept where much is left, nothing where the blur left nothing"
    hint = "minimize (kept x - y)^2 + penalty x^2 for one component and divide by y"
    right = solve_gain(kept, 0.01)
    return judge(attempt(kept, 0.01), right, why, mistakes, hint)
