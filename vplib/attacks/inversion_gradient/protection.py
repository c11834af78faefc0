"""What a client may do to its message before it leaves."""

import math

import torch

from vplib.victims.federated import Message


def add_noise(message: Message, ratio: float, generator: torch.Generator) -> Message:
    """The message with Gaussian noise of `ratio` times the root mean square of all its entries.

    Raises:
        ValueError: the ratio is negative or not finite.
    """
    if not 0 <= ratio < math.inf:
        raise ValueError(f"ratio must be 0 or more and finite, not {ratio}")
    entries = torch.cat([value.flatten() for value in message.values.values()])
    sigma = ratio * entries.square().mean().sqrt()

    def noisy(value):
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        return value + sigma * noise.to(value.device)

    return message.map(noisy)


def prune(message: Message, share: float) -> Message:
    """The message with this share of each tensor's entries, the smallest, set to zero.

    Raises:
        ValueError: the share does not lie in [0, 1].

    Source: Lin et al., Deep gradient compression, ICLR 2018; as a defense Zhu et al. 2019.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], such as 0.9 for nine tenths, not {share}")

    def pruned(value):
        count = round(share * value.numel())
        smallest = value.abs().flatten().topk(count, largest=False, sorted=False).indices
        return value.flatten().index_fill(0, smallest, 0.0).view_as(value)

    return message.map(pruned)
