"""Each example's gradient, in any network that `stacked` computes or vmap does."""

from collections.abc import Callable

import torch
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


def example_rows(found: stacked.Examples, k: int) -> Tensor:
    """One model's gradients in full, an example a row.

    Args:
        found: as `stacked.examples` gives them.
        k: which model.

    Returns:
        (B, parameters), in the order of the state.
    """
    full = []
    for one in found.values():
        if isinstance(one, tuple):  # of a linear layer, or summed over the places of a convolution
            slopes = one[0][k].reshape(one[0].shape[1], -1, one[0].shape[-1])
            full.append((slopes.mT @ one[1][k].reshape(*slopes.shape[:2], -1)).flatten(1))
        else:
            full.append(one[k].flatten(1))
    return torch.cat(full, 1)


def replaced(found: stacked.Examples, rows: stacked.Examples, which: Tensor) -> stacked.Examples:
    """Some examples' gradients replaced by given ones.

    Args:
        found: as `stacked.examples` gives them.
        rows: the same for given examples, (m, ...).
        which: (K, B) the row that replaces an example, or a negative number.
    """

    def put(one, row):
        if isinstance(one, tuple):
            return tuple(map(put, one, row))
        given = (which >= 0).view(*which.shape, *[1] * (one.ndim - 2))
        return torch.where(given, row[which.clamp_min(0)], one)

    return {name: put(one, rows[name]) for name, one in found.items()}
