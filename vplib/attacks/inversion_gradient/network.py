"""The networks whose gradients are inverted."""

from collections.abc import Sequence

from torch import nn

from vplib import experiment
from vplib.nets import models


def lenet(
    shape: Sequence[int],
    num_classes: int,
    activation: str = "sigmoid",
    channels: int = 12,
    *,
    spread: float | None,
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
        ValueError: the images cannot be halved twice, or activation or spread is none.

    Source:
        Zhu et al., Deep leakage from gradients, NeurIPS 2019, whose spread is 0.5.
    """
    if len(shape) != 3:
        raise ValueError(f"shape must be (C, H, W) of one image, not {tuple(shape)}")
    if activation not in models.ACTIVATIONS:
        known = experiment.nearest(activation, models.ACTIVATIONS)
        raise ValueError(f"unknown activation {activation!r}; {known}")
    if spread is not None and not spread > 0:
        raise ValueError(f"spread must be above 0, or None for torch's start, not {spread}")
    before, height, width = shape
    if height % 4 or width % 4:
        raise ValueError(f"{height}x{width} images cannot be halved twice; use another image_size")
    layers: list[nn.Module] = []
    for stride in (2, 2, 1):
        layers += [nn.Conv2d(before, channels, 5, stride, 2), models.ACTIVATIONS[activation]()]
        before = channels
    size = channels * (height // 4) * (width // 4)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, num_classes))
    for parameter in model.parameters() if spread else ():
        nn.init.uniform_(parameter, -spread, spread)
    return model
