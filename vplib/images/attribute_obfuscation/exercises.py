"""Exercises of images/attribute_obfuscation: reference solutions, and checks that name mistakes."""

import math

import torch

from vplib.exercises import judge
from vplib.images.attribute_obfuscation import stages


def solve_target(ones, number, share, t):
    """The nearest number of photos with the attribute that is t-close to the public share."""
    return stages.within_t(ones, number, share, t)


def check_target(attempt) -> str | None:
    """Checks albums of ten photos, too many, too few and enough of which have the attribute."""
    albums = [(10, 10, 0.4, 0.12), (0, 10, 0.4, 0.12), (4, 10, 0.4, 0.12)]
    found = [attempt(*album) for album in albums]
    mistakes = {
        "that is the public share itself: change as few photos as t asks for": [4, 4, 4],
        "round inwards, or the share is farther off than t": lambda f: (
            f[0] is not None and f[0] > 5 or f[1] is not None and f[1] < 3
        ),
        "an album that is close enough stays as it is": lambda f: f[2] is not None and f[2] != 4,
        "return how many photos, not a share": [0.52, 0.28, 0.4],
    }
    hint = "the largest and the smallest number allowed, then the one nearest to `ones`"
    why = "5, 3 and 4: the end of the interval where `ones` lies outside, else `ones`"
    return judge(found, [5, 3, 4], why, mistakes, hint)


def solve_bits(probability):
    """The entropy of a yes or no, in bits."""
    p = probability
    return -(p * p.log2() + (1 - p) * (1 - p).log2()).nan_to_num(0)


def check_bits(attempt) -> str | None:
    """Checks certain, even and in-between probabilities."""
    p = torch.tensor([0.5, 0.9, 0.1])
    right = solve_bits(p)
    mistakes = {
        "that is in nats: divide by log 2, or take log2": right * math.log(2),
        "both answers count: add the term of 1 - p": -(p * p.log2()),
        "entropy is not negative": -right,
    }
    return judge(attempt(p), right, "1 bit where it is even", mistakes, "-p log2 p for yes and no")


def solve_transport(x, here, there):
    """From one Gaussian to another, in one dimension; each is (mean, standard deviation)."""
    return there[0] + (x - here[0]) * there[1] / here[1]


def check_transport(attempt) -> str | None:
    """Checks three numbers."""
    x, here, there = torch.tensor([1.0, 2.0, 5.0]), (2.0, 1.0), (-1.0, 3.0)
    right = solve_transport(x, here, there)
    mistakes = {
        "the spread must change as well, not only the mean": x - here[0] + there[0],
        "you divide the wrong way round": there[0] + (x - here[0]) * here[1] / there[1],
        "subtract the mean first, add the other one last": x * there[1] / here[1],
    }
    why = "as many standard deviations from the new mean as it was from the old one"
    hint = "how many standard deviations from the mean; then as many from the other mean"
    return judge(attempt(x, here, there), right, why, mistakes, hint)
