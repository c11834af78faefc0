"""A set on disk: labels first, and of the pixels only what is asked for."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from vplib import experiment
from vplib.datasets.fetching import reading
from vplib.datasets.folder import open_image
from vplib.datasets.transforms import resize


@dataclass(frozen=True)
class Stored:
    """A set of which everything but the pixels is at hand.

    Args:
        labels: (N,) int64, each an index into `classes`.
        classes: the names of the classes.
        shape: (C, H, W) of an image where no image size is asked for.
        read: from rows and an image size (or None) to (n, C, H, W) float32 in [0, 1].
        own_split: the set was published in parts; these are the images of the part asked for.
        attributes: per attribute (N,) values.
        landmarks: from an image size (or None) to (N, L, 2) pixel positions in such an image.
    """

    labels: torch.Tensor
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    read: Callable[[torch.Tensor, int | None], torch.Tensor]
    own_split: bool = False
    attributes: dict[str, torch.Tensor] | None = None
    landmarks: Callable[[int | None], torch.Tensor | None] = lambda image_size: None


def from_arrays(parts: Iterable, classes, *, top: float = 255, own_split: bool = False) -> Stored:
    """A set whose pixels are in memory already, as numbers from 0 to `top`.

    Args:
        parts: pairs of pixels, (n, H, W) or (n, C, H, W), and labels (n,).
        classes: the names of the classes.
        top: the value of white.
        own_split: as in `Stored`.
    """
    pixels, labels = zip(*parts, strict=True)
    pixels = torch.cat([torch.as_tensor(part) for part in pixels])
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels
    labels = torch.cat([torch.as_tensor(part) for part in labels]).long()

    def read(rows, image_size):
        images = pixels[rows].float().div_(top).clamp_(0, 1).contiguous()
        return images if image_size is None else resize(images, image_size)

    return Stored(labels, tuple(classes), tuple(pixels.shape[1:]), read, own_split)


def read_parts(
    name: str,
    place: Path,
    files: list[Path],
    shape: tuple[int, int, int],
    whole: tuple[int, int, int, int],
    square: tuple[int, int, int, int],
    rows: torch.Tensor,
    image_size: int | None,
) -> torch.Tensor:
    """Decodes the images of these rows only, each from a file of its own.

    Args:
        name: the dataset, for messages.
        place: what to delete where a file is damaged.
        files: one for each row of the set.
        shape: (C, H, W) of an image where there is no image size.
        whole: the part (left, top, right, bottom) of a picture that is scaled to `shape`.
        square: the part that is scaled to an image size.
        rows: which to read.
        image_size: height and width, or None.

    Returns:
        (n, C, H, W) float32 in [0, 1].

    Raises:
        DatasetUnavailable: a file is missing or damaged.
    """
    from torchvision.transforms.v2 import functional as v2

    channels, height, width = shape
    size = (image_size, image_size) if image_size else (height, width)
    images = torch.empty(len(rows), channels, *size)
    for i, row in enumerate(experiment.progress(rows.tolist(), f"reading {name}")):
        with reading(name, place, files[row].name), open_image(files[row]) as image:
            box = square if image_size else whole
            if image.width < box[2] or image.height < box[3]:
                raise ValueError(f"{image.width}x{image.height} pixels, fewer than expected")
            part = image.convert("L" if channels == 1 else "RGB").crop(box)
            part = part if image_size else part.resize((width, height))  # as scikit-learn's lfw
            pixels = v2.pil_to_tensor(part)[None].float() / 255
            images[i] = resize(pixels, image_size)[0] if image_size else pixels[0]
    return images
