"""Membership inference with a yardstick of the record's own, from reference models.

As in `shadow`, `answers` (..., N, classes) is what one victim or many said about the records.
Reference models, here called shadows, answered about the very same records: `shadow_answers`
(K, N, classes), and `shadow_members` (K, N) says which of them was trained on which record.
"""

import torch
from torch import Tensor

from vplib.attacks.membership_shadow.shadow import losses


def score_calibrated(
    answers: Tensor, labels: Tensor, shadow_answers: Tensor, shadow_members: Tensor
) -> Tensor:
    """Minus the log loss, measured from a threshold of the record's own.

    The threshold lies halfway between the shadows that were trained on the record and those that
    were not, in the mean of the logarithm: losses span orders of magnitude, and a mean of the
    losses themselves would lie at the few largest.

    Args:
        answers: (..., N, classes) the victims' answers.
        labels: (N,) classes of the records.
        shadow_answers: (K, N, classes) answers of shadows to these very records.
        shadow_members: (K, N) which shadows were trained on which record; each in some, not in
            all.

    Returns:
        (..., N) scores; above 0 the record counts as a member.

    Raises:
        ValueError: a record is in all shadows or in none, or members are no truth values.

    Source:
        Sablayrolles et al., White-box vs black-box: Bayes optimal strategies for membership
        inference, ICML 2019, MAST (a threshold a sample); the logarithm is ours.
    """
    _check_both_sides(shadow_members)
    shadow = _log_losses(shadow_answers, labels)
    threshold = (_mean(shadow, shadow_members) + _mean(shadow, ~shadow_members)) / 2
    return threshold - _log_losses(answers, labels)


def _log_losses(probabilities: Tensor, labels: Tensor) -> Tensor:
    return losses(probabilities, labels).clamp_min(1e-7).log()  # float32 knows no smaller one


def logit_confidence(probabilities: Tensor, labels: Tensor) -> Tensor:
    """log(p / (1 - p)) for the probability p of the true class; roughly normal over models.

    The sum over the other classes stands for 1 - p, which would round to zero.

    Args:
        probabilities: (..., N, classes).
        labels: (N,) class indices.

    Returns:
        (..., N) float64.

    Source:
        Carlini et al., Membership inference attacks from first principles, S&P 2022, section VI-A.
    """
    p = probabilities.double()
    index = labels.expand(p.shape[:-1]).unsqueeze(-1)
    true = p.gather(-1, index).squeeze(-1)
    others = p.scatter(-1, index, 0.0).sum(-1)
    return true.clamp_min(1e-45).log() - others.clamp_min(1e-45).log()


def score_lira(
    answers: Tensor,
    labels: Tensor,
    shadow_answers: Tensor,
    shadow_members: Tensor,
    *,
    online: bool = True,
    fixed_variance: bool = False,
) -> Tensor:
    """The likelihood-ratio attack: how much likelier the answer is with the record than without.

    Args:
        answers: (..., N, classes) the victims' answers.
        labels: (N,) classes of the records.
        shadow_answers: (K, N, classes) answers of shadows to these very records.
        shadow_members: (K, N) which shadows were trained on which record.
        online: compare with shadows that hold the record (this attacker trains on the very
            records that it asks about) and with those that do not; offline uses the latter only.
        fixed_variance: one deviation for all records, that of all shadows' confidences together,
            instead of one a record: better with few shadows. A record with a single shadow on one
            side has no deviation of its own, and takes this one.

    Returns:
        (..., N) log-likelihood ratios; offline, log-probabilities of a smaller confidence without
        the record.

    Raises:
        ValueError: a record lacks shadows without it, or online, shadows with it, or members are
            no truth values.

    Source:
        Carlini et al. 2022, algorithm 1 and section VI-C; the deviation over all records is that
        of the authors' code (there of the shadows with the record, for both sides).
    """
    _check_both_sides(shadow_members, inside=online)
    shadow, victim = (logit_confidence(a, labels) for a in (shadow_answers, answers))
    without = _normal(shadow, ~shadow_members, fixed_variance)
    if not online:
        return torch.special.log_ndtr((victim - without.mean) / without.stddev)
    inside = _normal(shadow, shadow_members, fixed_variance)
    return inside.log_prob(victim) - without.log_prob(victim)


def score_rmia(
    answers: Tensor,
    labels: Tensor,
    shadow_answers: Tensor,
    shadow_members: Tensor,
    population: tuple[Tensor, Tensor, Tensor],
    *,
    online: bool = True,
) -> Tensor:
    """The share of population records that the record beats in a pairwise likelihood ratio.

    Args:
        answers: (..., N, classes) the victims' answers.
        labels: (N,) classes of the records.
        shadow_answers: (K, N, classes) answers of reference models to these very records.
        shadow_members: (K, N) which reference models were trained on which record.
        population: of Z records that no model was trained on, the victims' answers
            (..., Z, classes), the labels (Z,) and the reference models' answers (K, Z, classes).
        online: average over references with and without the record; offline over those without,
            corrected by p = ((1 + a) p_out + (1 - a)) / 2 with a = 0.3.

    Returns:
        (..., N) shares from 0 to 1.

    Raises:
        ValueError: a record lacks references without it, or online, references with it, or members
            are no truth values.

    Source:
        Zarifzadeh et al., Low-cost high-power membership inference attacks, ICML 2024,
        equations 3 to 5 and appendix B.
    """
    _check_both_sides(shadow_members, inside=online)
    other_answers, other_labels, other_references = population
    reference = _true(shadow_answers, labels)
    marginal = _mean(reference, ~shadow_members)
    if online:
        marginal = (_mean(reference, shadow_members) + marginal) / 2
    else:
        marginal = (1.3 * marginal + 0.7) / 2
    ratio = _true(answers, labels) / marginal
    other = _true(other_answers, other_labels) / _true(other_references, other_labels).mean(0)
    # How many of the sorted population's ratios lie below the record's: its rank, in log time.
    beaten = torch.searchsorted(other.sort(-1).values, ratio)
    return beaten.double() / other.shape[-1]


def _true(probabilities: Tensor, labels: Tensor) -> Tensor:
    index = labels.expand(probabilities.shape[:-1]).unsqueeze(-1)  # not exp(-loss): it breaks ties
    return probabilities.gather(-1, index).squeeze(-1).clamp_min(1e-38)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum(0) / chosen.sum(0)


def _normal(values: Tensor, chosen: Tensor, fixed_variance: bool) -> torch.distributions.Normal:
    """A normal fitted to the chosen models' values of each record."""
    mean, overall = _mean(values, chosen), values[chosen].std(correction=0)
    own = (((values - mean) ** 2 * chosen).sum(0) / chosen.sum(0)).sqrt()
    shared = fixed_variance | (chosen.sum(0) < 2)
    return torch.distributions.Normal(mean, torch.where(shared, overall, own) + 1e-6)


def _check_both_sides(members: Tensor, inside: bool = True) -> None:
    if members.dtype != torch.bool:  # ~ of integers would invert their bits
        raise ValueError(f"shadow_members must be truth values, not {members.dtype}")
    held = members.sum(0)
    if (held == len(members)).any() or (inside and (held == 0).any()):
        raise ValueError(
            "each record must be in some shadow models and out of others; draw their subsets "
            "with training.half_splits"
        )
