"""The drawing pad without a browser: framing, the script in the package, errors in words."""

import importlib.resources

import pytest
import torch

from vplib import experiment
from vplib.show import drawing_pad


def test_the_script_travels_with_the_package():
    script = (importlib.resources.files("vplib.show") / "drawing_pad.js").read_text("utf-8")
    assert "export default { render }" in script and "draw a digit here" in script


@pytest.mark.parametrize(("top", "left", "size"), [(0, 0, 6), (20, 20, 8), (2, 3, 24)])
def test_a_drawing_is_framed_as_mnist_is(top, left, size):
    drawn = torch.zeros(1, 28, 28)
    drawn[0, top : top + size, left : left + size // 2] = 1
    found = drawing_pad.framed(drawn)
    assert found.shape == drawn.shape and 0 <= found.min() and found.max() <= 1
    rows, columns = (found[0].sum(axis) > 0.5 for axis in (1, 0))
    assert 19 <= rows.sum() <= 21 and 9 <= columns.sum() <= 12
    index = torch.arange(28.0)
    middle = [(found[0].sum(axis) * index).sum() / found.sum() for axis in (1, 0)]
    assert all(abs(m - 13.5) < 0.6 for m in middle)


def test_an_empty_pad_says_so():
    with pytest.raises(ValueError, match="nothing is drawn yet"):
        drawing_pad.framed(torch.zeros(1, 28, 28))


def test_the_pad_asks_and_shows_errors(monkeypatch):
    monkeypatch.setattr(experiment, "has_front_end", lambda: True)
    shown = []
    monkeypatch.setattr(drawing_pad, "display", shown.append)
    pad = drawing_pad.draw(lambda image: f"<p>{image.sum():.0f}</p>", torch.zeros(1, 28, 28))
    view = shown[0].children[1]
    pad.pixels, pad.sent = [0.0] * 784, 1
    assert "nothing is drawn yet" in view.value
    pad.pixels, pad.sent = [1.0] * 784, 2
    assert view.value == "<p>400</p>"


def test_without_a_front_end_the_example_is_shown(monkeypatch):
    monkeypatch.setattr(experiment, "has_front_end", lambda: False)
    shown = []
    monkeypatch.setattr(drawing_pad, "display", shown.append)
    assert drawing_pad.draw(lambda image: f"<p>{image.shape}</p>", torch.zeros(1, 9, 9)) is None
    assert "[1, 1, 9, 9]" in shown[0].data
