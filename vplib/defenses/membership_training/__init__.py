"""Training that is meant to hide who was in the training set, and comparison at equal accuracy."""

from vplib.defenses.membership_training.frontier import (
    accuracy_at_risk,
    frontier,
    risk_at_accuracy,
)
from vplib.defenses.membership_training.training_defenses import (
    Stack,
    distill,
    inference_gain,
    lowest_entropy,
    magnitude_mask,
    train_adversarially,
    train_distilled,
    train_plain,
    train_pruned,
    train_stacked,
    train_with_dropout,
)
