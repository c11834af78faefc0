"""Mechanisms that add calibrated noise to photos.

A mechanism is `release(images, epsilon, rng)` with its settings by keyword, and returns images in
[0, 1]. What `epsilon` bounds differs: each docstring says which two photos are hard to tell apart,
and what leaves without noise. Clipping comes after the noise and costs nothing.

Noise is drawn in floating point, whose gaps give exact values away (Mironov, CCS 2012; our audit
finds it). `add_laplace` rounds to a grid far above them, which is no proof: for experiments alone.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vplib import cache, seeding
from vplib.datasets.imageset import ImageSet
from vplib.datasets.protections import Protection
from vplib.images.dp_images.latent import Latent


def protection(release: Callable, epsilon: float, *, seed: int = 0) -> Protection:
    """A mechanism as the judges take it; the same photos get the same noise again.

    For experiments alone: the noise is derived from the private photos, so whoever guesses them
    can draw it again and check.
    """

    def protect(photos: ImageSet) -> Tensor:
        key = seeding.derive(seed, cache.fingerprint(photos.images))
        return release(photos.images, epsilon, Generator().manual_seed(key))

    return protect


def laplace(like: Tensor, scale: float, rng: Generator) -> Tensor:
    """Noise of density exp(-|z| / scale) / (2 scale), a number for each of a tensor's.

    Raises:
        ValueError: the scale is not finite and above 0.
    """
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"the noise's scale must be finite and above 0, not {scale}: see epsilon")
    draws = torch.empty(2, *like.shape).exponential_(generator=rng)
    return (scale * (draws[0] - draws[1])).to(like)


def add_laplace(values: Tensor, sensitivity: float, epsilon: float, rng: Generator) -> Tensor:
    """The values with Laplace noise of scale sensitivity / epsilon, on a grid of powers of two.

    The grid is about a thousandth of the scale, and hides which of the nearly equal numbers that a
    float can be came out.
    """
    if not (epsilon > 0 and sensitivity > 0):
        raise ValueError(f"epsilon and sensitivity must be above 0, not {epsilon}, {sensitivity}")
    scale = sensitivity / epsilon
    noisy = values + laplace(values, scale, rng)
    grid = 2.0 ** math.floor(math.log2(scale / 512))
    return (noisy / grid).round() * grid


def metric_noise(like: Tensor, epsilon: float, rng: Generator) -> Tensor:
    """Noise of density proportional to exp(-epsilon x length), a row for each of (N, dim).

    Its direction is uniform, its length Gamma(dim, 1 / epsilon): the sum of dim exponential draws.
    Who adds it releases plain floats, not rounded to a grid as by `add_laplace`.

    Raises:
        ValueError: epsilon is not finite and above 0.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon must be finite and above 0, not {epsilon}")
    directions = F.normalize(torch.randn(like.shape, generator=rng), dim=1)
    length = torch.empty(like.shape).exponential_(generator=rng).sum(1, keepdim=True) / epsilon
    return (length * directions).to(like)


def pixelize(
    images: Tensor, epsilon: float, rng: Generator, *, cell: int, pixels: int = 1
) -> Tensor:
    """DP-Pix: a mosaic of noisy means; epsilon for photos that differ in a few pixels.

    Args:
        images: (N, C, H, W) in [0, 1].
        epsilon: for all channels of a photo together.
        rng: of the noise.
        cell: height and width of a cell in pixels.
        pixels: in which neighbors differ at most, in all channels. Nothing leaves without noise.

    Raises:
        ValueError: cells do not fill the photo (a cut cell's mean would be more sensitive).

    Source:
        Fan, Image pixelization with differential privacy, DBSec 2018: gray photos, so one channel.
    """
    if cell < 1 or pixels < 1 or any(side % cell for side in images.shape[2:]):
        raise ValueError(f"{cell=} must fill {tuple(images.shape)}, {pixels=} be 1 or more")
    means = F.avg_pool2d(images, cell)
    sensitivity = images.shape[1] * pixels / cell**2  # of all means together, in L1
    noisy = add_laplace(means, sensitivity, epsilon, rng)
    return noisy.clamp(0, 1).repeat_interleave(cell, 2).repeat_interleave(cell, 3)


def noise_values(images: Tensor, epsilon: float, rng: Generator, *, count: int = 8) -> Tensor:
    """Noise on singular values; epsilon for each unit of distance between two photos' values.

    The singular vectors leave as they are: photos with other vectors are no neighbors at all.

    Args:
        images: (N, C, H, W) in [0, 1].
        epsilon: a unit of distance in the C x count values.
        rng: of the noise.
        count: values a channel that are kept, from the largest.

    Source:
        Fan, Practical image obfuscation with provable privacy, ICME 2019, as public
        re-implementations have it, which take the vectors from the photo.
    """
    left, values, right = torch.linalg.svd(images, full_matrices=False)
    values = values[..., :count]
    noisy = values + metric_noise(values.flatten(1), epsilon, rng).view_as(values)
    return _compose(left, noisy, right)


