"""Own images: a folder with one folder of images a class, or one photo from memory."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from vplib.datasets.imageset import check_bytes
from vplib.datasets.transforms import resize

# What cameras and browsers write, as far as this Pillow reads it (HEIF by the plugin pillow-heif).
# Nothing else is tried: Pillow has Ghostscript run an EPS file, under whatever name.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"}
ORIENTATION, BITS, PHOTOMETRIC = 0x0112, 258, 262  # tags of EXIF and TIFF
TURN = Image.Transpose
TURNS = {2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE}
TURNS |= {6: TURN.ROTATE_270, 7: TURN.TRANSVERSE, 8: TURN.ROTATE_90}
# Of one photo: a pixel takes up to 18 bytes while it is read (WebP), all of them 500 MB.
MAX_FILE_BYTES, MAX_PIXELS = 30 * 10**6, 27 * 10**6


def list_folder(path: Path) -> tuple[list[Path], torch.Tensor, tuple[str, ...]]:
    """The image files in the folders of a folder, one class a folder, in alphabetical order.

    What is hidden, its name beginning with a point, is skipped; of other files that are not read, a
    warning says how many they are, and which come first.

    Args:
        path: the folder that holds one folder a class.

    Returns:
        The files, their labels (N,), and the names of the classes.

    Raises:
        ValueError: there is no class folder, no image in one, or a folder within one.
    """
    Image.init()  # the plugins that are installed
    known = Image.registered_extensions().items()
    endings = {ending for ending, kind in known if kind in _formats()}
    files, labels, names, others = [], [], [], []
    for folder in _shown(path):
        if not folder.is_dir():
            others.append(Path(folder.path))
            continue
        found = _shown(folder.path)
        if within := [entry.name for entry in found if entry.is_dir()]:
            raise ValueError(
                f"{folder.path}: {within[0]!r} is a folder within a class; put its images straight "
                f"into a class's folder, or, if it is a class, ask for folder:{folder.path}"
            )
        for entry in found:  # a pipe is no file: it would be waited for
            is_image = entry.is_file() and Path(entry.name).suffix.lower() in endings
            (files if is_image else others).append(Path(entry.path))
        labels += [len(names)] * (len(files) - len(labels))
        if len(names) not in labels[-1:]:
            raise ValueError(
                f"{folder.path}: there is no image in this class; add some or remove it "
                f"({_kinds()} are read)"
            )
        names.append(folder.name.encode(errors="backslashreplace").decode())  # if it is no UTF-8
    if not names:
        raise ValueError(
            f"{path}: no images found; put one folder a class into it, with images in each"
        )
    if others:
        first = ", ".join(str(file.relative_to(path)) for file in others[:3])
        warnings.warn(
            f"{path}: {len(others)} files are no {_kinds()} of a class and are skipped: {first}"
            + ", ..." * (len(others) > 3),
            stacklevel=4,  # who called load
        )
    return files, torch.tensor(labels), tuple(names)


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
    all_grey = True
    for file in files:
        with _reading(file), open_image(file) as image:
            all_grey &= image.mode in GREY_MODES
    channels = 1 if all_grey else 3
    for row, file in enumerate(files):
        image = _decoded(file, file, channels)
        width, height = size = (image_size, image_size) if image_size else image.size
        if row == 0:
            first = size
            check_bytes((len(files), channels, height, width))
            images = torch.empty(len(files), channels, height, width)
        if size != first:
            raise ValueError(
                f"images differ in size ({files[0].name} is {first[0]}x{first[1]}, {file.name} is "
                f"{width}x{height}): pass image_size (IMAGE_SIZE in a notebook), for example 64"
            )
        images[row] = _pixels(image, image_size)[0]
    return images


def read_photo(data: bytes, image_size: int, name: str) -> torch.Tensor:
    """One photo from the bytes of its file, converted as `read_images` does.

    Args:
        data: of a PNG, JPEG or another of the `FORMATS`.
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
    image = _decoded(io.BytesIO(data), name, 3)
    if min(image.size) < image_size:
        width, height = image.size
        raise ValueError(
            f"{name} has {width}x{height} pixels; {image_size}x{image_size} are needed"
        )
    return _pixels(image, image_size)


