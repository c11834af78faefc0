"""Image transforms, by hand: one resize for every loader, and blur, mosaic and mask."""

import math

import pytest
import torch
from PIL import Image

from vplib import datasets
from vplib.datasets import faces, folder, transforms


def some(n=2, height=12, width=12, seed=0):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def ramp(height, width):
    """Each pixel holds its column's number over 100."""
    return (torch.arange(float(width)) / 100).expand(1, 1, height, width)


# resize


def test_resize_to_the_same_size_changes_nothing():
    assert torch.equal(datasets.resize(some(), 12), some())


@pytest.mark.parametrize("size", [1, 5, 12, 31])
def test_resize_keeps_a_constant_and_the_range(size):
    constant = torch.full((2, 3, 12, 12), 0.3)
    torch.testing.assert_close(datasets.resize(constant, size), torch.full((2, 3, size, size), 0.3))
    extremes = (some() > 0.5).float()
    found = datasets.resize(extremes, size)
    assert found.shape == (2, 3, size, size) and found.min() >= 0 and found.max() <= 1


def test_resize_by_half_averages():
    # The weights of a bilinear kernel two pixels wide: 1, 3, 3, 1 eighths; an edge lacks one.
    line = torch.tensor([0.0, 0.4, 0.8, 0.0, 0.2, 0.6, 1.0, 0.2])
    found = datasets.resize(line.expand(1, 1, 8, 8), 4)
    inner = (0.4 + 3 * 0.8 + 3 * 0.0 + 0.2) / 8, (0.0 + 3 * 0.2 + 3 * 0.6 + 1.0) / 8
    ends = (3 * 0.0 + 3 * 0.4 + 0.8) / 7, (0.6 + 3 * 1.0 + 3 * 0.2) / 7
    expected = torch.tensor([ends[0], *inner, ends[1]])
    torch.testing.assert_close(found, expected.expand(1, 1, 4, 4))
    soft = datasets.resize(ramp(16, 16), 8)
    torch.testing.assert_close(soft.mean(), ramp(16, 16).mean())  # symmetric: the mean stays


def test_resize_takes_the_middle_square():
    assert torch.equal(datasets.resize(ramp(4, 10), 4)[0, 0, 0] * 100, torch.arange(3.0, 7))
    assert torch.equal(datasets.resize(ramp(4, 9), 4)[0, 0, 0] * 100, torch.arange(2.0, 6))
    upright = ramp(4, 10).transpose(2, 3)
    assert torch.equal(datasets.resize(upright, 4)[0, 0, :, 0] * 100, torch.arange(3.0, 7))


def test_own_images_are_scaled_by_it(tmp_path):
    pixels = (some(1, 20, 30)[0] * 255).byte()
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "a" / "a.png")
    expected = datasets.resize(pixels[None] / 255, 8)
    assert torch.equal(datasets.load(f"folder:{tmp_path}", "all", image_size=8).images, expected)
    photo = (tmp_path / "a" / "a.png").read_bytes()
    assert torch.equal(folder.read_photo(photo, 8, "a.png"), expected)


# blur


def test_blur_of_a_point_is_the_gaussian():
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    found = transforms.blur(point, 1.5)
    ratio = found[0, 0, 10, 13] / found[0, 0, 10, 10]
    assert ratio == pytest.approx(math.exp(-(3**2) / (2 * 1.5**2)), rel=1e-4)
    assert found.sum() == pytest.approx(1, abs=1e-5) and torch.equal(found, found.mT)


def test_blur_keeps_constants_and_the_range_even_if_it_is_wider_than_the_image():
    assert torch.equal(transforms.blur(some(), 0), some())
    for sigma in (0.5, 2.0, 50.0):
        blurred = transforms.blur(torch.ones(1, 3, 6, 9), sigma)
        assert blurred.max() <= 1 and blurred.min() > 1 - 1e-5
        found = transforms.blur(some(1, 6, 9), sigma)
        assert found.shape == (1, 3, 6, 9) and 0 < found.std() < some(1, 6, 9).std()
    with pytest.raises(ValueError, match="sigma must be 0 or more pixels, not -1"):
        transforms.blur(some(), -1)


