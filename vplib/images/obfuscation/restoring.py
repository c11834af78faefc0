"""Restoring a blurred photo, where the blur is known: regularized inversion, borders included."""

import torch
from torch import Tensor

from vplib.datasets import transforms

PENALTIES = tuple(10.0 ** (-k / 2) for k in range(2, 15))


def blur_matrix(width: float, size: int) -> Tensor:
    """(size, size) what the blur does to a column of pixels: blurred = matrix @ column.

    Args:
        width: standard deviation as a share of the photo's width, as in `protections.blur`.
        size: of the column, in pixels.
    """
    columns = torch.eye(size)[:, None, :, None].expand(-1, 1, -1, size)  # one bright row each
    return transforms.blur(columns, width * size)[:, 0, :, 0].T


def restore(images: Tensor, width: float, penalty: float) -> Tensor:
    """The photos before a blur of this width: least squares, with a penalty on the result's size.

    Args:
        images: (N, C, n, n) blurred photos in [0, 1].
        width: of the blur, as a share of a photo's width.
        penalty: larger for more noise; rounding to 8 bits is noise.

    Returns:
        The same shape, in [0, 1].

    Raises:
        ValueError: the photos are not square, or the penalty is not above 0.

    Source:
        Tikhonov's regularization; with a circular border it is the Wiener filter with a constant
        ratio of noise to signal.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3] or not penalty > 0:
        raise ValueError(
            f"need square photos (N, C, n, n) and a penalty above 0, not {tuple(images.shape)} "
            f"and {penalty}"
        )
    # In double precision, for the smallest of what a blur keeps lies far below single precision.
    left, kept, right = torch.linalg.svd(blur_matrix(width, images.shape[2]).double())
    left, kept, right = (t.to(images.device) for t in (left, kept, right))
    gain = kept[:, None] * kept
    mean = images.mean((2, 3), keepdim=True).double()
    seen = left.T @ (images.double() - mean) @ left
    made = right.T @ (seen * gain / (gain.square() + penalty)) @ right + mean
    return made.clamp(0, 1).to(images.dtype)


def choose_penalty(clean: Tensor, released: Tensor, width: float) -> float:
    """The penalty with which `restore` comes nearest to clean photos: public ones, of anybody."""
    errors = [(restore(released, width, p) - clean).square().mean().item() for p in PENALTIES]
    return PENALTIES[min(range(len(errors)), key=errors.__getitem__)]
