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
from vplib.nets.stacked import clipped_sum
from vplib.privacy import accounting

State = stacked.State


class Canaries(NamedTuple):
    """Records of an auditor's, which have no image: their gradients are given.

    Args:
        gradients: as `stacked.examples` gives them, but (m, ...), a row a canary.
        included: (K, m) which canaries each model is trained on.
    """

    gradients: stacked.Examples
    included: Tensor


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


def clipped_sums(net: nn.Module) -> Callable:
    """Sums of clipped per-example gradients for K models like this one.

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
    return lambda state, x, y, weights, clip: clipped_sum([gradients(state, x, y)], clip, weights)


def gaussian(one: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Standard normal numbers of this shape (K, ...), each model's from a generator of its own."""
    drawn = [torch.randn(one[0].shape, generator=g, device=g.device) for g in generators]
    return torch.stack(drawn)


def noise_scale(sigma: Tensor, clip: Tensor) -> Tensor:
    """The standard deviation of the noise on a sum in which one record weighs at most `clip`.

    Args:
        sigma: (K,) noise multipliers; 0 trains without noise, whatever the clip norm.
        clip: (K,) clip norms.
    """
    return torch.where(sigma > 0, sigma * clip, 0.0)


def release(
    found: stacked.Examples, weights: Tensor, clip: Tensor, sigma: Tensor, generators: list
) -> State:
    """All that a step says about its batch: the sum of clipped gradients, with noise.

    Args:
        found: the examples' gradients.
        weights: (K, B) 1 for the records of the batch, 0 for padding.
        clip: (K,) norms.
        sigma: (K,) noise multipliers.
        generators: of each model's noise.
    """
    total, _ = clipped_sum([found], clip, weights)
    scale = noise_scale(sigma, clip)
    for value in total.values():
        value += gaussian(value, generators) * _wide(scale, value)
    return total


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
    perturb: float | Tensor = 0.0,
    canaries: Canaries | None = None,
    watch: Callable[[State, State], None] | None = None,
    seed: int = 0,
    description: str = "DP-SGD",
) -> Private:
    """Trains K models with DP-SGD, each on its own subset of one pool.

    Each step sums clipped gradients, adds noise of standard deviation sigma * clip, and divides by
    the *expected* batch size: the size of a Poisson batch is private as well. Model k depends on
    `seed` and k alone.

    Args:
        build: makes one untrained model, without batch norm.
        images: (N, ...) inputs of the pool, float32.
        labels: (N,) class indices, int64.
        subsets: (K, n) rows of the pool that each model sees, each row once.
        sigma: noise multiplier: a number, (K, 1) one a model, (num_steps,) a schedule, or both
            (K, num_steps). 0 trains without privacy.
        sample_rate: probability of a record to be in a batch: a number or one a model, (K,).
        num_steps: steps.
        clip: norm that each example's gradient is clipped to: a number or one a model, (K,);
            infinity, for a sigma of 0, clips nothing.
        lr: learning rate.
        optimizer: "sgd" or "adam".
        sampling: "poisson", or "reshuffle": each epoch cuts a new order into batches of equal size.
        perturb: standard deviation of noise on each example's gradient *before* it is clipped: a
            number or one a model, (K,). It forms every gradient in full, and hides nothing.
        canaries: an auditor's records, drawn, clipped and noised as all others.
        watch: called in each step with what whoever sees every iterate knows: the parameters
            before it, and the noised sums, of up to `training.CHUNK` models at a time.
        seed: decides initializations, batches and noise.
        description: names the progress bar.

    Returns:
        The models and their histories.

    Raises:
        ValueError: the model cannot be trained privately, or a setting cannot be.
        FloatingPointError: a gradient is no longer finite.

    Source:
        Abadi et al. 2016, algorithm 1. Reshuffled batches: Yu et al., S&P 2019. Noise before
        clipping: Chen et al., NeurIPS 2020.
    """
    template = seeding.initialized(build, 0).to(images.device)
    check_trainable(template)
    subsets = torch.as_tensor(subsets).to(images.device)
    _check_records(template, images, labels, subsets)
    num_models, num_records = subsets.shape
    sigmas = torch.as_tensor(sigma, dtype=torch.float32).broadcast_to(num_models, num_steps)
    rates = torch.as_tensor(sample_rate, dtype=torch.float64).broadcast_to(num_models)
    clips, sizes = (
        torch.as_tensor(v, dtype=torch.float32).broadcast_to(num_models).to(images.device)
        for v in (clip, perturb)
    )
    _check(sigmas, rates, clips, sizes, num_steps, lr, optimizer, sampling)
    form = examples.per_example if sizes.any() else examples.examples_of
    gradients, states = form(template), []
    num_drawn = num_records + (canaries.included.shape[1] if canaries else 0)
    chunks = torch.arange(num_models).split(training.CHUNK.get(images.device.type, 16))
    bar = iter(experiment.progress(range(len(chunks) * num_steps), description))
    for some in chunks:
        seeds = [seeding.derive(seed, int(k)) for k in some]
        nets = [seeding.initialized(build, s).to(images.device) for s in seeds]
        state = stacked.detached(stack_module_state(nets)[0])
        update = stacked.updater(list(state.values()), optimizer, lr)
        draws = [torch.Generator().manual_seed(seeding.derive(s, "batches")) for s in seeds]
        noise = [torch.Generator(images.device) for s in seeds]
        for generator, s in zip(noise, seeds, strict=True):
            generator.manual_seed(seeding.derive(s, "noise"))
        sample = _poisson if sampling == "poisson" else _reshuffled
        batches = sample(num_drawn, rates[some], num_steps, draws)
        expected = (rates[some] * num_records).to(images)
        with threads.one_thread(images):
            for step, (drawn, weights) in enumerate(batches):
                next(bar)
                drawn, weights = drawn.to(images.device), weights.to(images)
                rows = subsets[some].gather(1, drawn.clamp_max(num_records - 1))
                found = gradients(state, images[rows], labels[rows])
                if canaries:
                    places = drawn - num_records
                    found = examples.replaced(found, canaries.gradients, places)
                    held = canaries.included[some].to(weights).gather(1, places.clamp_min(0))
                    weights = torch.where(places < 0, weights, weights * held)
                if sizes.any():
                    found = {
                        n: g + gaussian(g, noise) * _wide(sizes[some], g) for n, g in found.items()
                    }
                total = release(found, weights, clips[some], sigmas[some, step].to(images), noise)
                if watch:
                    watch(state, total)
                update([v / _wide(expected, v) for v in total.values()])
            training.check_finite(sum(value.sum() for value in total.values()), lr)
        states.append(state)
    next(bar, None)
    whole = {name: torch.cat([s[name] for s in states]) for name in states[0]}
    per_epoch = _batches_an_epoch(num_drawn, float(rates[0])) if sampling == "reshuffle" else 0
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
    _require(not errors, f"this model cannot be trained with DP-SGD: {errors and errors[0]}")
    alike = "buffers, dropout or frozen weights cannot be stacked, which is how DP-SGD trains"
    _require(stacked.forward_of(model), f"models with {alike} them here; take a model without")


