"""Photos as the files that are posted: 8-bit levels, PNG and JPEG, in memory."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vplib.datasets.imageset import check_range, is_whole


def to_levels(images: Tensor) -> Tensor:
    """The photos on the 256 levels that a file has."""
    return (images.clamp(0, 1) * 255).round() / 255


def to_png(images: Tensor) -> Tensor:
    """The photos after they were written as PNG files and read again.

    Args:
        images: (N, C, H, W) in [0, 1], C is 1 or 3.

    Returns:
        The same shape, float32 on 8-bit levels.

    Raises:
        ValueError: the photos are not of this shape, or not in [0, 1]: 8-bit ones, say.
    """
    return _through_file(images, "PNG")


def to_jpeg(images: Tensor, quality: int, *, halve_color: bool = True) -> Tensor:
    """The photos after they were written as JPEG files and read again.

    Args:
        images: (N, C, H, W) in [0, 1], C is 1 or 3.
        quality: 1 to 95, of Pillow's encoder.
        halve_color: whether color keeps half of its resolution each way (4:2:0, Pillow's default)
            or all of it (4:4:4). Gray photos have none.

    Returns:
        The same shape, float32 on 8-bit levels.

    Raises:
        ValueError: there is no such quality, or the photos are as in `to_png`.
    """
    if not is_whole(quality, 1) or quality > 95:
        raise ValueError(f"JPEG quality must be a whole number from 1 to 95, not {quality!r}")
    settings = dict(quality=quality, subsampling="4:2:0" if halve_color else "4:4:4")
    return _through_file(images, "JPEG", **settings)


def encode(image: Tensor, form: str = "PNG", **settings) -> bytes:
    """One photo (C, H, W) in [0, 1] as the bytes of a PNG or JPEG file; refused as in `to_png`."""
    check_photos(image[None])
    levels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(levels.squeeze(-1).contiguous().numpy()).save(buffer, format=form, **settings)
    return buffer.getvalue()


def _through_file(images: Tensor, form: str, **settings) -> Tensor:
    check_photos(images)
    read = [np.asarray(Image.open(io.BytesIO(encode(x, form, **settings)))) for x in images]
    stacked = torch.from_numpy(np.stack(read)).to(images.device, torch.float32) / 255
    return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2).contiguous()


def check_photos(images: Tensor) -> None:
    """Refuses what is no batch of photos.

    Raises:
        ValueError: they are not (N, 1 or 3, H, W), none, or not in [0, 1].
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"photos must be (N, 1 or 3, H, W), not {tuple(images.shape)}")
    check_range(images, "photos: ")
