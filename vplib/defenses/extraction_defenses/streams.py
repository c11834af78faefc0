"""Attackers whose next queries are made from the last ones: whom PRADA was built to see."""

from collections.abc import Callable

import torch
from torch import Tensor

from vplib import seeding
from vplib.nets import training

Label = Callable[[Tensor], Tensor]


def augment(
    predict_label: Label, build: training.Build, images: Tensor, rounds: int, step: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Doubles the queries again and again, each new one a step from an old one.

    The step goes along the signs of a clone's derivative of the label that the victim gave, the
    clone trained on what was answered so far.

    Args:
        predict_label: the victim, from images to (N,) labels; asked about each query once.
        build: makes the clone.
        images: (N, C, H, W) the first queries.
        rounds: how often they are doubled.
        step: size, in each pixel.
        seed: of the clone's initialization and order.

    Returns:
        (N * 2 ** rounds, C, H, W) all queries in order, and (N * 2 ** rounds,) their labels.

    Source:
        Papernot et al., Practical black-box attacks against machine learning, AsiaCCS 2017,
        algorithm 1.
    """
    queries, labels = images, predict_label(images)
    clone = seeding.initialized(build, seed).to(images.device)
    for index in range(rounds):
        training.fit(clone, queries, labels, num_epochs=10, lr=0.05, seed=seed + index)
        inputs = queries.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(clone(inputs).gather(1, labels[:, None]).sum(), inputs)
        new = (queries + step * slope.sign()).clamp(0, 1)
        queries, labels = torch.cat([queries, new]), torch.cat([labels, predict_label(new)])
    return queries, labels


def search_lines(predict_label: Label, images: Tensor, *, halvings: int) -> tuple[Tensor, Tensor]:
    """Finds points on the victim's borders: bisects between pairs of images of different labels.

    Args:
        predict_label: the victim, from images to (N,) labels.
        images: (2 * pairs, C, H, W) the ends of the lines, asked about first.
        halvings: of each line; all lines are halved once, then all again.

    Returns:
        All queries in order, (N, C, H, W), and their labels. Pairs of one label are not searched.

    Source:
        Tramèr et al., Stealing machine learning models via prediction APIs, USENIX Security 2016,
        line-search retraining.
    """
    found, labels = [images], [predict_label(images)]
    (low, high, *_), (near, far, *_) = (x.split(len(images) // 2) for x in (images, labels[0]))
    low, high, near = (x[near != far] for x in (low, high, near))
    for _ in range(halvings if len(low) else 0):
        middle = (low + high) / 2
        found.append(middle)
        labels.append(predict_label(middle))
        same = (labels[-1] == near)[:, None, None, None]
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return torch.cat(found), torch.cat(labels)
