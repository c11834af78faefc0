"""The parameters of the face renderer, fitted to photos: first guessed, then refined."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vplib.datasets import faces

Params = dict[str, Tensor]
RATE, STAY = 0.05, 1e-4  # of Adam, and the penalty on leaving the guess, in standard deviations


class Space(NamedTuple):
    """Parameters of public photos as a matrix, and how to guess them.

    Args:
        shapes: by ("identity" or "photo", name), how many numbers it has; 0 for a plain column.
        mean: (P,) means of all parameters.
        std: (P,) standard deviations.
        low: (P,) the least values.
        high: (P,) the largest values.
        fixed: (P,) which ones have two values: whether glasses are there, say.
        guess: from (N, C, H, W) photos to (N, P) parameters.
    """

    shapes: dict[tuple[str, str], int]
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    fixed: Tensor
    guess: Callable[[Tensor], Tensor]


def fit_space(images: Tensor, identity: Params, photo: Params, eyes: Callable) -> Space:
    """What the renderer's parameters are like, and a ridge regression that guesses them.

    Args:
        images: (N, 3, H, W) public photos that were rendered.
        identity: from which parameters, as `faces.identity_params` gives them.
        photo: as `faces.nuisance_params` gives them.
        eyes: from photos to (N, dim) features.
    """
    both = {("identity", k): v for k, v in identity.items()}
    both |= {("photo", k): v for k, v in photo.items()}
    shapes = {k: 0 if v.ndim == 1 else v.shape[1] for k, v in both.items()}
    table = torch.cat([v.view(len(images), -1) for v in both.values()], 1)
    mean, std = table.mean(0), table.std(0) + 1e-6
    fixed = torch.tensor([len(column.unique()) <= 2 for column in table.T])

    def seen(x):
        return torch.cat([eyes(x), torch.ones(len(x), 1)], 1)

    given = seen(images)
    penalty = 0.005 * len(images) * torch.eye(given.shape[1])
    weights = torch.linalg.solve(given.T @ given + penalty, given.T @ ((table - mean) / std))
    low, high = table.amin(0), table.amax(0)

    def guess(x):
        found = (seen(x) @ weights * std + mean).clamp(low, high)
        return torch.where(fixed, (found > 0.5).float(), found)

    return Space(shapes, mean, std, low, high, fixed, guess)


def named(space: Space, table: Tensor) -> tuple[Params, Params]:
    """Identity and photo parameters by name, of (N, P) ones; photos get no noise."""
    found, at = {"identity": {}, "photo": {}}, 0
    for (kind, name), size in space.shapes.items():
        columns = table[:, at : at + max(size, 1)]
        found[kind][name] = columns if size else columns[:, 0]
        at += max(size, 1)
    found["photo"]["noise"] = torch.zeros(len(table))
    return found["identity"], found["photo"]


def fit(space: Space, images: Tensor, *, steps: int = 20) -> Tensor:
    """(N, P) parameters with which the renderer draws the photos, nearly.

    From the guess, gradient descent on the mean squared error of the pixels; what has two values
    stays as it was guessed.

    Args:
        space: of the parameters.
        images: (N, 3, H, W) photos, the size at which the renderer draws.
        steps: of Adam, for all photos at once; 0 is the guess.
    """
    start = space.guess(images)
    began = (start - space.mean) / space.std
    moved = began.clone().requires_grad_()
    stepper = torch.optim.Adam([moved], RATE)
    for _ in range(steps):
        drawn = faces.render(*named(space, _bounded(space, moved, start)), images.shape[-1]).images
        error = (drawn - images).square().mean() + STAY * (moved - began).square().mean()
        stepper.zero_grad()
        error.backward()
        moved.grad.nan_to_num_(0)
        stepper.step()
    return _bounded(space, moved.detach(), start)


def _bounded(space, moved, start):
    table = (moved * space.std + space.mean).clamp(space.low, space.high)
    return torch.where(space.fixed, start, table)
