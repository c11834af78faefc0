"""Training: one model, or many of one architecture at once.

Every shadow, reference and teacher experiment trains K small models on K subsets. One by one they
leave the machine idle between tiny matrix products; `fit_many` stacks their weights and trains
them together, each with its own initialization, subset and data order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import stack_module_state

from vplib import cache, experiment, seeding, threads
from vplib.nets import stacked

Build = Callable[[], nn.Module]
Loss = Callable[[Tensor, Tensor], Tensor]
CHUNK = {"cpu": 16, "cuda": 256}  # models trained in one go; more are slower on a CPU
AT_ONCE = 2048  # images that models answer at a time
FORMS = ("auto", "batched", "loop")
_TRAINING_CODE = "".join(  # decides cached models as well
    Path(file).read_text(encoding="utf-8")
    for file in (__file__, stacked.__file__, seeding.__file__)
)


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    num_epochs: int,
    lr: float = 0.1,
    batch_size: int = 32,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    optimizer: str = "sgd",
    loss: Loss = F.cross_entropy,
    seed: int = 0,
) -> nn.Module:
    """Trains one model in place, from the weights it has.

    Args:
        model: maps (N, ...) inputs to (N, classes) logits; lives on the device of the images.
        images: (N, ...) inputs.
        labels: (N,) class indices, or (N, classes) probabilities.
        num_epochs: passes over the images.
        lr: learning rate.
        batch_size: images a step; the last batch of an epoch may be smaller. A single image that
            is left joins the batch before it where there is batch norm, which needs two.
        momentum: of SGD.
        weight_decay: L2 penalty.
        optimizer: "sgd" or "adam".
        loss: from a batch's outputs and labels to a number; cross-entropy by default.
        seed: decides the order of the images, and what dropout drops.

    Returns:
        The same model, in evaluation mode.

    Raises:
        ValueError: a setting or label is out of range, or batch norm would see one image a step.
        FloatingPointError: the loss is no longer finite.
    """
    _check(model, images, labels, num_epochs, lr, batch_size, optimizer)
    if images.ndim == 4:  # faster convolutions on a CPU, equal results
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    model.train()
    if optimizer == "adam":
        stepper = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    else:
        stepper = torch.optim.SGD(
            model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True
        )
    order = torch.Generator().manual_seed(seeding.derive(seed, "order"))
    with seeding.seeded(seeding.derive(seed, "dropout")), threads.one_thread(images):
        for _ in range(num_epochs):
            batches = list(torch.randperm(len(images), generator=order).split(batch_size))
            if len(batches[-1]) == 1 < batch_size and has_batch_norm(model):
                batches[-2:] = [torch.cat(batches[-2:])]
            for rows in batches:
                rows = rows.to(images.device)
                value = loss(model(images[rows]), labels[rows])
                stepper.zero_grad()
                value.backward()
                stepper.step()
            check_finite(value, lr)
    return model.eval()


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model, in training mode, makes images of one batch depend on each other."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@dataclass(frozen=True)
class Ensemble:
    """K trained models of one architecture, answering together.

    Args:
        build: makes one untrained model.
        state: the models' parameters and buffers by name, each stacked to (K, ...).
        subsets: (K, n) rows of the pool that each model was trained on.
    """

    build: Build
    state: dict[str, Tensor]
    subsets: Tensor

    def __len__(self):
        """The number of models."""
        return len(self.subsets)

    def model(self, k: int) -> nn.Module:
        """The k-th model, as a module of its own in evaluation mode."""
        model = seeding.initialized(self.build, 0).to(next(iter(self.state.values())).device)
        model.load_state_dict({name: value[k] for name, value in self.state.items()})
        return model.eval()

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """The answers of all models to all images (N, ...): (K, N, classes) logits."""
        forward = stacked.forward_of(seeding.initialized(self.build, 0).eval())
        if forward is None:
            models = [self.model(k) for k in range(len(self))]
            parts = images.split(AT_ONCE)
            return torch.stack([torch.cat([m(part) for part in parts]) for m in models])
        answers = []
        for some in torch.arange(len(self)).split(CHUNK["cpu"]):
            state = {name: value[some] for name, value in self.state.items()}
            parts = [part.expand(len(some), *part.shape) for part in images.split(AT_ONCE)]
            answers.append(torch.cat([forward(state, part) for part in parts], dim=1))
        return torch.cat(answers)

    def probabilities(self, images: Tensor) -> Tensor:
        """(K, N, classes) probabilities: the softmax of the logits."""
        return self.logits(images).softmax(-1)

    def predict(self, k: int) -> Callable[[Tensor], Tensor]:
        """The k-th model as a black box: a function from images, of any float type, to answers."""
        model = self.model(k)
        dtype = next(model.parameters()).dtype

        @torch.no_grad()
        def predict(images: Tensor) -> Tensor:
            return torch.cat([model(part) for part in images.to(dtype).split(AT_ONCE)]).softmax(-1)

        return predict

    def membership(self, num_records: int) -> Tensor:
        """(K, num_records) truth values: was this record of the pool in this model's subset?"""
        rows = self.subsets.cpu()
        return torch.zeros(len(rows), num_records, dtype=torch.bool).scatter_(1, rows, True)