def with_values(images: Tensor, values: Tensor) -> Tensor:
    """The photos with other singular values, (C, count): nothing is left of their own."""
    left, _, right = torch.linalg.svd(images, full_matrices=False)
    return _compose(left, values.expand(len(images), -1, -1), right)


def with_vectors(images: Tensor, other: Tensor) -> Tensor:
    """The photos' own singular values with the vectors of another photo, (C, H, W)."""
    left, _, right = torch.linalg.svd(other[None], full_matrices=False)
    return _compose(left, torch.linalg.svdvals(images), right)


def _compose(left, values, right):
    count = values.shape[-1]
    return ((left[..., :count] * values[..., None, :]) @ right[..., :count, :]).clamp(0, 1)


def noise_codes(codes: Tensor, epsilon: float, rng: Generator, *, bound: float) -> Tensor:
    """(N, dim) codes with Laplace noise; epsilon for any two codes at all.

    Each number is clipped to [-bound, bound] first, so that two codes differ by at most
    2 x bound x dim in L1, and opposite corners by just that.

    Args:
        codes: (N, dim).
        epsilon: for a whole code.
        rng: of the noise.
        bound: known without the photos that are released.
    """
    codes = codes.clamp(-bound, bound)
    return add_laplace(codes, 2 * bound * codes.shape[1], epsilon, rng)


def noise_latent(images: Tensor, epsilon: float, rng: Generator, *, latent: Latent) -> Tensor:
    """A photo from a noisy code; epsilon for any two photos, so for the person on them.

    Source:
        Li and Clifton, Differentially private imaging via latent space manipulation, 2021, with
        eigenfaces instead of a StyleGAN's latent.
    """
    noisy = noise_codes(latent.faces.encode(images), epsilon, rng, bound=latent.bound)
    return latent.decode(noisy)


def noise_features(images: Tensor, epsilon: float, rng: Generator, *, latent: Latent) -> Tensor:
    """A photo from a noisy code; epsilon for each unit of distance between two photos' codes.

    Source:
        Liu et al., DP-Image, 2021: distances between feature vectors; eigenfaces here.
    """
    codes = latent.clip(latent.faces.encode(images))
    return latent.decode(codes + metric_noise(codes, epsilon, rng))


def noise_identity(
    images: Tensor, epsilon: float, rng: Generator, *, latent: Latent, attributes: bool = True
) -> Tensor:
    """A photo whose identity code is noisy; epsilon for photos that differ in this code alone.

    The other coordinates, the attribute code, leave as they are; without `attributes` they are 0.

    Source:
        Wen et al., IdentityDP, 2021; a linear discriminant instead of a disentangling network.
    """
    codes, k = latent.split(images), latent.identity
    noisy = latent.clip(noise_codes(codes[:, :k], epsilon, rng, bound=latent.bound))
    return latent.join(torch.cat([noisy, attributes * codes[:, k:]], 1))


def replace_crops(
    images: Tensor, epsilon: float, rng: Generator, *, boxes: Tensor, latent: Latent, size: int = 32
) -> Tensor:
    """Photos with a noisy crop pasted back; epsilon for photos that differ inside the box alone.

    Args:
        images: (N, C, H, W) in [0, 1].
        epsilon: for the whole crop.
        rng: of the noise.
        boxes: (N, 4) left, top, right, bottom in pixels; what is outside leaves as it is.
        latent: of crops.
        size: of the crops that it knows, in pixels.

    Source:
        Yu et al., GAN-based differential private image privacy protection framework, Sensors 2021,
        with eigenfaces instead of a generator, and heads instead of objects in streets.
    """
    crops, places = cut(images, boxes, size)
    made = noise_latent(crops, epsilon, rng, latent=latent)
    released = images.clone()
    for image, crop, (s, t, r, b) in zip(released, made, places, strict=True):
        image[:, t:b, s:r] = F.interpolate(crop[None], (b - t, r - s), mode="bilinear")[0]
    return released


def cut(images: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, list[list[int]]]:
    """(N, C, size, size) what is in the boxes, and their left, top, right, bottom in pixels."""
    low, high = boxes[:, :2].floor(), boxes[:, 2:].ceil() + 1
    limit = torch.tensor(images.shape[:1:-1]).to(boxes)
    low = low.clamp(min=0).minimum(limit - 1)
    places = torch.cat([low, high.maximum(low + 1).minimum(limit)], 1).long().tolist()
    crops = [
        F.interpolate(x[None, :, t:b, s:r], (size, size), mode="bilinear", antialias=True)
        for x, (s, t, r, b) in zip(images, places, strict=True)
    ]
    return torch.cat(crops).clamp(0, 1), places
