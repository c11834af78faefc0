"""Was this image among those that a generative model was trained on? Rankings, by what one holds.

Scores are higher for likelier members.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def rank_by_discriminator(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The discriminator's own opinion: what it takes for real, it may have seen.

    Args:
        discriminator: from images to scores, (..., N) or (..., N, 1), high for real; few would
            publish it.
        images: what the discriminator takes, (..., N, ...).

    Returns:
        (..., N) scores.

    Source:
        Hayes et al., LOGAN: membership inference attacks against generative models, PoPETs 2019,
        section 4.2.
    """
    with torch.no_grad():
        scores = discriminator(images)
    return scores[..., 0] if scores.shape[-1] == 1 else scores


def rank_by_samples(samples: Tensor, images: Tensor) -> Tensor:
    """How near the nearest of many generated images is: all that needs is the images given away.

    Args:
        samples: (..., S, C, H, W) generated images.
        images: (N, C, H, W) candidates.

    Returns:
        (..., N) minus the Euclidean distance to the nearest sample.

    Raises:
        ValueError: images differ in shape.

    Source:
        Chen et al., GAN-Leaks, CCS 2020, section 5.2, full black-box attack.
    """
    if samples.shape[-3:] != images.shape[1:]:
        raise ValueError(
            f"samples are {tuple(samples.shape[-3:])} images, candidates {tuple(images.shape[1:])}"
        )
    made, seen = samples.flatten(-3), images.flatten(1)
    return -torch.cdist(seen.expand(*made.shape[:-2], -1, -1), made).amin(-1)
