"""Masks of what a model answers."""

from vplib.defenses.output_perturbation.masks import (
    MemGuard,
    rounded,
    temperature,
    top_k,
    train_classifier,
)
