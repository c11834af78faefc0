"""GS-WGAN: discriminators stay with the trainer; noise is on the gradient that images receive."""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from opacus.accountants.analysis import rdp as renyi
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import norm
from torch import Tensor

from vplib import experiment, seeding, threads
from vplib.defenses.dp_gan import dpgan
from vplib.defenses.dp_gan.dpgan import Generators, Networks
from vplib.nets import stacked

BATCH, CRITIC_STEPS = 32, 2  # generated images a step, and steps of all critics before it
PENALTY = 10.0
LR, GENERATOR_LR = 0.01, 0.02
ORDERS = np.array([1.05, 1.1, 1.15, 1.25, 1.5, 1.75, *range(2, 33), 40, 48, 64, 96, 128])


def one_of_many_epsilon(sigma: float, num_parts: int, num_releases: int, delta: float) -> float:
    """The epsilon of releases that each look at one of many parts of the data, drawn in secret.

    A record is in one part, and each release looks at that part with chance q = 1 / num_parts. Its
    hockey-stick divergence at 1 + q (t - 1) is then at most q times the Gaussian's at t, in both
    directions, and an integral over them gives the Renyi divergence, which adds up over releases.
    (The bound for Poisson sampling is about something else: there, a neighbour without the record
    releases no part of it at all; here, the part without the record answers in its place.)

    Args:
        sigma: standard deviation of the noise over the most that two parts can differ by.
        num_parts: parts, of which one is drawn uniformly, for each release anew.
        num_releases: how often.
        delta: of the guarantee.

    Raises:
        ValueError: a number cannot be.

    Source:
        Balle, Barthe and Gaboardi, Privacy amplification by subsampling, NeurIPS 2018, theorem 2
        (advanced joint convexity); Sason and Verdu, f-divergence inequalities, IEEE TIT 2016, for
        the integral; Balle et al., AISTATS 2020, for the conversion, as Opacus has it.
    """
    check_release(sigma, num_releases, delta)
    dpgan.require(num_parts >= 1, f"num_parts must be 1 or more, not {num_parts}")
    if not num_releases or not sigma:
        return math.inf if num_releases else 0.0
    # As far as the divergence of the highest order gathers its mass.
    furthest = max(400.0, (ORDERS[-1] + 1) / sigma**2 + 40 / sigma)
    log_t = np.concatenate([np.linspace(0, 1, 2001), np.geomspace(1, furthest, 4000)[1:]])
    grown = log_t[1:] + np.log(-np.expm1(-log_t[1:]))  # log(t - 1), for any t
    log_inner = np.append(0.0, np.logaddexp(0, grown + math.log(num_parts)))
    above = norm.logcdf(0.5 / sigma - log_inner * sigma)
    below = log_inner + norm.logcdf(-0.5 / sigma - log_inner * sigma)
    gap = np.minimum(below - above, -1e-16)
    log_h = above + np.log(-np.expm1(gap)) - math.log(num_parts)
    rise = np.outer(ORDERS - 1, log_t)  # t^(a - 2) and t^(-a - 1), times t of d log t
    terms = np.logaddexp(rise, -np.outer(ORDERS, log_t)) + log_h
    width = np.log(np.diff(log_t))
    steps = np.logaddexp(terms[:, 1:], terms[:, :-1]) - math.log(2) + width
    total = logsumexp(steps, axis=1) + np.log(ORDERS * (ORDERS - 1))
    return epsilon_of(ORDERS, num_releases * np.logaddexp(0, total) / (ORDERS - 1), delta)


def check_release(scale: float, num_releases: int, delta: float) -> None:
    """Refuses noise, a number of releases or a delta that cannot be."""
    wanted = "need noise of 0 or more, 0 or more releases and a delta between 0 and 1"
    fine = 0 <= scale < math.inf and num_releases >= 0 and 0 < delta < 1
    dpgan.require(fine, f"{wanted}, not {scale}, {num_releases} and {delta}")


