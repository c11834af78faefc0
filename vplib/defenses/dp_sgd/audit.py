"""An audit of DP-SGD: how much privacy a run has lost at least, from canaries guessed in one run.

The auditor inserts canaries, each by a fair coin of its own, watches what is released, and guesses
the coins. More right guesses than an (epsilon, delta) mechanism allows refute its epsilon.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from vplib import seeding
from vplib.defenses.dp_sgd import examples
from vplib.nets import training

Step = Callable[[Tensor, torch.Generator], Tensor]
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


def run_with_canaries(
    step: Step,
    build: training.Build,
    images: Tensor,
    labels: Tensor,
    included: Tensor,
    *,
    sample_rate: float,
    num_steps: int,
    lr: float,
    clip: float,
    seed: int = 0,
) -> Tensor:
    """One training run with canaries in gradient space, as its releases show it.

    Canary i has a gradient of its own choice: `SIZE` in one coordinate that no other canary uses.
    Records and included canaries are drawn alike, by Poisson sampling.

    Args:
        step: the code under audit, from per-example gradients (B, D) and a generator to the noised
            sum (D,).
        build: makes the untrained model, of D parameters.
        images: (N, ...) real records, always in.
        labels: (N,) their classes.
        included: (m,) the canaries' coins.
        sample_rate: of Poisson sampling.
        num_steps: steps.
        lr: learning rate, for sums divided by the expected batch size.
        clip: norm that the code claims to clip to; the auditor, who knows the records and every
            iterate, subtracts what the records are expected to add.
        seed: decides the model, batches, noise, and the canaries' coordinates.

    Returns:
        (num_steps, m) each canary's coordinate of each step's released sum, less the records'
        expected share: an auditor who sees every iterate knows all of it, and one who sees the
        final model its sum over steps.

    Raises:
        ValueError: there are more canaries than parameters.

    Source:
        Nasr et al., Tight auditing of differentially private machine learning, USENIX Security
        2023 (canaries in gradient space); Steinke et al. 2023 (many in one run).
    """
    net = seeding.initialized(build, seed)
    state = {name: value.detach() for name, value in net.named_parameters()}
    num_parameters = sum(value.numel() for value in state.values())
    if len(included) > num_parameters:
        raise ValueError(f"{len(included)} canaries but {num_parameters} parameters: one each")
    draws = torch.Generator().manual_seed(seeding.derive(seed, "audit"))
    where = torch.randperm(num_parameters, generator=draws)[: len(included)]
    held = where[included]
    expected = sample_rate * (len(images) + len(held))
    per_example = examples.per_example(net)
    released = torch.empty(num_steps, len(included))
    for t in range(num_steps):
        one = {name: value[None] for name, value in state.items()}
        found = per_example(one, images[None], labels[None])
        records = torch.cat([g[0].flatten(1) for g in found.values()], 1)
        weights = (clip / records.norm(dim=1)).clamp(max=1)
        known = sample_rate * (weights @ records)
        records = records[torch.rand(len(images), generator=draws) < sample_rate]
        some = held[torch.rand(len(held), generator=draws) < sample_rate]
        canaries = torch.zeros(len(some), num_parameters)
        canaries[torch.arange(len(some)), some] = SIZE
        gradients = torch.cat([records, canaries])
        total = step(gradients, draws)
        released[t] = (total - known)[where]
        parts = (lr / expected * total).split([value.numel() for value in state.values()])
        for value, part in zip(state.values(), parts, strict=True):
            value -= part.view_as(value)
    return released
