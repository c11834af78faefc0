"""HopSkipJump: the way to a decision boundary that answers with labels alone, for many records.

`predict_label` is the victim as a black box, from images (N, C, H, W) in [0, 1] to labels (N,).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vplib.datasets.imageset import check_range

PredictLabel = Callable[[Tensor], Tensor]
Estimate = Callable[[PredictLabel, Tensor, Tensor, Tensor, Tensor], Tensor]
MAX_TRIES = 100  # start images that a record may try
CHUNK = 2**19  # pixels asked about at a time: what a processor's cache holds
AT_ONCE = 2**22  # pixels of the records that walk together: bounds the memory


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
        found: (N,) whether it is one: the last that was tried stands where none was found.
        queries: (N,) how many were tried.
    """

    images: Tensor
    found: Tensor
    queries: Tensor


def find_starts(
    predict_label: PredictLabel, labels: Tensor, candidates: Tensor, *, seed: int = 0
) -> Starts:
    """For each record, the first of the attacker's images that the victim labels otherwise.

    Each record tries up to `MAX_TRIES` in an order of its own; every try is a query of that record.

    Args:
        predict_label: the victim.
        labels: (N,) classes of the records.
        candidates: (M, C, H, W) images of the attacker's own, or noise; their classes are not
            used, only what the victim says about them.
        seed: of the orders.
    """
    check_images(candidates, "start images")
    rng = np.random.default_rng(seed)
    tries = min(MAX_TRIES, len(candidates))
    orders = [rng.permutation(len(candidates))[:tries] for _ in labels]
    order = torch.from_numpy(np.array(orders, np.int64).reshape(-1, tries)).to(candidates.device)
    chosen, queries = order[:, 0].clone(), torch.zeros_like(order[:, 0])
    missing = torch.arange(len(order), device=order.device)
    for tried in order.T:
        if not len(missing):
            break
        chosen[missing], queries[missing] = tried[missing], queries[missing] + 1
        parts = missing.split(max(1, AT_ONCE // candidates[0].numel()))
        same = [predict_label(candidates[tried[rows]]) == labels[rows] for rows in parts]
        missing = missing[torch.cat(same)]
    found = torch.ones(len(order), dtype=torch.bool, device=order.device)
    found[missing] = False
    return Starts(candidates[chosen], found, queries)


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
    room = CHUNK if points.device.type == "cpu" else AT_ONCE
    parts = directions.split(max(1, room // points.numel()))
    left = torch.cat([_ask_around(predict_label, points, labels, p, radii) for p in parts], 1)
    signs = 2 * left.to(points.dtype) - 1
    mean = signs.mean(1, keepdim=True)
    # Equal answers in all directions tell nothing apart: then their mean direction is taken.
    weights = torch.where(mean.abs() == 1, signs, signs - mean)
    return _unit((weights @ directions.flatten(1)).view_as(points))


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
    num_steps: int,
    num_directions: int = 20,
    tolerance: float = 0.01,
    probe: float = 0.5,
    seed: int = 0,
    estimate: Estimate = estimate_direction,
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
        probe: directions are asked about at the distance over the number d of pixels to this power.
            The authors' code has 1, and a tolerance of d to the power of -1.5: so near to the
            boundary a coarser one leaves all answers equal.
        seed: of the directions.
        estimate: the direction to step in: a function as `estimate_direction` is.

    Returns:
        Points, distances and queries; that images and starts are labelled so is not asked again.

    Source:
        Chen, Jordan and Wainwright 2020, algorithm 2. Records share their random directions, a
        step that does not come nearer is not taken, and by default it looks farther (see `probe`).
    """
    labels = check_records(images, labels)
    if not 0 < tolerance < 1:
        raise ValueError(f"the tolerance must lie between 0 and 1, not {tolerance}")
    some = max(1, AT_ONCE // images[0].numel())
    parts = zip(*(v.split(some) for v in (images, labels, starts.to(images))), strict=True)
    settings = num_steps, num_directions, tolerance, probe, seed, estimate
    walks = zip(*(_walk(predict_label, *part, *settings) for part in parts), strict=True)
    points, distances, queries = map(torch.cat, walks, (0, 1, 1))
    return Boundary(points, distances[-1], queries[-1], distances, queries)


def _walk(
    predict_label,
    images,
    labels,
    starts,
    num_steps,
    num_directions,
    tolerance,
    probe,
    seed,
    estimate,
):
    """The walk of some records: their points, and distances and queries after each step."""
    generator = torch.Generator().manual_seed(seed)
    points, spent = _bisect(predict_label, images, labels, starts, tolerance)
    distances = _distance(points, images)
    queries = torch.full_like(labels, spent)
    trace = [(distances, queries)]
    for t in range(1, num_steps + 1):
        number = int(num_directions * t**0.5)
        directions = _unit(torch.randn((number, *images.shape[1:]), generator=generator))
        radii = distances / images[0].numel() ** probe if t > 1 else torch.full_like(distances, 0.1)
        toward = estimate(predict_label, points, labels, directions.to(images), radii)
        jumped, asked = _jump(predict_label, points, labels, toward, distances / t**0.5)
        nearer, spent = _bisect(predict_label, images, labels, jumped, tolerance)
        better = _distance(nearer, images) < distances
        points = torch.where(better.view(-1, 1, 1, 1), nearer, points)
        distances = _distance(points, images)
        queries = queries + number + asked + spent
        trace.append((distances, queries))
    return points, *map(torch.stack, zip(*trace, strict=True))


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


def check_records(images: Tensor, labels: Tensor) -> Tensor:
    """Refuses what are no records with a class each; returns the classes as int64."""
    check_images(images, "records")
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        kind = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(f"{len(images)} records need as many whole labels, not {kind}")
    return labels.long()  # queries are counted beside them, and 8 bits count to 255


def check_images(images: Tensor, name: str) -> None:
    """Raises ValueError unless these are (N, C, H, W), of a float type and in [0, 1]."""
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        kind = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"{name} must be floats of shape (N, C, H, W), not {kind}")
    check_range(images, f"{name}: ")


def _mix(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(images, others, share.view(-1, 1, 1, 1))


def _unit(vectors: Tensor) -> Tensor:
    norms = vectors.flatten(1).norm(dim=1).clamp_min(1e-12)
    return vectors / norms.view(-1, 1, 1, 1)


def _distance(points: Tensor, images: Tensor) -> Tensor:
    return (points - images).flatten(1).norm(dim=1)
