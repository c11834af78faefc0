"""CryptoNets' network as it is trained, in the clear, and how it becomes a `network`."""

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from vplib.defenses.encrypted_inference.network import SquareNetwork

LINEAR = nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.Flatten, nn.AvgPool2d


class Square(nn.Module):
    """x * x: the one nonlinearity that homomorphic encryption gives for a single product."""

    def forward(self, x):
        """The squares, element by element."""
        return x * x


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
    others = [module for module in model if not isinstance(module, Square)]
    for module in others:
        if not isinstance(module, LINEAR) or getattr(module, "running_mean", 0) is None:
            raise ValueError(f"{module} is not linear in its input; known: {_names(LINEAR)}")
    if len(squares) != 2 or not squares[0] or not _is_plain(model[0]):
        raise ValueError(
            f"the model has {len(squares)} squares and starts with {model[0]}; it must have 2, and "
            "start with a convolution of one channel with a square kernel, equal strides and zero "
            "padding, without dilation"
        )
    if wrong := [m for m in model[1 : squares[0]] if not isinstance(m, nn.BatchNorm2d)]:
        raise ValueError(f"{wrong[0]} stands before the first square; only batch norms may")
    parts = np.split(np.arange(len(model)), [squares[0], squares[0] + 1, squares[1], squares[1] + 1])
    x, layers = torch.zeros(1, 1, image_size, image_size).double(), []
    with torch.no_grad():
        layers.append(_folded(*model[: squares[0]]))
        x = model[: squares[0]](x)
        for rows in parts[2::2]:
            part = model[int(rows[0]) : int(rows[-1]) + 1]
            bias = part(torch.zeros_like(x))[0]
            weight = part(torch.eye(x[0].numel()).double().view(-1, *x.shape[1:])) - bias
            x = bias[None]
            layers.append((weight.flatten(1).T, bias.flatten()))
        conv, arrays = model[0], [np.ascontiguousarray(v.numpy()) for pair in layers for v in pair]
        found = SquareNetwork(
            *arrays, image_size=image_size, stride=conv.stride[0], padding=conv.padding[0]
        )
        images = torch.rand(8, 1, image_size, image_size, generator=torch.Generator()).double()
        if not np.allclose(found.logits(images), model(images), rtol=1e-6, atol=1e-6):
            raise ValueError("the merged layers compute something else than the model does")
    return found


def _is_plain(conv: nn.Module) -> bool:
    if not isinstance(conv, nn.Conv2d) or isinstance(conv.padding, str):
        return False
    same = all(len(set(v)) == 1 for v in (conv.kernel_size, conv.stride, conv.padding))
    return same and conv.in_channels == conv.dilation[0] == conv.dilation[1] == 1 and (
        conv.padding_mode == "zeros"
    )


def _folded(conv: nn.Conv2d, *norms: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Kernel and bias of a convolution with the batch norms after it."""
    kernel = conv.weight[:, 0]
    bias = torch.zeros(len(kernel)).double() if conv.bias is None else conv.bias
    for norm in norms:
        scale = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
        shift = 0.0 if norm.bias is None else norm.bias
        kernel, bias = kernel * scale[:, None, None], (bias - norm.running_mean) * scale + shift
    return kernel, bias


def _names(types: tuple) -> str:
    return ", ".join(t.__name__ for t in types)
