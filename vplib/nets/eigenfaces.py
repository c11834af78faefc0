"""Eigenfaces: the best linear autoencoder of faces, in closed form.

On a few thousand small photos it reconstructs unseen ones better than a convolutional autoencoder
that trains a hundred times as long. Its codes mean nothing by themselves: some directions are more
of the person, others more of light and background.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vplib import seeding


class Eigenfaces(NamedTuple):
    """A code for each photo, and a photo for each code.

    Args:
        mean: (C, H, W) the mean photo.
        basis: (dim, C x H x W) orthonormal, from large to small variance.
        scale: (dim,) standard deviations along them, so that codes of the photos it was fitted to
            have variance one.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def encode(self, images: Tensor) -> Tensor:
        """(N, dim) codes of (N, C, H, W) photos."""
        return (images - self.mean).flatten(1) @ self.basis.T / self.scale

    def decode(self, codes: Tensor) -> Tensor:
        """(N, C, H, W) photos in [0, 1] of (N, dim) codes."""
        flat = (codes * self.scale) @ self.basis
        return (flat.view(-1, *self.mean.shape) + self.mean).clamp(0, 1)


def fit_eigenfaces(images: Tensor, dim: int, *, seed: int = 0) -> Eigenfaces:
    """The principal components of photos.

    Args:
        images: (N, C, H, W) photos of public people, more than `dim`.
        dim: length of a code.
        seed: of the randomized decomposition, which is exact but for a few thousandths.

    Raises:
        ValueError: there are not more photos, or not as many pixels, as a code has numbers.

    Source:
        Turk and Pentland, Eigenfaces for recognition, 1991; decomposition after Halko et al. 2011.
    """
    if not 1 <= dim < len(images) or dim > math.prod(images.shape[1:]):
        raise ValueError(f"dim must be 1 or more and below the {len(images)} photos, not {dim}")
    mean = images.mean(0)
    with seeding.seeded(seeding.derive(seed, "eigenfaces")):
        _, singular, basis = torch.pca_lowrank((images - mean).flatten(1), dim, False, niter=4)
    return Eigenfaces(mean, basis.T.contiguous(), singular / math.sqrt(len(images)))
