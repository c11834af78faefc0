"""Images to ask a black box about that show nothing of what it was trained on."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vplib import datasets

# Photographs that travel inside scikit-image: nothing is downloaded.
TEXTURES = ("brick", "coins", "grass", "gravel", "moon")
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "rocket", *TEXTURES)
WRITTEN = ("digits", "mnist5k", "mnist", "usps", "omniglot")  # sets that are framed by their ink
MAX_STROKES = 3  # in an image
MARGIN = 0.15  # the largest around ink, as a share of the frame


def noise_images(num_images: int, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Uniform noise, each pixel for itself.

    Args:
        num_images: how many.
        shape: (C, H, W) of one image.
        seed: decides the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((num_images, *shape), generator=generator)


def stroke_images(num_images: int, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Pen strokes: one to `MAX_STROKES` curves of random bends, drawn with a round soft pen.

    Nobody's handwriting and no digit font: what an attacker can render who only knows that the
    victim reads something written.

    Args:
        num_images: how many.
        shape: (C, H, W) of one image; all channels are equal.
        seed: decides the strokes.

    Returns:
        (N, C, H, W) images in [0, 1], bright on dark.
    """
    channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)

    def uniform(*size):
        return torch.rand(size, generator=generator)

    count = torch.randint(MAX_STROKES, (num_images,), generator=generator)
    along = torch.linspace(0, 1, 16).view(1, 1, -1, 1)
    direction = 2 * torch.pi * uniform(num_images, MAX_STROKES, 1, 1)
    bend = 3 * torch.pi * (uniform(num_images, MAX_STROKES, 1, 1) - 0.5)
    length = 0.5 + uniform(num_images, MAX_STROKES, 1, 1)
    angle = direction + bend * along
    steps = torch.cat([angle.cos(), angle.sin()], -1) * length / along.numel()
    points = uniform(num_images, MAX_STROKES, 1, 2) + steps.cumsum(2)
    drawn = (torch.arange(MAX_STROKES) <= count[:, None])[..., None, None]
    points = torch.where(drawn, points, points[:, :1]).flatten(1, 2)
    low, high = points.aminmax(dim=1, keepdim=True)
    frame = 0.65 + 0.2 * uniform(num_images, 1, 1)
    points = 0.5 + (points - (low + high) / 2) * frame / (high - low).amax(-1, keepdim=True)
    pen = 0.03 + 0.04 * uniform(num_images, 1, 1)
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    parts = []
    for some in torch.arange(num_images).split(max(1, 2**23 // (height * width * 48))):
        dy = (points[some, :, 1, None] - rows) ** 2
        dx = (points[some, :, 0, None] - columns) ** 2
        square = (dy[..., None] + dx[:, :, None]).amin(1)
        parts.append((-square / (2 * pen[some] ** 2)).exp())
    return torch.cat(parts)[:, None].expand(-1, channels, -1, -1).contiguous()


def photograph_patches(
    num_images: int, shape: Sequence[int], seed: int = 0, names: Sequence[str] = PHOTOGRAPHS
) -> tuple[Tensor, Tensor]:
    """Random squares of scikit-image's photographs, scaled to one size and full contrast.

    Args:
        num_images: how many.
        shape: (C, H, W) of one image; with one channel, in gray.
        seed: decides photographs and places.
        names: of the photographs.

    Returns:
        (N, C, H, W) images in [0, 1], and (N,) the photograph each comes from, as an index into
        `names`.
    """
    from skimage import data

    channels, *size = shape
    rng = np.random.default_rng(seed)
    photographs = []
    for name in names:
        pixels = torch.from_numpy(np.array(getattr(data, name)())).float() / 255
        pixels = pixels[None] if pixels.ndim == 2 else pixels[..., :3].permute(2, 0, 1)
        pixels = pixels.mean(0, keepdim=True) if channels == 1 else pixels
        photographs.append(pixels.expand(channels, -1, -1))
    source = rng.integers(len(photographs), size=num_images)
    patches = []
    for which in source:
        photograph = photographs[which]
        fits = min(photograph.shape[1:])
        side = int(rng.integers(min(max(size), fits), min(fits, 8 * max(size)) + 1))
        top, left = (int(rng.integers(n - side + 1)) for n in photograph.shape[1:])
        patch = photograph[None, :, top : top + side, left : left + side]
        patches.append(F.adaptive_avg_pool2d(patch, size))
    patches = torch.cat(patches)
    low, high = patches.amin((1, 2, 3), keepdim=True), patches.amax((1, 2, 3), keepdim=True)
    return (patches - low) / (high - low).clamp_min(1e-6), torch.from_numpy(source)


def fill_frame(images: Tensor, size: int, seed: int = 0) -> Tensor:
    """Each image cut to the square around its ink, with a random margin, and at full contrast.

    Sets of written characters differ in how they are framed; whoever does not know the victim's
    frame tries several.

    Args:
        images: (N, C, H, W) in [0, 1], bright ink on dark; what is bright on average, as ink on
            paper, is inverted first.
        size: height and width of the result, in pixels.
        seed: decides the margins, up to `MARGIN`.

    Returns:
        (N, C, size, size) in [0, 1].
    """
    margins = MARGIN * np.random.default_rng(seed).random(len(images))
    on_paper = images.mean((1, 2, 3), keepdim=True) > 0.5
    images = torch.where(on_paper, 1 - images, images)
    ink = images.amax(1) >= 0.2 * images.amax((1, 2, 3), keepdim=True)[:, 0]
    cut = []
    for image, has_ink, share in zip(images, ink, margins, strict=True):
        rows, columns = (torch.where(has_ink.any(axis))[0] for axis in (1, 0))
        high, wide = (int(at[-1] - at[0]) + 1 for at in (rows, columns))
        image = image[:, rows[0] : rows[0] + high, columns[0] : columns[0] + wide]
        side = round(max(high, wide) / (1 - 2 * share))
        top, left = (side - high) // 2, (side - wide) // 2
        image = F.pad(image, (left, side - wide - left, top, side - high - top))
        cut.append(datasets.resize(image[None], size))
    cut = torch.cat(cut)
    return (cut / cut.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)).clamp(0, 1)


def as_queries(images: datasets.ImageSet, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Another set's images in the shape that the victim takes.

    What is written is framed by its ink (`fill_frame`), all else scaled. Gray becomes equal
    colours, and colours their mean.

    Args:
        images: the other set.
        shape: (C, H, W) of what the victim takes.
        seed: decides the margins of what is written.

    Returns:
        (N, C, H, W) in [0, 1].
    """
    channels, *size = shape
    found = images.images
    if images.name.removeprefix("random:") in WRITTEN:
        found = fill_frame(found, max(size), seed)
    if len(found[0]) != channels:
        found = found.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if list(found.shape[2:]) != size:
        found = datasets.resize(found, max(size))
        found = F.interpolate(found, size, mode="bilinear", antialias=True).clamp(0, 1)
    return found.contiguous()
