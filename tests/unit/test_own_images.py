"""Pictures as people have them: odd folders, cameras' tags, wide ranges, hostile files."""

import io
import os
import re
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, TiffImagePlugin, features

from vplib import datasets
from vplib.datasets import folder

NEEDS_PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


def encoded(image, form="PNG", **settings) -> bytes:
    image.save(buffer := io.BytesIO(), format=form, **settings)
    return buffer.getvalue()


def dot(value=0) -> bytes:
    return encoded(Image.new("L", (6, 4), value))


@pytest.fixture
def tree(tmp_path):
    """Writes files by path, and loads what is under a path of them."""

    def write(files: dict[str, bytes], at: str = "", split: str = "all", **asked):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        return datasets.load(f"folder:{tmp_path / at}", split, **asked)

    write.path = tmp_path
    return write


# Folders


@pytest.mark.parametrize(
    "hidden",
    [
        "cats/.ipynb_checkpoints/1-checkpoint.png",
        "cats/.thumbnails/1.png",
        "cats/._1.png",
        ".ipynb_checkpoints/cats/1.png",
        ".loose.png",
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_hidden_is_never_read(tree, hidden):
    data = tree({"cats/1.png": dot(), "dogs/1.png": dot(), hidden: dot()})
    assert data.classes == ("cats", "dogs") and data.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("files", "at", "within", "offered"),
    [
        (["photos/train/cat/1.png", "photos/test/cat/1.png"], "photos", "cat", "photos/test"),
        (["photos/cats/1.png", "photos/dogs/1.png"], "", "cats", "photos"),
        (["photos/cats/1.png", "photos/cats/old/1.png"], "photos", "old", "photos/cats"),
        (
            ["photos/cats/1.png", "photos/@eaDir/1.png/thumb.jpg"],
            "photos",
            "1.png",
            "photos/@eaDir",
        ),
    ],
    ids=["train and test", "one folder too high", "a folder beside images", "another's thumbnails"],
)
def test_a_folder_within_a_class_is_refused_before_anything_runs(tree, files, at, within, offered):
    place = re.escape(str(tree.path / offered))
    said = f"^{place}: '{within}' is a folder within a class; .* folder:{place}$"
    with pytest.raises(ValueError, match=said):
        tree(dict.fromkeys(files, dot()), at)
    with pytest.raises(ValueError, match=said):
        datasets.check_name(f"folder:{tree.path / at}")


@pytest.mark.parametrize(
    ("ending", "form"),
    [("jfif", "JPEG"), ("JPE", "JPEG"), ("apng", "PNG"), ("pgm", "PPM"), ("jp2", "JPEG2000")]
    + [("avif", "AVIF")] * bool(features.check("avif")),
)
@pytest.mark.filterwarnings("error")
def test_what_pillow_reads_is_read(tree, ending, form):
    content = encoded(Image.new("L", (64, 64), 200), form)
    data = tree({"cats/1.png": encoded(Image.new("L", (64, 64))), f"dogs/1.{ending}": content})
    assert (data.images[1] - 200 / 255).abs().max() < 0.02


def test_the_rest_is_counted_and_named(tree):
    others = {f"cats/{n}.heic": b"heic" for n in range(3)} | {"notes.txt": b"x", "loose.png": dot()}
    with pytest.warns(UserWarning) as said:
        data = tree({"cats/1.png": dot(), "dogs/1.png": dot()} | others)
    assert len(data) == 2
    (text,) = (str(warning.message) for warning in said)
    assert re.match(
        f"{re.escape(str(tree.path))}: 5 files are no .*PNG.* of a class and are skipped: "
        rf"cats.0\.heic, cats.1\.heic, cats.2\.heic, \.\.\.$",
        text,
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_of_one_image_cannot_be_split(tree, split):
    files = {f"cats/{n}.png": dot(n) for n in range(9)} | {"dogs/1.png": dot(99)}
    with pytest.raises(ValueError, match="class 'dogs' has one image, which cannot be in both"):
        tree(files, split=split)
    assert len(tree(files)) == 10
    more = tree({"dogs/2.png": dot(98)}, split="train")
    assert set(more.labels.tolist()) == {0, 1}  # two are enough, for the train part


def test_the_train_part_holds_each_class_of_two_or_more():
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = rng.integers(2, 6, rng.integers(1, 9))
        labels = torch.arange(len(counts)).repeat_interleave(torch.from_numpy(counts))
        rows = datasets.loading._choose_rows("own", labels, "train", None, 0)
        assert set(labels[rows].tolist()) == set(range(len(counts)))


@pytest.mark.filterwarnings("error")
def test_links_are_followed(tree):
    tree({"cats/1.png": dot(), "dogs/1.png": dot(), "other/9.png": dot(51)})
    (tree.path / "dogs" / "2.png").symlink_to(tree.path / "other" / "9.png")
    (tree.path / "more").symlink_to(tree.path / "other")
    data = tree({})
    assert data.classes == ("cats", "dogs", "more", "other") and data.labels.tolist() == [
        0,
        1,
        1,
        2,
        3,
    ]
    assert data.images[2:].unique().tolist() == [pytest.approx(0.2)]


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_class_whose_name_is_no_utf8_can_be_shown(tree):
    place = os.fsencode(tree.path) + b"/caf\xe9"
    os.mkdir(place)
    with open(place + b"/1.png", "wb") as file:
        file.write(dot())
    assert tree({"dogs/1.png": dot()}).classes == ("caf\\udce9", "dogs")


@NEEDS_PIPES
def test_a_pipe_is_no_image(tree):
    tree({"cats/1.png": dot(), "dogs/1.png": dot()})
    os.mkfifo(tree.path / "dogs" / "pipe.png")
    with pytest.warns(UserWarning, match="1 files are no .* skipped: dogs.pipe.png$"):
        assert len(tree({})) == 2
    with pytest.raises(ValueError, match=r"pipe.png cannot be read .*\(it is no regular file\)"):
        folder.read_images([tree.path / "dogs" / "pipe.png"], 4)


# Orientation

SHORT, LONG, TEXT, BYTE, UNDEFINED, RATIONAL, UNKNOWN = 3, 4, 2, 1, 7, 5, 99


def exif(kind: int, value: int, neighbour: bytes = b"") -> bytes:
    """EXIF with an orientation of this type, and a damaged entry beside it."""
    inline = {
        SHORT: struct.pack("<HH", value % 65536, 0),
        LONG: struct.pack("<I", value),
        TEXT: f"{value}".encode()[:3].ljust(4, b"\0"),
    }.get(kind, bytes([value % 256, 0, 0, 0]))
    count = 2 if kind == TEXT else 1
    entries = [struct.pack("<HHI", folder.ORIENTATION, kind, count) + inline]
    entries += [neighbour] if neighbour else []
    body = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    return b"Exif\0\0" + struct.pack("<2sHI", b"II", 42, 8) + body


FAR = struct.pack("<HHII", 0x010F, 2, 1000, 10**6)  # a maker's name far behind the end
STRANGE = struct.pack("<HHII", 0x0110, 77, 3, 0xFFFFFFFF)  # of an unknown type
NESTED = struct.pack("<HHII", 0x8769, 4, 1, 0xFFFFFFF0)  # more tags behind the end
UPRIGHT = np.zeros((40, 60), np.uint8)
UPRIGHT[:20, :20] = 255  # bright at the top left
TURNED = {1: (60, 40, 0, 0), 6: (40, 60, 0, -1), 3: (60, 40, -1, -1), 8: (40, 60, -1, 0)}


def corner_of(images) -> tuple[int, int, int, int]:
    """Width and height, and in which corner it is bright."""
    height, width = images.shape[-2:]
    row, column = np.argwhere(images[0, 0, :: height - 1, :: width - 1].numpy() > 0.5)[0]
    return width, height, -row, -column


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("kind", "value", "turn"),
    [
        *((SHORT, value, value) for value in (3, 6, 8)),
        (LONG, 6, 6),
        *((SHORT, value, 1) for value in (0, 1, 9, 90, 65535)),
        *((kind, 6, 1) for kind in (TEXT, BYTE, UNDEFINED, UNKNOWN)),
    ],
)
@pytest.mark.parametrize("beside", [b"", FAR, STRANGE, NESTED], ids=["", "far", "odd", "nested"])
@pytest.mark.filterwarnings("error")
def test_photos_are_turned_for_2_to_8_only(tree, form, kind, value, turn, beside):
    content = encoded(Image.fromarray(UPRIGHT), form, exif=exif(kind, value, beside))
    data = tree({"cats/1.png": content})
    assert corner_of(data.images) == TURNED[turn]
    square = folder.read_photo(content, 20, "1.png")
    assert corner_of(square)[2:] == TURNED[turn][2:]
    assert square.shape == (1, 3, 20, 20)


@pytest.mark.parametrize("pages", [1, 2])
@pytest.mark.parametrize(
    ("value", "compression"),
    [*((value, "tiff_lzw") for value in (1, 3, 6, 8)), *((value, None) for value in (1, 6, 8, 9))],
)
@pytest.mark.filterwarnings("error")
def test_a_tiff_is_turned_once(tree, value, pages, compression):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[folder.ORIENTATION] = value
    more = dict(save_all=True, append_images=[Image.new("L", (60, 40))]) if pages == 2 else {}
    content = encoded(
        Image.fromarray(UPRIGHT), "TIFF", tiffinfo=tags, compression=compression, **more
    )
    turn = TURNED.get(value, TURNED[1])
    for asked in (None, 20):
        data = tree({"cats/1.tif": content, "dogs/1.tif": content}, image_size=asked)
        width, height, *corner = corner_of(data.images)
        assert corner == [*turn[2:]] and (asked or (width, height) == turn[:2])


def test_turned_and_upright_have_one_size(tree):
    turned = encoded(Image.fromarray(UPRIGHT.T.copy()), exif=exif(SHORT, 6))
    data = tree({"cats/1.png": encoded(Image.fromarray(UPRIGHT)), "dogs/1.png": turned})
    assert data.shape == (1, 40, 60)


# Ranges


def tiff(values: np.ndarray, bits: int, white_is_zero=False, sample_format=1) -> bytes:
    """A gray TIFF of any numbers, as the standard has it (12 bits packed)."""
    if bits == 12:
        one, two = values.astype(int).reshape(-1, 2).T
        packed = np.stack([one >> 4, (one & 15) << 4 | two >> 8, two & 255], 1)
        pixels = packed.astype(np.uint8).tobytes()
    else:
        pixels = values.astype(values.dtype.newbyteorder("<")).tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8}
    tags |= {277: 1, 278: height, 279: len(pixels), 339: sample_format}
    entries = [struct.pack("<HHII", tag, LONG, 1, value) for tag, value in tags.items()]
    start = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    return start + pixels + struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)


