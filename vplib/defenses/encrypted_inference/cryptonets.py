"""CryptoNets' network as it is trained, in the clear, and how it becomes a `network`."""

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from vplib.defenses.encrypted_inference.network import SquareNetwork


class Square(nn.Module):
    """x * x: the one nonlinearity that homomorphic encryption gives for a single product."""

    def forward(self, x):
        """The squares, element by element."""
        return x * x


# All that may stand between the squares: linear, once trained.
KNOWN = Square, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.Flatten, nn.AvgPool2d


def cryptonets(
    shape: Sequence[int], num_classes: int, activation: type[nn.Module]
) -> nn.Sequential:
    """CryptoNets' network as it is trained: the layers between the squares are all linear.

    Args:
        shape: (1, H, W) of one image, H = W at least 13.
        num_classes: number of logits.
        activation: `Square`, or what stands in its place, such as `nn.ReLU`.

    Returns:
        A model from (N, *shape) to (N, num_classes) logits.

    Source:
        Gilad-Bachrach et al., CryptoNets, ICML 2016: 5 maps of 5x5 and stride 2, then
        50 maps of 5x5 and stride 2 and a dense layer of 100. Left out: mean pooling. Added: batch
        norms, which keep squares in range (Chabanne et al. 2017) and are linear once trained.
    """
    if shape[0] != 1 or min(shape[1:]) < 13:
        raise ValueError(f"needs grey images of 13x13 pixels or more, not {tuple(shape)}")
    width = [((size - 3) // 2 + 1 - 5) // 2 + 1 for size in shape[1:]]
    return nn.Sequential(
        nn.Conv2d(1, 5, 5, stride=2, padding=1),
        nn.BatchNorm2d(5),
        activation(),
        nn.Conv2d(5, 50, 5, stride=2),
        nn.Flatten(),
        nn.Linear(50 * math.prod(width), 100),
        nn.BatchNorm1d(100),
        activation(),
        nn.Linear(100, num_classes),
    )


def from_torch(model: nn.Sequential, image_size: int) -> SquareNetwork:
    """A trained model with its linear layers merged and its batch norms folded in.

    Args:
        model: linear modules with exactly two `Square` among them; it starts with a convolution
            of one channel, which batch norms may follow. It is left as it was.
        image_size: height and width in pixels.

    Raises:
        ValueError: a module is not linear, or the convolution not of the plain kind: square
            kernel, equal strides, zero padding; or what came out computes something else.
    """
    model = copy.deepcopy(model).eval().double().cpu()
    squares = [i for i, module in enumerate(model) if isinstance(module, Square)]
    if len(squares) != 2 or not _is_plain(model[0]):
        raise ValueError(
            f"the model has {len(squares)} squares and starts with {model[0]}; it must have 2, and "
            "start with a convolution of one channel with a square kernel, equal strides, zero "
            "padding given in pixels, and no dilation"
        )
    first, conv = model[: squares[0]], model[0]
    for i, module in enumerate(model):
        known = (nn.BatchNorm2d,) if 0 < i < squares[0] else KNOWN
        if not isinstance(module, known) or getattr(module, "running_mean", 0) is None:
            names = ", ".join(t.__name__ for t in known)
            raise ValueError(f"{module} cannot be merged at this place; known here: {names}")
    with torch.no_grad():
        images = torch.rand(8, 1, image_size, image_size, generator=torch.Generator()).double()
        wanted, shapes = model(images), [images.shape[1:]]
        for part in (first, model[squares[0] + 1 : squares[1]]):
            shapes.append(part(torch.zeros(1, *shapes[-1]).double()).shape[1:])
        stride, padding = conv.stride[0], conv.padding[0]
        conv.padding = (0, 0)  # so that the first part's answers to a kernel's pixels are numbers
        kernel, conv_bias = _merged(first, (1, *conv.kernel_size))
        dense = _merged(model[squares[0] + 1 : squares[1]], shapes[1])
        last = _merged(model[squares[1] + 1 :], shapes[2])
    arrays = kernel.view(-1, *conv.kernel_size), conv_bias, *dense, *last
    arrays = [np.ascontiguousarray(v.numpy()) for v in arrays]
    found = SquareNetwork(*arrays, image_size=image_size, stride=stride, padding=padding)
    if not np.allclose(found.logits(images), wanted, rtol=1e-6, atol=1e-6):
        raise ValueError("the merged layers compute something else than the model does")
    return found


def _is_plain(conv: nn.Module) -> bool:
    if not isinstance(conv, nn.Conv2d) or isinstance(conv.padding, str):
        return False
    sizes = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    return repr(conv) == repr(nn.Conv2d(1, conv.out_channels, *sizes, bias=conv.bias is not None))


def _merged(part: nn.Module, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a linear part, from its answers to zero and to each unit."""
    units = torch.eye(math.prod(shape)).double().view(-1, *shape)
    bias = part(torch.zeros_like(units[:1]))
    return (part(units) - bias).flatten(1).T, bias.flatten()
