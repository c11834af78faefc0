"""What a client may do to its message before it leaves."""

import torch

from vplib.victims.federated import Message


def add_noise(message: Message, ratio: float, generator: torch.Generator) -> Message:
    """The message with Gaussian noise of `ratio` times the root mean square of all its entries."""
    entries = torch.cat([value.flatten() for value in message.values.values()])
    sigma = ratio * entries.square().mean().sqrt()

    def noisy(value):
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        return value + sigma * noise.to(value.device)

    return message.map(noisy)


def prune(message: Message, share: float) -> Message:
    """The message with this share of each tensor's entries, the smallest, set to zero.

    Source: Lin et al., Deep gradient compression, ICLR 2018; as a defense Zhu et al. 2019.
    """

    def pruned(value):
        count = round(share * value.numel())
        smallest = value.abs().flatten().topk(count, largest=False, sorted=False).indices
        return value.flatten().index_fill(0, smallest, 0.0).view_as(value)

    return message.map(pruned)
