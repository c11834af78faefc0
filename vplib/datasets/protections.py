"""How people hide in photos before they post them: blur, mosaic, noise, bars, fills.

A protection is a function from an `ImageSet`, photos with what is known of them, to the images that
are released. It sees nothing of the attacker's.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vplib import cache, seeding
from vplib.datasets import transforms
from vplib.datasets.imageset import ImageSet

Protection = Callable[[ImageSet], Tensor]

# Where head and eyes are on a photo that was cut to an upright face, as shares of its size.
HEAD, EYES = (0.08, 0.04, 0.92, 0.96), (0.12, 0.26, 0.88, 0.5)


def nothing(photos: ImageSet) -> Tensor:
    """The photos as they are."""
    return photos.images


def blur(photos: ImageSet, *, width: float) -> Tensor:
    """Gaussian blur whose standard deviation is this share of the photo's width."""
    return transforms.blur(photos.images, width * photos.shape[2])


def cells(photos: ImageSet, *, number: int) -> Tensor:
    """A mosaic of `number` cells from left to right."""
    return transforms.pixelate(photos.images, max(1, -(-photos.shape[2] // number)))


def noise(photos: ImageSet, *, scale: float, seed: int = 0) -> Tensor:
    """Gaussian noise of this standard deviation; the same photos get the same noise again."""
    key = seeding.derive(seed, cache.fingerprint(photos.images))
    draws = torch.randn(photos.images.shape, generator=torch.Generator().manual_seed(key))
    return (photos.images + scale * draws.to(photos.images.device)).clamp(0, 1)


def eye_bar(photos: ImageSet) -> Tensor:
    """A black bar over the eyes."""
    return transforms.mask(photos.images, eye_boxes(photos), 0.0)


def black_head(photos: ImageSet) -> Tensor:
    """A black box over the head."""
    return transforms.mask(photos.images, head_boxes(photos), 0.0)


def fill_head(photos: ImageSet) -> Tensor:
    """The box around the head in its mean color."""
    where = transforms.mask(torch.zeros_like(photos.images), head_boxes(photos), 1.0)
    mean = (photos.images * where).sum((2, 3), keepdim=True) / where.sum((2, 3), keepdim=True)
    return torch.where(where > 0, mean.nan_to_num(0), photos.images)


def within_heads(photos: ImageSet, protection: Protection) -> Tensor:
    """The protection in the boxes around the heads alone, the rest as it was."""
    where = transforms.mask(torch.zeros_like(photos.images), head_boxes(photos), 1.0)
    return torch.where(where > 0, protection(photos), photos.images)


def head_boxes(photos: ImageSet) -> Tensor:
    """(N, 4) left, top, right and bottom in pixels: as they are known, or of an upright face."""
    known = (photos.attributes or {}).get("head_box")
    return _shares(photos, HEAD) if known is None else known


def eye_boxes(photos: ImageSet) -> Tensor:
    """(N, 4) boxes over both eyes: around rendered faces' landmarks, or of an upright face."""
    if photos.landmarks is None or photos.landmarks.shape[1] != 12:
        return _shares(photos, EYES)
    eyes = photos.landmarks[:, 2:4]
    apart = (eyes[:, 1] - eyes[:, 0]).norm(dim=-1, keepdim=True)
    reach = apart * torch.tensor([0.6, 0.35], device=apart.device)
    return torch.cat([eyes.amin(1) - reach, eyes.amax(1) + reach], 1)


def basic(*, seed: int = 0) -> dict[str, Protection]:
    """The means that everybody has, by name, from weak to strong; first, nothing."""
    found = {"nothing": nothing}
    found |= {f"blur 1/{n}": partial(blur, width=1 / n) for n in (32, 16, 8, 4)}
    found |= {f"{n}x{n} cells": partial(cells, number=n) for n in (16, 8, 4, 2)}
    found |= {f"noise {s}": partial(noise, scale=s, seed=seed) for s in (0.2, 0.8)}
    return found | {"eye bar": eye_bar, "color fill": fill_head, "black head": black_head}


def _shares(photos: ImageSet, box: tuple) -> Tensor:
    height, width = photos.shape[1:]
    scale = torch.tensor([width, height, width, height], device=photos.images.device)
    return (torch.tensor(box, device=photos.images.device) * scale - 0.5).expand(len(photos), 4)