# pixelate


def test_pixelate_by_hand():
    image = torch.tensor([[0.0, 0.2, 1.0], [0.4, 0.6, 0.0], [0.1, 0.3, 0.7]]).view(1, 1, 3, 3)
    expected = torch.tensor([[0.3, 0.3, 0.5], [0.3, 0.3, 0.5], [0.2, 0.2, 0.7]])
    torch.testing.assert_close(transforms.pixelate(image, 2)[0, 0], expected)
    assert torch.equal(transforms.pixelate(image, 1), image)
    torch.testing.assert_close(transforms.pixelate(image, 9)[0, 0], image.mean().expand(3, 3))
    with pytest.raises(ValueError, match="a cell must have 1 pixel or more, not 0"):
        transforms.pixelate(image, 0)


def test_pixelate_twice_is_once():
    once = transforms.pixelate(some(), 4)
    torch.testing.assert_close(transforms.pixelate(once, 4), once)
    assert once[0, 0].unique().numel() == 9 and once.max() <= 1


# mask


def test_mask_by_hand():
    where = torch.zeros(2, 12, 12).bool()
    where[0, 3, 4] = True
    found = transforms.mask(some(), where)
    assert found[0, :, 3, 4].tolist() == [0.5] * 3
    found[0, :, 3, 4] = some()[0, :, 3, 4]
    assert torch.equal(found, some())
    assert transforms.mask(some(), torch.ones(2, 12, 12).bool(), value=0.0).max() == 0


def test_a_box_covers_the_pixels_whose_middle_is_inside():
    boxes = torch.tensor([[2.0, 3.5, 4.0, 5.9], [-3.0, -3.0, 0.4, 0.4]])
    covered = transforms.mask(torch.zeros(2, 1, 12, 12), boxes, 1.0)[:, 0]
    assert covered[0].nonzero().tolist() == [[y, x] for y in (4, 5) for x in (2, 3, 4)]
    assert covered[1].nonzero().tolist() == [[0, 0]]


def test_the_faces_truth_fits():
    data = faces.people(range(4), 1, image_size=48, glasses=0, hat=0, occluder=0)
    boxed = transforms.mask(data.images, data.attributes["head_box"], 0.0)
    skin = data.masks == faces.PARTS.index("skin")
    assert boxed.sum(1)[skin].sum() == 0 and boxed.sum() > 0
    eyes = data.masks == faces.PARTS.index("eyes")
    hidden = transforms.mask(data.images, eyes, 0.0)
    assert (hidden != data.images).any(1).sum() == eyes.sum()


def test_four_images_of_width_four_take_boxes_and_masks():
    images = torch.zeros(4, 1, 4, 4)
    assert transforms.mask(images, torch.zeros(4, 4, 4), 1.0).sum() == 0
    assert transforms.mask(images, torch.tensor([[0, 0, 1, 1]] * 4), 1.0).sum() == 16
    with pytest.raises(ValueError, match=r"boxes \(4, 4\) or masks \(4, 4, 4\), not \(3, 4\)"):
        transforms.mask(images, torch.zeros(3, 4))


def test_gradients_reach_the_image():
    image = some(1, 8, 8).requires_grad_()
    for change in (
        lambda x: transforms.blur(x, 1.0),
        lambda x: transforms.pixelate(x, 2),
        lambda x: datasets.resize(x, 4),
    ):
        (gradient,) = torch.autograd.grad(change(image).sum(), image)
        assert gradient.isfinite().all() and gradient.sum() > 0


@pytest.mark.parametrize(
    "transform",
    [
        lambda x: transforms.resize(x, 6),
        lambda x: transforms.blur(x, 1.0),
        lambda x: transforms.pixelate(x, 2),
        lambda x: transforms.mask(x, torch.zeros(2, 4)),
    ],
)
def test_8_bit_images_are_refused(transform):
    for images, said in (
        ((255 * some()).byte(), "not torch.uint8"),
        (255 * some(), "these lie in"),
    ):
        with pytest.raises(ValueError, match=said + ".*divide 8-bit images by 255"):
            transform(images)
