"""Membership inference from labels alone."""

from vplib.attacks.membership_label_only.label_only import (
    ask_copies,
    boundary_distances,
    rotated,
    score_by_noise,
    score_set,
    shifted,
    train_copies_attack,
    transfer_shadows,
)
