"""The two papers' protections, from photos to images, each of their steps to be switched off."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vplib import cache, seeding
from vplib.datasets.imageset import ImageSet
from vplib.images.attribute_obfuscation import stages
from vplib.images.attribute_obfuscation.reading import entropy
from vplib.nets.eigenfaces import Eigenfaces


class Tools(NamedTuple):
    """What the defender has, from photos of people of its own.

    Args:
        faces: the codes in which photos are changed.
        estimate: from images to (N, 2) scores of the attribute.
        transport: from codes and values to codes with the other value.
        surrogate: a recognizer, from images to unit embeddings.
        share: of the defender's photos that have the attribute.
    """

    faces: Eigenfaces
    estimate: Callable[[Tensor], Tensor]
    transport: stages.Transport
    surrogate: Callable[[Tensor], Tensor]
    share: float


def anonymize(
    photos: ImageSet,
    tools: Tools,
    *,
    t: float = 0.1,
    epsilon: float = 0.0,
    estimates: bool = True,
    generates: bool = True,
    seed: int = 0,
) -> Tensor:
    """AnonymousNet: the photos of each album with attributes that are t-close to the public ones.

    Args:
        photos: a class an album.
        tools: the defender's.
        t: of the choice; 1 switches it off, and each photo keeps what was estimated.
        epsilon: of the last perturbation; 0 switches it off.
        estimates: whether stage 1 looks at the photos; otherwise it draws with the public share.
        generates: whether stage 3 makes the photos; otherwise they stay as they are.
        seed: decides with the photos which of them change: other photos, other coins. Were they
            the same for two sets, who compares row by row would know a person by the coins.

    Source:
        Li and Lin, AnonymousNet, CVPR Workshops 2019. Their generator is a StarGAN.
    """
    made = photos.images
    seed = seeding.derive(seed, cache.fingerprint(made))
    values = tools.estimate(made).argmax(1)
    if not estimates:
        draws = torch.Generator().manual_seed(seeding.derive(seed, "guessed attributes"))
        values = (torch.rand(len(photos), generator=draws) < tools.share).long().to(made.device)
    chosen = stages.choose(values, photos.labels, tools.share, t, seed=seed)
    if generates:
        made = interpolate(made, values, tools, (chosen != values).float())
    return stages.perturb(made, tools.surrogate, epsilon=epsilon, seed=seed)


def interpolate(images: Tensor, values: Tensor, tools: Tools, amount: Tensor | float) -> Tensor:
    """Images between themselves, as they are decoded (amount 0), and their inversion (1).

    Args:
        images: (N, C, H, W).
        values: (N,) 0 or 1, what they are taken to have.
        tools: the defender's.
        amount: one number, or (N,).
    """
    codes = tools.faces.encode(images)
    amount = torch.as_tensor(amount, device=codes.device).view(-1, 1)
    return tools.faces.decode(codes + amount * (tools.transport(codes, values) - codes))


def invert(photos: ImageSet, tools: Tools) -> Tensor:
    """Each photo with the other value than the estimated one."""
    return interpolate(photos.images, tools.estimate(photos.images).argmax(1), tools, 1.0)


def scrub(photos: ImageSet, tools: Tools, *, number: int = 7) -> Tensor:
    """InfoScrub: from photo to inversion, as far as the defender's estimate is least certain.

    Args:
        photos: any.
        tools: the defender's.
        number: of amounts that are tried, evenly from 0 to 1.

    Source:
        Wang, Orekondy and Fritz, InfoScrub, CVPR Workshops 2021, predict the amount by a network.
    """
    values = tools.estimate(photos.images).argmax(1)
    amounts = torch.linspace(0, 1, number).tolist()
    tried = [interpolate(photos.images, values, tools, amount) for amount in amounts]
    unsure = torch.stack([entropy(tools.estimate(images)) for images in tried])
    return torch.stack(tried)[unsure.argmax(0), torch.arange(len(photos))]