RAMP = np.linspace(0, 1, 1600).reshape(40, 40)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff((RAMP * 255).astype(np.uint8), 8), RAMP),
        (tiff((RAMP * 255).astype(np.uint8), 8, white_is_zero=True), 1 - RAMP),
        (tiff((RAMP * 4095).astype(np.uint16), 12), RAMP),
        (tiff((RAMP * 65535).astype(np.uint16), 16), RAMP),
        (tiff((RAMP * 6553.5).astype(np.uint16), 16), RAMP / 10),
        (tiff((RAMP * 65535).astype(np.uint16), 16, white_is_zero=True), 1 - RAMP),
        (tiff(RAMP.astype(np.float32), 32, sample_format=3), RAMP),
        (tiff((RAMP / 10).astype(np.float32), 32, sample_format=3), RAMP / 10),
        (encoded(Image.fromarray((RAMP * 65535).astype(np.uint16))), RAMP),
        (encoded(Image.fromarray((RAMP * 65535).astype(np.uint16)), "PPM"), RAMP),
        (encoded(Image.fromarray((RAMP * 65535).astype(np.uint16)), "JPEG2000"), RAMP),
    ],
    ids="8 8-inverse 12 16 16-dark 16-inverse float float-dark png-16 pgm-16 jp2-16".split(),
)
def test_ranges_are_kept(tree, content, expected):
    data = tree({"cats/1.tif": content})
    assert data.shape == (1, 40, 40)
    assert (data.images[0, 0] - torch.from_numpy(expected)).abs().max() < 1.01 / 255
    photo = folder.read_photo(content, 40, "1.tif")
    assert torch.equal(photo, data.images.expand(1, 3, 40, 40))


