"""Masks of what a model answers, and training that lets its answers say less."""

from vplib.defenses.output_perturbation.bottleneck import Bottleneck, limiting
from vplib.defenses.output_perturbation.masks import (
    MemGuard,
    rounded,
    temperature,
    top_k,
    train_classifier,
)
from vplib.defenses.output_perturbation.purifier import train_purifier
