"""Small models, as plain `nn.Sequential`, so that many of them can train at once."""

import itertools
import math
from collections.abc import Sequence

from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


def mlp(
    shape: Sequence[int],
    num_classes: int,
    hidden: Sequence[int] = (128,),
    activation: str = "relu",
) -> nn.Sequential:
    """A multilayer perceptron on flattened inputs; with no hidden layer, softmax regression.

    Args:
        shape: shape of one input, for example (C, H, W).
        num_classes: number of logits.
        hidden: width of each hidden layer.
        activation: "relu" or "tanh".

    Returns:
        A model from (N, *shape) to (N, num_classes) logits.
    """
    widths = [math.prod(shape), *hidden, num_classes]
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        if i:
            layers.append(ACTIVATIONS[activation]())
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


def cnn(
    shape: Sequence[int],
    num_classes: int,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
) -> nn.Sequential:
    """A small convolutional network: 3x3 convolutions with 2x2 pooling, one hidden layer.

    Args:
        shape: (C, H, W) of one image; H and W at least 2 ** len(channels).
        num_classes: number of logits.
        channels: output channels of each convolution.
        hidden: width of the hidden layer.

    Returns:
        A model from (N, C, H, W) images to (N, num_classes) logits.

    Raises:
        ValueError: the images are too small to be pooled that often.
    """
    before, height, width = shape
    if min(height, width) < 2 ** len(channels):
        raise ValueError(f"{height}x{width} images cannot be halved {len(channels)} times")
    layers: list[nn.Module] = []
    for after in channels:
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        before, height, width = after, height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(before * height * width, hidden)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(hidden, num_classes))
