"""Face recognition: embedding networks, their training, and how well they identify and verify.

An embedding is a unit vector; two photos are as alike as the cosine of their embeddings.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vplib.nets import training
from vplib.show import metrics

Embed = Callable[[Tensor], Tensor]


class Shaken(nn.Module):
    """Photos as another camera would have taken them: mirrored, shifted, lighter or darker.

    In training mode only, with torch's generator, an image at a time.

    Args:
        shift: largest shift, as a share of the width.
        light: largest change of brightness and of each channel's gain.
    """

    def __init__(self, shift: float = 0.06, light: float = 0.15):
        super().__init__()
        self.shift, self.light = shift, light

    def forward(self, images: Tensor) -> Tensor:
        """The images, changed in training mode."""
        if not self.training:
            return images
        n, channels = images.shape[:2]
        change = 2 * torch.rand(n, 3 + channels, device=images.device) - 1
        grid = torch.zeros(n, 2, 3, device=images.device)
        grid[:, 0, 0], grid[:, 1, 1] = change[:, 0].sign(), 1
        grid[:, :, 2] = 2 * self.shift * change[:, 1:3]
        where = F.affine_grid(grid, list(images.shape), align_corners=False)
        images = F.grid_sample(images, where, padding_mode="border", align_corners=False)
        return images * (1 + self.light * change[:, 3:, None, None])


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut; the first may halve the size."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.short = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, with `outside` channels."""
        return (self.body(x) + self.short(x)).relu()


class Unit(nn.Module):
    """Vectors of length one."""

    def forward(self, x: Tensor) -> Tensor:
        """The same directions."""
        return F.normalize(x, dim=-1)


class Cosines(nn.Module):
    """The cosines between embeddings and a vector a person."""

    def __init__(self, dim: int, num_people: int):
        super().__init__()
        self.people = nn.Parameter(torch.randn(num_people, dim))

    def forward(self, embeddings: Tensor) -> Tensor:
        """(N, people) cosines."""
        return embeddings @ F.normalize(self.people, dim=-1).T


def resnet(
    shape: tuple[int, int, int], *, channels: tuple[int, ...] = (16, 32, 64), dim: int = 128
) -> nn.Sequential:
    """An untrained residual embedding network.

    Args:
        shape: (C, H, W) of a photo. The first layer halves the size, and from 48 pixels on the
            first block too.
        channels: of each block; each but the first halves the size.
        dim: of the embedding.

    Returns:
        A network from (N, C, H, W) in [0, 1] to (N, dim) unit vectors.
    """
    layers = [
        nn.Conv2d(shape[0], channels[0], 3, 2, 1, bias=False),
        nn.BatchNorm2d(channels[0]),
        nn.ReLU(),
    ]
    first = 2 if min(shape[1:]) >= 48 else 1
    for i, outside in enumerate(channels):
        layers.append(Block(channels[max(i - 1, 0)], outside, 2 if i else first))
    return _headed(layers, channels[-1], dim)


def plain_cnn(
    shape: tuple[int, int, int], *, channels: tuple[int, ...] = (16, 32, 64), dim: int = 128
) -> nn.Sequential:
    """An untrained embedding network of another family: 5x5 convolutions, ELU, max pooling.

    Args:
        shape: (C, H, W) of a photo. The first layer halves the size.
        channels: of each convolution; between them the size is halved by pooling.
        dim: of the embedding.

    Returns:
        A network as `resnet` returns it.
    """
    layers = [nn.Conv2d(shape[0], channels[0], 5, 2, 2), nn.ELU()]
    for inside, outside in zip(channels, channels[1:], strict=False):
        layers += [nn.MaxPool2d(2), nn.Conv2d(inside, outside, 5, 1, 2), nn.ELU()]
    return _headed(layers, channels[-1], dim)


def _headed(layers: list[nn.Module], channels: int, dim: int) -> nn.Sequential:
    """Features at 4x4 places, each with weights of its own: a face has its parts in place."""
    head = nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, dim, bias=False)
    return nn.Sequential(*layers, *head, nn.BatchNorm1d(dim), Unit())


def margin_loss(cosines: Tensor, people: Tensor, margin: float = 0.2, scale: float = 16.0):
    """Cross-entropy in which the right person's cosine must lead by a margin.

    Args:
        cosines: (N, people) between each photo and each person's vector.
        people: (N,) who is on the photo.
        margin: how far the right cosine must lead.
        scale: of the cosines, as an inverse temperature.

    Source:
        Wang et al., CosFace: large margin cosine loss for deep face recognition, CVPR 2018,
        equation 4.
    """
    right = F.one_hot(people, cosines.shape[-1])
    return F.cross_entropy(scale * (cosines - margin * right), people)


