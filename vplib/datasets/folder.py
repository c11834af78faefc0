"""Own images: a folder with one folder of images a class, or one photo from memory."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "F"}
ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 turn the image by a quarter
MAX_FILE_BYTES, MAX_PIXELS = 30 * 10**6, 50 * 10**6  # of one photo from memory
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError)


def list_folder(path: Path) -> tuple[list[Path], torch.Tensor, tuple[str, ...]]:
    """The image files under a folder, one class a folder, in alphabetical order.

    Args:
        path: the folder that holds one folder a class.

    Returns:
        The files, their labels (N,), and the names of the classes.

    Raises:
        ValueError: there is no class folder, or no image in one.
    """
    folders = sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    found = [
        sorted(
            file
            for file in folder.rglob("*")
            if file.suffix.lower() in ENDINGS and not file.name.startswith(".")
        )
        for folder in folders
    ]
    if not any(found):
        raise ValueError(
            f"{path}: no images found; put one folder a class into it, with images "
            f"({', '.join(sorted(ENDINGS))}) in each"
        )
    for folder, files in zip(folders, found, strict=True):
        if not files:
            raise ValueError(f"{folder}: there is no image in this class; add some or remove it")
    labels = torch.tensor([label for label, files in enumerate(found) for _ in files])
    return sum(found, []), labels, tuple(folder.name for folder in folders)


def read_images(files: list[Path], image_size: int | None, max_bytes: int) -> torch.Tensor:
    """The images of these files, in memory.

    Photos are turned as their EXIF says, transparency is laid over white, of an animation the
    first frame counts. All grey: one channel; otherwise three.

    Args:
        files: what to read.
        image_size: the shorter side is scaled to this many pixels and the middle is kept; None
            where all images have one size.
        max_bytes: the largest tensor to make.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        ValueError: a file is no image, sizes differ and there is no `image_size`, or the tensor
            would exceed `max_bytes`.
    """
    sizes, all_grey = {}, True
    for file in files:
        try:
            with Image.open(file) as image:
                turned = image.getexif().get(ORIENTATION, 1) >= 5
                sizes.setdefault(image.size[::-1] if turned else image.size, file)
                all_grey &= image.mode in GREY_MODES
        except Image.DecompressionBombError as error:
            raise ValueError(f"{file} is too large ({error}); shrink it") from error
        except UNREADABLE as error:
            raise _not_an_image(file, error) from error
    if image_size is None and len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            f"images differ in size ({first.name} is {one[0]}x{one[1]}, {second.name} is "
            f"{other[0]}x{other[1]}): pass image_size (IMAGE_SIZE in a notebook), for example 64"
        )
    channels = 1 if all_grey else 3
    width, height = (image_size, image_size) if image_size else next(iter(sizes))
    check_bytes((len(files), channels, height, width), max_bytes)
    images = torch.empty(len(files), channels, height, width)
    for row, file in enumerate(files):
        try:
            images[row] = _pixels(file, channels, image_size)
        except UNREADABLE as error:
            raise _not_an_image(file, error) from error
    return images


def read_photo(data: bytes, image_size: int, name: str = "the photo") -> torch.Tensor:
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
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{width}x{height} pixels")
        if min(width, height) < image_size:
            raise _TooSmall(
                f"{name} has {width}x{height} pixels; {image_size}x{image_size} are needed"
            )
        return _pixels(io.BytesIO(data), 3, image_size)[None]
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large ({error}); shrink it") from error
    except _TooSmall:
        raise
    except UNREADABLE as error:
        raise _not_an_image(name, error) from error


class _TooSmall(ValueError):
    """A photo that would have to be enlarged."""


def check_bytes(shape: tuple[int, int, int, int], max_bytes: int) -> None:
    """Refuses images that would take too much memory, with the arithmetic.

    Args:
        shape: (N, C, H, W) of the float32 tensor to make.
        max_bytes: the largest tensor to make.

    Raises:
        ValueError: it would be larger.
    """
    count, channels, height, width = shape
    needed = 4 * count * channels * height * width
    if needed > max_bytes:
        raise ValueError(
            f"{count} images x {channels} x {height} x {width} x 4 bytes = "
            f"{needed / 1e9:.1f} GB, more than {max_bytes / 1e9:.1f} GB; pass a smaller "
            "image_size or num_images"
        )


def _pixels(file: Path | io.BytesIO, channels: int, image_size: int | None) -> torch.Tensor:
    """One image as (C, H, W) in [0, 1]."""
    with Image.open(file) as opened:
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
        if image_size is not None and image.size != (image_size, image_size):
            image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.LANCZOS)
        array = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1)


def _not_an_image(file: Path | str, error) -> ValueError:
    return ValueError(f"{file} cannot be read as an image ({error}); mend or remove it")
