"""Membership inference from a model's answers, with shadow models and without."""

from vplib.attacks.membership_shadow.reference import (
    logit_confidence,
    score_calibrated,
    score_lira,
    score_rmia,
)
from vplib.attacks.membership_shadow.shadow import (
    attack_set,
    losses,
    score_agnostic,
    score_by_correctness,
    score_by_loss,
    score_members,
    sorted_answers,
    threshold_from_shadows,
    train_agnostic_attack,
    train_attack_models,
)