def train_embedding(
    images: Tensor,
    people: Tensor,
    *,
    network: Callable[..., nn.Sequential] = resnet,
    num_epochs: int = 10,
    lr: float = 0.002,
    batch_size: int = 64,
    margin: float = 0.2,
    seed: int = 0,
    description: str = "face embedding",
) -> nn.Sequential:
    """An embedding network trained to tell people apart; it is kept in the disk cache.

    Args:
        images: (N, C, H, W) photos in [0, 1].
        people: (N,) who is on them.
        network: makes the untrained network from the shape of a photo, for example `resnet`.
        num_epochs: passes over the photos.
        lr: learning rate of Adam.
        batch_size: photos a step.
        margin: of `margin_loss`.
        seed: of initialization, order and augmentation.
        description: names the progress bar.

    Returns:
        A network from photos to unit vectors, in evaluation mode.

    Raises:
        ValueError: there are fewer than two people.
    """
    _, people = people.unique(return_inverse=True)
    num_people = int(people.max()) + 1
    if num_people < 2:
        raise ValueError("an embedding needs photos of at least two people")
    shape = tuple(images.shape[1:])

    def build():
        embed = network(shape)
        dim = next(m for m in reversed(embed) if isinstance(m, nn.Linear)).out_features
        return nn.Sequential(Shaken(), embed, Cosines(dim, num_people))

    trained = training.fit_many(
        build,
        images,
        people,
        torch.arange(len(images))[None],
        num_epochs=num_epochs,
        lr=lr,
        batch_size=batch_size,
        optimizer="adam",
        loss=partial(margin_loss, margin=margin),
        seed=seed,
        form="loop",
        description=description,
    )
    return trained.model(0)[1].requires_grad_(False)


@torch.no_grad()
def embed_all(embed: Embed, images: Tensor, batch_size: int = 256) -> Tensor:
    """(N, dim) embeddings of many photos, some at a time."""
    return torch.cat([embed(part) for part in images.split(batch_size)])


def identify(gallery: Tensor, people: Tensor, probes: Tensor) -> Tensor:
    """The person of the most similar photo of the gallery, for each probe.

    Args:
        gallery: (G, dim) unit embeddings of photos with a name.
        people: (G,) the names.
        probes: (N, dim) unit embeddings of photos without one.

    Returns:
        (N,) names.
    """
    return people[(probes @ gallery.T).argmax(-1)]


def ranks(gallery: Tensor, people: Tensor, probes: Tensor, truth: Tensor) -> Tensor:
    """At which place the right person stands when people are ordered by likeness to a probe.

    Args:
        gallery: (G, dim) unit embeddings of photos with a name.
        people: (G,) the names.
        probes: (N, dim) unit embeddings.
        truth: (N,) who they are.

    Returns:
        (N,) places from 1; one more than there are people for who is not in the gallery. A person
        is as similar as their most similar photo.
    """
    names, index = people.unique(return_inverse=True)
    likeness = probes @ gallery.T
    best = likeness.new_full((len(probes), len(names)), -2.0)
    best.scatter_reduce_(1, index.expand_as(likeness), likeness, "amax")
    right = names == truth[:, None]
    own = best.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return 1 + ((best > own) & ~right).sum(1)


def rank_accuracy(
    gallery: Tensor, people: Tensor, probes: Tensor, truth: Tensor, rank: int = 1
) -> float:
    """The share of probes whose person is among the `rank` people most similar to it.

    Args:
        gallery: (G, dim) unit embeddings of photos with a name.
        people: (G,) the names.
        probes: (N, dim) unit embeddings.
        truth: (N,) who they are.
        rank: how many people count; a person is as similar as their most similar photo.

    Raises:
        ValueError: there are fewer people than `rank`.
    """
    num_people = len(people.unique())
    if not 1 <= rank <= num_people:
        raise ValueError(f"rank must lie between 1 and {num_people}, the people, not {rank}")
    return (ranks(gallery, people, probes, truth) <= rank).double().mean().item()


def pairs(embeddings: Tensor, people: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of photos: how similar they are, and whether they show one person.

    Args:
        embeddings: (N, dim) unit embeddings.
        people: (N,) who is on them.

    Returns:
        (N (N - 1) / 2,) cosines and truth values.
    """
    first, second = torch.triu_indices(len(people), len(people), 1, device=people.device)
    return (embeddings @ embeddings.T)[first, second], people[first] == people[second]


def equal_error_rate(likeness: Tensor, same: Tensor) -> float:
    """The error at the threshold where as many impostors pass as genuine pairs are refused.

    Args:
        likeness: (P,) how similar the two photos of a pair are.
        same: (P,) whether they show one person.
    """
    accepted, genuine = metrics.roc(likeness, same)
    return float(np.interp(0.0, genuine - 1 + accepted, accepted))


def tar_at_far(likeness: Tensor, same: Tensor, far: float = 0.01) -> metrics.Estimate:
    """The share of genuine pairs accepted at the threshold that lets `far` of impostors pass.

    Args:
        likeness: (P,) how similar the two photos of a pair are.
        same: (P,) whether they show one person.
        far: allowed false-acceptance rate.

    Returns:
        The rate; its interval treats pairs as independent, which those of one person are not.

    Raises:
        ValueError: too few impostor pairs resolve `far`.
    """
    return metrics.tpr_at_fpr(likeness, same, far)
