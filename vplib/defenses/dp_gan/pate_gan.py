"""PATE-GAN: teachers vote on generated images, the votes are noised, a student learns from them."""

from collections.abc import Sequence

import numpy as np
import torch
from opacus.accountants.analysis import rdp as renyi
from scipy.optimize import brentq
from torch import Tensor

from vplib import experiment, seeding, threads
from vplib.defenses.dp_gan import dpgan, gs_wgan
from vplib.defenses.dp_gan.dpgan import Generators, Trained

ORDERS = np.array([1.25, 1.5, 1.75, *range(2, 65)])


def vote_epsilon(scale: float, num_votes: int, delta: float) -> float:
    """The epsilon of noisy counts of votes, whatever the votes were.

    Args:
        scale: of Laplace's noise on the number of teachers that say "real"; a record moves it by
            at most one.
        num_votes: answered questions.
        delta: of the guarantee.

    Source:
        Mironov, Renyi differential privacy, CSF 2017, table II. PATE-GAN's own epsilon is smaller
        where teachers agree, but depends on the private images, and so may not be printed.
    """
    spent = num_votes * laplace_renyi(scale)
    with gs_wgan.quiet():
        epsilon, _ = renyi.get_privacy_spent(orders=list(ORDERS), rdp=spent, delta=delta)
    return min(float(epsilon), num_votes / scale)


def laplace_renyi(scale: float) -> np.ndarray:
    """The Renyi divergence, at `ORDERS`, between Laplace noise and itself one further (Mironov)."""
    a, b = ORDERS, 1 / scale
    near = np.log(a / (2 * a - 1)) + (a - 1) * b
    return np.logaddexp(near, np.log((a - 1) / (2 * a - 1)) - a * b) / (a - 1)


def vote_scale(target: float, num_votes: int, delta: float) -> float:
    """The scale of the noise that keeps `vote_epsilon` at a target."""
    return (
        brentq(lambda s: vote_epsilon(s, num_votes, delta) - target, 1e-2, 1e5, rtol=1e-3) * 1.002
    )


def train_pate_gan(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    scales: Sequence[float],
    *,
    num_teachers: int = 20,
    num_rounds: int = 100,
    votes_per_round: int = 20,
    teacher_steps: int = 1,
    student_steps: int = 10,
    generator_steps: int = 3,
    lr: float = 0.003,
    generator_lr: float = 0.01,
    hidden: Sequence[int] = (32,),
    num_latents: int = 16,
    batch_size: int = 32,
    subsets: Tensor | None = None,
    seed: int = 0,
    description: str = "",
) -> Trained:
    """Generators trained against a student that has seen generated images and noisy votes only.

    Args:
        images: (N, C, H, W) private images in [0, 1].
        labels: (N,) their classes.
        num_classes: number of classes; generated ones are drawn uniformly.
        scales: R scales of Laplace's noise on the number of teachers that say "real".
        num_teachers: each image belongs to one of them, by a draw of its own.
        num_rounds: rounds of teachers, votes, student and generator.
        votes_per_round: generated images that are voted on in a round.
        teacher_steps: steps of all teachers a round.
        student_steps: steps of the student a round, on all votes so far; costs no privacy.
        generator_steps: steps of the generator a round.
        lr: learning rate of teachers and student.
        generator_lr: learning rate of the generator.
        hidden: widths of a discriminator's hidden layers.
        num_latents: size of a latent vector.
        batch_size: images a step.
        subsets: (R, n) rows that each run trains on; None: all images.
        seed: of everything random.
        description: names the progress bar; empty for none.

    Returns:
        Generators, students, and (rounds, R) the share of votes for "real", before noise: not
        private, for the reader.

    Raises:
        ValueError: a setting is out of range.

    Source:
        Jordon, Yoon and van der Schaar, PATE-GAN, ICLR 2019, algorithm 1. Noise on one of the two
        counts, of which the other follows.
    """
    dpgan._check(images, labels, num_classes, scales, num_rounds)
    scale, runs = torch.as_tensor(scales, device=images.device), len(scales)
    private, device = dpgan.with_class(images.flatten(1), labels, num_classes), images.device
    with seeding.seeded(seed), threads.one_thread(images):
        generators, stepper = dpgan.new_generators(
            images, num_classes, runs, num_latents, generator_lr
        )
        teachers = dpgan.stack(private.shape[1], 1, hidden, runs * num_teachers, device)
        student = dpgan.stack(private.shape[1], 1, hidden, runs, device)
        teach = dpgan.optimizer(list(teachers.values()), lr, True)
        learn = dpgan.optimizer(list(student.values()), lr, True)
        subsets = dpgan.own_rows(subsets, len(images), runs, images.device)
        rows, sizes = gs_wgan.partition(subsets, num_teachers)
        asked = private.new_zeros(runs, 0, private.shape[1])
        said, trace = private.new_zeros(runs, 0), []
        rounds = range(num_rounds)
        for _ in experiment.progress(rounds, description) if description else rounds:
            for _ in range(teacher_steps):
                real = private[gs_wgan.draw_own(rows, sizes, batch_size)].flatten(0, 1)
                fake = _some(generators, runs, num_teachers * batch_size).view_as(real)
                seen = (sizes > 0).view(-1, 1).expand(-1, batch_size).float()
                truth = torch.cat([seen, torch.zeros_like(seen)], 1)
                weight = torch.cat([seen, torch.ones_like(seen)], 1)
                _step(teachers, teach, torch.cat([real, fake], 1), truth, weight)
            new = _some(generators, runs, votes_per_round)
            votes = dpgan.respond(teachers, new.repeat_interleave(num_teachers, 0))[..., 0] > 0
            count = votes.view(runs, num_teachers, -1).float().sum(1)
            noised = dpgan.release(count, scale, "laplace")
            trace.append(count.mean(1).cpu() / num_teachers)
            asked = torch.cat([asked, new], 1)
            said = torch.cat([said, (noised > num_teachers / 2).float()], 1)
            for _ in range(student_steps):
                some = torch.randint(asked.shape[1], (runs, batch_size)).to(device)
                chosen = asked.gather(1, some.unsqueeze(-1).expand(-1, -1, asked.shape[-1]))
                _step(student, learn, chosen, said.gather(1, some))
            for _ in range(generator_steps):
                dpgan.step_generator(generators, stepper, student, batch_size, "logistic")
        dpgan.check_finite(generators.state, generator_lr)
    students = {name: value.detach() for name, value in student.items()}
    return Trained(dpgan.frozen(generators), students, torch.stack(trace))


@torch.no_grad()
def _some(generators: Generators, runs: int, num: int) -> Tensor:
    """(R, num, pixels + classes) generated images of uniform classes, with their class."""
    device = next(iter(generators.state.values())).device
    classes = dpgan.random_labels(generators.num_classes, runs, num, device)
    return dpgan.with_class(generators.draw(classes), classes, generators.num_classes)


@torch.no_grad()
def _step(state, update, x: Tensor, truth: Tensor, weight: Tensor | None = None) -> None:
    """One step of binary cross-entropy for each of several discriminators."""
    weight = torch.ones_like(truth) if weight is None else weight

    def slope(z: Tensor) -> Tensor:
        return ((z[..., 0].sigmoid() - truth) * weight).unsqueeze(-1)

    found, _ = dpgan.factors(state, x, slope)
    sums = dpgan.clipped_sum([found], float("inf"), torch.ones_like(truth))
    for value, total in zip(state.values(), sums, strict=True):
        value.grad = total / x.shape[1]
    update.step()
