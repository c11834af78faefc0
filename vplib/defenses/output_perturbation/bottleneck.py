"""MID: a classifier trained to let little of the image through to its answer."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vplib.nets import models, training


class Bottleneck(nn.Module):
    """A classifier behind a noisy code; in training its last column is the code's information.

    Args:
        shape: (C, H, W) of one image.
        num_classes: number of logits.
        hidden: width of the hidden layer.
        code: numbers in the code.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, hidden: int = 128, code: int = 16):
        """An untrained one."""
        super().__init__()
        self.encode = models.mlp(shape, 2 * code, (hidden,))
        self.decode = nn.Linear(code, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, classes) logits of the mean code; in training of a noisy one, and its nats."""
        mean, log_variance = self.encode(images).chunk(2, -1)
        if not self.training:
            return self.decode(mean)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        nats = (mean**2 + log_variance.exp() - log_variance - 1).sum(-1, keepdim=True) / 2
        return torch.cat([self.decode(code), nats], -1)


def information_loss(outputs: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Cross-entropy plus the weighted KL divergence of the code from a standard normal."""
    return F.cross_entropy(outputs[:, :-1], labels) + weight * outputs[:, -1].mean()


def limiting(weight: float) -> training.Loss:
    """The loss of MID, for `training.fit_many` and a `Bottleneck`.

    Args:
        weight: of the information in the loss, 0 or more; 0 trains the same network without limit.

    Raises:
        ValueError: the weight is negative, NaN or infinite.

    Source:
        Wang, Zhang and Jia, Improving robustness to model inversion attacks via mutual information
        regularization, AAAI 2021, for neural networks: a variational bound.
    """
    if not 0 <= weight < torch.inf:
        raise ValueError(f"the weight of the information must be 0 or more, not {weight}")
    return partial(information_loss, weight=weight)
