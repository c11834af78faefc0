"""Training: one model, or many of one architecture at once.

Every shadow, reference and teacher experiment trains K small models on K subsets. One by one they
leave the machine idle between tiny matrix products; `fit_many` stacks their weights and trains
them together, each with its own initialization, subset and data order.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from vplib import cache, experiment

Build = Callable[[], nn.Module]
CHUNK = {"cpu": 16, "cuda": 256}  # models trained in one go; more are slower on a CPU
_TRAINING_CODE = Path(__file__).read_text(encoding="utf-8")  # decides cached models as well


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
    seed: int = 0,
    description: str = "",
) -> nn.Module:
    """Trains one model in place, from the weights it has, with cross-entropy.

    Args:
        model: maps (N, ...) inputs to (N, classes) logits; lives on the device of the images.
        images: (N, ...) inputs.
        labels: (N,) class indices, or (N, classes) probabilities.
        num_epochs: passes over the images.
        lr: learning rate.
        batch_size: images a step; the last batch of an epoch may be smaller.
        momentum: of SGD.
        weight_decay: L2 penalty.
        optimizer: "sgd" or "adam".
        seed: decides the order of the images, and what dropout drops.
        description: names the progress bar; empty for none.

    Returns:
        The same model, in evaluation mode.

    Raises:
        ValueError: a setting or label is out of range.
        FloatingPointError: the loss is no longer finite.
    """
    _check(model, images, labels, num_epochs, lr, batch_size, optimizer)
    if images.ndim == 4:  # faster convolutions on a CPU, equal results
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    model.train()
    stepper = _optimizer(list(model.parameters()), optimizer, lr, momentum, weight_decay)
    order = torch.Generator().manual_seed(_derive(seed, "order"))
    epochs = range(num_epochs)
    with _seeded(_derive(seed, "dropout")), _one_thread(images):
        for _ in experiment.progress(epochs, description) if description else epochs:
            for rows in torch.randperm(len(images), generator=order).split(batch_size):
                rows = rows.to(images.device)
                loss = F.cross_entropy(model(images[rows]), labels[rows])
                stepper.zero_grad()
                loss.backward()
                stepper.step()
            _check_finite(loss, lr)
    return model.eval()


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
        model = _initialized(self.build, 0).to(next(iter(self.state.values())).device)
        model.load_state_dict({name: value[k] for name, value in self.state.items()})
        return model.eval()

    @torch.no_grad()
    def logits(self, images: Tensor, batch_size: int = 2048) -> Tensor:
        """The answers of all models to all images.

        Args:
            images: (N, ...) inputs.
            batch_size: images at a time.

        Returns:
            (K, N, classes) logits.
        """
        forward = _batched_forward(self.build)
        if forward is None:
            models = [self.model(k) for k in range(len(self))]
            parts = images.split(batch_size)
            return torch.stack([torch.cat([m(part) for part in parts]) for m in models])
        answers = []
        for some in torch.arange(len(self)).split(CHUNK["cpu"]):
            state = {name: value[some] for name, value in self.state.items()}
            parts = [part.expand(len(some), *part.shape) for part in images.split(batch_size)]
            answers.append(torch.cat([forward(state, part) for part in parts], dim=1))
        return torch.cat(answers)

    def probabilities(self, images: Tensor) -> Tensor:
        """(K, N, classes) probabilities: the softmax of the logits."""
        return self.logits(images).softmax(-1)

    def predict(self, k: int) -> Callable[[Tensor], Tensor]:
        """The k-th model as a black box: a function from images to probabilities."""
        model = self.model(k)

        @torch.no_grad()
        def predict(images: Tensor) -> Tensor:
            return torch.cat([model(part) for part in images.split(2048)]).softmax(-1)

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
        ValueError: a setting, label or row is out of range, or the model cannot be batched.
        FloatingPointError: a loss is no longer finite.
    """
    template = _initialized(build, 0).to(images.device)
    _check(template, images, labels, num_epochs, lr, batch_size, optimizer)
    subsets = torch.as_tensor(subsets).to(images.device)
    if subsets.ndim != 2 or not subsets.numel():
        raise ValueError(f"subsets must be (models, rows), not {tuple(subsets.shape)}")
    if subsets.dtype != torch.int64:  # a mask of truth values would pass for rows 0 and 1
        raise ValueError(f"subsets must be int64 rows of the pool, not {subsets.dtype}")
    if subsets.min() < 0 or subsets.max() >= len(images):
        raise ValueError(f"subsets must hold rows 0..{len(images) - 1} of the pool")
    if form not in ("auto", "batched", "loop"):
        raise ValueError(f"unknown form {form!r}; {experiment.nearest(form, FORMS)}")
    forward = _batched_forward(build, training=True)
    if form == "batched" and forward is None:
        raise ValueError(
            "models with buffers, dropout, batch norm or frozen weights train one by one: "
            "form='loop'"
        )
    if form == "auto":
        form = "batched" if forward is not None and _batching_wins(template, images) else "loop"
    settings = dict(
        num_epochs=num_epochs,
        lr=lr,
        batch_size=batch_size,
        momentum=momentum,
        weight_decay=weight_decay,
        optimizer=optimizer,
    )
    seeds = [_derive(seed, k) for k in range(len(subsets))]
    chunk = CHUNK.get(images.device.type, 16) if form == "batched" else 1
    common = _TRAINING_CODE, torch.__version__, images.device.type, form, settings
    if keep:
        common += (cache.fingerprint(images, labels),)
    states = []
    bar = experiment.progress(range(len(subsets)), description)
    for some in torch.arange(len(subsets)).split(chunk):
        models = [_initialized(build, seeds[k]) for k in some]
        rows, own = subsets[some], [seeds[k] for k in some]
        key = cache.fingerprint(*common, rows, own, *models) if keep else ""
        state = cache.read(key) if keep else None
        cache.counts["trained" if state is None else "reused"] += len(some)
        if state is None:
            state = _fit_chunk(models, forward, images, labels, rows, own, form, settings)
            if keep:
                cache.write(key, state)
        states.append({name: value.to(images.device) for name, value in state.items()})
        bar.update(len(some))
    bar.close()
    stacked = {name: torch.cat([s[name] for s in states]) for name in states[0]}
    return Ensemble(build, stacked, subsets)


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


