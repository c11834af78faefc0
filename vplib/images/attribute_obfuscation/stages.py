"""The four stages: estimate an attribute, choose a new one, generate the photo, perturb it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vplib import seeding
from vplib.datasets.imageset import ImageSet
from vplib.victims import judges

Transport = Callable[[Tensor, Tensor], Tensor]


def train_estimator(
    photos: ImageSet, values: Tensor, *, passes: int, seed: int
) -> Callable[[Tensor], Tensor]:
    """Stage 1: a network that reads an attribute, from (N, C, H, W) images to (N, 2) scores.

    Args:
        photos: of the defender's people.
        values: (N,) 0 or 1, whether a photo has the attribute.
        passes: photos that the network sees in training.
        seed: of initialization and order.
    """
    eyes = judges.train_network(photos.images, values, passes=passes, seed=seed)
    nobody = photos.images[:0], values[:0]
    return judges.train_recognizer(eyes, photos.images, values, *nobody)


def within_t(ones: int, number: int, share: float, t: float) -> int:
    """How many photos of an album show the attribute, changing as few as needed.

    Args:
        ones: photos of the album that have it now.
        number: photos of the album.
        share: of public photos that have it.
        t: how far the album's share may lie from the public one, from 0 to 1.

    Returns:
        The number in the album nearest to `ones` whose share is within t. Where the album is too
        small for any, the number whose share is nearest to the public one.
    """
    low, high = math.ceil(number * (share - t) - 1e-9), math.floor(number * (share + t) + 1e-9)
    if low > high:
        low = high = round(number * share)
    return min(max(ones, low, 0), high, number)


def choose(
    values: Tensor, albums: Tensor, share: float, t: float, *, seed: int = 0, target=within_t
) -> Tensor:
    """Stage 2: new values, so that each album's histogram is t-close to the public one.

    An album of one photo cannot be close to anything; its value is drawn with the public share.

    Args:
        values: (N,) 0 or 1, as they were estimated.
        albums: (N,) whose album a photo is in, whole numbers from 0.
        share: of public photos that have the attribute.
        t: the largest distance of an album's share from it.
        seed: decides which photos change.
        target: how many photos of an album show it, as `within_t`.

    Returns:
        (N,) the values to show.

    Raises:
        ValueError: the share or t lies outside of 0 to 1, or there is not an album for each value.

    Source:
        Li, Li and Venkatasubramanian, t-closeness, ICDE 2007. For two values the earth mover's
        distance is the total variation, the difference of shares.
    """
    if not (0 <= share <= 1 and 0 <= t <= 1) or values.shape != albums.shape:
        raise ValueError(
            f"share and t lie in 0 to 1, and each value is in an album: share {share}, t {t}, "
            f"values {tuple(values.shape)}, albums {tuple(albums.shape)}"
        )
    draws = torch.Generator().manual_seed(seeding.derive(seed, "chosen attributes"))
    found = values.clone()
    for album in albums.unique():
        rows = (albums == album).nonzero()[:, 0]
        ones = int(values[rows].sum())
        if len(rows) == 1 and t < 1:
            found[rows] = int(torch.rand((), generator=draws) < share)
            continue
        change = target(ones, len(rows), share, t) - ones
        some = rows[values[rows] == int(change < 0)]  # who may change
        some = some[torch.randperm(len(some), generator=draws).to(some.device)]
        found[some[: abs(change)]] = int(change > 0)
    return found


def fit_transport(codes: Tensor, values: Tensor) -> Transport:
    """Stage 3: from a photo's code to the code that it would have with the other value.

    The optimal transport between two Gaussians, one fitted to the codes of each value: mean and
    covariance of what comes out are those of photos that have the value by nature.

    Args:
        codes: (N, dim) of the defender's photos.
        values: (N,) 0 or 1.

    Returns:
        From (N, dim) codes and their (N,) values to (N, dim) codes with the other one.

    Raises:
        ValueError: one of the values is on fewer than two photos.
    """
    parts = [codes[values == k] for k in (0, 1)]
    if min(map(len, parts)) < 2:
        raise ValueError(
            f"photos with and without the attribute are needed, two of each at least, "
            f"not {len(parts[1])} with and {len(parts[0])} without"
        )
    means = [part.mean(0) for part in parts]
    # The fewer photos for each number of a code, the less their covariance is believed.
    ridge = codes.shape[1] / len(codes) * torch.eye(codes.shape[1], device=codes.device)
    covariances = [part.T.cov() + ridge for part in parts]
    maps = [_between(*covariances), _between(*covariances[::-1])]

    def transport(some: Tensor, known: Tensor) -> Tensor:
        there = means[1] + (some - means[0]) @ maps[0]
        back = means[0] + (some - means[1]) @ maps[1]
        return torch.where(known[:, None] == 0, there, back)

    return transport


def _between(a: Tensor, b: Tensor) -> Tensor:
    """The symmetric map that makes covariance b of a: M a M = b."""
    root, inverse = _power(a, 0.5), _power(a, -0.5)
    return inverse @ _power(root @ b @ root, 0.5) @ inverse


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=1e-8) ** exponent) @ vectors.T


def perturb(
    images: Tensor, surrogate: Callable, *, epsilon: float, steps: int = 4, seed: int = 0
) -> Tensor:
    """Stage 4: images that the surrogate takes for somebody else, each pixel within epsilon.

    Args:
        images: (N, C, H, W) in [0, 1].
        surrogate: the defender's recognizer, from images to unit embeddings.
        epsilon: largest change of a pixel; 0 changes nothing.
        steps: of projected gradient descent.
        seed: of where it starts.
    """
    if epsilon == 0:
        return images
    draws = torch.Generator().manual_seed(seeding.derive(seed, "perturbation"))
    return torch.cat([_climb(x, surrogate, epsilon, steps, draws) for x in images.split(256)])


def _climb(images, surrogate, epsilon, steps, draws):
    start = (2 * torch.rand(images.shape, generator=draws) - 1).to(images.device)
    change, own = epsilon * start, surrogate(images).detach()
    for _ in range(steps):
        change.requires_grad_(True)
        alike = (surrogate((images + change).clamp(0, 1)) * own).sum()
        (gradient,) = torch.autograd.grad(alike, change)
        step = 2 * epsilon / steps * gradient.sign()
        change = (change.detach() - step).clamp(-epsilon, epsilon)
    return (images + change).clamp(0, 1)