@contextlib.contextmanager
def open_image(file: Path | io.BytesIO) -> Iterator[Image.Image]:
    """An image as Pillow opens it, its pixels not read yet.

    Args:
        file: what to open.

    Raises:
        ValueError: it is no regular file (a pipe would be waited for), of no known format, or has
            too many pixels. Pillow raises many others.
    """
    if isinstance(file, Path) and not file.is_file():
        raise ValueError("it is no regular file")
    Image.init()
    # Not by its name: then Pillow maps the file, a turned TIFF with its sides exchanged.
    with file.open("rb") if isinstance(file, Path) else file as stream:
        try:
            image = Image.open(stream, formats=_formats())
        except UnidentifiedImageError:
            raise ValueError(f"it is none of {_kinds()}") from None
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
        yield image


def _formats() -> list[str]:
    """Those that this Pillow has."""
    return [kind for kind in FORMATS if kind in Image.OPEN]


def _kinds() -> str:
    return ", ".join(_formats())


def _shown(path: Path | str) -> list[os.DirEntry]:
    """What is in a folder and not hidden, by name."""
    with os.scandir(path) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(found, key=lambda entry: entry.name)


@contextlib.contextmanager
def _reading(name: Path | str):
    """Says of which file it is that it cannot be read, and why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on what lies beside the pixels
            yield
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ValueError(f"{name} is too large ({error}); shrink it") from error
    except Exception as error:  # Pillow does not say which errors damage raises
        why = str(error) or type(error).__name__
        raise ValueError(f"{name} cannot be read as an image ({why}); mend or remove it") from error


def _decoded(file: Path | io.BytesIO, name: Path | str, channels: int) -> Image.Image:
    """One image of 8 bits, upright, over white, of one channel or three."""
    with _reading(name), open_image(file) as opened:
        image = _upright(opened)
        if image.mode.startswith("I") or image.mode == "F":
            image = _eight_bits(image, getattr(opened, "tag_v2", {}))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image if image.mode == "RGBA" else image.convert("RGBA")
            white = Image.new("RGB", image.size, "white")
            white.paste(image, mask=image.getchannel("A"))
            image = white
        mode = "L" if channels == 1 else "RGB"
        return image if image.mode == mode else image.convert(mode)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its orientation tag says, if it says one of 2 to 8."""
    image.load()  # Pillow turns a TIFF here, and takes its tag away
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # damaged tags; the pixels are whole
        turn = None
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image, tags: dict) -> Image.Image:
    """Gray of more bits, scaled by what its format calls white.

    Args:
        image: of mode I or F, or one of 16 bits.
        tags: of a TIFF; empty for others.

    Raises:
        ValueError: it is not known which value is white, or values lie outside.
    """
    if image.mode == "I" and tags:
        raise ValueError(
            "it has 32-bit or signed integers, of which none is white; save it with 8 or 16 bits"
        )
    values = np.array(image, dtype=np.float32)
    low, high = values.min(), values.max()
    if image.mode == "F" and not (low >= 0 and high <= 1):  # also catches NaN
        raise ValueError(f"its floating-point values lie in {low:g}..{high:g}, not in 0..1")
    values *= 255 if image.mode == "F" else 255 / (2 ** tags.get(BITS, (16,))[0] - 1)
    np.rint(values, out=values)
    eight = Image.fromarray(values.astype(np.uint8))
    return ImageOps.invert(eight) if tags.get(PHOTOMETRIC) == 0 else eight  # 0 is white


def _pixels(image: Image.Image, image_size: int | None) -> torch.Tensor:
    """(1, C, H, W) float32 in [0, 1]; with a size, of the middle square."""
    from torchvision.transforms.v2 import functional as v2

    def scaled(band):  # one after the other, since a large photo takes much room as numbers
        pixels = v2.pil_to_tensor(image.getchannel(band)).float().div_(255)
        return resize(pixels[None], image_size)[0] if image_size else pixels

    return torch.cat([scaled(band) for band in image.getbands()])[None]