def fit_many(
    build: Build,
    images: Tensor,
    labels: Tensor,
    subsets: Tensor,
    *,
    num_epochs: int,
    lr: float = 0.1,
    batch_size: int = 32,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    optimizer: str = "sgd",
    loss: Loss = F.cross_entropy,
    objective: Callable | None = None,
    seed: int = 0,
    form: str = "auto",
    keep: bool = True,
    description: str = "training",
) -> Ensemble:
    """Trains K models of one architecture, each on its own subset of one pool.

    Model k depends on `seed` and k alone: its initialization, subset and data order are its own,
    whatever the form. Two calls with equal arguments on one machine give equal models.

    Args:
        build: makes one untrained model; its initialization must draw on torch's generator only.
        images: (N, ...) inputs of the pool.
        labels: (N,) class indices, or (N, classes) probabilities.
        subsets: (K, n) rows of the pool that each model sees.
        num_epochs: passes over each subset.
        lr: learning rate.
        batch_size: images a step and model.
        momentum: of SGD.
        weight_decay: L2 penalty.
        optimizer: "sgd" or "adam".
        loss: from a batch's outputs and labels to a number; any but cross-entropy trains one model
            after another.
        objective: of `nets.objectives`, which the models, stacked, descend on instead of
            cross-entropy: beside an adversary, with dropout, or pruned.
        seed: decides initializations and data orders.
        form: "batched" (weights stacked, one product for many models), "loop" (one model after
            another), or "auto", whichever is faster for this model on this machine.
        keep: models that were trained before, from equal arguments by equal code, come from the
            disk cache, and new ones go there, a few at a time: an interrupted call goes on where
            it stopped.
        description: names the progress bar.

    Returns:
        The trained ensemble.

    Raises:
        ValueError: a setting, label or row is out of range, or the model cannot be stacked.
        FloatingPointError: a loss is no longer finite.
    """
    template = seeding.initialized(build, 0).to(images.device)
    _check(template, images, labels, num_epochs, lr, batch_size, optimizer)
    subsets = torch.as_tensor(subsets).to(images.device)
    if subsets.ndim != 2 or not subsets.numel():
        raise ValueError(f"subsets must be (models, rows), not {tuple(subsets.shape)}")
    if subsets.dtype != torch.int64:  # a mask of truth values would pass for rows 0 and 1
        raise ValueError(f"subsets must be int64 rows of the pool, not {subsets.dtype}")
    if subsets.min() < 0 or subsets.max() >= len(images):
        raise ValueError(f"subsets must hold rows 0..{len(images) - 1} of the pool")
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; {experiment.nearest(form, FORMS)}")
    forward = stacked.forward_of(seeding.initialized(build, 0)) if loss is F.cross_entropy else None
    if objective and (forward is None or form == "loop"):
        raise ValueError("an objective needs models that can be stacked, and no loss or loop")
    if form == "batched" and forward is None:
        raise ValueError(
            "models with buffers, dropout, batch norm, frozen weights or a loss of their own train "
            "one by one: form='loop'"
        )
    if form == "auto":
        stack = objective or (forward is not None and stacked.wins(template, images))
        form = "batched" if stack else "loop"
    settings = dict(num_epochs=num_epochs, lr=lr, batch_size=batch_size, momentum=momentum)
    settings |= dict(weight_decay=weight_decay, optimizer=optimizer, loss=loss)
    seeds = [seeding.derive(seed, k) for k in range(len(subsets))]
    chunk = CHUNK.get(images.device.type, 16) if form == "batched" else 1
    common = _TRAINING_CODE, images.device.type, form, settings
    common += (cache.fingerprint(images, labels),) if keep else ()
    states, like = [], template.state_dict()
    bar = experiment.progress(range(len(subsets)), description)
    for some in torch.arange(len(subsets)).split(chunk):
        models = [seeding.initialized(build, seeds[k]) for k in some]
        rows, own = subsets[some], [seeds[k] for k in some]
        rule = (objective, some) if objective else ()
        state = cache.kept(
            (*common, rows, own, *models, *rule) if keep else None,
            partial(_fit_chunk, models, images, labels, rows, own, form, settings, *rule),
            {name: value.expand(len(some), *value.shape) for name, value in like.items()},
            len(some),
        )
        states.append({name: value.to(images.device) for name, value in state.items()})
        bar.update(len(some))
    bar.close()
    whole = {name: torch.cat([s[name] for s in states]) for name in states[0]}
    return Ensemble(build, whole, subsets)


