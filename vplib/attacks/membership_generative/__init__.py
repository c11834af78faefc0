"""Membership in the training set of a generator."""

from vplib.attacks.membership_generative.generative import rank_by_discriminator, rank_by_samples
