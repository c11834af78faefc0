"""Answers that are poisoned for whoever trains on them, as functions of the answers."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from vplib.victims.endpoint import keep_label

TINY = 1e-9  # probabilities are kept so far from 0 and 1 before a logarithm
MOST_CLASSES = 12  # of which all subsets are tried


def reverse_sigmoid(probabilities: Tensor, beta: float, gamma: float) -> Tensor:
    """Answers whose small probabilities stand in reverse order: the less likely, the larger.

    Args:
        probabilities: (..., classes).
        beta: how much is added and taken, 0 or more.
        gamma: how steep, above 0.

    Returns:
        (..., classes) probabilities of the same label.

    Raises:
        ValueError: beta or gamma is out of range.

    Source:
        Lee et al., Defending against neural network model stealing attacks using deceptive
        perturbations, DLS 2019, equations 3 and 4. Negative values are cut, and the label is kept
        where a large beta would turn it over.
    """
    if not (beta >= 0 and gamma > 0):
        raise ValueError(f"beta must be 0 or more and gamma above 0, not {beta} and {gamma}")
    y = probabilities.double().clamp(TINY, 1 - TINY)
    moved = (y - beta * ((gamma * torch.logit(y)).sigmoid() - 0.5)).clamp_min(0)
    kept = keep_label(moved.to(probabilities.dtype), probabilities)
    return keep_label(kept / kept.sum(-1, keepdim=True), probabilities)


def mad(probabilities: Tensor, proxy: Tensor, budget: float, keep: bool = False) -> Tensor:
    """Answers that turn the gradient of whoever trains on them as far as a budget allows.

    Args:
        probabilities: (N, classes) of the model.
        proxy: (N, classes) answers of the stand-in for a clone: an untrained network of ours.
        budget: the largest L1 distance of an answer from the model's, from 0 to 2.
        keep: keep the label (the paper's MAD-argmax).

    Returns:
        (N, classes) probabilities.

    Raises:
        ValueError: the budget is out of range, shapes differ, or the label is to be kept among
            more than `MOST_CLASSES` classes.

    Source:
        Orekondy et al., Prediction poisoning, ICLR 2020, equations 4 to 9: the best extreme point
        of the simplex, and as far towards it as the budget allows. As in the authors' code, the
        gradient is that of the last layer's weights: (answer - proxy) times the layer's input, so
        that the angle between two gradients is that between two such differences.
    """
    classes = probabilities.shape[-1]
    if not 0 <= budget <= 2:
        raise ValueError(f"an L1 budget between answers lies in 0..2, not {budget}")
    if probabilities.ndim != 2 or proxy.shape != probabilities.shape:
        raise ValueError(f"not (N, classes) each: {probabilities.shape} and {proxy.shape}")
    if keep and classes > MOST_CLASSES:
        raise ValueError(f"{classes} classes have too many subsets; at most {MOST_CLASSES} do")
    label = probabilities.argmax(-1)
    extremes = torch.eye(classes)
    if keep:  # all of them where no class is above the label: equal parts for it and some others
        extremes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=classes)))[1:]
        extremes = extremes / extremes.sum(-1, keepdim=True)
    extremes = extremes.to(probabilities)
    found = []
    for y, p, c in zip(*(t.split(512) for t in (probabilities, proxy, label)), strict=True):
        angle = F.cosine_similarity(extremes - p[:, None], (y - p)[:, None], dim=-1)
        if keep:
            angle = angle.masked_fill(extremes[:, c].T == 0, torch.inf)
        goal = extremes[angle.argmin(-1)]
        far = (goal - y).abs().sum(-1, keepdim=True).clamp_min(TINY)
        found.append(y + (budget / far).clamp_max(1) * (goal - y))
    poisoned = torch.cat(found) if found else probabilities
    return keep_label(poisoned, probabilities) if keep else poisoned


def undo_mad(answers: Tensor, budget: float) -> Tensor:
    """The probabilities that `mad` poisoned, from its budget alone: no proxy, no query.

    The one class that was moved towards holds at least half of the budget now. Of the classes that
    do it is the one with the least, for what is above it is the model's own label.

    Args:
        answers: (N, classes) of `mad` without `keep`.
        budget: the one it was called with.
    """
    could = answers >= budget / 2 - 1e-6
    index = answers.masked_fill(~could, torch.inf).argmin(-1, keepdim=True)
    before = (answers.gather(-1, index) - budget / 2).clamp_min(0)
    left = 1 - (budget / 2 / (1 - before).clamp_min(TINY)).clamp_max(1)
    found = (answers / left.clamp_min(TINY)).scatter(-1, index, before)
    return found / found.sum(-1, keepdim=True).clamp_min(TINY)


def equal_noise(probabilities: Tensor, poisoned: Tensor, seed: int = 0) -> Tensor:
    """Noise as large as a poison, answer by answer, in a direction drawn by lot; the label kept.

    Args:
        probabilities: (..., classes) of the model.
        poisoned: (..., classes) of which the L1 distance is taken over, as far as the point that
            is drawn is away: one of the simplex, uniform among those of the same label.
        seed: decides the points.
    """
    drawn = torch.rand(probabilities.shape, generator=torch.Generator().manual_seed(seed))
    goal = -drawn.clamp_min(TINY).log().to(probabilities)
    goal = goal / goal.sum(-1, keepdim=True)
    label, top = probabilities.argmax(-1, keepdim=True), goal.argmax(-1, keepdim=True)
    swapped = goal.scatter(-1, top, goal.gather(-1, label))
    goal = swapped.scatter(-1, label, goal.gather(-1, top))
    size = (poisoned - probabilities).abs().sum(-1, keepdim=True)
    far = (goal - probabilities).abs().sum(-1, keepdim=True).clamp_min(TINY)
    noisy = probabilities + (size / far).clamp_max(1) * (goal - probabilities)
    return keep_label(noisy, probabilities)


def misinform(probabilities: Tensor, wrong: Tensor, tau: float, nu: float = 1000.0) -> Tensor:
    """The model's answers where it is sure, a misinforming model's where it is not.

    Args:
        probabilities: (..., classes) of the model.
        wrong: (..., classes) of a model trained to be wrong.
        tau: how sure it must be of its label.
        nu: steepness of the change-over.

    Source:
        Kariyappa and Qureshi, Defending against model stealing attacks with adaptive
        misinformation, CVPR 2020, equations 5 and 6.
    """
    alpha = (nu * (tau - probabilities.amax(-1, keepdim=True))).sigmoid()
    return (1 - alpha) * probabilities + alpha * wrong
