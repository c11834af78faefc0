"""How well an attack or a model does, with the interval that the sample size allows.

scipy.stats and scikit-learn take two seconds to import, so only what needs them imports them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vplib.datasets.imageset import check_range

CONFIDENCE, NUM_RESAMPLES = 0.95, 100


class Estimate(NamedTuple):
    """A value with the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """For example f"{estimate:.2f}" is "0.73 [0.70, 0.75]"."""
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def roc(scores: Tensor, members: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve of a membership score.

    Args:
        scores: (...) higher means member; several victims are pooled.
        members: (...) truth values of the same shape.

    Returns:
        False-positive and true-positive rates, both rising from 0 to 1.

    Raises:
        ValueError: shapes differ, a score is NaN, or one of the two groups is empty.
    """
    from sklearn.metrics import roc_curve

    truth, flat = _flat(scores, members)
    place = np.unique(flat, return_inverse=True)[1]  # roc_curve refuses infinite scores
    fpr, tpr, _ = roc_curve(truth, place, drop_intermediate=True)
    return fpr, tpr


def auc(scores: Tensor, members: Tensor) -> float:
    """The area under the ROC curve: the chance that a member outscores a nonmember; a tie is half.

    From ranks (Mann and Whitney): scikit-learn's function takes ten times as long at these sizes,
    and sweeps and bootstraps ask thousands of times.
    """
    from scipy.stats import rankdata

    truth, flat = _flat(scores, members)
    num_members = int(truth.sum())
    above = rankdata(flat)[truth].sum() - num_members * (num_members + 1) / 2
    return float(above / (num_members * (len(flat) - num_members)))


def tpr_at_fpr(scores: Tensor, members: Tensor, fpr: float) -> Estimate:
    """The true-positive rate at the lowest threshold whose false-positive rate is at most `fpr`.

    A member that ties with the threshold is not found. The interval is Clopper-Pearson's, of 95 %,
    for the members, at the threshold that the nonmembers set. It treats records as independent:
    for several victims trained on one pool, use `bootstrap`.

    Args:
        scores: (...) higher means member.
        members: (...) truth values of the same shape.
        fpr: allowed false-positive rate, above 0 and at most 1.

    Returns:
        The rate and its interval.

    Raises:
        ValueError: as `roc`; `fpr` is no such rate, or too few nonmembers resolve it.

    Source:
        Carlini et al., Membership inference attacks from first principles, S&P 2022, section 3.
    """
    from scipy.stats import beta

    truth, flat = _flat(scores, members)
    if not 0 < fpr <= 1:
        raise ValueError(f"a false-positive rate must lie above 0 and at most at 1, not {fpr}")
    inside, outside = flat[truth], np.sort(flat[~truth])
    allowed = int(np.floor(fpr * len(outside) + 1e-9))
    if not allowed:
        raise ValueError(
            f"{len(outside)} nonmembers cannot resolve a false-positive rate of {fpr}; "
            f"at least {int(np.ceil(1 / fpr))} are needed"
        )
    caught = int((inside > outside[-allowed - 1]).sum()) if allowed < len(outside) else len(inside)
    missed, tail = len(inside) - caught, (1 - CONFIDENCE) / 2
    low = beta.ppf(tail, caught, missed + 1) if caught else 0.0
    high = beta.ppf(1 - tail, caught + 1, missed) if missed else 1.0
    return Estimate(caught / len(inside), float(low), float(high))


def balanced_accuracy(scores: Tensor, members: Tensor, threshold: float | Tensor) -> float:
    """The mean of true-positive and true-negative rate at a threshold chosen elsewhere.

    Args:
        scores: (...) higher means member.
        members: (...) truth values of the same shape.
        threshold: scores above it count as members; never the best one for these scores.
    """
    return (1 + membership_advantage(scores, members, threshold)) / 2


def membership_advantage(scores: Tensor, members: Tensor, threshold: float | Tensor) -> float:
    """True-positive minus false-positive rate at a threshold chosen elsewhere.

    Args:
        scores: (...) higher means member.
        members: (...) truth values of the same shape.
        threshold: scores above it count as members, not those that equal it; a number, or one that
            broadcasts.

    Raises:
        ValueError: as `roc`.

    Source:
        Yeom et al., Privacy risk in machine learning, CSF 2018, definition 4.
    """
    guessed = torch.as_tensor(scores) > threshold
    members = torch.as_tensor(members)
    _flat(scores, members)
    return float(guessed[members].double().mean() - guessed[~members].double().mean())


def bootstrap(
    statistic: Callable[[Tensor, Tensor], float],
    scores: Tensor,
    members: Tensor,
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Estimate:
    """A statistic pooled over victims, with an interval by resampling victims.

    Victims, not records, are what a result should carry over to.

    Args:
        statistic: from scores and members of pooled victims to a number, for example `auc`.
        scores: (victims, records) higher means member.
        members: (victims, records) truth values.
        confidence: of the percentile interval.
        seed: decides the draws.

    Returns:
        The statistic on all victims, and its interval.

    Raises:
        ValueError: there are fewer than two victims.
    """
    if scores.ndim != 2 or len(scores) < 2:
        raise ValueError(f"need (victims, records) with two victims, not {tuple(scores.shape)}")
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(scores), (NUM_RESAMPLES, len(scores)))
    values = [statistic(scores[d], members[d]) for d in draws]
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return Estimate(float(statistic(scores, members)), float(low), float(high))


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB, for a range of 0 to 1.

    Args:
        images: (N, C, H, W) in [0, 1].
        references: the same shape.

    Returns:
        (N,) dB; infinite for equal images, NaN (which is above no bar) where a pixel is NaN.

    Raises:
        ValueError: shapes differ, pixels are integers, or the references lie outside [0, 1].
    """
    _check_images(images, references)
    return -10 * (images - references).square().mean((1, 2, 3)).log10()


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each image, differentiable; a Gaussian window, sigma 1.5 pixels.

    Args:
        images: (N, C, H, W) in [0, 1].
        references: the same shape.

    Returns:
        (N,) from -1 to 1; 1 for equal images, NaN where a pixel is NaN.

    Raises:
        ValueError: as `psnr`.

    Source:
        Wang et al., Image quality assessment, IEEE TIP 2004.
    """
    _check_images(images, references)
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure(images, references, data_range=1.0, reduction="none")


def _check_images(images: Tensor, references: Tensor) -> None:
    if images.shape != references.shape or images.ndim != 4:
        shapes = f"{tuple(images.shape)} and {tuple(references.shape)}"
        raise ValueError(f"images and references must both be (N, C, H, W), not {shapes}")
    check_range(references.nan_to_num(0), "references: ")
    if not images.is_floating_point():  # they may lie outside: an attack's are not clamped
        raise ValueError(f"images must lie in [0, 1], not be {images.dtype}: divide by 255")


def _flat(scores, members) -> tuple[np.ndarray, np.ndarray]:
    scores, members = torch.as_tensor(scores), torch.as_tensor(members)
    if scores.shape != members.shape:
        raise ValueError(f"scores {tuple(scores.shape)} but members {tuple(members.shape)}")
    if members.dtype != torch.bool:
        raise ValueError(f"members must be truth values, not {members.dtype}: pass members.bool()")
    flat = scores.detach().double().flatten().cpu().numpy()
    truth = members.flatten().cpu().numpy()
    if np.isnan(flat).any():
        raise ValueError(f"{int(np.isnan(flat).sum())} scores are NaN")
    if truth.all() or not truth.any():
        raise ValueError("need at least one member and one nonmember")
    return truth, flat