def half_splits(num_records: int, num_models: int, seed: int = 0) -> Tensor:
    """Random halves of a pool, such that each record is in exactly half of the models.

    Models 2j and 2j + 1 hold complementary halves.

    Args:
        num_records: size of the pool, even.
        num_models: number of models, even.
        seed: decides the halves.

    Returns:
        (num_models, num_records / 2) rows of the pool.

    Raises:
        ValueError: a number is odd or not positive.
    """
    if num_records < 2 or num_models < 2 or num_records % 2 or num_models % 2:
        raise ValueError(f"need even numbers, not {num_records} records and {num_models} models")
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(num_records) for _ in range(num_models // 2)]
    half = num_records // 2
    return torch.from_numpy(np.stack([o[part] for o in orders for part in np.s_[:half, half:]]))


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of right answers.

    Args:
        logits: (..., N, classes) logits or probabilities.
        labels: (N,) class indices.

    Returns:
        (...) shares from 0 to 1: one a model for the logits of an ensemble.
    """
    return (logits.argmax(-1) == labels).float().mean(-1)


def _fit_chunk(models, images, labels, subsets, seeds, form, settings, rule=None, which=None):
    """Trains some models, one after another or stacked; returns their stacked state."""
    models = [model.to(images.device) for model in models]
    if form == "loop":
        for model, rows, seed in zip(models, subsets, seeds, strict=True):
            fit(model, images[rows], labels[rows], seed=seed, **settings)
        states = [model.state_dict() for model in models]
        return {name: torch.stack([s[name] for s in states]) for name in states[0]}
    state = stack_module_state(models)[0]
    names = "optimizer", "lr", "momentum", "weight_decay"
    update = stacked.updater(list(state.values()), *(settings[name] for name in names))
    gradients = (rule or stacked.gradients_of)(models[0], state, *((which, seeds) if rule else ()))
    orders = [torch.Generator().manual_seed(seeding.derive(seed, "order")) for seed in seeds]
    for _ in range(settings["num_epochs"]):
        order = torch.stack([torch.randperm(subsets.shape[1], generator=g) for g in orders])
        shuffled = subsets.gather(1, order.to(images.device))
        for rows in shuffled.split(settings["batch_size"], dim=1):
            logits, found = gradients(images[rows], labels[rows])
            update(found)
        loss = F.cross_entropy(logits.flatten(0, 1), labels[rows].flatten(0, 1))
        check_finite(loss, settings["lr"])
    return state


def _check(model, images, labels, num_epochs, lr, batch_size, optimizer) -> None:
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images but {len(labels)} labels")
    if not len(images):
        raise ValueError("there is no image to train on")
    if num_epochs < 1 or batch_size < 1 or not lr > 0:
        raise ValueError(
            f"num_epochs {num_epochs}, batch_size {batch_size} and lr {lr} must be positive"
        )
    if has_batch_norm(model) and min(batch_size, len(images)) < 2:
        raise ValueError("batch norm needs two images a step: raise batch_size or take more")
    if optimizer not in ("sgd", "adam"):
        raise ValueError(f"unknown optimizer {optimizer!r}; known: sgd, adam")
    with torch.no_grad():
        num_classes = model.eval()(images[:1]).shape[-1]
    hard = labels.ndim == 1 and labels.dtype == torch.int64
    soft = labels.shape == (len(images), num_classes) and labels.is_floating_point()
    if not (hard or soft):
        raise ValueError(
            f"labels must be int64 of shape ({len(images)},) or probabilities of shape "
            f"({len(images)}, {num_classes}), not {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if hard and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1} for a model of {num_classes} classes, "
            f"these lie in {labels.min()}..{labels.max()}"
        )


def check_finite(loss: Tensor, lr: float) -> None:
    """Stops a training that diverged.

    Args:
        loss: or another number that is finite where training did not diverge.
        lr: the learning rate that was too high.

    Raises:
        FloatingPointError: the loss is infinite or not a number.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(f"training diverged (loss {loss.item()}); lower lr from {lr}")
