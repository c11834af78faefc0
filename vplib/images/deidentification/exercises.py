"""Exercises of images/deidentification: reference solutions, and checks that name mistakes."""

import torch
import torch.nn.functional as F

from vplib.exercises import judge
from vplib.images.deidentification.swapping import Step


def solve_loss(step):
    """Rebuild, be read right, stay near the normal prior, and leave the adversary guessing."""
    rebuilt = (step.rebuilt - step.photos).square().sum(1).mean()
    variance = step.log_variance.exp()
    prior = 0.5 * (step.mean.square() + variance - step.log_variance - 1).sum(1).mean()
    read = F.cross_entropy(step.read, step.truth)
    return 4 * rebuilt + read + 0.02 * prior - 30 * step.guesses.mean()


def check_loss(attempt) -> str | None:
    """Checks the loss of a small batch."""
    draws = torch.Generator().manual_seed(0)
    parts = [torch.rand(n, generator=draws) for n in ((3, 5), (3, 5), (3, 2), (3, 2), (3, 4))]
    parts[4] = (3 * parts[4]).log_softmax(1)
    step = Step(*parts, torch.rand(3, 3, generator=draws), torch.tensor([0, 2, 1]))
    right = solve_loss(step)
    prior = (right - solve_loss(step._replace(mean=0 * step.mean, log_variance=0 * step.mean))) / 1
    mistakes = {
        "the sign of the adversary's term: its guesses must become even, so that the mean log "
        "probability rises": right + 60 * step.guesses.mean(),
        "the adversary's term is missing": right + 30 * step.guesses.mean(),
        "the prior's term is missing": right - prior,
        "the utility's term is missing": right - F.cross_entropy(step.read, step.truth),
        "leave no name the likelier one: take the mean over all names, not the largest": right
        + 30 * step.guesses.mean()
        - 30 * step.guesses.amax(1).mean(),
    }
    hint = (
        "4 x rebuilding + cross-entropy of the reading + 0.02 x prior - 30 x mean log probability"
    )
    why = "rebuilt, read right, near the prior, and nobody the likelier guess"
    return judge(attempt(step), right, why, mistakes, hint)


def solve_unlock(levels, stream):
    """The hidden bits: the lowest ones, deciphered."""
    return (levels & 1) ^ stream


def check_unlock(attempt) -> str | None:
    """Checks six levels and a stream of six bits."""
    levels, stream = torch.tensor([254, 255, 3, 2, 7, 8]), torch.tensor([0, 1, 0, 1, 1, 0])
    mistakes = {
        "these bits are still enciphered: combine them with the stream": levels & 1,
        "exclusive or, not and: a bit is flipped where the stream has a 1": levels & 1 & stream,
        "exclusive or, not or: a bit is flipped where the stream has a 1": levels & 1 | stream,
        "take the lowest bit first, then the exclusive or": levels ^ stream,
    }
    hint = "the lowest bit of each level, flipped where the stream has a 1"
    right = solve_unlock(levels, stream)
    return judge(attempt(levels, stream), right, "0, 0, 1, 1, 0, 0", mistakes, hint)


def solve_latent_blur(codes, width):
    """Codes whose later numbers are damped by a Gaussian."""
    place = torch.arange(codes.shape[1])
    return codes * torch.exp(-0.5 * (place / width) ** 2)


def check_latent_blur(attempt) -> str | None:
    """Checks a width of two on codes of five numbers."""
    codes = torch.arange(10.0).view(2, 5) + 1
    place = torch.arange(5)
    right = solve_latent_blur(codes, 2)
    mistakes = {
        "multiply the codes with the gain": torch.exp(-0.5 * (place / 2) ** 2).expand(2, 5),
        "the gain falls with the place: mind the sign": codes * torch.exp(0.5 * (place / 2) ** 2),
        "square the place over the width": codes * torch.exp(-0.5 * place / 2),
        "half of the square: a Gaussian has a 2 below": codes * torch.exp(-((place / 2) ** 2)),
        "a gain that falls, not a cut": codes * (place < 2),
    }
    hint = "multiply number k by exp(-k^2 / (2 width^2)), k from 0"
    return judge(attempt(codes, 2), right, "the first numbers stay, the last go", mistakes, hint)
