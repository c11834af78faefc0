"""Cloaks stay within their budget on every photo, move the embedding, and refuse what cannot be."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from vplib import metrics
from vplib.images.adversarial_cloaking import cloaks as cloaking
from vplib.victims import recognition

BUDGET = 0.007
LAID = dict(k=2, cells=4, opacity=0.4)


def photos(n=5, channels=3, size=32, seed=0):
    """Smooth pictures, in the middle of the range."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 5, 5, generator=rng)
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear") * 0.6 + 0.2


def extractor(channels=3, size=32, seed=0):
    """An untrained network: its embedding can be moved as a trained one's can."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        embed = recognition.resnet((channels, size, size), channels=(4, 6, 8))
        embed.train()(torch.rand(64, channels, size, size))  # fills the batch norms
    return embed.eval().requires_grad_(False)


def targets(embed, n=5, seed=9):
    return embed(photos(n, seed=seed)).detach()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(11, 11), (32, 32), (24, 40)])
def test_dssim_is_that_of_torchmetrics(channels, size):
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(4, channels, *size, generator=rng, dtype=torch.float64)
    y = (x + 0.1 * torch.randn(x.shape, generator=rng, dtype=torch.float64)).clamp(0, 1)
    expected = (1 - metrics.ssim(x, y).view(4)) / 2
    assert torch.allclose(cloaking.dssim(x, y), expected, atol=1e-9)
    assert torch.allclose(cloaking.dssim(x, x), torch.zeros(4, dtype=torch.float64), atol=1e-12)


def test_the_gradient_of_dssim_is_that_of_torchmetrics():
    y, start = photos(3).double(), photos(3, seed=2).double()
    found = []
    for measure in (lambda x: cloaking.dssim(x, y), lambda x: (1 - metrics.ssim(x, y)) / 2):
        x = start.clone().requires_grad_()
        found.append(torch.autograd.grad(measure(x).sum(), x)[0])
    assert torch.allclose(*found, atol=1e-9)


@pytest.mark.parametrize("budget", [1e-4, BUDGET, 0.1, 1.0])
@pytest.mark.parametrize("lr", [0.001, 0.3])
def test_no_photo_exceeds_its_budget(budget, lr):
    embed = extractor()
    x = photos()
    made = cloaking.cloak(x, targets(embed), embed, budget=budget, num_steps=6, lr=lr)
    assert (made >= 0).all() and (made <= 1).all()
    assert torch.equal(made, cloaking.to_levels(made))  # a PNG file loses nothing
    original = cloaking.to_levels(x)
    measured = (1 - metrics.ssim(cloaking.to_png(made), original)) / 2
    assert (measured <= budget).all()


def test_a_cloak_moves_towards_its_target_and_further_with_a_larger_budget():
    embed = extractor()
    x, goal = photos(), targets(embed)

    def distance(made):
        return (embed(made) - goal).square().sum(1)

    made = [distance(cloaking.cloak(x, goal, embed, budget=b, num_steps=40)) for b in (0.002, 0.03)]
    assert (made[0] < distance(x)).all()
    assert made[1].mean() < made[0].mean()


def test_a_loss_of_ones_own_is_what_is_minimized():
    embed, x = extractor(), photos()
    settings = dict(targets=targets(embed), extractor=embed, budget=0.01, num_steps=6)
    default = cloaking.cloak(x, **settings)
    assert torch.equal(default, cloaking.cloak(x, loss=cloaking.penalized, **settings))
    away = cloaking.cloak(x, loss=lambda d, e, b, w: -cloaking.penalized(d, e, b, w), **settings)
    before, hidden, fled = (
        (embed(y) - settings["targets"]).square().sum(1).mean() for y in (x, default, away)
    )
    assert hidden < before <= fled


def test_photos_together_and_one_by_one_give_the_same_cloaks():
    embed = extractor()
    x, goal = photos(), targets(embed)
    torch.manual_seed(3)
    together = cloaking.cloak(x, goal, embed, num_steps=15, seed=4)
    torch.manual_seed(5)  # not drawn on
    assert torch.equal(together, cloaking.cloak(x, goal, embed, num_steps=15, seed=4))
    assert not torch.equal(together, cloaking.cloak(x, goal, embed, num_steps=15, seed=5))
    for i in range(len(x)):
        alone = cloaking.cloak(x[i : i + 1], goal[i : i + 1], embed, num_steps=15, seed=4)
        near = (embed(alone) - embed(together[i : i + 1])).norm()
        assert near < 0.15  # the start differs: noise of half a gray level is drawn for the batch


def test_extractors_are_left_as_they_were():
    embed = extractor()
    before = {k: v.clone() for k, v in embed.state_dict().items()}
    cloaking.cloak(photos(), targets(embed), embed, num_steps=2)
    assert all(torch.equal(v, before[k]) for k, v in embed.state_dict().items())


@pytest.mark.parametrize("budget", [0, -0.1, 1.01, float("nan")])
def test_a_budget_that_cannot_be(budget):
    embed = extractor()
    with pytest.raises(ValueError, match="budget is a DSSIM"):
        cloaking.cloak(photos(), targets(embed), embed, budget=budget)
    with pytest.raises(ValueError, match="budget is a DSSIM"):
        cloaking.within_budget(photos(), photos(), budget)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(images=photos(size=10)), "no usable size"),
        (dict(images=photos()[0]), "photos must be"),
        (dict(images=photos(0)), "photos must be"),
        (dict(images=torch.rand(5, 4, 32, 32)), "photos must be"),
        (dict(targets=torch.rand(4, 8)), "targets must be"),
        (dict(targets=torch.rand(5, 7)), "targets must be"),
        (dict(targets=torch.rand(2, 5, 8)), "targets must be"),
        (dict(num_steps=0), "num_steps"),
        (dict(num_steps=2.5), "num_steps"),
        (dict(lr=float("nan")), "lr above 0"),
        (dict(lr=0.0), "lr above 0"),
        (dict(loss=lambda d, e, b, w: d.sum()), r"must give \(5,\) numbers, not \(\)"),
    ],
)
def test_what_cannot_be_cloaked(wrong, message):
    embed = extractor()
    given = dict(images=photos(), targets=targets(embed)) | wrong
    with pytest.raises(ValueError, match=message):
        cloaking.cloak(given.pop("images"), given.pop("targets"), embed, **given)


def test_noise_reaches_the_same_dssim():
    noise = torch.randn(photos().shape, generator=torch.Generator().manual_seed(0))
    made = cloaking.within_budget(photos(), noise, BUDGET)
    found = cloaking.dssim(made, cloaking.to_levels(photos()))
    assert (found <= BUDGET).all() and (found > 0.8 * BUDGET).all()


def test_a_change_within_the_budget_is_kept_whole():
    change = torch.full((5, 3, 32, 32), 1 / 255)
    x = cloaking.to_levels(photos())
    assert torch.allclose(cloaking.within_budget(x, change, 0.5), x + change, atol=1e-6)


def test_the_farthest_target_is_chosen():
    user = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    candidates = torch.tensor([[0.9, 0.0], [-1.0, 0.0], [-1.0, 0.2], [0.0, 1.0]])
    names = torch.tensor([7, 8, 8, 9])
    assert cloaking.choose_target(user, candidates, names, known=torch.tensor([1, 2])) == 8
    with pytest.raises(ValueError, match=r"candidates \[8\] are among the people"):
        cloaking.choose_target(user, candidates, names, known=torch.tensor([8]))
    with pytest.raises(ValueError, match="0 names"):
        cloaking.choose_target(user, candidates[:0], names[:0], known=torch.tensor([1]))


def test_a_universal_perturbation_turns_embeddings_within_its_size():
    several = [extractor(seed=s) for s in (0, 1)]
    change = cloaking.universal_perturbation(photos(20), several, size=0.1, num_steps=20)
    assert change.shape == (3, 32, 32) and change.abs().max() <= 0.1
    new = photos(6, seed=5)
    rng = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(change.shape, generator=rng).sign()
    for embed in several:
        turned, shaken = (embed((new + d).clamp(0, 1)) for d in (change, noise))
        assert (turned * embed(new)).sum(1).mean() < (shaken * embed(new)).sum(1).mean()
    with pytest.raises(ValueError, match="size must lie above 0"):
        cloaking.universal_perturbation(photos(), several, size=0, num_steps=1)
    for networks, num_steps in (([], 1), (several, 0), (several, 2.5)):
        with pytest.raises(ValueError, match="extractors and num_steps must be 1 or more"):
            cloaking.universal_perturbation(photos(), networks, size=0.1, num_steps=num_steps)


def test_an_overlay_is_removed_with_its_key_only():
    x, pool = photos(), photos(6, seed=3)
    settings = dict(key=11, k=2, cells=4, opacity=0.4)
    laid = cloaking.overlay(x, pool, **settings)
    assert (laid - x).abs().mean() > 0.02
    assert torch.allclose(cloaking.remove_overlay(laid, pool, **settings), x, atol=1e-5)
    wrong = cloaking.remove_overlay(laid, pool, **settings | dict(key=12))
    assert (wrong - x).abs().mean() > 0.02
    changes = (laid - 0.6 * x)[:2]
    assert not torch.allclose(changes[0], changes[1])  # each photo has its own


def test_a_key_opens_one_photo_out_of_a_batch():
    x, pool = photos(), photos(6, seed=3)
    laid = cloaking.overlay(x, pool, key=11, number=3, **LAID)
    for i in range(len(x)):
        one = cloaking.remove_overlay(laid[i : i + 1], pool, key=11, number=3 + i, **LAID)
        assert torch.allclose(one, x[i : i + 1], atol=1e-5)
    other = cloaking.remove_overlay(laid[:1], pool, key=11, number=4, **LAID)
    assert (other - x[:1]).abs().mean() > 0.02
    assert torch.equal(laid[2:], cloaking.overlay(x[2:], pool, key=11, number=5, **LAID))


@pytest.mark.parametrize("wrong", [None, -1, 1.5, True, "secret", [1, 2]])
@pytest.mark.parametrize("name", ["key", "number"])
def test_a_key_is_a_whole_number(name, wrong):
    for change in (cloaking.overlay, cloaking.remove_overlay):
        with pytest.raises(ValueError, match="key and number must be whole numbers"):
            change(photos(), photos(6), **LAID, **dict(key=1) | {name: wrong})


def test_an_overlay_keeps_the_pixels_of_its_pictures():
    x, pool = torch.zeros(1, 1, 8, 8), torch.arange(64.0).view(1, 1, 8, 8) / 64
    laid = cloaking.overlay(x, pool, key=0, k=1, cells=4, opacity=0.5)
    assert torch.allclose(laid.flatten().sort().values, pool.flatten() / 2)


@pytest.mark.parametrize(
    "wrong", [dict(opacity=1.0), dict(opacity=-0.1), dict(k=0), dict(k=7), dict(cells=5)]
)
def test_overlays_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="opacity|overlays"):
        cloaking.overlay(photos(), photos(6), key=0, **LAID | wrong)
    with pytest.raises(ValueError, match="overlays"):
        cloaking.overlay(photos(), photos(6, size=16), key=0, **LAID)


@pytest.mark.parametrize("channels", [1, 3])
def test_files_keep_shape_and_range(channels):
    x = photos(channels=channels)
    png = cloaking.to_png(x)
    assert png.shape == x.shape and torch.equal(png, cloaking.to_levels(x))
    good, bad = cloaking.to_jpeg(x, 95), cloaking.to_jpeg(x, 10)
    assert good.shape == x.shape and (good - x).abs().mean() < (bad - x).abs().mean()
    assert torch.equal(good, cloaking.to_levels(good))


def test_jpeg_keeps_color_where_it_is_not_halved():
    checks = torch.zeros(1, 3, 16, 16)
    checks[:, 0] = (torch.arange(16)[:, None] + torch.arange(16)) % 2  # red and black
    halved, kept = (cloaking.to_jpeg(checks, 95, halve_color=h) for h in (True, False))
    assert (kept - checks).abs().mean() < 0.05 < (halved - checks).abs().mean()
    gray = photos(channels=1)
    assert torch.equal(cloaking.to_jpeg(gray, 90), cloaking.to_jpeg(gray, 90, halve_color=False))


@pytest.mark.parametrize("quality", [0, 96])
def test_a_quality_that_cannot_be(quality):
    with pytest.raises(ValueError, match="quality"):
        cloaking.to_jpeg(photos(), quality)


@pytest.mark.parametrize("quality", [90.5, True])
def test_a_quality_is_a_whole_number(quality):
    with pytest.raises(ValueError, match="whole number from 1 to 95"):
        cloaking.to_jpeg(photos(), quality)


EIGHT_BIT = {
    "uint8": (photos() * 255).to(torch.uint8),
    "0..255": photos() * 255,
    "negative": photos() - 0.5,
    "nan": torch.full((5, 3, 32, 32), torch.nan),
}
TAKES_PHOTOS = {
    "to_png": cloaking.to_png,
    "to_jpeg": lambda x: cloaking.to_jpeg(x, 90),
    "encode": lambda x: cloaking.encode(x[0]),
    "dssim": lambda x: cloaking.dssim(x, x),
    "references": lambda x: cloaking.dssim(photos(), x),
    "cloak": lambda x: cloaking.cloak(x, targets(extractor()), extractor(), num_steps=1),
    "within_budget": lambda x: cloaking.within_budget(x, torch.zeros(x.shape), BUDGET),
    "universal": lambda x: cloaking.universal_perturbation(x, [extractor()], size=0.1, num_steps=1),
    "overlay": lambda x: cloaking.overlay(x, photos(), key=0, **LAID),
    "overlay's pool": lambda x: cloaking.overlay(photos(), x, key=0, **LAID),
    "remove_overlay": lambda x: cloaking.remove_overlay(x, photos(), key=0, **LAID),
}


@pytest.mark.parametrize("given", EIGHT_BIT)
@pytest.mark.parametrize("taken", TAKES_PHOTOS)
def test_photos_that_are_not_between_zero_and_one_are_refused(taken, given):
    with pytest.raises(ValueError, match=r"images must (be floating point|lie) in \[0, 1\]"):
        TAKES_PHOTOS[taken](EIGHT_BIT[given])


@pytest.mark.parametrize("shape", [(3, 32, 32), (0, 3, 32, 32), (2, 2, 32, 32), (2, 3, 0, 32)])
@pytest.mark.parametrize("write", [cloaking.to_png, TAKES_PHOTOS["to_jpeg"]])
def test_what_is_no_set_of_photos(write, shape):
    with pytest.raises(ValueError, match="photos"):
        write(torch.zeros(shape))


def test_one_photo_is_written_as_a_file():
    from PIL import Image

    for x in (photos(1)[0], photos(1, channels=1)[0]):
        read = np.asarray(Image.open(io.BytesIO(cloaking.encode(x))))
        assert np.array_equal(read, (x.permute(1, 2, 0) * 255).round().squeeze(-1).numpy())
    with pytest.raises(ValueError, match="photos must be"):
        cloaking.encode(photos(2))


TRAIN = [cloaking.nearest, cloaking.softmax_head]


@pytest.mark.parametrize("train", TRAIN)
def test_each_tracker_names_whom_it_was_shown(train):
    rng = torch.Generator().manual_seed(0)
    centers = nn.functional.normalize(torch.randn(4, 16, generator=rng), dim=1)
    people = torch.tensor([3, 5, 8, 9]).repeat_interleave(6)
    first, second, probes = (
        nn.functional.normalize(
            centers.repeat_interleave(6, 0) + 0.1 * torch.randn(24, 16, generator=rng), dim=1
        )
        for _ in range(3)
    )
    swapped = second.roll(6, 0)  # this tracker was shown everybody under the next one's name
    said = train(torch.stack([first, swapped]), people)(probes)
    assert torch.equal(said[0], people)
    assert torch.equal(said[1], people.roll(-6))


def test_heads_trained_together_and_alone_are_equal():
    rng = torch.Generator().manual_seed(0)
    galleries = nn.functional.normalize(torch.randn(3, 12, 16, generator=rng), dim=2)
    people, probes = torch.arange(12) % 4, galleries[0]
    together = cloaking.softmax_head(galleries, people)(probes)
    for i in range(3):
        alone = cloaking.softmax_head(galleries[i : i + 1], people)(probes)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("train", TRAIN)
@pytest.mark.parametrize(
    "galleries, people",
    [((6, 8), 6), ((2, 6, 8), 5), ((2, 0, 8), 0), ((0, 6, 8), 6)],
    ids=["one gallery", "a name missing", "no photo", "no tracker"],
)
def test_a_tracker_without_photos_or_names(train, galleries, people):
    with pytest.raises(ValueError, match="galleries must be"):
        train(torch.zeros(galleries), torch.zeros(people, dtype=torch.int64))


@pytest.mark.parametrize("num_steps", [0, 2.5, True])
def test_a_head_takes_a_step(num_steps):
    with pytest.raises(ValueError, match="num_steps must be a whole number"):
        cloaking.softmax_head(torch.rand(1, 4, 8), torch.arange(4), num_steps=num_steps)


@pytest.mark.parametrize("train", TRAIN)
def test_nan_is_nobody(train):
    galleries = nn.functional.normalize(torch.eye(4, 8), dim=1)[None]
    probes = torch.eye(4, 8)
    probes[1, 2] = torch.nan
    said = train(galleries, torch.tensor([5, 6, 7, 8]))(probes)
    assert said.tolist() == [[5, -1, 7, 8]]
    galleries[0, 3, 0] = torch.nan
    with pytest.raises(ValueError, match="galleries must be finite"):
        train(galleries, torch.arange(4))


def test_a_target_needs_photos_of_the_user():
    candidates, names, known = torch.eye(3), torch.arange(3), torch.tensor([9])
    for wrong in (torch.zeros(0, 3), torch.zeros(2, 4)):
        with pytest.raises(ValueError, match="embeddings"):
            cloaking.choose_target(wrong, candidates, names, known=known)


@pytest.mark.parametrize("wrong", [dict(k=1.5), dict(cells=2.0), dict(k=True)])
def test_overlays_are_counted_in_whole_numbers(wrong):
    with pytest.raises(ValueError, match="overlays"):
        cloaking.overlay(photos(), photos(6), key=0, **LAID | wrong)
