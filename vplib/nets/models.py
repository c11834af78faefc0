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


def lenet(
    shape: Sequence[int],
    num_classes: int,
    activation: str = "sigmoid",
    channels: int = 12,
    spread: float | None = None,
) -> nn.Sequential:
    """A twice differentiable LeNet: three 5x5 convolutions, two of stride 2, and one linear layer.

    Args:
        shape: (C, H, W) of one image; H and W divisible by 4.
        num_classes: number of logits.
        activation: "sigmoid", "tanh" or "relu" (whose second derivative is zero).
        channels: of each convolution.
        spread: all parameters start uniformly in +-spread; None leaves torch's initialization.

    Returns:
        A model from (N, C, H, W) images to (N, num_classes) logits.

    Raises:
        ValueError: the images cannot be halved twice.

    Source:
        Zhu et al., Deep leakage from gradients, NeurIPS 2019, whose spread is 0.5.
    """
    before, height, width = shape
    if height % 4 or width % 4:
        raise ValueError(f"{height}x{width} images cannot be halved twice; use another image_size")
    layers: list[nn.Module] = []
    for stride in (2, 2, 1):
        layers += [nn.Conv2d(before, channels, 5, stride, 2), ACTIVATIONS[activation]()]
        before = channels
    size = channels * (height // 4) * (width // 4)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, num_classes))
    for parameter in model.parameters() if spread else ():
        nn.init.uniform_(parameter, -spread, spread)
    return model


class Square(nn.Module):
    """x * x: the one nonlinearity that homomorphic encryption gives for a single product."""

    def forward(self, x):
        """The squares, element by element."""
        return x * x


def cryptonets(
    shape: Sequence[int], num_classes: int, activation: type[nn.Module] = Square
) -> nn.Sequential:
    """CryptoNets' network as it is trained: the layers between the squares are all linear.

    Args:
        shape: (1, H, W) of one image, H = W at least 13.
        num_classes: number of logits.
        activation: what stands in place of the squares, such as `nn.ReLU`.

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
