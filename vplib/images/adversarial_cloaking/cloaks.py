"""Cloaks: small changes to photos that lead a face recognizer astray.

Two threat models. *Poisoning* (Fawkes): the tracker trains on cloaked photos and must then fail on
clean ones. *Evasion* (universal perturbations, overlays): the tracker trained on clean photos and
must fail on the changed one. The protector sees photos and the extractors it is given; whether one
of them is the tracker's is a grant of the caller. Photos are files: a cloak is measured after
rounding to 8 bits.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vplib.datasets.files import check_photos, to_levels
from vplib.datasets.files import encode as encode  # for the notebook, with the two below
from vplib.datasets.files import to_jpeg as to_jpeg
from vplib.datasets.files import to_png as to_png
from vplib.datasets.imageset import check_range, is_whole
from vplib.victims.recognition import SCALE, Embed, identify

Recognize = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor, float, Tensor], Tensor]

WINDOW, SPREAD = 11, 1.5  # of the SSIM, in pixels, as in `metrics.ssim`


def dssim(images: Tensor, references: Tensor) -> Tensor:
    """The dissimilarity of each pair, (1 - SSIM) / 2: differentiable, and fast on small photos.

    Equal to that of `metrics.ssim` (torchmetrics), whose 11x11 convolutions would take ten times
    as long as the network: a Gaussian window is one matrix product a direction.

    Args:
        images: (N, C, H, W) in [0, 1], at least 11 pixels each way.
        references: the same shape.

    Returns:
        (N,) from 0, equal, to 1.

    Raises:
        ValueError: the shapes differ, or the photos are smaller than the window or not in [0, 1].

    Source:
        Wang et al., Image quality assessment, IEEE TIP 2004, equation 13; (1 - SSIM) / 2 as in
        Shan et al., Fawkes, USENIX Security 2020, section 5.
    """
    _check_photos(images, WINDOW)
    if images.shape != references.shape:
        shapes = f"{tuple(images.shape)} and references {tuple(references.shape)}"
        raise ValueError(f"photos {shapes} must be alike")
    check_range(references, "references: ")
    down, right = (_windows(n, images.dtype, images.device) for n in images.shape[2:])
    fields = (images, references, images * images, references * references, images * references)
    mean, other, square, other_square, product = (down @ field @ right.T for field in fields)
    spread, other_spread = square - mean * mean, other_square - other * other
    light = (2 * mean * other + 1e-4) / (mean * mean + other * other + 1e-4)
    structure = (2 * (product - mean * other) + 9e-4) / (spread + other_spread + 9e-4)
    return (1 - (light * structure).mean((1, 2, 3))) / 2


def choose_target(photos: Tensor, candidates: Tensor, names: Tensor, *, known: Tensor) -> int:
    """The person whom the cloaks should imitate: the farthest from the user's photos.

    Args:
        photos: (n, dim) embeddings of the user's photos, by the protector's extractor.
        candidates: (M, dim) embeddings of the candidates' photos.
        names: (M,) who they are.
        known: people whom the tracker may know; none may be a candidate, or the user would be
            taken for somebody real.

    Returns:
        The name of the candidate whose mean embedding is farthest from the nearest photo.

    Raises:
        ValueError: a candidate is known to the tracker, or there is none, or no photo.

    Source:
        Shan et al., Fawkes, USENIX Security 2020, section 4.2, step 1.
    """
    if not len(names) or len(names) != len(candidates):
        raise ValueError(f"{len(candidates)} embeddings of candidates, but {len(names)} names")
    if not len(photos) or photos.shape[1:] != candidates.shape[1:]:
        raise ValueError(f"photos are no (n, {candidates.shape[-1]}) embeddings: {photos.shape}")
    both = set(names.tolist()) & set(torch.as_tensor(known).flatten().tolist())
    if both:
        raise ValueError(f"candidates {sorted(both)} are among the people the tracker knows")
    everyone = names.unique()
    centers = torch.stack([candidates[names == name].mean(0) for name in everyone])
    nearest = torch.cdist(photos, centers).amin(0)
    return int(everyone[nearest.argmax()])


def penalized(distance: Tensor, dissimilarity: Tensor, budget: float, weight: Tensor) -> Tensor:
    """The loss of each cloak: its distance to the target, and a penalty above the budget.

    Args:
        distance: (N,) squared, of each photo's embedding to its target.
        dissimilarity: (N,) DSSIM of each photo to what it was.
        budget: the largest DSSIM.
        weight: (N,) of the penalty, on the excess as a share of the budget.

    Returns:
        (N,) numbers.

    Source:
        Shan et al., Fawkes, USENIX Security 2020, equation 4.
    """
    return distance + weight * (dissimilarity / budget - 1).relu()


def cloak(
    images: Tensor,
    targets: Tensor,
    extractor: Embed,
    *,
    budget: float = 0.007,
    num_steps: int = 40,
    lr: float = 0.01,
    seed: int = 0,
    loss: Loss = penalized,
) -> Tensor:
    """Photos whose embedding moves to a target's, while they change by at most the budget.

    All photos at once: Adam on each photo's change, with a penalty above the budget whose weight
    each photo adjusts for itself, doubled above its budget and relaxed below. What is best of a
    photo's steps is kept. Last, changes still too large are scaled back, after rounding.

    Args:
        images: (N, C, H, W) photos in [0, 1]; they are rounded to 8 bits first, as files are.
        targets: (N, dim) embeddings to imitate, one a photo.
        extractor: the protector's network from photos to unit vectors.
        budget: the largest DSSIM to the photo; 0.007 in the paper.
        num_steps: steps of Adam.
        lr: its step, where 1 is from black to white.
        seed: of the start, noise of half a gray level; the tracker must not know it.
        loss: what is minimized, from and to what `penalized` takes and gives.

    Returns:
        (N, C, H, W) cloaked photos on 8-bit levels, each within its budget.

    Raises:
        ValueError: the budget is not between 0 and 1, a setting or a shape cannot be.

    Source:
        Shan et al., Fawkes, USENIX Security 2020, equation 4. Unlike there, the target is one
        embedding a photo and the penalty's weight is the photo's own.
    """
    _check_budget(budget)
    _check_photos(images, WINDOW)
    if not is_whole(num_steps, 1) or not lr > 0:
        raise ValueError(f"num_steps must be 1 or more, lr above 0, not {num_steps} and {lr}")
    photos = to_levels(images)
    with torch.no_grad():
        wanted = (len(photos), *extractor(photos[:2]).shape[1:])
    if targets.shape != wanted:
        raise ValueError(f"targets must be {wanted}, not {tuple(targets.shape)}")
    change = ((_uniform(photos, seed) - 0.5) / 255).requires_grad_()
    stepper = torch.optim.Adam([change], lr=lr)
    weight = torch.ones(len(photos), device=photos.device)
    best, found = torch.full_like(weight, torch.inf), torch.zeros_like(photos)
    for _ in range(num_steps):
        x = (photos + change).clamp(0, 1)
        distance = (extractor(x) - targets).square().sum(-1)
        dissimilarity = dssim(x, photos)
        losses = loss(distance, dissimilarity, budget, weight)
        if losses.shape != weight.shape:
            raise ValueError(f"loss must give ({len(photos)},) numbers, not {tuple(losses.shape)}")
        change.grad = torch.autograd.grad(losses.sum(), change)[0]
        with torch.no_grad():
            over = dissimilarity / budget - 1
            better = (distance < best) & (over <= 0.1)  # a little too much is scaled back below
            best = torch.where(better, distance, best)
            found = torch.where(better[:, None, None, None], change, found)
            weight = torch.where(over > 0, 2 * weight, 0.8 * weight).clamp(0.01, 100)
        stepper.step()
    return within_budget(photos, found, budget)


@torch.no_grad()
def within_budget(images: Tensor, changes: Tensor, budget: float) -> Tensor:
    """The photos with as much of their change, at most all of it, as the budget allows.

    Args:
        images: (N, C, H, W) photos in [0, 1]; they are rounded to 8 bits first.
        changes: (N, C, H, W) to add. Random ones, large enough, make noise of equal DSSIM.
        budget: the largest DSSIM, after rounding to 8 bits.

    Returns:
        (N, C, H, W) on 8-bit levels. No photo exceeds its budget: at worst it stays as it was.

    Raises:
        ValueError: the budget is not between 0 and 1, or the shapes cannot be.
    """
    _check_budget(budget)
    _check_photos(images, WINDOW)
    photos, low = to_levels(images), torch.zeros(len(images), 1, 1, 1, device=images.device)
    high, best = torch.ones_like(low), to_levels(images)
    share = high  # the first try is all of it
    for _ in range(12):  # the share to one part in two thousand
        tried = to_levels(photos + share * changes)
        fits = (dssim(tried, photos) <= budget * (1 - 1e-3))[:, None, None, None]  # float error
        best = torch.where(fits, tried, best)
        low, high = torch.where(fits, share, low), torch.where(fits, high, share)
        share = (low + high) / 2
    return best


def nearest(galleries: Tensor, people: Tensor) -> Recognize:
    """A tracker that trains nothing: it takes the name of the nearest posted photo.

    Args:
        galleries: (U, G, dim) embeddings of what was posted, a gallery for each of U trackers.
        people: (G,) the names on them.

    Returns:
        A function from (N, dim) embeddings to (U, N) names; -1 for nobody, as where one is NaN.

    Raises:
        ValueError: there is no photo, not a name for each, or an embedding is not finite.
    """
    _check_galleries(galleries, people)
    return lambda probes: torch.stack([identify(g, people, probes) for g in galleries])


def softmax_head(galleries: Tensor, people: Tensor, *, num_steps: int = 60) -> Recognize:
    """A tracker that trains a softmax layer on the embeddings; all U layers are trained at once.

    Args:
        galleries: as in `nearest`.
        people: as in `nearest`.
        num_steps: of Adam, each on all photos.

    Returns:
        As `nearest`.

    Raises:
        ValueError: as `nearest`, or num_steps is no whole number from 1 on.

    Source:
        Shan et al., Fawkes, USENIX Security 2020, section 5.1: the tracker adds a softmax layer
        to a feature extractor. Weights start at zero, so that there is no draw.
    """
    _check_galleries(galleries, people)
    if not is_whole(num_steps, 1):
        raise ValueError(f"num_steps must be a whole number, 1 or more, not {num_steps!r}")
    names, index = people.unique(return_inverse=True)
    right = F.one_hot(index).to(galleries)
    weights = galleries.new_zeros(len(galleries), galleries.shape[2], len(names))
    stepper = torch.optim.Adam([weights], lr=0.1)
    for _ in range(num_steps):
        wrong = (SCALE * galleries @ weights).softmax(-1) - right
        weights.grad = galleries.mT @ wrong / len(people)
        stepper.step()
    return lambda probes: torch.where(
        probes.isfinite().all(-1), names[(probes @ weights).argmax(-1)], -1
    )


def universal_perturbation(
    images: Tensor, extractors: Sequence[Embed], *, size: float, num_steps: int, seed: int = 0
) -> Tensor:
    """One change for all photos that turns each embedding away from where it was.

    Args:
        images: (N, C, H, W) photos to learn from, of anybody but the users.
        extractors: the protector's networks; the change must turn all of them.
        size: the largest change of a pixel, where 1 is from black to white.
        num_steps: steps of Adam, each on a random batch of 64 photos.
        seed: of start and batches.

    Returns:
        (C, H, W) to add to any photo.

    Raises:
        ValueError: the size is not between 0 and 1, there is no extractor or no step, or the photos
            cannot be.

    Source:
        Rajabi, Bobba, Rosulek, Wright and Feng, On the (im)practicality of adversarial
        perturbation for image privacy, PoPETs 2021: universal ensemble perturbation. On
        embeddings instead of their classifiers' labels.
    """
    _check_photos(images)
    if not 0 < size <= 1:
        raise ValueError(f"size must lie above 0 and at most at 1, not {size}")
    if not extractors or not is_whole(num_steps, 1):
        found = f"{len(extractors)} and {num_steps!r}"
        raise ValueError(f"extractors and num_steps must be 1 or more, not {found}")
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        before = [embed(images) for embed in extractors]
    change = (size * (2 * _uniform(images[:1], seed) - 1)).requires_grad_()
    stepper = torch.optim.Adam([change], lr=0.01)
    for _ in range(num_steps):
        rows = torch.from_numpy(rng.integers(0, len(images), min(64, len(images))))
        x = (images[rows] + change).clamp(0, 1)
        pairs = zip(extractors, before, strict=True)
        alike = sum((embed(x) * old[rows]).sum(-1).mean() for embed, old in pairs)
        change.grad = torch.autograd.grad(alike, change)[0]
        stepper.step()
        with torch.no_grad():
            change.clamp_(-size, size)
    return change.detach()[0]


def overlay(
    images: Tensor, pool: Tensor, *, key: int, number: int = 0, k: int, cells: int, opacity: float
) -> Tensor:
    """Visible overlays, drawn from a secret key for each photo: k pictures with shuffled cells.

    Args:
        images: (N, C, H, W) photos in [0, 1].
        pool: (P, C, H, W) public pictures to lay over.
        key: the secret, a whole number from 0, which friends hold and the tracker does not.
        number: of the first photo; the next ones count on. With key and number, one photo out of a
            batch is opened alone.
        k: pictures laid over one photo.
        cells: an overlay is cut into cells x cells squares, which change places.
        opacity: of the overlay; 1 would hide the photo.

    Returns:
        (N, C, H, W) in [0, 1].

    Raises:
        ValueError: key, number, opacity, k or cells cannot be, or photos and pool differ in size.

    Source:
        Rajabi et al., as in `universal_perturbation`: k-randomized transparent image overlays.
        Our reading of its abstract and figures: details of theirs may differ.
    """
    for given in (images, pool):
        _check_photos(given)
    if not is_whole(key) or not is_whole(number):
        raise ValueError(f"key and number must be whole numbers from 0, not {key!r}, {number!r}")
    if not 0 <= opacity < 1:
        raise ValueError(f"opacity must be 0 or more and below 1, not {opacity}")
    if images.shape[1:] != pool.shape[1:]:
        raise ValueError(f"photos {tuple(images.shape[1:])}, overlays {tuple(pool.shape[1:])}")
    height, width = images.shape[2:]
    whole = is_whole(k, 1) and is_whole(cells, 1)
    if not whole or k > len(pool) or height % cells or width % cells:
        possible = f"1 to {len(pool)} overlays and cells that divide {height}x{width}"
        raise ValueError(f"need {possible}, not k={k}, cells={cells}")
    rngs = [np.random.default_rng([key, number + i]) for i in range(len(images))]
    chosen = np.stack([rng.permutation(len(pool))[:k] for rng in rngs])
    places = np.stack([rng.permutation(cells * cells) for rng in rngs for _ in range(k)])
    cell = height // cells, width // cells
    tiles = F.unfold(pool, cell, stride=cell)[torch.from_numpy(chosen.ravel()).to(pool.device)]
    order = torch.from_numpy(places).to(pool.device)[:, None].expand_as(tiles)
    laid = F.fold(tiles.gather(2, order), (height, width), cell, stride=cell)
    return (1 - opacity) * images + opacity * laid.view(-1, k, *images.shape[1:]).mean(1)


def remove_overlay(images: Tensor, pool: Tensor, **secret) -> Tensor:
    """The photos as they were, for who holds the key: arguments as in `overlay`."""
    _check_photos(images)
    # What is laid over a black and over a white photo says what became of every gray level.
    black, white = (overlay(torch.full_like(images, v), pool, **secret) for v in (0.0, 1.0))
    return ((images - black) / (white - black)).clamp(0, 1)


@lru_cache
def _windows(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size, size): a row holds the Gaussian window at one position, mirrored at the border."""
    offsets, rows = torch.arange(WINDOW) - WINDOW // 2, torch.zeros(size, size).double()
    window = (-((offsets.double() / SPREAD) ** 2) / 2).exp()
    where = (torch.arange(size)[:, None] + offsets).abs()
    where = torch.minimum(where, 2 * (size - 1) - where)
    rows.scatter_add_(1, where, (window / window.sum()).expand(size, -1))
    return rows.to(device, dtype)


def _uniform(like: Tensor, seed: int) -> Tensor:
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(seed)).to(like.device)


def _check_budget(budget: float) -> None:
    if not 0 < budget <= 1:
        raise ValueError(f"the budget is a DSSIM, above 0 and at most 1, not {budget}")


def _check_photos(images: Tensor, least: int = 1) -> None:
    check_photos(images)
    if min(images.shape[2:]) < least:
        size = "{}x{}".format(*images.shape[2:])
        raise ValueError(f"photos of {size} pixels have no usable size: DSSIM takes {WINDOW}")


def _check_galleries(galleries: Tensor, people: Tensor) -> None:
    if galleries.ndim != 3 or not galleries.numel() or people.shape != galleries.shape[1:2]:
        shapes = f"{tuple(galleries.shape)} and {tuple(people.shape)}"
        raise ValueError(f"galleries must be (U, G, dim) and people (G,), not {shapes}")
    if not galleries.isfinite().all():
        raise ValueError("galleries must be finite, but an embedding holds NaN or infinity")
