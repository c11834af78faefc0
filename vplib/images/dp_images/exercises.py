"""Exercises of images/dp_images: reference solutions, and checks that name mistakes."""

import math

import torch
import torch.nn.functional as F

from vplib.exercises import judge
from vplib.images.dp_images.mechanisms import laplace


def solve_release(images, epsilon, rng, cell, pixels):
    """DP-Pix: noisy means of cells, clipped, as a mosaic."""
    means = F.avg_pool2d(images, cell)
    scale = images.shape[1] * pixels / (cell**2 * epsilon)
    noisy = (means + laplace(means, scale, rng)).clamp(0, 1)
    return noisy.repeat_interleave(cell, 2).repeat_interleave(cell, 3)


def check_release(attempt) -> str | None:
    """Checks shape, means, and the scale of the noise on gray photos of three channels."""
    flat, cell, pixels, scale = torch.full((300, 3, 8, 8), 0.5), 4, 2, 0.01
    epsilon = 3 * pixels / (cell**2 * scale)
    made = attempt(flat, epsilon, torch.Generator().manual_seed(0), cell, pixels)
    if made is None or not isinstance(made, torch.Tensor) or made.shape != flat.shape:
        return judge(made, flat, "", {}, "a mosaic of the photo's own size")
    cells = F.avg_pool2d(made, cell).repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    if (made - cells).abs().max() > 1e-5:
        return "each cell has one value: add the noise to the means, then repeat them"
    ratio = (made - 0.5).abs().mean().item() / scale
    dark = attempt(0 * flat, 0.01, torch.Generator().manual_seed(0), cell, pixels)
    if dark.min() < 0 or dark.max() > 1:
        return "a photo lies in [0, 1]: clip after the noise"
    mistakes = {
        "the channels count: a pixel changes in all three, and epsilon is for all": 1 / 3,
        "neighbors differ in `pixels` pixels, not in one": 1 / pixels,
        "there is no noise": 0.0,
        "one pixel moves a mean by 1 / cell^2, not by 1 / cell": lambda r: abs(r / cell - 1) < 0.1,
    }
    why = "sensitivity channels x pixels / cell^2, divided by epsilon; clipping costs nothing"
    hint = "the scale of the noise is channels x pixels / (cell^2 x epsilon)"
    said = judge(ratio, 1.0, why, mistakes, hint, tolerance=0.08)
    photo = torch.arange(3 * 64.0).view(1, 3, 8, 8) / 192
    fine = [f(photo, 1e6, torch.Generator(), cell, pixels) for f in (attempt, solve_release)]
    if said.startswith("right: ") and (fine[0] - fine[1]).abs().max() > 1e-3:
        return "with hardly any noise it must be the mosaic: the mean of each cell and channel"
    return said


def solve_whole_face(height, width, channels, pixels, epsilon):
    """So many groups of pixels differ at once, in so many channels."""
    return channels * epsilon * math.ceil(height * width / pixels)


def check_whole_face(attempt) -> str | None:
    """Checks a photo whose pixels are no multiple of the group."""
    right = solve_whole_face(9, 11, 3, 16, 0.5)
    mistakes = {
        "count the channels: each is released with epsilon": right / 3,
        "a part of a group counts as a group: round up": 3 * 0.5 * 99 / 16,
        "round up, not down: the last pixels are no gift": 3 * 0.5 * 6,
    }
    why = "seven groups of sixteen pixels, three channels, one half each"
    hint = "groups = pixels of the photo / pixels that one epsilon hides, rounded up"
    return judge(attempt(9, 11, 3, 16, 0.5), right, why, mistakes, hint)


def solve_code_scale(low, high, epsilon):
    """The L1 sensitivity of a clipped code, the sum of its ranges, over epsilon."""
    return ((high - low).sum() / epsilon).item()


def check_code_scale(attempt) -> str | None:
    """Checks ranges of different lengths."""
    low, high = torch.tensor([-1.0, 0.0, -2.0]), torch.tensor([1.0, 4.0, 3.0])
    right = solve_code_scale(low, high, 2.0)
    mistakes = {
        "with the largest range alone, epsilon holds for one number: the numbers add up": 2.5,
        "a code can move from one end to the other: high - low": 4.0,
        "that is the L2 sensitivity; Laplace noise needs L1": math.sqrt(45) / 2,
        "divide by epsilon": 11.0,
    }
    why = "(2 + 4 + 5) / 2: all numbers may move at once, each through its range"
    hint = "L1 sensitivity, the sum of high - low, divided by epsilon"
    return judge(attempt(low, high, 2.0), right, why, mistakes, hint)


def solve_evidence(released, first, second, scale):
    """The log of how much likelier the second code is than the first."""
    return ((released - first).abs() - (released - second).abs()).sum(-1) / scale


def check_evidence(attempt) -> str | None:
    """Checks the evidence of three releases for two codes of two numbers."""
    released = torch.tensor([[0.0, 0.0], [5.0, 5.0], [-1.0, 2.0]])
    first, second = torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 2.0])
    right = solve_evidence(released, first, second, 2.0)
    squares = ((released - first).square() - (released - second).square()).sum(-1)
    mistakes = {
        "the sign: positive for the second code": -right,
        "divide by the scale": 2 * right,
        "logarithms of independent numbers add up: sum, not mean": right / 2,
        "that is Gaussian noise: Laplace noise has absolute distances": squares / 2,
    }
    why = "no release can give more than the L1 distance of the codes / scale: that is epsilon"
    hint = "log density of Laplace noise: -|released - code| / scale; second minus first, summed"
    return judge(attempt(released, first, second, 2.0), right, why, mistakes, hint)
