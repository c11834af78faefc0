"""Face recognition: embedding networks, their training, and how well they identify and verify.

An embedding is a unit vector; two photos are as alike as the cosine of their embeddings.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vplib.nets import training

Embed = Callable[[Tensor], Tensor]

DIM = 128  # of an embedding
MARGIN, SCALE = 0.2, 16.0  # by how far the right cosine must lead, in units of its temperature
TIE = 1e-6  # cosines that differ by less are equal but for rounding


class Shaken(nn.Module):
    """Photos as another camera would have taken them: mirrored, shifted, lighter or darker.

    In training mode only, with torch's generator, an image at a time.
    """

    shift = 0.06  # the largest, as a share of the width
    light = 0.15  # the largest change of brightness and of each channel's gain

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

    def __init__(self, num_people: int):
        super().__init__()
        self.people = nn.Parameter(torch.randn(num_people, DIM))

    def forward(self, embeddings: Tensor) -> Tensor:
        """(N, people) cosines."""
        return embeddings @ F.normalize(self.people, dim=-1).T


def resnet(
    shape: tuple[int, int, int], *, channels: tuple[int, ...] = (16, 32, 64)
) -> nn.Sequential:
    """An untrained residual embedding network.

    Args:
        shape: (C, H, W) of a photo. The first layer halves the size, and from 48 pixels on the
            first block too.
        channels: of each block; each but the first halves the size.

    Returns:
        A network from (N, C, H, W) in [0, 1] to (N, 128) unit vectors.
    """
    layers = [
        nn.Conv2d(shape[0], channels[0], 3, 2, 1, bias=False),
        nn.BatchNorm2d(channels[0]),
        nn.ReLU(),
    ]
    first = 2 if min(shape[1:]) >= 48 else 1
    for i, outside in enumerate(channels):
        layers.append(Block(channels[max(i - 1, 0)], outside, 2 if i else first))
    return _headed(layers, channels[-1])


def plain_cnn(
    shape: tuple[int, int, int], *, channels: tuple[int, ...] = (16, 32, 64)
) -> nn.Sequential:
    """An untrained embedding network of another family: 5x5 convolutions, ELU, max pooling.

    Args:
        shape: (C, H, W) of a photo. The first layer halves the size.
        channels: of each convolution; between them the size is halved by pooling.

    Returns:
        A network as `resnet` returns it.
    """
    layers = [nn.Conv2d(shape[0], channels[0], 5, 2, 2), nn.ELU()]
    for inside, outside in zip(channels, channels[1:], strict=False):
        layers += [nn.MaxPool2d(2), nn.Conv2d(inside, outside, 5, 1, 2), nn.ELU()]
    return _headed(layers, channels[-1])


def _headed(layers: list[nn.Module], channels: int) -> nn.Sequential:
    """Features at 4x4 places, each with weights of its own: a face has its parts in place."""
    head = nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, DIM, bias=False)
    return nn.Sequential(*layers, *head, nn.BatchNorm1d(DIM), Unit())


def margin_loss(cosines: Tensor, people: Tensor) -> Tensor:
    """Cross-entropy in which the right person's cosine must lead by a margin.

    Args:
        cosines: (N, people) between each photo and each person's vector.
        people: (N,) who is on the photo.

    Source:
        Wang et al., CosFace: large margin cosine loss for deep face recognition, CVPR 2018,
        equation 4.
    """
    right = F.one_hot(people, cosines.shape[-1])
    return F.cross_entropy(SCALE * (cosines - MARGIN * right), people)


def train_embedding(
    images: Tensor,
    people: Tensor,
    *,
    network: Callable[..., nn.Sequential] = resnet,
    num_epochs: int = 10,
    lr: float = 0.002,
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
        return nn.Sequential(Shaken(), network(shape), Cosines(num_people))

    rows = torch.arange(len(images))[None]
    settings = dict(num_epochs=num_epochs, lr=lr, batch_size=64, optimizer="adam", loss=margin_loss)
    trained = training.fit_many(
        build, images, people, rows, seed=seed, form="loop", description=description, **settings
    )
    return trained.model(0)[1].requires_grad_(False)


@torch.no_grad()
def embed_all(embed: Embed, images: Tensor) -> Tensor:
    """(N, dim) embeddings of many photos, 256 at a time."""
    parts = images.to(memory_format=torch.channels_last).split(256)  # a third faster on a CPU
    return torch.cat([embed(part) for part in parts])


def identify(gallery: Tensor, people: Tensor, probes: Tensor) -> Tensor:
    """The person of the most similar photo of the gallery, for each probe; -1 for nobody.

    Nobody is identified where two people are as similar (to a millionth), or a likeness is NaN.

    Args:
        gallery: (G, dim) unit embeddings of photos with a name.
        people: (G,) the names, integers from 0.
        probes: (N, dim) unit embeddings of photos without one.

    Returns:
        (N,) names.
    """
    names, best = _likeness(gallery, people, probes)
    top, index = best.max(1, keepdim=True)
    rival = best.scatter(1, index, -torch.inf).amax(1, keepdim=True)
    return torch.where(top > rival + TIE, names[index], -1).squeeze(1)


def ranks(gallery: Tensor, people: Tensor, probes: Tensor, truth: Tensor) -> Tensor:
    """At which place the right person stands when people are ordered by likeness to a probe.

    Ties and NaN count against the attacker: the place is one more than the number of other people
    who are at least as similar (to a millionth) or whose likeness is NaN.

    Args:
        gallery: (G, dim) unit embeddings of photos with a name.
        people: (G,) the names.
        probes: (N, dim) unit embeddings.
        truth: (N,) who they are.

    Returns:
        (N,) places from 1; one more than there are people for who is not in the gallery, or where
        the likeness to the right person is NaN. A person is as similar as their most similar photo.
    """
    names, best = _likeness(gallery, people, probes)
    right = names == truth[:, None]
    own = torch.where(right, best, -torch.inf).amax(1, keepdim=True)
    ahead = ~(best < own - TIE)  # and the right person too, who stands at 1
    return ahead.sum(1) + ~own.isfinite().squeeze(1)


def rank_accuracy(gallery: Tensor, people: Tensor, probes: Tensor, truth: Tensor) -> float:
    """The share of probes whose person is the one most similar to it, by `ranks`."""
    return (ranks(gallery, people, probes, truth) == 1).double().mean().item()


def _likeness(gallery: Tensor, people: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """The people of the gallery, and (N, people) how similar their most similar photo is."""
    names, index = people.unique(return_inverse=True)
    likeness = probes @ gallery.T
    best = likeness.new_full((len(probes), len(names)), -torch.inf)
    return names, best.scatter_reduce_(1, index.expand_as(likeness), likeness, "amax")
