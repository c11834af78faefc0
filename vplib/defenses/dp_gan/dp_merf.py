"""DP-MERF: noise once, on sums of random features; then train a generator as long as one likes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vplib import experiment, seeding, threads
from vplib.defenses.dp_gan import dpgan
from vplib.defenses.dp_gan.dpgan import Generators

NUM_FEATURES = 250  # frequencies
PER_CLASS = 10  # generated images of each class a step
LR = 0.02


def random_features(x: Tensor, frequencies: Tensor) -> Tensor:
    """Random Fourier features of a Gaussian kernel; each vector has length one.

    Args:
        x: (..., pixels).
        frequencies: (pixels, F) normal, divided by the kernel's length scale.

    Returns:
        (..., 2 F): inner products are kernel values, up to the randomness of the frequencies.

    Source:
        Rahimi and Recht, Random features for large-scale kernel machines, NeurIPS 2007.
    """
    angle = x @ frequencies
    return torch.cat([angle.cos(), angle.sin()], -1) / math.sqrt(frequencies.shape[1])


def train_dp_merf(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    sigmas: Sequence[float],
    *,
    num_steps: int,
    generator_hidden: Sequence[int] = (64,),
    subsets: Tensor | None = None,
    seed: int = 0,
    description: str = "",
) -> Generators:
    """Generators whose mean features match the noised ones of the private images, class by class.

    Args:
        images: (N, C, H, W) float32 private images in [0, 1].
        labels: (N,) their classes.
        num_classes: number of classes; their frequencies are taken as uniform.
        sigmas: R noise multipliers, of one release: the sums change by at most 1 with one image.
        num_steps: of the generator; costs no privacy.
        generator_hidden: widths of its hidden layers.
        subsets: (R, n) rows that each run trains on, none twice in a run; None: all images.
        seed: of everything random.
        description: names the progress bar; empty for none.

    Raises:
        ValueError: a setting is out of range.

    Source:
        Harder, Adamczewski and Park, DP-MERF, AISTATS 2021, equations 6 to 9. A neighbour has one
        image more or less, so the sensitivity is 1, not the paper's 2 of an image replaced.
    """
    count = dict(num_steps=num_steps)
    sigma, subsets = dpgan.prepared(images, labels, num_classes, sigmas, subsets, **count)
    # Not the private images' median distance, which would be a release of its own.
    length_scale = math.sqrt(images[0].numel()) / 4
    with seeding.seeded(seed), threads.one_thread(images):
        frequencies = torch.randn(images[0].numel(), NUM_FEATURES).to(images) / length_scale
        features = random_features(images.flatten(1), frequencies)
        hot = dpgan.one_hot(labels, num_classes)
        sums = torch.stack([hot[rows].T @ features[rows] for rows in subsets])
        target = dpgan.release(sums, sigma) * num_classes / subsets.shape[1]
        generators, improve = dpgan.fresh(images, num_classes, len(sigma), generator_hidden, LR)
        weights = list(generators.nets[1].values())
        classes = torch.arange(num_classes, device=images.device)
        wanted = classes.repeat_interleave(PER_CLASS).expand(len(sigma), -1)
        for _ in experiment.progress(range(num_steps), description):
            made = random_features(generators.draw(wanted), frequencies)
            mean = made.unflatten(1, (num_classes, PER_CLASS)).mean(2)
            improve(torch.autograd.grad(((mean - target) ** 2).sum(), weights))
    return dpgan.finished(generators, LR)
