"""An audit of DP-SGD: how much privacy a run has lost at least, from canaries guessed in one run.

The auditor inserts canaries, each by a fair coin of its own, watches what is released, and guesses
the coins. More right guesses than an (epsilon, delta) mechanism allows refute its epsilon.
"""

import math

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from vplib import seeding
from vplib.defenses.dp_sgd import examples, private_training
from vplib.nets import stacked, training

CONFIDENCE = 0.999  # that the true epsilon is no smaller than the bound
SIZE = 1000.0  # norm of a canary's gradient before any clipping


def p_value(correct: int, num_guesses: int, num_canaries: int, epsilon: float, delta: float):
    """How probable so many right guesses are at most, if the run is (epsilon, delta)-private.

    Args:
        correct: right guesses.
        num_guesses: guesses made, a number fixed before the run.
        num_canaries: canaries with a coin each, guessed or not.
        epsilon: claimed.
        delta: claimed.

    Source:
        Steinke, Nasr and Jagielski, Privacy auditing with one (1) training run, NeurIPS 2023,
        theorem 5.2.
    """
    chance = 1 / (1 + math.exp(-epsilon))
    tail = binom.sf(correct - 1, num_guesses, chance)
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), num_guesses, chance))
    worst = (below / np.arange(1, correct + 1)).max() if correct else 0.0
    return min(1.0, float(tail + 2 * num_canaries * delta * worst))


def lower_bound(correct: int, num_guesses: int, num_canaries: int, delta: float) -> float:
    """The largest epsilon that so many right guesses refute, with confidence `CONFIDENCE`.

    Args:
        correct: right guesses.
        num_guesses: guesses made, a number fixed before the run.
        num_canaries: canaries with a coin each.
        delta: of the guarantee.

    Returns:
        The lower bound; 0 if nothing is refuted.

    Raises:
        ValueError: the counts cannot be.

    Source:
        Steinke et al. 2023, section 5.
    """
    if not 0 <= correct <= num_guesses <= num_canaries or not num_guesses:
        raise ValueError(
            f"need correct <= guesses <= canaries, not {correct}, {num_guesses}, {num_canaries}"
        )
    if not 0 <= delta < 1:
        raise ValueError(f"delta must be a probability, not {delta}")

    def refuted(epsilon):
        return p_value(correct, num_guesses, num_canaries, epsilon, delta) <= 1 - CONFIDENCE

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 50.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def correct_guesses(scores: Tensor, included: Tensor, num_guesses: int) -> int:
    """Right guesses of an auditor who calls the highest scores "in" and the lowest "out".

    Args:
        scores: (m,) higher means in; the auditor's, from what was released.
        included: (m,) the coins.
        num_guesses: even, fixed before the run; half say in, half out.

    Raises:
        ValueError: there are more guesses than canaries, or an odd number.
    """
    if num_guesses > len(scores) or num_guesses % 2 or num_guesses < 2:
        raise ValueError(f"need an even number of guesses up to {len(scores)}, not {num_guesses}")
    order, half = scores.argsort(descending=True), num_guesses // 2
    return int(included[order[:half]].sum() + (~included[order[-half:]]).sum())


def canary_rows(build: training.Build, num: int, seed: int, device) -> tuple:
    """Canaries in gradient space, each `SIZE` in one coordinate that no other one uses.

    Args:
        build: makes the untrained model, an MLP.
        num: how many.
        seed: decides the coordinates.
        device: of the result.

    Returns:
        Their gradients, as `stacked.examples` gives them but (num, ...); the parameter that they
        are about; and its coordinates (num,).

    Raises:
        ValueError: that layer has fewer weights.
    """
    weights = dict(seeding.initialized(build, 0).named_parameters())
    rows = {
        name: tuple(torch.zeros(num, n, device=device) for n in value.shape)
        for name, value in weights.items()
    }
    rows = {name: row if len(row) > 1 else row[0] for name, row in rows.items()}
    name = next(iter(weights))
    slopes, inputs = rows[name]
    wide = inputs.shape[1]
    if num > slopes.shape[1] * wide:
        raise ValueError(f"{num} canaries but {slopes.shape[1] * wide} weights in layer {name}")
    rng = torch.Generator().manual_seed(seeding.derive(seed, "canaries"))
    where = torch.randperm(slopes.shape[1] * wide, generator=rng)[:num].to(device)
    every = torch.arange(num, device=device)
    slopes[every, where // wide], inputs[every, where % wide] = SIZE, 1.0
    return rows, name, where


def run_with_canaries(
    build: training.Build,
    images: Tensor,
    labels: Tensor,
    included: Tensor,
    *,
    sample_rate: float,
    clip: float,
    seed: int = 0,
    **settings,
) -> Tensor:
    """Runs of `train_private` with canaries, as what they release shows them.

    Args:
        build: makes the untrained model, an MLP.
        images: (N, ...) real records, in every run.
        labels: (N,) their classes.
        included: (K, m) the canaries' coins in each of K runs.
        sample_rate: of Poisson sampling.
        clip: norm that the code claims to clip to.
        seed: decides the models, batches, noise, and the canaries' coordinates.
        settings: of `train_private`.

    Returns:
        (K, num_steps, m) each canary's coordinate of each step's released sum, less what the
        records are expected to add: an auditor knows these, and sees every iterate.

    Source:
        Nasr et al., Tight auditing of differentially private machine learning, USENIX Security
        2023 (canaries in gradient space); Steinke et al. 2023 (many in one run).
    """
    rows, name, where = canary_rows(build, included.shape[1], seed, images.device)
    gradients = examples.examples_of(seeding.initialized(build, 0).to(images.device))
    released = []

    def watch(state, total):
        num = len(total[name])
        found = gradients(state, images.expand(num, *images.shape), labels.expand(num, len(labels)))
        ones = torch.ones(num, len(labels), device=images.device)
        known, _ = stacked.clipped_sum([found], clip, ones)
        released.append((total[name] - sample_rate * known[name]).flatten(1)[:, where])

    private_training.train_private(
        build, images, labels, torch.arange(len(images)).expand(len(included), -1),
        sample_rate=sample_rate, clip=clip, seed=seed, watch=watch,
        canaries=private_training.Canaries(rows, included), **settings,
    )  # fmt: skip
    steps = settings["num_steps"]  # and then those of the next models
    parts = [released[i : i + steps] for i in range(0, len(released), steps)]
    return torch.cat([torch.stack(part, 1) for part in parts])


def likelihood_ratio(released: Tensor, sample_rate: float, sigma: Tensor, clip: float) -> Tensor:
    """The best score of one canary: how much likelier its iterates are with it than without.

    Args:
        released: (K, num_steps, m) as `run_with_canaries` gives them.
        sample_rate: of Poisson sampling.
        sigma: (K,) noise multipliers that the code claims.
        clip: norm that the code claims.

    Returns:
        (K, m) logarithms, 0 for as likely.
    """
    sigma, x = sigma[:, None, None], released / clip
    ratios = torch.expm1(((2 * x - 1) / (2 * sigma**2)).clamp(max=80))
    return torch.log1p(sample_rate * ratios).sum(1)
