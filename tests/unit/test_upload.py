"""A photo of the reader's own: read whatever the file is, or refused in plain words."""

import datetime
import io

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image

from vplib import experiment
from vplib.datasets import folder
from vplib.show import upload

NOW = datetime.datetime(2026, 1, 1)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image, form="PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **settings)
    return buffer.getvalue()


def halves(mode="RGB"):
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (40, 40), RED)
    image.paste(BLUE, (20, 0, 40, 40))
    return image.convert(mode)


def is_halves(photo) -> bool:
    left, right = photo[0, :, :, :12].mean((1, 2)), photo[0, :, :, -12:].mean((1, 2))
    near = [torch.tensor(c) / 255.0 for c in (RED, BLUE)]
    return bool((left - near[0]).abs().max() < 0.1 and (right - near[1]).abs().max() < 0.1)


@pytest.mark.parametrize(
    "data",
    [
        encoded(halves()),
        encoded(halves(), "JPEG", quality=95),
        encoded(halves("CMYK"), "JPEG", quality=95),
        encoded(halves("P")),
        encoded(halves("P"), "GIF"),
        encoded(halves("RGBA")),
        encoded(halves(), "GIF", save_all=True, append_images=[Image.new("RGB", (40, 40))]),
        encoded(halves(), "WEBP", lossless=True),
    ],
    ids=["png", "jpeg", "cmyk", "palette", "gif", "alpha", "animated", "webp"],
)
def test_a_photo_of_any_kind_is_converted(data):
    photo = folder.read_photo(data, 32, "a")
    assert photo.shape == (1, 3, 32, 32) and photo.dtype == torch.float32
    assert is_halves(photo)


def test_a_photo_is_turned_as_its_exif_says():
    exif = Image.Exif()
    exif[folder.ORIENTATION] = 6  # shown turned clockwise
    sideways = halves().transpose(Image.Transpose.ROTATE_90)
    assert is_halves(folder.read_photo(encoded(sideways, exif=exif), 32, "a"))
    assert not is_halves(folder.read_photo(encoded(sideways), 32, "a"))


def test_gray_of_16_bits_is_scaled():
    gray = Image.fromarray(np.full((40, 40), 32768, np.uint16))
    assert abs(folder.read_photo(encoded(gray), 32, "a").mean() - 0.5) < 0.01


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "cannot be read as an image"),
        (b"<svg></svg>", "cannot be read as an image"),
        (encoded(halves())[:60], "cannot be read as an image"),
        (encoded(Image.new("RGB", (400, 20))), "400x20 pixels; 32x32 are needed"),
        (encoded(Image.new("1", (9000, 9000))), "too large"),
        (encoded(Image.new("1", (16000, 16000))), "too large"),
        (bytes(folder.MAX_FILE_BYTES + 1), "30 MB"),
    ],
    ids=["empty", "no image", "cut off", "small", "huge", "bomb", "many bytes"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_usable_photo(data, message):
    with pytest.raises(ValueError, match=f"mine.png.*{message}") as said:
        folder.read_photo(data, 32, "mine.png")
    assert "BytesIO" not in str(said.value)


def test_both_forms_of_an_upload_are_read():
    seven = {"a.png": {"metadata": {"name": "a.png"}, "content": b"abc"}}
    eight = ({"name": "a.png", "type": "image/png", "content": memoryview(b"abc")},)
    assert upload.uploaded_files(seven) == upload.uploaded_files(eight) == [("a.png", b"abc")]
    assert upload.uploaded_files({}) == upload.uploaded_files(()) == []


class OfSeven:
    """FileUpload of ipywidgets 7, as far as emptying it goes."""

    def __init__(self):
        self.data, self.metadata, self._counter = [b"abc"], [{"name": "a"}], 1


def test_an_upload_is_emptied_in_both():
    old = OfSeven()
    upload._empty(old)
    assert (old.data, old.metadata, old._counter) == ([], [], 0)
    if ipywidgets.__version__ >= "8":
        new = ipywidgets.FileUpload()
        new.value = _value(encoded(halves()))
        upload._empty(new)
        assert new.value == ()


def _value(data):
    return (
        {"name": "a.png", "type": "", "size": len(data), "content": data, "last_modified": NOW},
    )


@pytest.fixture
def box(monkeypatch):
    """The upload, the button and the view that a reader gets."""
    if ipywidgets.__version__ < "8":
        pytest.skip("a value can be set in ipywidgets 8 only")
    shown = []
    monkeypatch.setattr(experiment, "has_front_end", lambda: True)
    monkeypatch.setattr(upload, "display", shown.append)
    upload.upload_photo(
        lambda photo: (f"size {tuple(photo.shape)}", b"made"), image_size=32, name="cloaked.png"
    )
    (row, view) = shown[0].children
    return *row.children, view


def test_a_chosen_photo_is_worked_on_and_dropped(box):
    chooser, clear, view = box
    assert chooser.layout.width == "max-content"
    chooser.value = _value(encoded(halves()))
    assert "size (1, 3, 32, 32)" in view.value and 'download="cloaked.png"' in view.value
    assert chooser.value == ()
    clear.click()
    assert view.value == ""


def test_a_broken_photo_is_told_and_the_next_one_works(box):
    chooser, _, view = box
    chooser.value = _value(b"no image")
    assert ">a.png cannot be read as an image" in view.value  # without the name of an exception
    chooser.value = _value(encoded(halves()))
    assert "size" in view.value


def test_without_a_front_end_nothing_is_asked(monkeypatch):
    shown = []
    monkeypatch.setattr(experiment, "has_front_end", lambda: False)
    monkeypatch.setattr(upload, "display", shown.append)
    upload.upload_photo(lambda photo: None, image_size=32, name="x.png")
    assert "No browser" in shown[0].data


def test_a_link_escapes_its_name():
    link = upload.download_link(b"abc", 'a"b<.png')
    assert 'download="a&quot;b&lt;.png"' in link and "base64,YWJj" in link
