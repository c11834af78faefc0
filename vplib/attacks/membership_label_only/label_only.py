"""Membership inference from labels alone.

Throughout, `predict_label` is the victim as a black box, from images (N, C, H, W) in [0, 1] to
labels (N,): all that these attackers may ask. Whatever else they use (start images, shadows) is
their own. Scores are higher for members.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vplib.attacks.membership_label_only.hop_skip_jump import (
    Boundary,
    PredictLabel,
    check_records,
    find_starts,
    hop_skip_jump,
)


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
    check_records(copies[0], labels)
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


def boundary_distances(
    predict_label: PredictLabel,
    images: Tensor,
    labels: Tensor,
    candidates: Tensor,
    *,
    num_steps: int,
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
        num_steps: of `hop_skip_jump`.
        seed: of starts and directions.
        **settings: the others of `hop_skip_jump`.

    Source:
        Choquette-Choo et al. 2021, section 4.3; Li and Zhang, Membership leakage in label-only
        exposures, CCS 2021, section 4.2.
    """
    labels = check_records(images, labels)
    if candidates.shape[1:] != images.shape[1:]:
        shapes = f"{tuple(images.shape[1:])}, not {tuple(candidates.shape[1:])}"
        raise ValueError(f"start images must be of the records' shape {shapes}")
    queries = torch.ones_like(labels)
    right = (predict_label(images) == labels).nonzero().flatten()
    starts = find_starts(predict_label, labels[right], candidates.to(images), seed=seed)
    queries[right] += starts.queries
    distances = torch.zeros(len(images)).to(images)
    distances[right] = images[0].numel() ** 0.5
    points, rows = images.clone(), right[starts.found]
    trace_distances, trace_queries = (v.repeat(num_steps + 1, 1) for v in (distances, queries))
    if len(rows):  # else the victim has one answer for all
        asked = images[rows], labels[rows], starts.images[starts.found]
        settings |= dict(num_steps=num_steps, seed=seed)
        found = hop_skip_jump(predict_label, *asked, **settings)
        points[rows], trace_distances[:, rows] = found.points, found.trace_distances
        trace_queries[:, rows] += found.trace_queries
    return Boundary(points, trace_distances[-1], trace_queries[-1], trace_distances, trace_queries)