NAN = np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(NAN, 32, sample_format=3), "floating-point values lie in nan..nan, not in 0..1"),
        (tiff((RAMP * 255).astype(np.float32), 32, sample_format=3), "values lie in 0..255, not"),
        (tiff((RAMP - 0.5).astype(np.float32), 32, sample_format=3), "values lie in -0.5..0.5"),
        (tiff((RAMP / np.float32(0.5) - np.inf).astype(np.float32), 32, sample_format=3), "-inf"),
        (tiff((RAMP * 255).astype(np.int32), 32, sample_format=2), "32-bit or signed integers"),
        (tiff((RAMP * 255).astype(np.uint32), 32), "32-bit or signed integers"),
        (tiff((RAMP * 255).astype(np.int16), 16, sample_format=2), "save it with 8 or 16 bits"),
    ],
    ids="nan 0-to-255 negative infinite int32 uint32 int16".split(),
)
def test_ranges_that_are_unknown_are_said(tree, content, message):
    with pytest.raises(ValueError, match=f"^odd.tif cannot be read as an image .*{message}"):
        folder.read_photo(content, 40, "odd.tif")
    file = re.escape(str(tree.path / "cats" / "1.tif"))
    with pytest.raises(ValueError, match=f"^{file} cannot be read as an image .*{message}"):
        tree({"cats/1.tif": content})


