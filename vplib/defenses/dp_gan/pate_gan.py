"""PATE-GAN: teachers vote on generated images, the votes are noised, a student learns from them."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vplib import experiment, seeding, threads
from vplib.defenses.dp_gan import dpgan, gs_wgan
from vplib.defenses.dp_gan.dpgan import Generators, Networks
from vplib.nets import stacked

VOTES = 20  # generated images that are voted on in a round
STUDENT_STEPS = 10  # a round, on all votes so far; they cost no privacy
GENERATOR_STEPS = 3  # a round
BATCH = 32  # images a step
LR, GENERATOR_LR = 0.003, 0.01  # of teachers and student; of the generator

ORDERS = np.array([1.25, 1.5, 1.75, *range(2, 65)])


def vote_epsilon(scale: float, num_votes: int, delta: float) -> float:
    """The epsilon of noisy counts of votes, whatever the votes were.

    Args:
        scale: of Laplace's noise on the number of teachers that say "real"; a record moves it by
            at most one. 0 gives infinity.
        num_votes: answered questions; 0 gives 0.
        delta: of the guarantee.

    Raises:
        ValueError: a number cannot be.

    Source:
        Mironov, Renyi differential privacy, CSF 2017, table II. PATE-GAN's own epsilon is smaller
        where teachers agree, but depends on the private images, and so may not be printed.
    """
    gs_wgan.check_release(scale, num_votes, delta)
    if not num_votes or not scale:
        return math.inf if num_votes else 0.0
    spent = num_votes * laplace_renyi(scale)
    return min(gs_wgan.epsilon_of(ORDERS, spent, delta), num_votes / scale)


def laplace_renyi(scale: float) -> np.ndarray:
    """The Renyi divergence, at `ORDERS`, between Laplace noise and itself one further (Mironov)."""
    a, b = ORDERS, 1 / scale
    near = np.log(a / (2 * a - 1)) + (a - 1) * b
    return np.logaddexp(near, np.log((a - 1) / (2 * a - 1)) - a * b) / (a - 1)


def vote_scale(target: float, num_votes: int, delta: float) -> float:
    """The scale of the noise that keeps `vote_epsilon` at a target.

    Raises:
        ValueError: no scale does.
    """
    return gs_wgan.least(lambda scale: vote_epsilon(scale, num_votes, delta), target)


def train_pate_gan(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    scales: Sequence[float],
    *,
    num_teachers: int,
    num_rounds: int,
    hidden: Sequence[int] = (32,),
    generator_hidden: Sequence[int] = (64,),
    subsets: Tensor | None = None,
    seed: int = 0,
    description: str = "",
) -> tuple[Generators, Tensor]:
    """Generators trained against a student that has seen generated images and noisy votes only.

    Args:
        images: (N, C, H, W) float32 private images in [0, 1].
        labels: (N,) their classes.
        num_classes: number of classes; generated ones are drawn uniformly.
        scales: R scales of Laplace's noise on the number of teachers that say "real".
        num_teachers: each image belongs to one of them, by a draw of its own.
        num_rounds: rounds of teachers, `VOTES`, student and generator.
        hidden: widths of a discriminator's hidden layers.
        generator_hidden: of the generator's.
        subsets: (R, n) rows that each run trains on, none twice in a run; None: all images.
        seed: of everything random.
        description: names the progress bar; empty for none.

    Returns:
        Generators, and (rounds, R) the share of votes for "real", before noise: not private, for
        the reader.

    Raises:
        ValueError: a setting is out of range.

    Source:
        Jordon, Yoon and van der Schaar, PATE-GAN, ICLR 2019, algorithm 1. Noise on one of the two
        counts, of which the other follows.
    """
    counts = dict(num_teachers=num_teachers, num_rounds=num_rounds)
    scale, subsets = dpgan.prepared(images, labels, num_classes, scales, subsets, **counts)
    runs, device = len(scale), images.device
    private = dpgan.with_class(images.flatten(1), labels, num_classes)
    with seeding.seeded(seed), threads.one_thread(images):
        generators, improve = dpgan.fresh(images, num_classes, runs, generator_hidden, GENERATOR_LR)
        teachers = dpgan.new(private.shape[1], 1, hidden, runs * num_teachers, device)
        student = dpgan.new(private.shape[1], 1, hidden, runs, device)
        teach, learn = (dpgan.updater(nets[1], LR) for nets in (teachers, student))
        rows, sizes = gs_wgan.partition(subsets, num_teachers)
        asked, said, trace = private[:0].expand(runs, 0, -1), private.new_zeros(runs, 0), []
        for _ in experiment.progress(range(num_rounds), description):
            real = private[gs_wgan.draw_own(rows, sizes, BATCH)].flatten(0, 1)
            fake = generators.labelled(num_teachers * BATCH).detach().view_as(real)
            seen = (sizes > 0).view(-1, 1).expand(-1, BATCH).float()
            truth = torch.cat([seen, torch.zeros_like(seen)], 1)
            weight = torch.cat([seen, torch.ones_like(seen)], 1)
            _step(teachers, teach, torch.cat([real, fake], 1), truth, weight)
            new = generators.labelled(VOTES).detach()
            with torch.no_grad():
                score = stacked.forward(*teachers, new.repeat_interleave(num_teachers, 0))
            count = (score[..., 0] > 0).view(runs, num_teachers, -1).float().sum(1)
            noised = dpgan.release(count, scale, "laplace")
            trace.append(count.mean(1).cpu() / num_teachers)
            asked = torch.cat([asked, new], 1)
            said = torch.cat([said, (noised > num_teachers / 2).float()], 1)
            for _ in range(STUDENT_STEPS):
                some = torch.randint(asked.shape[1], (runs, BATCH)).to(device)
                chosen = asked.gather(1, some.unsqueeze(-1).expand(-1, -1, asked.shape[-1]))
                _step(student, learn, chosen, said.gather(1, some))
            for _ in range(GENERATOR_STEPS):
                dpgan.step_generators(generators, improve, student, BATCH, "logistic")
    return dpgan.finished(generators, GENERATOR_LR), torch.stack(trace)


def _step(nets: Networks, update: Callable, x: Tensor, truth: Tensor, weight=1.0) -> None:
    """One step of binary cross-entropy for each of several discriminators."""

    def slope(z: Tensor) -> Tensor:
        return ((z[..., 0].sigmoid() - truth) * weight).unsqueeze(-1) / x.shape[1]

    found, _ = stacked.examples(*nets, x, slope)
    update(list(stacked.summed(found).values()))
