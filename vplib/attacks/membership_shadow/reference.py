"""Membership inference with a yardstick of the record's own, from reference models.

As in `membership_shadow`, `predict` is the victim as a black box, and reference models (shadows,
and who was in them) come as `probabilities` (models, records, classes) and `members` (models,
records). The models answer about the very records that the attacker decides on.
"""

import torch
from torch import Tensor

from vplib.attacks.membership_shadow.shadow import Predict, losses


def score_calibrated(
    predict: Predict,
    images: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    members: Tensor,
) -> Tensor:
    """Minus the log loss, measured from a threshold of the record's own.

    The threshold lies halfway between the shadows that were trained on the record and those that
    were not, in the mean of the logarithm: losses span orders of magnitude, and a mean of the
    losses themselves would lie at the few largest.

    Args:
        predict: the victim as a black box.
        images: (N, C, H, W) records to decide on.
        labels: (N,) their classes.
        probabilities: (K, N, classes) answers of shadows to these very records.
        members: (K, N) which shadows were trained on which record; each in some, not in all.

    Returns:
        (N,) scores; above 0 the record counts as a member.

    Raises:
        ValueError: a record is in all shadows or in none.

    Source:
        Sablayrolles et al., White-box vs black-box: Bayes optimal strategies for membership
        inference, ICML 2019, MAST (a threshold a sample); the logarithm is ours.
    """
    _check_both_sides(members)
    shadow = _log_losses(probabilities, labels)
    threshold = (_mean(shadow, members) + _mean(shadow, ~members)) / 2
    return threshold - _log_losses(predict(images), labels)


def _log_losses(probabilities: Tensor, labels: Tensor) -> Tensor:
    return losses(probabilities, labels).clamp_min(1e-7).log()  # float32 knows no smaller one


def logit_confidence(probabilities: Tensor, labels: Tensor) -> Tensor:
    """log(p / (1 - p)) for the probability p of the true class; roughly normal over models.

    The sum over the other classes stands for 1 - p, which would round to zero.

    Args:
        probabilities: (..., N, classes).
        labels: (N,) class indices.

    Source:
        Carlini et al., Membership inference attacks from first principles, S&P 2022, section VI-A.
    """
    p = probabilities.double()
    index = labels.expand(p.shape[:-1]).unsqueeze(-1)
    true = p.gather(-1, index).squeeze(-1)
    others = p.scatter(-1, index, 0.0).sum(-1)
    return true.clamp_min(1e-45).log() - others.clamp_min(1e-45).log()


def score_lira(
    predict: Predict,
    images: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    members: Tensor,
    *,
    online: bool = True,
    fixed_variance: bool = False,
) -> Tensor:
    """The likelihood-ratio attack: how much likelier the answer is with the record than without.

    Args:
        predict: the victim as a black box.
        images: (N, C, H, W) records to decide on.
        labels: (N,) their classes.
        probabilities: (K, N, classes) answers of shadows to these very records.
        members: (K, N) which shadows were trained on which record.
        online: compare with shadows that hold the record (this attacker trains on the very
            records that it asks about) and with those that do not; offline uses the latter only.
        fixed_variance: one variance for all records instead of one a record: better with few
            shadows.

    Returns:
        (N,) log-likelihood ratios; offline, log-probabilities of a smaller confidence without
        the record.

    Raises:
        ValueError: a record lacks shadows without it, or online, shadows with it.

    Source:
        Carlini et al. 2022, algorithm 1 and section VI-C.
    """
    _check_both_sides(members, inside=online)
    shadow = logit_confidence(probabilities, labels)
    victim = logit_confidence(predict(images), labels)
    without = _normal(shadow, ~members, fixed_variance)
    if not online:
        return torch.special.log_ndtr((victim - without.mean) / without.stddev)
    inside = _normal(shadow, members, fixed_variance)
    return inside.log_prob(victim) - without.log_prob(victim)


def score_rmia(
    predict: Predict,
    images: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    members: Tensor,
    population: tuple[Tensor, Tensor, Tensor],
    *,
    online: bool = True,
    gamma: float = 1.0,
    offline_factor: float = 0.3,
) -> Tensor:
    """The share of population records that the record beats in a pairwise likelihood ratio.

    Args:
        predict: the victim as a black box.
        images: (N, C, H, W) records to decide on.
        labels: (N,) their classes.
        probabilities: (K, N, classes) answers of reference models to these very records.
        members: (K, N) which reference models were trained on which record.
        population: images (Z, C, H, W), labels (Z,) and the reference models' answers
            (K, Z, classes) for records that no model was trained on.
        online: average over references with and without the record; offline over those without,
            corrected by `offline_factor`.
        gamma: how much larger the record's ratio must be.
        offline_factor: the slope a in p = ((1 + a) p_out + (1 - a)) / 2.

    Returns:
        (N,) shares from 0 to 1.

    Raises:
        ValueError: a record lacks references without it, or online, references with it.

    Source:
        Zarifzadeh et al., Low-cost high-power membership inference attacks, ICML 2024,
        equations 3 to 5 and appendix B.
    """
    _check_both_sides(members, inside=online)
    others, other_labels, other_answers = population

    def true(answers, labels):
        return (-losses(answers, labels)).exp()

    reference = true(probabilities, labels)
    without = _mean(reference, ~members)
    if online:
        marginal = (_mean(reference, members) + without) / 2
    else:
        marginal = ((1 + offline_factor) * without + (1 - offline_factor)) / 2
    ratio = true(predict(images), labels) / marginal
    other = true(predict(others), other_labels) / true(other_answers, other_labels).mean(0)
    return (ratio[:, None] > gamma * other).double().mean(1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum(0) / chosen.sum(0)


def _normal(values: Tensor, chosen: Tensor, fixed_variance: bool) -> torch.distributions.Normal:
    """A normal fitted to the chosen models' values of each record."""
    mean = _mean(values, chosen)
    squares = ((values - mean) ** 2) * chosen
    variance = squares.sum() / chosen.sum() if fixed_variance else squares.sum(0) / chosen.sum(0)
    return torch.distributions.Normal(mean, variance.sqrt() + 1e-6)


def _check_both_sides(members: Tensor, inside: bool = True) -> None:
    held = members.sum(0)
    if (held == len(members)).any() or (inside and (held == 0).any()):
        raise ValueError(
            "each record must be in some shadow models and out of others; draw their subsets "
            "with training.half_splits"
        )