# Hostile files

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("content", [EPS, b"%!PS\n" + EPS], ids=["eps", "ps"])
def test_nothing_is_handed_to_ghostscript(tree, monkeypatch, content):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("it was run"))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("something was run"))
    with pytest.raises(ValueError, match="^holiday.png cannot be read .*none of .*PNG"):
        folder.read_photo(content, 20, "holiday.png")
    with pytest.raises(ValueError, match="holiday.png cannot be read .*none of .*PNG"):
        tree({"cats/holiday.png": content})


def test_every_format_of_the_list_is_one_of_pillows():
    assert set(folder.FORMATS) - set(folder._formats()) <= {"AVIF", "HEIF"}
    assert not {"EPS", "WMF", "PDF", "GRIB", "HDF5", "BUFR"} & set(folder.FORMATS)


@pytest.mark.parametrize("side", [13_000, 16_000])
@pytest.mark.filterwarnings("error")
def test_too_many_pixels_are_refused_before_they_are_read(tree, side):
    content = encoded(Image.new("1", (side, side)))
    start = time.monotonic()
    with pytest.raises(ValueError, match="^big.png is too large .*; shrink it"):
        folder.read_photo(content, 20, "big.png")
    with pytest.raises(ValueError, match="1.png is too large .*; shrink it"):
        tree({"cats/1.png": content}, image_size=20)
    assert time.monotonic() - start < 5


def test_a_photo_of_the_limit_is_read(monkeypatch):
    monkeypatch.setattr(folder, "MAX_PIXELS", 40 * 60)
    photo = folder.read_photo(encoded(Image.fromarray(UPRIGHT)), 20, "a")
    expected = datasets.resize(torch.from_numpy(UPRIGHT)[None, None] / 255, 20)
    assert torch.equal(photo, expected.expand(1, 3, 20, 20))
    monkeypatch.setattr(folder, "MAX_PIXELS", 40 * 60 - 1)
    with pytest.raises(ValueError, match="a is too large .60x40 pixels.; shrink it"):
        folder.read_photo(encoded(Image.fromarray(UPRIGHT)), 20, "a")


def test_what_pillow_raises_is_one_line_with_the_name(monkeypatch, tree):
    """Whatever it is: Pillow's decoders do not agree on errors."""
    for error in (IndexError(), struct.error("short"), NotImplementedError("x"), MemoryError()):

        def fail(*_args, error=error, **_settings):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Image, "open", fail)
            with pytest.raises(ValueError, match="^a.png (cannot be read|is too large)"):
                folder.read_photo(dot(), 4, "a.png")


@pytest.mark.parametrize("form", "PNG JPEG TIFF WEBP GIF BMP PPM JPEG2000".split())
@pytest.mark.filterwarnings("error")
def test_a_damaged_photo_is_read_or_named_in_one_line(form):
    rng = np.random.default_rng(0)
    whole = encoded(Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)), form)
    for number in range(40):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, len(whole) if number % 2 else 200, 3)
        damaged[places % len(whole)] = rng.integers(0, 256, 3)
        cut = len(whole) if number % 5 else rng.integers(len(whole))
        try:
            photo = folder.read_photo(damaged[:cut].tobytes(), 8, "mine.jpg")
        except ValueError as error:
            assert re.fullmatch("mine.jpg (cannot be read|is too large|has) .*", str(error))
        else:
            assert photo.shape == (1, 3, 8, 8) and photo.min() >= 0 and photo.max() <= 1
