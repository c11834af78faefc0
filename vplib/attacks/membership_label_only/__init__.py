"""Membership inference from labels alone."""

from vplib.attacks.membership_label_only.label_only import (
    ask_copies,
    boundary_distances,
    rotated,
    shifted,
    train_copies_attack,
)
