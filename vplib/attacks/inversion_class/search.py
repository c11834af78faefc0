"""Inversion of a class: an image of it from a classifier alone, by descent on its confidence.

Experiments attack K victims at once. White-box attackers hold the victims (`training.Ensemble`);
black-box ones hold `predict`, from images (N, C, H, W) in [0, 1] to probabilities (N, classes), of
one victim, and nothing else. What they descend from, and generators, are their own.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vplib import experiment, threads
from vplib.datasets.imageset import check_range
from vplib.nets import stacked, training

Predict = Callable[[Tensor], Tensor]
CHUNK = 8  # images at a time by finite differences, each with hundreds of queries a step


class Inversion(NamedTuple):
    """What an attack found, and how it got there.

    Args:
        images: (..., C, H, W) in [0, 1].
        confidences: (...) the victim's probability of the wanted class.
        trace: (T, ..., C, H, W) the images after some of the steps, the start first.
    """

    images: Tensor
    confidences: Tensor
    trace: Tensor


def white_box(victims: training.Ensemble) -> Callable[[Tensor], Tensor]:
    """The victims as one differentiable function, each with images of its own.

    Args:
        victims: K models of an architecture that can be stacked.

    Returns:
        From (K, N, C, H, W) images to (K, N, classes) logits.

    Raises:
        ValueError: the models cannot be stacked.
    """
    forward = stacked.forward_of(victims.build())
    if forward is None:
        raise ValueError("victims with buffers, dropout or batch norm cannot be batched")
    return lambda images: forward(victims.state, images)


def invert_class(
    victims: training.Ensemble,
    targets: Tensor,
    start: Tensor,
    *,
    num_steps: int,
    lr: float,
    logarithm: bool = True,
    trace_at: tuple[int, ...] = (),
) -> Inversion:
    """Images that the victims are sure about, by gradient descent on the pixels: white box.

    Args:
        victims: K models, white box.
        targets: (N,) the class wanted in each image.
        start: (N, C, H, W) images to descend from.
        num_steps: of descent.
        lr: step length.
        logarithm: descend on -log f instead of the paper's 1 - f. Both have one minimum; the
            slope of 1 - f vanishes where f is near zero, which is where descent starts.
        trace_at: after which steps to keep the images.

    Returns:
        K x N inversions.

    Raises:
        ValueError: shapes, targets or settings cannot be.

    Source:
        Fredrikson et al., Model inversion attacks that exploit confidence information, CCS 2015.
        Theirs is reported to stop early on a plateau; here all images take all steps, as one batch.
    """
    _check(targets, start, num_steps, lr)
    check_range(start, "start: ")
    logits_of = white_box(victims)
    x = start.expand(len(victims), *start.shape).clone()
    trace = [x] if trace_at else []
    with threads.one_thread(start):
        for step in experiment.progress(range(num_steps), "inversion"):
            x.requires_grad_()
            loss = _cost(logits_of(x), targets, logarithm).sum()
            (slope,) = torch.autograd.grad(loss, x)
            x = (x.detach() - lr * slope).clamp(0, 1)
            if step + 1 in trace_at:
                trace.append(x)
    return _finished(x, logits_of, targets, trace)


def invert_class_black_box(
    predict: Predict,
    targets: Tensor,
    start: Tensor,
    *,
    num_steps: int,
    lr: float,
    difference: float = 0.5,
    patch: int = 1,
) -> Inversion:
    """The same descent with slopes from finite differences, which are paid for in queries.

    Args:
        predict: the victim, black box.
        targets: (N,) the class wanted in each image.
        start: (N, C, H, W) images to descend from.
        num_steps: of descent.
        lr: step length.
        difference: by how much a patch is moved to see what changes, at most 0.5; inwards, so that
            images stay in [0, 1]. Large ones are seen through rounded answers.
        patch: height and width of what is moved at once, in pixels. One step of an image costs
            C * H * W / patch^2 queries, and one more.

    Returns:
        N inversions. Where an answer does not change, the image stays.

    Raises:
        ValueError: shapes, targets or settings cannot be.

    Source:
        Fredrikson et al. 2015 (numeric gradients, patch 1). The slope of log f is that of f
        divided by f, or by 0.001 where f is less.
    """
    _check(targets, start, num_steps, lr)
    check_range(start, "start: ")
    channels, height, width = start.shape[1:]
    if not 0 < difference <= 0.5:
        raise ValueError(f"difference must lie above 0 and at most at 0.5, not {difference}")
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"{height}x{width} images have no patches of {patch} pixels")
    coarse = channels, height // patch, width // patch
    num_moves = math.prod(coarse)
    moves = _enlarged(torch.eye(num_moves, device=start.device).view(-1, *coarse), patch)
    found, sure = [], []
    parts = list(zip(start.split(CHUNK), targets.split(CHUNK), strict=True))
    for x, wanted in experiment.progress(parts, "black-box inversion"):
        column = wanted[:, None]
        for _ in range(num_steps):
            signs = 1 - 2 * _enlarged((F.avg_pool2d(x, patch) > 0.5).float(), patch)
            asked = torch.addcmul(x[:, None], signs[:, None], moves, value=difference).clamp_(0, 1)
            answers = predict(asked.flatten(0, 1)).unflatten(0, asked.shape[:2])
            moved = _wanted(answers, column[:, None].expand(-1, num_moves, 1)).squeeze(-1)
            here = _wanted(predict(x), column)
            slope = (moved - here) / difference / here.clamp_min(1e-3) / patch**2
            x = (x + lr * signs * _enlarged(slope.view(-1, *coarse), patch)).clamp(0, 1)
        found.append(x)
        sure.append(predict(x).gather(1, column).squeeze(1))
    images = torch.cat(found)
    return Inversion(images, torch.cat(sure), images[None])


def _enlarged(images: Tensor, patch: int) -> Tensor:
    return images.repeat_interleave(patch, -1).repeat_interleave(patch, -2)


def invert_latents(
    victims: training.Ensemble,
    targets: Tensor,
    decode: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    num_steps: int,
    lr: float,
    prior: float = 0.0,
    trace_at: tuple[int, ...] = (),
) -> Inversion:
    """Images of a class among those that a decoder can make: descent on its input, white box.

    The decoder is an autoencoder's, or the generator of a GAN trained on other people.

    Args:
        victims: K models, white box.
        targets: (N,) the class wanted in each image.
        decode: from (M, latents) to (M, C, H, W) images in [0, 1], differentiable.
        start: (N, latents) where to start, finite.
        num_steps: of Adam.
        lr: learning rate.
        prior: weight of the squared length of the latents, 0 or more.
        trace_at: after which steps to keep the images.

    Returns:
        K x N inversions.

    Raises:
        ValueError: shapes, targets or settings cannot be.

    Source:
        Fredrikson et al. 2015 (descent on an autoencoder's code); Zhang et al., The secret
        revealer, CVPR 2020. There the discriminator is the prior; here it is the normal density
        of the latents, for a released generator comes without one.
    """
    _check(targets, start, num_steps, lr)
    if not start.isfinite().all() or not prior >= 0:
        raise ValueError(f"latents to start from must be finite, prior 0 or more, not {prior}")
    logits_of, shape = white_box(victims), (len(victims), len(targets))
    z = start.expand(len(victims), *start.shape).clone().requires_grad_()
    stepper = torch.optim.Adam([z], lr=lr)

    def images_of(latents: Tensor) -> Tensor:
        return decode(latents.flatten(0, 1)).unflatten(0, shape)

    trace = [images_of(z).detach()] if trace_at else []
    for step in experiment.progress(range(num_steps), "latent inversion"):
        loss = _cost(logits_of(images_of(z)), targets, True).sum() + prior * z.square().sum()
        (z.grad,) = torch.autograd.grad(loss, z)
        stepper.step()
        if step + 1 in trace_at:
            trace.append(images_of(z).detach())
    return _finished(images_of(z).detach().clamp(0, 1), logits_of, targets, trace)


@torch.no_grad()
def _finished(images: Tensor, logits_of: Callable, targets: Tensor, trace: list) -> Inversion:
    confidences = 1 - _cost(logits_of(images), targets, False)
    return Inversion(images, confidences, torch.stack(trace) if trace else images[None])


def _cost(logits: Tensor, targets: Tensor, logarithm: bool) -> Tensor:
    """(K, N) -log f or 1 - f of the wanted classes."""
    index = targets.expand(len(logits), -1)[..., None]
    wanted = _wanted(logits.log_softmax(-1), index).squeeze(-1)
    return -wanted if logarithm else 1 - wanted.exp()


def _wanted(answers: Tensor, index: Tensor) -> Tensor:
    if index.min() < 0 or index.max() >= answers.shape[-1]:
        raise ValueError(f"targets must lie in 0..{answers.shape[-1] - 1}, not {index.unique()}")
    return answers.gather(-1, index)


def _check(targets: Tensor, start: Tensor, num_steps: int, lr: float) -> None:
    if targets.ndim != 1 or targets.dtype != torch.int64 or not 0 < len(targets) == len(start):
        raise ValueError(f"give a start for each int64 target, not {tuple(start.shape)}: {targets}")
    if num_steps < 1 or not lr > 0:
        raise ValueError(f"num_steps {num_steps} and lr {lr} must be positive")