def _require(fine, message: str) -> None:
    if not fine:
        raise ValueError(message)


def _check_records(model, images, labels, subsets) -> None:
    """Refuses a pool that is none, and a record that a subset holds twice: it would weigh twice."""
    _require(images.dtype == torch.float32, f"images must be float32, not {images.dtype}")
    for name, rows, shape in (("labels", labels, "(N)"), ("subsets", subsets, "(models, n)")):
        fine = rows.dtype == torch.int64 and rows.numel() and rows.ndim == len(shape.split())
        _require(fine, f"{name} must be int64 {shape}, not {rows.dtype} {tuple(rows.shape)}")
    with torch.no_grad():
        most = {"labels": model(images[:1]).shape[-1], "subsets": min(len(images), len(labels))}
    for name, rows in (("labels", labels), ("subsets", subsets)):
        low, high = rows.min(), rows.max()
        fine = low >= 0 and high < most[name]
        _require(fine, f"{name} must lie in 0..{most[name] - 1}, these lie in {low}..{high}")
    alone = (subsets.sort(1).values.diff(dim=1) > 0).all()
    _require(alone, "a subset holds a row twice, which epsilon does not know: give each row once")


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """(K,) values, to be multiplied with (K, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


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
    return [(s, rate, n) for s, n in zip(values.tolist(), counts.tolist(), strict=True)]


def _check(sigmas, rates, clips, sizes, num_steps, lr, optimizer, sampling) -> None:
    for rate in rates.tolist():
        accounting.check_request(1.0, 1e-9, rate)
    fine = num_steps >= 1 and 0 < lr < torch.inf
    _require(fine, f"num_steps {num_steps} and lr {lr} must be positive")
    for name, values in (("sigma", sigmas), ("perturb", sizes)):
        fine = values.min() >= 0 and values.max() < torch.inf
        _require(fine, f"{name} must be 0 or more, not {values.min()}..{values.max()}")
    _require((clips > 0).all(), f"the clip norm must be positive, not {clips.min()}")
    noised = clips.cpu()[(sigmas > 0).any(1)]
    _require(noised.isfinite().all(), "an infinite clip norm needs infinite noise, or sigma 0")
    known = {"optimizer": ("sgd", "adam"), "sampling": ("poisson", "reshuffle")}
    for name, given in (("optimizer", optimizer), ("sampling", sampling)):
        hint = experiment.nearest(given, known[name])
        _require(given in known[name], f"unknown {name} {given!r}; {hint}")
    alike = sampling == "poisson" or len(rates.unique()) == 1
    _require(alike, "reshuffled batches have one size: give one sample rate for all models")
