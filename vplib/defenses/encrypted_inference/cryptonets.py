"""CryptoNets' network as it is trained, in the clear; `network` is what it becomes."""

import math
from collections.abc import Sequence

from torch import nn


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
