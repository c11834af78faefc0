"""A secret in the lowest bits of a released photo, for whoever holds the key."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from vplib.datasets.imageset import check_range

RANGE = 4.0  # of the numbers that are hidden: eigenface codes, in standard deviations


def hide(images: Tensor, secrets: Tensor, key: bytes) -> Tensor:
    """The images with secrets in them; no pixel changes by more than one of 255 levels.

    A secret is rounded to bytes, enciphered by a stream that depends on the key and on the seven
    upper bits of the photo, and put into the lowest bits: without the key they look like noise.

    Args:
        images: (N, C, H, W) in [0, 1].
        secrets: (N, dim) numbers; what lies outside of -4 to 4 is cut off.
        key: of the one who wants to read them again.

    Returns:
        The same shape, on 8-bit levels.

    Raises:
        ValueError: a photo has fewer pixels than the secret has bits, or their numbers differ.
    """
    check_range(images)
    room = images[0].numel() if len(images) else 0
    if len(images) != len(secrets) or len(images) and 8 * secrets.shape[1] > room:
        raise ValueError(
            f"{len(images)} photos of {room} values cannot hold {len(secrets)} secrets of "
            f"{8 * secrets[0].numel() if len(secrets) else 0} bits: one secret a photo, one bit a "
            "value"
        )
    levels = (images * 255).round().byte().cpu().numpy().reshape(len(images), -1)
    scaled = (secrets.clamp(-RANGE, RANGE) / RANGE * 127 + 128).round().byte().cpu().numpy()
    bits = np.unpackbits(scaled, axis=1)
    written = levels[:, : bits.shape[1]] & 0xFE | bits ^ _stream(levels, bits.shape[1], key)
    levels = np.concatenate([written, levels[:, bits.shape[1] :]], 1)
    return (torch.from_numpy(levels).float() / 255).view(images.shape).to(images.device)


def reveal(images: Tensor, dim: int, key: bytes) -> Tensor:
    """(N, dim) the secrets in (N, C, H, W) photos on 8-bit levels; without the key, noise.

    Args:
        images: as `hide` made them.
        dim: how many numbers were hidden.
        key: with which they were.
    """
    check_range(images)
    levels = (images * 255).round().byte().cpu().numpy().reshape(len(images), -1)
    bits = levels[:, : 8 * dim] & 1 ^ _stream(levels, 8 * dim, key)
    scaled = torch.from_numpy(np.packbits(bits, axis=1)).float()
    return ((scaled - 128) / 127 * RANGE).to(images.device)


def _stream(levels: np.ndarray, length: int, key: bytes) -> np.ndarray:
    """(N, length) bits that follow from the key and the upper bits of each photo."""
    found = [
        hashlib.shake_256(key + (row & 0xFE).tobytes()).digest(-(-length // 8)) for row in levels
    ]
    return np.unpackbits(np.frombuffer(b"".join(found), np.uint8).reshape(len(found), -1), axis=1)[
        :, :length
    ]
