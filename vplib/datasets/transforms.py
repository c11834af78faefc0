"""What is done to whole images: one `resize` for every loader, and what hides what they show.

All take and return (N, C, H, W) in [0, 1], on any device, and can be differentiated. Integers, and
values outside, are refused by ValueError.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vplib.datasets.imageset import check_range


def resize(images: Tensor, image_size: int) -> Tensor:
    """The middle square, scaled: bilinear, and averaged where it shrinks (antialiased).

    Args:
        images: (N, C, H, W) in [0, 1].
        image_size: height and width of the result, in pixels.
    """
    check_range(images)
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = images[..., top : top + side, left : left + side]
    if side == image_size:
        return images
    size = (image_size, image_size)
    return F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur; beyond its edges an image goes on as its mirror image.

    Args:
        images: (N, C, H, W) in [0, 1].
        sigma: standard deviation in pixels; 0 changes nothing. A blur wider than the image is cut
            off at three deviations or at the image's size, whichever is less.

    Raises:
        ValueError: `sigma` is negative.
    """
    from torchvision.transforms.v2 import functional as v2  # takes seconds

    check_range(images)
    if not sigma >= 0:
        raise ValueError(f"sigma must be 0 or more pixels, not {sigma}")
    if sigma == 0:
        return images
    reach = [min(math.ceil(3 * sigma), n - 1) for n in (images.shape[-1], images.shape[-2])]
    for kernel in ([2 * reach[0] + 1, 1], [1, 2 * reach[1] + 1]):  # one way, then the other
        images = v2.gaussian_blur(images, kernel, [sigma] * 2)
    return images.clamp(0, 1)


def pixelate(images: Tensor, cell: int) -> Tensor:
    """A mosaic: each square cell takes its mean; at the right and the bottom, cells may be cut.

    Args:
        images: (N, C, H, W) in [0, 1].
        cell: height and width of a cell, in pixels.

    Raises:
        ValueError: `cell` is below 1.
    """
    check_range(images)
    if cell < 1:
        raise ValueError(f"a cell must have 1 pixel or more, not {cell}")
    height, width = images.shape[-2:]
    means = F.avg_pool2d(images, cell, ceil_mode=True)
    mosaic = means.repeat_interleave(cell, -2).repeat_interleave(cell, -1)
    return mosaic[..., :height, :width]


def mask(images: Tensor, where: Tensor, value: float = 0.5) -> Tensor:
    """Covers a part of each image with one gray.

    Args:
        images: (N, C, H, W) in [0, 1].
        where: (N, H, W), true where to cover; or boxes (N, 4), left, top, right and bottom in
            pixels as `head_box` of the faces has them: a pixel is covered if its middle is inside.
        value: the gray, from 0 to 1.

    Raises:
        ValueError: `where` has neither shape.
    """
    check_range(images)
    number, _, height, width = images.shape
    if where.shape == (number, 4):
        left, top, right, bottom = where[:, :, None, None].unbind(1)
        x = torch.arange(width, device=images.device)
        y = torch.arange(height, device=images.device)[:, None]
        where = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
    if where.shape != (number, height, width):
        raise ValueError(
            f"where must be boxes {(number, 4)} or masks {(number, height, width)}, "
            f"not {tuple(where.shape)}"
        )
    return images.masked_fill(where.bool()[:, None], value)