def epsilon_of(orders: np.ndarray, spent: np.ndarray, delta: float) -> float:
    """The epsilon of Renyi divergences, never below 0; a bound at the last order is a bound."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        found, _ = renyi.get_privacy_spent(orders=list(orders), rdp=spent, delta=delta)
    return max(0.0, float(found))


def one_of_many_sigma(target: float, num_parts: int, num_releases: int, delta: float) -> float:
    """The noise that keeps `one_of_many_epsilon` at a target.

    Raises:
        ValueError: no noise does.
    """
    return least(lambda s: one_of_many_epsilon(s, num_parts, num_releases, delta), target)


def least(spent: Callable[[float], float], target: float) -> float:
    """The least noise, to a thousandth, that spends at most a target.

    Args:
        spent: from noise to epsilon, falling.
        target: the epsilon allowed.

    Raises:
        ValueError: noise from 0.01 to 100,000 does not reach it.
    """
    low, high = math.log(1e-2), math.log(1e5)
    fine = 0 < target and spent(math.exp(high)) <= target <= spent(math.exp(low))
    dpgan.require(fine, f"no noise from 0.01 to 1e5 gives epsilon {target}: ask for 0.1 to 100")
    return math.exp(brentq(lambda x: spent(math.exp(x)) - target, low, high, xtol=1e-3)) * 1.001


def train_gs_wgan(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    sigmas: Sequence[float],
    *,
    num_discriminators: int,
    num_steps: int,
    warm_up: int,
    critic_batch: int,
    clip: float = 1.0,
    hidden: Sequence[int] = (32,),
    generator_hidden: Sequence[int] = (64,),
    subsets: Tensor | None = None,
    seed: int = 0,
    description: str = "",
) -> Generators:
    """Generators that receive nothing but the noised gradients of their own images.

    Args:
        images: (N, C, H, W) float32 private images in [0, 1].
        labels: (N,) their classes.
        num_classes: number of classes; generated ones are drawn uniformly.
        sigmas: R noise multipliers: the noise's standard deviation is 2 * clip * sigma, as two
            clipped gradients can be 2 * clip apart.
        num_discriminators: each image belongs to one of them, by a draw of its own.
        num_steps: steps of the generator; each releases `BATCH` gradients.
        warm_up: steps of the discriminators before the generator's first.
        critic_batch: real images a discriminator and step.
        clip: largest norm of the gradient by an image; a Wasserstein critic's is about 1.
            `math.inf`, for no clipping, goes with sigmas of 0 alone.
        hidden: widths of a discriminator's hidden layers.
        generator_hidden: of the generator's.
        subsets: (R, n) rows that each run trains on, none twice in a run; None: all images.
        seed: of everything random.
        description: names the progress bar; empty for none.

    Raises:
        ValueError: a setting is out of range.

    Source:
        Chen, Orekondy and Fritz, GS-WGAN, NeurIPS 2020, algorithm 1. The authors' code sends a
        whole batch to one discriminator and accounts for it as if each image had drawn its own;
        here each image does.
    """
    counts = dict(num_steps=num_steps, num_discriminators=num_discriminators, batch=critic_batch)
    sigma, subsets = dpgan.prepared(images, labels, num_classes, sigmas, subsets, **counts)
    dpgan.require(warm_up >= 0, f"warm_up must be 0 or more, not {warm_up}")
    scale, runs, device = dpgan.noise_scale(sigma, 2 * clip), len(sigma), images.device
    private = dpgan.with_class(images.flatten(1), labels, num_classes)
    with seeding.seeded(seed), threads.one_thread(images):
        generators, improve = dpgan.fresh(images, num_classes, runs, generator_hidden, GENERATOR_LR)
        weights = list(generators.nets[1].values())
        critics = dpgan.new(private.shape[1], 1, hidden, runs * num_discriminators, device)
        update = dpgan.updater(critics[1], LR)
        rows, sizes = partition(subsets, num_discriminators)
        for step in experiment.progress(range(num_steps), description):
            for _ in range(CRITIC_STEPS + (warm_up if step == 0 else 0)):
                some = draw_own(rows, sizes, critic_batch)
                step_critics(critics, update, generators, private[some], sizes > 0)
            classes = dpgan.random_labels(num_classes, runs, BATCH, device)
            fake = generators.draw(classes)
            chosen = torch.randint(num_discriminators, classes.shape).to(device)
            slope = upstream(critics, fake.detach(), classes, num_classes, chosen, clip)
            improve(torch.autograd.grad(fake, weights, dpgan.release(slope, scale) / BATCH))
    return dpgan.finished(generators, GENERATOR_LR)


def upstream(critics: Networks, fake, classes, num_classes: int, chosen, clip: float) -> Tensor:
    """The clipped gradients that generated images receive, each from its own discriminator.

    Args:
        critics: R * K discriminators.
        fake: (R, B, pixels) generated images.
        classes: (R, B) their classes.
        num_classes: number of classes.
        chosen: (R, B) which of the K discriminators looks at each.
        clip: largest norm.

    Returns:
        (R, B, pixels) gradients of minus the score.
    """
    (net, state), runs, pixels = critics, len(fake), fake.shape[-1]
    many = len(state["1.weight"]) // runs
    index = (chosen + many * torch.arange(runs, device=chosen.device)[:, None]).flatten()
    own = {name: value.detach()[index] for name, value in state.items()}
    x = dpgan.with_class(fake, classes, num_classes).flatten(0, 1).unsqueeze(1)
    found, _ = stacked.examples(net, own, x, lambda z: -torch.ones_like(z))
    slope = (found["1.bias"] @ own["1.weight"])[:, 0, :pixels]
    norm = slope.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return (slope * (clip / norm).clamp_max(1)).view(fake.shape)


def step_critics(critics: Networks, update: Callable, generators: Generators, real, present):
    """One step of every discriminator on its own real images and generated ones of their classes.

    Args:
        critics: R * K discriminators.
        update: steps them.
        generators: R generators.
        real: (R, K, B, pixels + classes) private images with their classes.
        present: (R, K) whether a discriminator has an image at all.

    Source:
        Gulrajani et al., Improved training of Wasserstein GANs, NeurIPS 2017, equation 3.
    """
    pixels = real.shape[-1] - generators.num_classes
    classes = real[..., pixels:]
    with torch.no_grad():
        flat = classes.argmax(-1).flatten(1)
        fake = torch.cat([generators.draw(flat).view(*real.shape[:-1], -1), classes], -1)
    real, fake = real.flatten(0, 1), fake.flatten(0, 1)
    mix = torch.rand(*real.shape[:2], 1).to(real)
    between = (mix * real + (1 - mix) * fake).requires_grad_()
    gap = stacked.forward(*critics, fake).mean(1) - stacked.forward(*critics, real).mean(1)
    score = stacked.forward(*critics, between).sum()
    (slope,) = torch.autograd.grad(score, between, create_graph=True)
    steep = ((slope[..., :pixels].norm(dim=-1) - 1) ** 2).mean(1)
    loss = ((gap.squeeze(-1) + PENALTY * steep) * present.flatten()).sum()
    update(torch.autograd.grad(loss, list(critics[1].values())))


def partition(subsets: Tensor, num_parts: int) -> tuple[Tensor, Tensor]:
    """Each record's part, drawn independently of all others, so that a neighbour moves nobody.

    Args:
        subsets: (R, n) rows of each run.
        num_parts: K.

    Returns:
        (R, K, most) rows of each part, padded with some row, and (R, K) how many count.
    """
    part = torch.randint(num_parts, subsets.shape).to(subsets.device)
    inside = part.unsqueeze(1) == torch.arange(num_parts, device=part.device)[:, None]
    sizes = inside.sum(-1)
    places = (~inside).int().argsort(dim=-1, stable=True)[..., : int(sizes.max())]
    return subsets.gather(1, places.flatten(1)).view_as(places), sizes


def draw_own(rows: Tensor, sizes: Tensor, num: int) -> Tensor:
    """(R, K, num) rows of each part, drawn with replacement."""
    place = torch.rand(*sizes.shape, num).to(sizes.device) * sizes.unsqueeze(-1)
    return rows.gather(-1, place.long().clamp_max(rows.shape[-1] - 1))
