"""Federated learning in one process: clients keep images, the server receives messages.

What a server, or an attacker in its place, can see is a `Message` by type: the gradients or the
update of named parameters. It has no field for images, labels, losses or a client's settings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True, slots=True)
class Message:
    """What a client sends: one tensor for each parameter of the model, and nothing else.

    Args:
        values: by parameter name; copied and detached, so that no graph leads back to an image.

    Raises:
        TypeError: a value is no tensor of floating-point numbers.
    """

    values: MappingProxyType

    def __post_init__(self):
        """Copies the tensors; from here on nothing can be added."""
        for name, value in self.values.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                found = type(value).__name__
                raise TypeError(f"a message holds floating-point tensors; {name!r} is {found}")
        copies = {name: value.detach().clone() for name, value in self.values.items()}
        object.__setattr__(self, "values", MappingProxyType(copies))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Message":
        """The message with each tensor changed, of the same kind."""
        return type(self)({name: change(value) for name, value in self.values.items()})


@dataclass(frozen=True, slots=True)
class Gradients(Message):
    """The gradient of the mean loss over a client's batch (FedSGD)."""


@dataclass(frozen=True, slots=True)
class Update(Message):
    """The parameters after local training minus those before (FedAvg)."""


Client = tuple[Tensor, Tensor]
Protect = Callable[[Message, torch.Generator], Message]


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that clients train and send: all but the frozen ones.

    Raises:
        ValueError: all are frozen.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError("all parameters are frozen; model.requires_grad_() frees them")
    return found


def share_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Gradients:
    """A client's gradient of the mean cross-entropy, in the mode (train or eval) of the model.

    Args:
        model: as the server sent it; nothing in it changes.
        images: (B, ...) the client's batch.
        labels: (B,) class indices.

    Raises:
        ValueError: there is no image, not one label each, or the model is frozen.
    """
    return Gradients(_slopes(model, trainable(model), images, labels))


def share_update(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    lr: float,
    num_steps: int,
    batch_size: int | None = None,
) -> Update:
    """A client's change of the parameters after local steps of plain gradient descent.

    Args:
        model: as the server sent it; nothing in it changes.
        images: (N, ...) the client's images.
        labels: (N,) class indices.
        lr: learning rate of a step.
        num_steps: number of steps.
        batch_size: images a step, in the order given; all by default.

    Raises:
        ValueError: a setting is out of range, or as `share_gradient`.
    """
    batch_size = len(images) if batch_size is None else batch_size
    if num_steps < 1 or lr <= 0 or not 1 <= batch_size <= len(images):
        raise ValueError(
            f"need num_steps of 1 or more, lr above 0 and batch_size from 1 to {len(images)}, "
            f"not {num_steps}, {lr} and {batch_size}"
        )
    start = trainable(model)
    here = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    for rows in local_batches(len(images), num_steps, batch_size):
        slopes = _slopes(model, here, images[rows], labels[rows])
        here = {n: (v - lr * slopes[n]).detach().requires_grad_() for n, v in here.items()}
    return Update({name: here[name] - start[name] for name in start})


def local_batches(num_images: int, num_steps: int, batch_size: int) -> list[slice]:
    """The rows of each local step: batch after batch, and again from the first."""
    batches = [slice(i, i + batch_size) for i in range(0, num_images, batch_size)]
    return [batches[step % len(batches)] for step in range(num_steps)]


def aggregate(model: nn.Module, messages: Sequence[Message], weights=None, lr: float = 1.0) -> None:
    """The server's step, in place: the weighted mean of updates, or of gradients times -lr.

    Args:
        model: the server's.
        messages: all of one kind.
        weights: one number a message, such as how many images a client signed up with.
        lr: the server's learning rate; that of FedAvg is usually 1.

    Raises:
        ValueError: there is no message, kinds are mixed, or the weights are not one each, 0 or
            more, and some above 0.

    Source:
        McMahan et al., Communication-efficient learning of deep networks from decentralized data,
        AISTATS 2017, algorithm 1.
    """
    if len({type(message) for message in messages}) != 1:
        raise ValueError("need one or more messages, all gradients or all updates")
    sign = -1 if isinstance(messages[0], Gradients) else 1
    weights = torch.as_tensor([1.0] * len(messages) if weights is None else weights)
    if len(weights) != len(messages) or not (weights.sum() > 0 and (weights >= 0).all()):
        raise ValueError(f"need a weight of 0 or more each, not all 0; got {weights.tolist()}")
    shares = weights / weights.sum()
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parts = [m.values[name] * share for m, share in zip(messages, shares, strict=True)]
            parameter += sign * lr * sum(parts)


def train(
    model: nn.Module,
    clients: Sequence[Client],
    num_rounds: int,
    *,
    algorithm: str = "fedavg",
    lr: float = 0.1,
    share: float = 1.0,
    num_steps: int = 1,
    protect: Protect | None = None,
    seed: int = 0,
) -> None:
    """Trains the server's model in place, round by round.

    Args:
        model: the server's; batch-norm statistics stay as they are, for messages hold none.
        clients: of each its images (N, ...) and labels (N,).
        num_rounds: number of rounds.
        algorithm: "fedsgd" (a gradient each) or "fedavg" (local steps each), on all of a client's
            images.
        lr: learning rate of a step.
        share: the part of the clients, drawn anew, that takes part in a round; at least one does.
        num_steps: local steps of a client in a round ("fedavg").
        protect: what a client does to its message before it leaves, such as adding noise.
        seed: decides participants and noise.

    Raises:
        ValueError: a setting is out of range.
    """
    if algorithm not in ("fedsgd", "fedavg"):
        raise ValueError(f"algorithm must be 'fedsgd' or 'fedavg', not {algorithm!r}")
    if not clients or not 0 < share <= 1:
        raise ValueError(f"need clients, a share above 0, at most 1; not {len(clients)}, {share}")
    generator = torch.Generator().manual_seed(seed)
    late = partial(share_update, lr=lr, num_steps=num_steps)
    send = share_gradient if algorithm == "fedsgd" else late
    for _ in range(num_rounds):
        order = torch.randperm(len(clients), generator=generator)
        some = order[: max(1, round(share * len(clients)))].sort().values
        chosen = [clients[k] for k in some]
        messages = [send(model, *client) for client in chosen]
        if protect:
            messages = [protect(message, generator) for message in messages]
        sizes = [float(len(images)) for images, _ in chosen]
        aggregate(model, messages, sizes, lr if algorithm == "fedsgd" else 1.0)


def _slopes(model: nn.Module, parameters: dict[str, Tensor], images: Tensor, labels: Tensor):
    """The gradient of the mean loss; the model's buffers are copied, so none changes."""
    if not len(images) or labels.shape != (len(images),) or labels.is_floating_point():
        raise ValueError(
            f"a client needs images and a whole number for each as label, not {len(images)} and "
            f"{tuple(labels.shape)} of {labels.dtype}; leave out a client that has none"
        )
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with torch.enable_grad():
        outputs = functional_call(model, {**parameters, **buffers}, (images,))
        loss = F.cross_entropy(outputs, labels.long())
        found = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))
