"""Each example's gradient, in any network that `stacked` computes or vmap does."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from vplib.nets import stacked


def per_example(net: nn.Module) -> Callable[[stacked.State, Tensor, Tensor], stacked.State]:
    """Each example's gradient of cross-entropy in full, for any architecture, by vmap.

    Args:
        net: one of K models.

    Returns:
        A function from a stacked state, inputs (K, B, ...) and labels (K, B) to gradients by name,
        (K, B, ...).
    """
    model = stacked.functional(net)

    def loss(state, x, y):
        return F.cross_entropy(model(state, x[None]), y[None])

    gradients = vmap(vmap(grad(loss), in_dims=(None, 0, 0)))
    return lambda state, x, y: gradients(stacked.detached(state), x, y)


def examples_of(net: nn.Module) -> Callable[[stacked.State, Tensor, Tensor], stacked.Examples]:
    """As `per_example`, but by `stacked.examples` where it can, which is faster and takes less."""
    if not stacked.known(net, unfold=True):
        return per_example(net)
    return lambda state, x, y: stacked.examples(
        net, state, x, lambda z: stacked.entropy_slope(z, y)
    )[0]
