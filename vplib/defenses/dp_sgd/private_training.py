"""DP-SGD for many small models at once: per-example clipping, Gaussian noise, Poisson sampling.

Opacus trains one model; an experiment needs dozens (shadows, repeats, a point for each epsilon), so
their weights are stacked as in `vplib.nets.stacked`. `accounting` says what a run has spent.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.func import stack_module_state

from vplib import experiment, seeding, threads
from vplib.defenses.dp_sgd import bounds, examples
from vplib.nets import stacked, training
from vplib.privacy import accounting

State = stacked.State
Sums = Callable[[State, Tensor, Tensor, Tensor, Tensor], tuple[State, Tensor]]


class Private(NamedTuple):
    """Models trained with DP-SGD and what each has spent.

    Args:
        models: the K models.
        histories: of each model, phases (sigma, sample_rate, num_steps); for reshuffled batches
            the sigma of each epoch.
        sampling: "poisson" or "reshuffle".
    """

    models: training.Ensemble
    histories: list[list]
    sampling: str

    def statement(self, k: int, delta: float, note: str = "") -> accounting.Statement:
        """The guarantee of the k-th model, by the accounting that fits how batches were drawn.

        Args:
            k: which model.
            delta: of the guarantee.
            note: what is not accounted for, such as tuning.
        """
        if self.sampling == "reshuffle":
            return replace(bounds.zcdp_reshuffled(self.histories[k], delta), note=note)
        return accounting.state(self.histories[k], delta, note)


def clipped_sums(net: nn.Module) -> Sums:
    """Sums of clipped per-example gradients for K models like this one.

    In an MLP no per-example gradient is in memory, in a small CNN those of convolutions are; models
    with other layers go through vmap, which on a CPU is slower than Opacus one model after another
    (tests/benchmarks).

    Args:
        net: one such model.

    Returns:
        A function from the stacked state, inputs (K, B, ...), labels (K, B), weights (K, B), which
        are 0 where a batch is padded, and clip norms (K,), to the sums by name and the (K, B)
        unclipped norms.

    Source:
        Abadi et al., Deep learning with differential privacy, CCS 2016, algorithm 1.
    """
    gradients = examples.examples_of(net)

    def sums(state, x, y, weights, clip):
        return stacked.clipped_sum([gradients(state, x, y)], clip, weights)

    return sums


def train_private(
    build: training.Build,
    images: Tensor,
    labels: Tensor,
    subsets: Tensor,
    *,
    sigma: float | Tensor,
    sample_rate: float | Tensor,
    num_steps: int,
    clip: float | Tensor = 1.0,
    lr: float = 0.5,
    optimizer: str = "sgd",
    sampling: str = "poisson",
    seed: int = 0,
    description: str = "DP-SGD",
) -> Private:
    """Trains K models with DP-SGD, each on its own subset of one pool.

    Each step sums clipped gradients, adds noise of standard deviation sigma * clip, and divides by
    the *expected* batch size: the size of a Poisson batch is private as well. Model k depends on
    `seed` and k alone.

    Args:
        build: makes one untrained model, without batch norm.
        images: (N, ...) inputs of the pool.
        labels: (N,) class indices.
        subsets: (K, n) rows of the pool that each model sees.
        sigma: noise multiplier: a number, (K, 1) one a model, (num_steps,) a schedule, or both
            (K, num_steps). 0 trains without privacy.
        sample_rate: probability of a record to be in a batch: a number or one a model, (K,).
        num_steps: steps.
        clip: norm that each example's gradient is clipped to: a number or one a model, (K,).
        lr: learning rate.
        optimizer: "sgd" or "adam".
        sampling: "poisson", or "reshuffle": each epoch cuts a new order into batches of equal size.
        seed: decides initializations, batches and noise.
        description: names the progress bar.

    Returns:
        The models and their histories.

    Raises:
        ValueError: the model cannot be trained privately, or a setting cannot be.
        FloatingPointError: a gradient is no longer finite.

    Source:
        Abadi et al. 2016, algorithm 1. Reshuffled batches: Yu et al., S&P 2019.
    """
    template = seeding.initialized(build, 0)
    check_trainable(template)
    subsets = torch.as_tensor(subsets).to(images.device)
    num_models, num_records = subsets.shape
    sigmas = torch.as_tensor(sigma, dtype=torch.float32).broadcast_to(num_models, num_steps)
    rates = torch.as_tensor(sample_rate, dtype=torch.float64).broadcast_to(num_models)
    clips = torch.as_tensor(clip, dtype=torch.float32).broadcast_to(num_models).to(images.device)
    _check(sigmas, rates, clips, num_steps, lr, sampling)
    sums, states = clipped_sums(template), []
    bar = experiment.progress(range(num_models), description)
    chunk = training.CHUNK.get(images.device.type, 16)
    for some in torch.arange(num_models).split(chunk):
        seeds = [seeding.derive(seed, int(k)) for k in some]
        nets = [seeding.initialized(build, s).to(images.device) for s in seeds]
        state = stacked.detached(stack_module_state(nets)[0])
        update = stacked.updater(list(state.values()), optimizer, lr)
        draws = [torch.Generator().manual_seed(seeding.derive(s, "batches")) for s in seeds]
        noise = [
            torch.Generator(images.device).manual_seed(seeding.derive(s, "noise")) for s in seeds
        ]
        batches = (_poisson if sampling == "poisson" else _reshuffled)(
            num_records, rates[some], num_steps, draws
        )
        expected = (rates[some] * num_records).to(images)
        with threads.one_thread(images):
            for step, (rows, weights) in enumerate(batches):
                rows = subsets[some].gather(1, rows.to(images.device))
                weights = weights.to(images)
                total, _ = sums(state, images[rows], labels[rows], weights, clips[some])
                spread = sigmas[some, step].to(images) * clips[some]
                for value in total.values():
                    shape = (len(some), *[1] * (value.ndim - 1))
                    drawn = [
                        torch.randn(value[0].shape, generator=g, device=g.device) for g in noise
                    ]
                    value += torch.stack(drawn) * spread.view(shape)
                    value /= expected.view(shape)
                update(list(total.values()))
            training.check_finite(sum(value.sum() for value in total.values()), lr)
        states.append(state)
        bar.update(len(some))
    bar.close()
    whole = {name: torch.cat([s[name] for s in states]) for name in states[0]}
    per_epoch = _batches_an_epoch(num_records, float(rates[0])) if sampling == "reshuffle" else 0
    histories = [_history(sigmas[k], float(rates[k]), per_epoch) for k in range(num_models)]
    return Private(training.Ensemble(build, whole, subsets), histories, sampling)


def check_trainable(model: nn.Module) -> None:
    """Refuses a model whose examples see each other, before any training.

    Args:
        model: to be trained with DP-SGD.

    Raises:
        ValueError: it has batch norm or another layer that Opacus' validator refuses, or cannot be
            stacked.
    """
    errors = ModuleValidator.validate(model, strict=False)
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise ValueError(
            "batch norm has no per-example gradient: each output depends on the whole batch, so "
            "clipping bounds nothing; use nn.GroupNorm, or opacus' ModuleValidator.fix(model)"
        )
    if errors:
        raise ValueError(f"this model cannot be trained with DP-SGD: {errors[0]}")
    if stacked.forward_of(model) is None:
        raise ValueError(
            "models with buffers, dropout or frozen weights cannot be stacked, which is how DP-SGD "
            "trains them here; take a model without"
        )


def _poisson(num_records, rates, num_steps, generators):
    """Padded batches: each record by a coin of its own; weights are 0 for padding."""
    for _ in range(num_steps):
        coins = torch.stack([torch.rand(num_records, generator=g) for g in generators])
        model, row = (coins < rates[:, None]).nonzero(as_tuple=True)
        counts = torch.bincount(model, minlength=len(rates))
        place = torch.arange(len(model)) - (counts.cumsum(0) - counts)[model]
        rows = torch.zeros(len(rates), max(int(counts.max()), 1), dtype=torch.int64)
        weights = torch.zeros(rows.shape)
        rows[model, place], weights[model, place] = row, 1.0
        yield rows, weights


def _reshuffled(num_records, rates, num_steps, generators):
    """Disjoint batches of equal size, a new order each epoch; what does not fill one waits."""
    per_epoch = _batches_an_epoch(num_records, float(rates[0]))
    size = num_records // per_epoch
    for step in range(num_steps):
        if step % per_epoch == 0:
            order = torch.stack([torch.randperm(num_records, generator=g) for g in generators])
        rows = order[:, step % per_epoch * size :][:, :size]
        yield rows, torch.ones(rows.shape)


def _batches_an_epoch(num_records: int, rate: float) -> int:
    return min(max(int(1 / rate + 1e-9), 1), num_records)


def _history(sigmas: Tensor, rate: float, per_epoch: int) -> list:
    """Phases of equal noise; for reshuffled batches the least noise of each epoch."""
    if per_epoch:
        return [float(part.min()) for part in sigmas.split(per_epoch)]
    values, counts = sigmas.unique_consecutive(return_counts=True)
    pairs = zip(values.tolist(), counts.tolist(), strict=True)
    return [(value, rate, count) for value, count in pairs]


def _check(sigmas, rates, clips, num_steps, lr, sampling) -> None:
    for rate in rates.tolist():
        accounting.check_request(1.0, 1e-9, rate)
    if not bool((sigmas >= 0).all()):
        raise ValueError(f"sigma must not be negative, this one goes down to {sigmas.min()}")
    if not bool((clips > 0).all()):
        raise ValueError(f"the clip norm must be positive, not {clips.min()}")
    if num_steps < 1 or not lr > 0:
        raise ValueError(f"num_steps {num_steps} and lr {lr} must be positive")
    if sampling not in ("poisson", "reshuffle"):
        raise ValueError(f"unknown sampling {sampling!r}; known: poisson, reshuffle")
    if sampling == "reshuffle" and len(rates.unique()) > 1:
        raise ValueError("reshuffled batches have one size: give one sample rate for all models")
