"""Federated training on defended gradients."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import vmap

from vplib import experiment
from vplib.datasets.imageset import is_whole
from vplib.nets import stacked
from vplib.nets.training import check_finite
from vplib.victims import federated


def send(model: nn.Module, images: Tensor, labels: Tensor) -> list[federated.Gradients]:
    """The messages of K clients, computed together: gradients of the mean loss of each batch.

    Args:
        model: as the server sent it.
        images: (K, B, C, H, W).
        labels: (K, B) class indices.
    """
    quick = stacked.known(model, unfold=True)
    forward = partial(stacked.forward, model, unfold=True) if quick else None
    forward = forward or vmap(stacked.functional(model))
    here = {name: p.detach() for name, p in federated.trainable(model).items()}
    here = {n: p.expand(len(images), *p.shape).requires_grad_() for n, p in here.items()}
    found = stacked.by_autograd(forward, here, images, labels)[1]
    return [federated.Gradients({n: v[k] for n, v in found.items()}) for k in range(len(images))]


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    num_rounds: int,
    num_clients: int,
    lr: float,
    seed: int,
    defend: Callable | None = None,
    description: str = "",
    **settings,
) -> nn.Module:
    """Trains the server's model in place, on clients that hold one image each.

    A round takes the next clients in a random order, so that none is asked again before all were.
    The server averages what they send and takes a step of Adam.

    Args:
        model: the server's.
        images: (N, C, H, W), of N clients.
        labels: (N,) class indices.
        num_rounds: number of rounds.
        num_clients: that send in a round.
        lr: of Adam.
        seed: decides the order of clients.
        defend: what clients do to their messages: `defend(gradients, model, images, **settings)`.
        description: names the progress bar; empty for none.
        settings: of `defend`.

    Returns:
        The model.

    Raises:
        ValueError: a count is no whole number from 1 on, or more clients are asked than there are;
            or the model became infinite.

    Source: Reddi et al., Adaptive federated optimization, ICLR 2021 (FedAdam, one local step).
    """
    for name, value in dict(num_rounds=num_rounds, num_clients=num_clients).items():
        if not is_whole(value, 1):
            raise ValueError(f"{name} must be a whole number, 1 or more, not {value!r}")
    if num_clients > len(images) or len(labels) != len(images):
        raise ValueError(
            f"{num_clients} clients a round of {len(images)} images, {len(labels)} labels: need as "
            "many images as labels, and no more clients than that"
        )
    generator, rows = torch.Generator().manual_seed(seed), torch.tensor([], dtype=torch.long)
    stepper = torch.optim.Adam(federated.trainable(model).values(), lr=lr)
    for _ in experiment.progress(range(num_rounds), description):
        if len(rows) < num_clients:
            rows = torch.randperm(len(images), generator=generator)
        asked, rows = rows[:num_clients].to(images.device), rows[num_clients:]
        x = images[asked, None]
        messages = send(model, x, labels[asked, None])
        messages = defend(messages, model, x, **settings) if defend else messages
        for name, parameter in federated.trainable(model).items():
            parameter.grad = torch.stack([m.values[name] for m in messages]).mean(0)
        stepper.step()
    check_finite(sum(p.detach().sum() for p in model.parameters()), lr)
    return model
