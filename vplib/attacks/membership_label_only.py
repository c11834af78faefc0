"""Membership inference from labels alone.

Throughout, `predict_label` is the victim as a black box, from images (N, C, H, W) in [0, 1] to
labels (N,): all that these attackers may ask. Whatever else they use (start images, shadows, a
scale of noise) is their own. Scores are higher for members.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vplib import training

PredictLabel = Callable[[Tensor], Tensor]
CHUNK = 2**19  # pixels asked about at a time: what a processor's cache holds


class Boundary(NamedTuple):
    """How far each record is from the nearest point found that the victim labels otherwise.

    Args:
        points: (N, C, H, W) those points, on the far side of the boundary; the record itself
            where the victim errs, and where nothing was found.
        distances: (N,) L2 distances; 0 where the victim errs; the largest that the range of
            pixels allows, where no start image was labelled otherwise.
        queries: (N,) what was asked for each record, failed starts included.
        trace_distances: (T + 1, N) the distances after the start and after each step.
        trace_queries: (T + 1, N) the queries up to there.
    """

    points: Tensor
    distances: Tensor
    queries: Tensor
    trace_distances: Tensor
    trace_queries: Tensor


class Starts(NamedTuple):
    """Images that the victim labels otherwise than the record, one a record.

    Args:
        images: (N, C, H, W).
        found: (N,) whether there is one.
        queries: (N,) how many were tried.
    """

    images: Tensor
    found: Tensor
    queries: Tensor


def score_by_gap(predict_label: PredictLabel, images: Tensor, labels: Tensor) -> Tensor:
    """1 where the victim is right and 0 where it errs: one query a record.

    Args:
        predict_label: the victim.
        images: (N, C, H, W) records to decide on.
        labels: (N,) their classes.

    Source:
        Yeom et al., Privacy risk in machine learning, CSF 2018; the baseline of all that follows.
    """
    _check(images, labels)
    return (predict_label(images) == labels).double()


def shifted(images: Tensor, distance: int) -> Tensor:
    """All copies moved by whole pixels (i, j) with |i| + |j| = distance, the image itself first.

    Args:
        images: (N, C, H, W).
        distance: in pixels, 1 or more.

    Returns:
        (4 * distance + 1, N, C, H, W); what moves in from outside is 0.

    Source:
        Choquette-Choo et al., Label-only membership inference attacks, ICML 2021, section 4.2.
    """
    height, width = images.shape[-2:]
    if not 1 <= distance < min(height, width):
        raise ValueError(f"the shift must be 1 to {min(height, width) - 1} pixels, not {distance}")
    padded = F.pad(images, (distance,) * 4)
    steps = range(-distance, distance + 1)
    moves = [(i, j) for i in steps for j in steps if abs(i) + abs(j) == distance]
    copies = [padded[..., distance - i :, distance - j :][..., :height, :width] for i, j in moves]
    return torch.stack([images, *copies])


def rotated(images: Tensor, degrees: float) -> Tensor:
    """The images, and copies turned by plus and minus so many degrees (bilinear, 0 outside).

    Args:
        images: (N, C, H, W).
        degrees: of the turn.

    Returns:
        (3, N, C, H, W), in [0, 1] if the images are.

    Source:
        Choquette-Choo et al. 2021, section 4.2.
    """
    copies = [images]
    height, width = images.shape[-2:]
    for angle in (math.radians(degrees), -math.radians(degrees)):
        cos, sin = math.cos(angle), math.sin(angle)
        turn = torch.tensor(
            [[cos, -sin * height / width, 0], [sin * width / height, cos, 0]],
            dtype=images.dtype, device=images.device,
        )  # fmt: skip
        grid = F.affine_grid(turn.expand(len(images), 2, 3), images.shape, align_corners=False)
        copies.append(F.grid_sample(images, grid, align_corners=False).clamp(0, 1))
    return torch.stack(copies)


def ask_copies(predict_label: PredictLabel, copies: Tensor, labels: Tensor) -> Tensor:
    """Whether the victim is right about each copy of each record: A queries a record.

    Args:
        predict_label: the victim.
        copies: (A, N, C, H, W) from `shifted` or `rotated`, of the records.
        labels: (N,) classes of the records.

    Returns:
        (N, A) 1 where right, 0 where wrong.
    """
    _check(copies[0], labels)
    answers = torch.stack([predict_label(some) for some in copies])
    return (answers == labels).double().T


def train_copies_attack(right: Tensor, members: Tensor) -> Callable[[Tensor], Tensor]:
    """An attack model on which copies are labelled right, from the attacker's own shadows.

    Args:
        right: (K, N, A) of K shadows about the N records of their pool.
        members: (K, N) who was in them.

    Returns:
        A function from (N, A) to (N,) scores, higher for members.

    Source:
        Choquette-Choo et al. 2021, section 4.2. Logistic regression instead of a network: with a
        dozen truth values a record, both learn weights.
    """
    judge = LogisticRegression(max_iter=1000)
    judge.fit(right.flatten(0, 1).cpu().numpy(), members.flatten().cpu().numpy())
    return lambda asked: torch.from_numpy(judge.decision_function(asked.cpu().numpy()))


def score_by_noise(
    predict_label: PredictLabel,
    images: Tensor,
    labels: Tensor,
    *,
    sigma: float,
    num_queries: int = 100,
    seed: int = 0,
) -> Tensor:
    """The share of noisy copies that the victim labels right: a distance without a search.

    Args:
        predict_label: the victim.
        images: (N, C, H, W) records to decide on, in [0, 1].
        labels: (N,) their classes.
        sigma: standard deviation of the noise; choose it on a shadow.
        num_queries: noisy copies a record.
        seed: of the noise.

    Returns:
        (N,) shares from 0 to 1.

    Source:
        Choquette-Choo et al. 2021, section 4.3 (random noise, for data without an attack).
    """
    _check(images, labels)
    generator = torch.Generator().manual_seed(seed)
    right = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for _ in range(num_queries):
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        right += predict_label((images + sigma * noise).clamp(0, 1)) == labels
    return right / num_queries


def find_starts(
    predict_label: PredictLabel,
    labels: Tensor,
    candidates: Tensor,
    *,
    max_tries: int = 100,
    seed: int = 0,
) -> Starts:
    """For each record, the first of the attacker's images that the victim labels otherwise.

    Each record tries them in an order of its own; every try is a query of that record.

    Args:
        predict_label: the victim.
        labels: (N,) classes of the records.
        candidates: (M, C, H, W) images of the attacker's own, or noise; their classes are not
            used, only what the victim says about them.
        max_tries: how many a record may try.
        seed: of the orders.
    """
    if candidates.ndim != 4 or not len(candidates):
        raise ValueError(f"start images must be (M, C, H, W), not {tuple(candidates.shape)}")
    rng = np.random.default_rng(seed)
    tries = min(max_tries, len(candidates))
    order = rng.random((len(labels), len(candidates))).argsort(1)[:, :tries]
    order = torch.from_numpy(order).to(candidates.device)
    images = candidates[order[:, 0]].clone()
    found = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    queries = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
    for i in range(tries):
        rows = (~found).nonzero().flatten()
        if not len(rows):
            break
        asked = candidates[order[rows, i]]
        other = predict_label(asked) != labels[rows]
        images[rows[other]], found[rows[other]] = asked[other], True
        queries[rows] += 1
    return Starts(images, found, queries)


def estimate_direction(
    predict_label: PredictLabel,
    points: Tensor,
    labels: Tensor,
    directions: Tensor,
    radii: Tensor,
) -> Tensor:
    """The direction in which each point leaves the record's label fastest, by Monte Carlo.

    Args:
        predict_label: the victim.
        points: (N, C, H, W) on the boundary.
        labels: (N,) labels to leave.
        directions: (B, C, H, W) unit vectors, the same for all points.
        radii: (N,) how far to look from each point.

    Returns:
        (N, C, H, W) unit vectors.

    Source:
        Chen, Jordan and Wainwright, HopSkipJumpAttack, S&P 2020, equations 9 and 16. The images
        asked about are clipped to [0, 1]; the directions in the sum are not, so that all records
        share one matrix product.
    """
    pixels = directions[0].numel()
    some = max(1, CHUNK // (pixels * len(points)))
    left = torch.cat(
        [
            _ask_around(predict_label, points, labels, part, radii)
            for part in directions.split(some)
        ],
        dim=1,
    )
    signs = 2 * left.to(points.dtype) - 1
    mean = signs.mean(1, keepdim=True)
    # Equal answers in all directions tell nothing apart: then their mean direction is taken.
    weights = torch.where(mean.abs() == 1, signs, signs - mean)
    found = (weights @ directions.flatten(1)).view_as(points)
    return _unit(found)


def _ask_around(predict_label, points, labels, directions, radii) -> Tensor:
    """(N, B) whether the label is left at each point plus its radius times each direction."""
    asked = points[:, None] + radii.view(-1, 1, 1, 1, 1) * directions
    answers = predict_label(asked.clamp_(0, 1).flatten(0, 1)).view(asked.shape[:2])
    return answers != labels[:, None]


def hop_skip_jump(
    predict_label: PredictLabel,
    images: Tensor,
    labels: Tensor,
    starts: Tensor,
    *,
    num_steps: int = 10,
    num_directions: int = 20,
    tolerance: float = 0.01,
    seed: int = 0,
) -> Boundary:
    """The boundary point nearest to each record by HopSkipJump, for all records at once (L2).

    Args:
        predict_label: the victim.
        images: (N, C, H, W) records, in [0, 1].
        labels: (N,) labels that the victim gives them.
        starts: (N, C, H, W) images that the victim labels otherwise.
        num_steps: steps from boundary point to boundary point.
        num_directions: directions asked about in the first step; step t asks sqrt(t) times as
            many.
        tolerance: a point lies at most this share of its distance beyond the boundary, on the
            line to its record.
        seed: of the directions.

    Returns:
        Points, distances and queries; that images and starts are labelled so is not asked again.

    Source:
        Chen, Jordan and Wainwright 2020, algorithm 2. Records share their random directions, and
        a step that does not come nearer is not taken.
    """
    _check(images, labels)
    if not 0 < tolerance < 1:
        raise ValueError(f"the tolerance must lie between 0 and 1, not {tolerance}")
    generator = torch.Generator().manual_seed(seed)
    points, spent = _bisect(predict_label, images, labels, starts, tolerance)
    distances = _distance(points, images)
    queries = torch.full_like(labels, spent)
    trace = [(distances, queries)]
    pixels = images[0].numel()
    for t in range(1, num_steps + 1):
        number = int(num_directions * t**0.5)
        directions = _unit(torch.randn((number, *images.shape[1:]), generator=generator))
        radii = torch.full_like(distances, 0.1) if t == 1 else distances / pixels**0.5
        toward = estimate_direction(
            predict_label, points, labels, directions.to(images.device), radii
        )
        jumped, asked = _jump(predict_label, points, labels, toward, distances / t**0.5)
        nearer, spent = _bisect(predict_label, images, labels, jumped, tolerance)
        better = _distance(nearer, images) < distances
        points = torch.where(better.view(-1, 1, 1, 1), nearer, points)
        distances = _distance(points, images)
        queries = queries + number + asked + spent
        trace.append((distances, queries))
    return Boundary(points, distances, queries, *map(torch.stack, zip(*trace, strict=True)))


def _bisect(predict_label, images, labels, outside, tolerance) -> tuple[Tensor, int]:
    """The boundary on each line from record to outer point, from outside; and queries a record."""
    low, high = torch.zeros(len(images)).to(images), torch.ones(len(images)).to(images)
    number = math.ceil(math.log2(1 / tolerance)) + 2  # a share of the distance found, not of this
    for _ in range(number):
        middle = (low + high) / 2
        other = predict_label(_mix(images, outside, middle)) != labels
        low, high = torch.where(other, low, middle), torch.where(other, middle, high)
    return _mix(images, outside, high), number


def _jump(predict_label, points, labels, toward, lengths) -> tuple[Tensor, Tensor]:
    """Each point moved as far as it stays outside: the length is halved until it does."""
    queries = torch.zeros_like(labels)
    moved, rows, lengths = points.clone(), torch.arange(len(points)).to(labels), lengths.clone()
    for _ in range(10):
        tried = (points[rows] + lengths[rows].view(-1, 1, 1, 1) * toward[rows]).clamp(0, 1)
        other = predict_label(tried) != labels[rows]
        queries[rows] += 1
        moved[rows[other]] = tried[other]
        rows = rows[~other]
        lengths[rows] /= 2
        if not len(rows):
            break
    return moved, queries


def boundary_distances(
    predict_label: PredictLabel,
    images: Tensor,
    labels: Tensor,
    candidates: Tensor,
    *,
    max_tries: int = 100,
    seed: int = 0,
    **settings,
) -> Boundary:
    """The boundary attack's score: each record's distance to where the victim leaves its class.

    Args:
        predict_label: the victim.
        images: (N, C, H, W) records to decide on, in [0, 1].
        labels: (N,) their classes. Records that the victim labels otherwise have distance 0, so
            the gap attack is part of this one.
        candidates: (M, C, H, W) the attacker's own images, or noise, to start from.
        max_tries: of start images a record.
        seed: of starts and directions.
        **settings: of `hop_skip_jump`.

    Source:
        Choquette-Choo et al. 2021, section 4.3; Li and Zhang, Membership leakage in label-only
        exposures, CCS 2021, section 4.2.
    """
    _check(images, labels)
    queries = torch.ones_like(labels)
    right = (predict_label(images) == labels).nonzero().flatten()
    starts = find_starts(predict_label, labels[right], candidates, max_tries=max_tries, seed=seed)
    queries[right] += starts.queries
    distances = torch.zeros(len(images)).to(images)
    distances[right] = images[0].numel() ** 0.5
    rows = right[starts.found]
    if not len(rows):
        return Boundary(images.clone(), distances, queries, distances[None], queries[None])
    found = hop_skip_jump(
        predict_label, images[rows], labels[rows], starts.images[starts.found], seed=seed,
        **settings,
    )  # fmt: skip
    points = images.clone()
    points[rows] = found.points
    trace_distances = distances.expand(len(found.trace_distances), -1).clone()
    trace_queries = queries.expand(len(found.trace_queries), -1).clone()
    trace_distances[:, rows] = found.trace_distances
    trace_queries[:, rows] += found.trace_queries
    last = trace_distances[-1], trace_queries[-1]
    return Boundary(points, *last, trace_distances, trace_queries)


def transfer_shadows(
    victims: Sequence[PredictLabel], images: Tensor, build: training.Build, **settings
) -> training.Ensemble:
    """For each victim, a shadow trained on the attacker's images with that victim's labels.

    Args:
        victims: the victims; each is asked once about every image.
        images: (M, C, H, W) of the attacker's own.
        build: makes one untrained shadow.
        **settings: of `training.fit_many`.

    Returns:
        One shadow a victim. Its loss on a record, with the record's true class, is the attack.

    Source:
        Li and Zhang 2021, section 4.1 (transfer attack).
    """
    relabelled = torch.cat([predict_label(images) for predict_label in victims])
    rows = torch.arange(len(relabelled)).view(len(victims), -1)
    pool = images.repeat(len(victims), 1, 1, 1)
    return training.fit_many(build, pool, relabelled, rows, **settings)


def score_set(predict: Callable[[Tensor], Tensor], copies: Tensor, labels: Tensor) -> Tensor:
    """Minus the mean loss over a record's copies: the set-based attack, which needs probabilities.

    Args:
        predict: the victim as a black box, from images to probabilities.
        copies: (A, N, C, H, W) the copies that a victim trained with augmentation saw.
        labels: (N,) classes of the records.

    Source:
        Yu et al., How does data augmentation affect privacy in machine learning?, AAAI 2021,
        section 4 (mean query).
    """
    _check(copies[0], labels)
    true = torch.stack([predict(some).gather(-1, labels[:, None]).squeeze(-1) for some in copies])
    return true.clamp_min(1e-38).log().double().mean(0)


def _check(images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or not len(images):
        raise ValueError(f"records must be (N, C, H, W), not {tuple(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} records need as many labels, not {tuple(labels.shape)}")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"records must lie in [0, 1], these lie in [{low:.3g}, {high:.3g}]")


def _mix(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(images, others, share.view(-1, 1, 1, 1))


def _unit(vectors: Tensor) -> Tensor:
    norms = vectors.flatten(1).norm(dim=1).clamp_min(1e-12)
    return vectors / norms.view(-1, 1, 1, 1)


def _distance(points: Tensor, images: Tensor) -> Tensor:
    return (points - images).flatten(1).norm(dim=1)