FORMS = ("auto", "batched", "loop")
_LOOP_ONLY = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def _derive(seed: int, *path) -> int:
    """An independent seed for a part of an experiment."""
    entropy = [seed, *(int.from_bytes(str(part).encode(), "little") for part in path)]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _seeded(seed: int):
    """Torch's generators start from this seed inside, and are as before outside."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 1 ms: it notes a stack
        if gpus:
            torch.cuda.manual_seed_all(seed)
        yield


@contextmanager
def _one_thread(images: Tensor):
    """Tiny products run on one core inside.

    A second one gains little on them, and where others want it too (thirty students on one
    server, two test workers) waiting for it costs twenty times as much.
    """
    before = torch.get_num_threads()
    tiny = images.device.type == "cpu" and images[0].numel() < 4096
    torch.set_num_threads(1 if tiny else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit_chunk(models, forward, images, labels, subsets, seeds, form, settings):
    """Trains some models, one after another or stacked; returns their stacked state."""
    models = [model.to(images.device) for model in models]
    if form == "loop":
        for model, rows, seed in zip(models, subsets, seeds, strict=True):
            fit(model, images[rows], labels[rows], seed=seed, **settings)
        states = [model.state_dict() for model in models]
        return {name: torch.stack([s[name] for s in states]) for name in states[0]}
    state = {
        name: value.detach().clone().requires_grad_()
        for name, value in stack_module_state(models)[0].items()
    }
    names = "optimizer", "lr", "momentum", "weight_decay"
    stepper = _optimizer(list(state.values()), *(settings[name] for name in names))
    step = _closed_form_step(models[0], state) or _autograd_step(forward, state)
    orders = [torch.Generator().manual_seed(_derive(seed, "order")) for seed in seeds]
    with _one_thread(images):
        for _ in range(settings["num_epochs"]):
            order = torch.stack([torch.randperm(subsets.shape[1], generator=g) for g in orders])
            shuffled = subsets.gather(1, order.to(images.device))
            for rows in shuffled.split(settings["batch_size"], dim=1):
                loss = step(images[rows], labels[rows])
                stepper.step()
            _check_finite(loss, settings["lr"])
    return {name: value.detach() for name, value in state.items()}


def _initialized(build: Build, seed: int) -> nn.Module:
    with _seeded(seed):
        return build()


def _check(model, images, labels, num_epochs, lr, batch_size, optimizer) -> None:
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images but {len(labels)} labels")
    if not len(images):
        raise ValueError("there is no image to train on")
    if num_epochs < 1 or batch_size < 1 or not lr > 0:
        raise ValueError(
            f"num_epochs {num_epochs}, batch_size {batch_size} and lr {lr} must be positive"
        )
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


def _check_finite(loss: Tensor, lr: float) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(f"training diverged (loss {loss.item()}); lower lr from {lr}")


def _optimizer(parameters, optimizer, lr, momentum, weight_decay) -> torch.optim.Optimizer:
    if optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True
    )


def _batching_wins(model: nn.Module, images: Tensor) -> bool:
    """Whether stacked weights beat one model after another (measured, tests/benchmarks)."""
    if images.device.type != "cpu":
        return True
    convolutions = any(isinstance(m, nn.Conv2d) for m in model.modules())
    plain = isinstance(model, nn.Sequential)
    return plain and (not convolutions or images.shape[-1] <= 16)


def _batched_forward(build: Build, training: bool = False):
    """A function (state, x (K, B, ...)) -> logits (K, B, classes), or None if there is none.

    Linear layers become one batched product, convolutions one grouped convolution on
    (B, K * C, H, W); any other architecture goes through vmap.
    """
    net = _initialized(build, 0).train(training)
    if (
        any(isinstance(m, _LOOP_ONLY) for m in net.modules())
        or next(net.buffers(), None) is not None
        or not all(p.requires_grad for p in net.parameters())
    ):
        return None
    if type(net) is not nn.Sequential or not all(_is_plain(m) for m in net):
        base = net.to("meta")
        return vmap(lambda state, x: functional_call(base, state, (x,)))

    def forward(state: dict[str, Tensor], x: Tensor) -> Tensor:
        num_models, packed = len(x), False
        for i, layer in enumerate(net):
            weight, bias = state.get(f"{i}.weight"), state.get(f"{i}.bias")
            if isinstance(layer, nn.Conv2d):
                if not packed:
                    x, packed = x.transpose(0, 1).flatten(1, 2), True
                bias = None if bias is None else bias.flatten()
                groups = num_models * layer.groups
                shape = (layer.stride, layer.padding, layer.dilation, groups)
                x = F.conv2d(x, weight.flatten(0, 1), bias, *shape)
            elif isinstance(layer, nn.Linear):
                bias = 0 if bias is None else bias.unsqueeze(1)
                x = x @ weight.transpose(1, 2) + bias
            elif isinstance(layer, nn.Flatten):
                x = x.view(len(x), num_models, -1).transpose(0, 1) if packed else x.flatten(2)
                packed = False
            elif isinstance(layer, nn.MaxPool2d | nn.AvgPool2d) and not packed:
                x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            else:
                x = layer(x)
        return x

    return forward


def _is_plain(layer: nn.Module) -> bool:
    """Whether the batched forward knows this layer; a subclass may compute something else."""
    layers = (nn.Linear, nn.Conv2d, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.ReLU, nn.Tanh)
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
        return False
    return type(layer) in layers and getattr(layer, "padding_mode", "zeros") == "zeros"


def _autograd_step(forward, state):
    """Gradients of all models by autograd; the sum over models does not mix their gradients."""

    def step(x: Tensor, y: Tensor) -> Tensor:
        for parameter in state.values():
            parameter.grad = None
        logits = forward(state, x)
        flat = y.flatten(0, 1)
        loss = F.cross_entropy(logits.flatten(0, 1), flat, reduction="sum") / x.shape[1]
        loss.backward()
        return loss.detach()

    return step


def _closed_form_step(net: nn.Module, state):
    """Gradients of all models of a ReLU or tanh MLP by hand, or None for other models.

    Half the cost of autograd at these sizes, where the time goes into calls, not products.
    """
    plain = type(net) is nn.Sequential and all(_is_plain(m) for m in net)
    body = list(net)[1:] if plain and type(net[0]) is nn.Flatten else []
    linear, between = body[::2], {type(m) for m in body[1::2]}
    if (
        len(body) % 2 == 0
        or not all(type(m) is nn.Linear and m.bias is not None for m in linear)
        or not between <= {nn.ReLU, nn.Tanh}
        or len(between) > 1
    ):
        return None
    tanh = nn.Tanh in between
    names = [f"{1 + 2 * i}" for i in range(len(linear))]
    weights = [state[f"{name}.weight"] for name in names]
    biases = [state[f"{name}.bias"] for name in names]

    @torch.no_grad()
    def step(x: Tensor, y: Tensor) -> Tensor:
        inputs = [x.flatten(2)]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            z = torch.baddbmm(bias.unsqueeze(1), inputs[-1], weight.transpose(1, 2))
            inputs.append(z.tanh_() if tanh else z.relu_())
        logits = torch.baddbmm(biases[-1].unsqueeze(1), inputs[-1], weights[-1].transpose(1, 2))
        error = logits.softmax(-1)  # minus the target: the gradient of the logits
        if y.ndim == 2:
            index = y.unsqueeze(-1)
            loss = -error.gather(2, index).clamp_min(1e-38).log().sum()
            error.scatter_add_(2, index, error.new_full((1, 1, 1), -1.0).expand(index.shape))
        else:
            loss = -(error.clamp_min(1e-38).log() * y).sum()
            error -= y
        error /= x.shape[1]
        for i, weight in reversed(list(enumerate(weights))):
            biases[i].grad = error.sum(1)
            gradient = error.transpose(1, 2) @ inputs[i]
            if i:
                slope = 1 - inputs[i] ** 2 if tanh else inputs[i] > 0
                error = (error @ weight).mul_(slope)
            weight.grad = gradient
        return loss

    return step
