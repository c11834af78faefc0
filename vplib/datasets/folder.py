"""Own images: a folder with one folder of images a class, or one photo from memory."""

import contextlib
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from vplib.datasets.imageset import check_bytes
from vplib.datasets.transforms import resize

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "F"}
ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 turn the image by a quarter
MAX_FILE_BYTES, MAX_PIXELS = 30 * 10**6, 50 * 10**6  # of one photo from memory
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError)


def list_folder(path: Path) -> tuple[list[str], torch.Tensor, tuple[str, ...]]:
    """The image files under a folder, one class a folder, in alphabetical order.

    What is hidden, its name beginning with a point, is skipped.

    Args:
        path: the folder that holds one folder a class.

    Returns:
        The files, their labels (N,), and the names of the classes.

    Raises:
        ValueError: there is no class folder, or no image in one.
    """
    from torchvision.datasets.folder import find_classes, make_dataset  # takes seconds

    def is_image(file: str) -> bool:
        hidden = any(part.startswith(".") for part in Path(file).relative_to(path).parts)
        return file.lower().endswith(ENDINGS) and not hidden

    try:
        names = [name for name in find_classes(path)[0] if not name.startswith(".")]
    except FileNotFoundError:  # there is no folder in it
        names = []
    number = {name: label for label, name in enumerate(names)}
    found = names and make_dataset(path, number, is_valid_file=is_image, allow_empty=True)
    if not found:
        raise ValueError(
            f"{path}: no images found; put one folder a class into it, with images "
            f"({', '.join(ENDINGS)}) in each"
        )
    files, labels = zip(*found, strict=True)
    for name in names:
        if number[name] not in labels:
            raise ValueError(
                f"{path / name}: there is no image in this class; add some or remove it"
            )
    return [Path(file) for file in files], torch.tensor(labels), tuple(names)


def read_images(files: list[Path], image_size: int | None) -> torch.Tensor:
    """The images of these files, in memory.

    Photos are turned as their EXIF says, transparency is laid over white, of an animation the
    first frame counts. All grey: one channel; otherwise three.

    Args:
        files: what to read.
        image_size: the middle square is scaled to this many pixels; None where all images have
            one size.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        ValueError: a file is no image, sizes differ and there is no `image_size`, or the tensor
            would be too large.
    """
    sizes, all_grey = {}, True
    for file in files:
        with _reading(file), Image.open(file) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            sizes.setdefault(image.size[::-1] if turned else image.size, file)
            all_grey &= image.mode in GREY_MODES
    if image_size is None and len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            f"images differ in size ({first.name} is {one[0]}x{one[1]}, {second.name} is "
            f"{other[0]}x{other[1]}): pass image_size (IMAGE_SIZE in a notebook), for example 64"
        )
    channels = 1 if all_grey else 3
    width, height = (image_size, image_size) if image_size else next(iter(sizes))
    check_bytes((len(files), channels, height, width))
    images = torch.empty(len(files), channels, height, width)
    for row, file in enumerate(files):
        pixels = _pixels(file, file, channels)
        images[row] = pixels[0] if image_size is None else resize(pixels, image_size)[0]
    return images


def read_photo(data: bytes, image_size: int, name: str) -> torch.Tensor:
    """One photo from the bytes of its file, converted as `read_images` does.

    Args:
        data: of a PNG, JPEG or another format that Pillow reads.
        image_size: height and width; the middle square is kept.
        name: of the file, for error messages.

    Returns:
        (1, 3, image_size, image_size) float32 in [0, 1].

    Raises:
        ValueError: it is no image, cut off, too large, or of less than `image_size` pixels.
    """
    if len(data) > MAX_FILE_BYTES:
        size, most = f"{len(data) / 1e6:.0f} MB", f"{MAX_FILE_BYTES / 1e6:.0f} MB"
        raise ValueError(f"{name} has {size}, more than {most}; shrink it")
    with _reading(name), Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{width}x{height} pixels")
    if min(width, height) < image_size:
        raise ValueError(
            f"{name} has {width}x{height} pixels; {image_size}x{image_size} are needed"
        )
    return resize(_pixels(io.BytesIO(data), name, 3), image_size)


@contextlib.contextmanager
def _reading(name: Path | str):
    """Says of which file it is that it cannot be read."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large ({error}); shrink it") from error
    except UNREADABLE as error:
        raise ValueError(f"{name} cannot be read as an image; mend or remove it") from error


def _pixels(file: Path | io.BytesIO, name: Path | str, channels: int) -> torch.Tensor:
    """One image as (1, C, H, W) in [0, 1]."""
    from torchvision.transforms.v2 import functional as v2

    with _reading(name), Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey
            array = np.asarray(image, dtype=np.float32)
            scale = 65535 if image.mode.startswith("I") else max(1.0, float(array.max()))
            image = Image.fromarray((array / scale * 255).clip(0, 255).round().astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        image = image.convert("L" if channels == 1 else "RGB")
        return v2.pil_to_tensor(image)[None].float() / 255
