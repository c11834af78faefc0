"""One latent space for four papers: eigenfaces, with the directions that tell people apart first.

It is fitted to public people. Where a paper has a GAN's or an autoencoder's latent, this is it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vplib.nets.eigenfaces import Eigenfaces, fit_eigenfaces

BOUND, SHRINK = 3.0, 0.01  # standard deviations of public codes; of a covariance


class Latent(NamedTuple):
    """Codes of photos, and their division in an identity code and an attribute code.

    Args:
        faces: codes of variance one on public photos.
        mixing: (dim, dim) from divided codes to `faces` codes.
        identity: how many of the divided code's numbers are the identity code, the first ones.
        bound: codes are clipped to [-bound, bound].
    """

    faces: Eigenfaces
    mixing: Tensor
    identity: int
    bound: float = BOUND

    def clip(self, codes: Tensor) -> Tensor:
        """Codes within the bounds."""
        return codes.clamp(-self.bound, self.bound)

    def decode(self, codes: Tensor) -> Tensor:
        """(N, C, H, W) photos of (N, dim) codes, which are clipped first."""
        return self.faces.decode(self.clip(codes))

    def split(self, images: Tensor) -> Tensor:
        """(N, dim) divided codes of variance one on public photos, identity first."""
        return torch.linalg.solve(self.mixing, self.faces.encode(images).T).T

    def join(self, divided: Tensor) -> Tensor:
        """(N, C, H, W) photos of divided codes."""
        return self.faces.decode(divided @ self.mixing.T)


def fit_latent(images: Tensor, people: Tensor, dim: int, *, seed: int = 0) -> Latent:
    """The latent space of public people's photos.

    Fisher's discriminant divides it: the identity code is made of all directions in which people
    differ more than photos of one person do.

    Args:
        images: (N, C, H, W) public photos, more than `dim`.
        people: (N,) who is on them.
        dim: length of a code, 2 or more.
        seed: of the decomposition.

    Raises:
        ValueError: there are too few photos, or dim is below 2.
    """
    if dim < 2:
        raise ValueError(f"a code needs two numbers, one for identity, one for the rest, not {dim}")
    faces = fit_eigenfaces(images, dim, seed=seed)
    codes, people = faces.encode(images), people.unique(return_inverse=True)[1]
    counts = torch.bincount(people)[:, None]
    means = codes.new_zeros(len(counts), dim).index_add_(0, people, codes) / counts
    within = codes - means[people]
    covariance = within.T @ within / len(within)
    covariance += SHRINK * torch.eye(dim).to(codes)
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, (means - means.mean(0)).T, upper=False)
    directions, strengths, _ = torch.linalg.svd(white, full_matrices=True)
    identity = int((strengths / len(counts) ** 0.5 > 1).sum().clamp(1, dim - 1))
    mixing = root @ directions
    spread = torch.linalg.solve(mixing, codes.T).std(1)
    return Latent(faces, mixing * spread, identity)
