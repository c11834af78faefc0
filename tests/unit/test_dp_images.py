"""Noise at the stated scale, sensitivities that are reached, an audit that catches lies; exercises.

What is tested is the code that releases.
"""

import math

import pytest
import torch
from exercise_cases import assert_judges
from scipy import stats

from vplib.datasets import faces, files, transforms
from vplib.images import dp_images
from vplib.images.dp_images import exercises


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def public():
    return faces.people(range(1000, 1030), 8, sessions=4)


@pytest.fixture(scope="module")
def latent(public):
    return dp_images.fit_latent(public.images, public.labels, 24)


def test_laplace_noise_has_its_scale():
    noise = dp_images.laplace(torch.zeros(20_000), 0.3, rng())
    assert stats.kstest(noise.numpy(), stats.laplace(scale=0.3).cdf).pvalue > 0.01
    assert stats.kstest(noise.numpy(), stats.laplace(scale=0.33).cdf).pvalue < 0.01


def test_metric_noise_has_gamma_length_and_no_direction():
    noise = dp_images.metric_noise(torch.zeros(5000, 6), 2.0, rng())
    assert stats.kstest(noise.norm(dim=1).numpy(), stats.gamma(6, scale=0.5).cdf).pvalue > 0.01
    direction = noise / noise.norm(dim=1, keepdim=True)
    # A coordinate of a uniform direction in six dimensions is a scaled Beta.
    share = ((direction[:, 0] + 1) / 2).numpy()
    assert stats.kstest(share, stats.beta(2.5, 2.5).cdf).pvalue > 0.01


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pixels", [1, 5])
def test_dp_pix_noise_and_worst_neighbors(channels, pixels):
    """The released numbers have noise of sensitivity / epsilon, and neighbors reach it."""
    flat, epsilon, cell = torch.full((1500, channels, 8, 8), 0.5), 40.0, 4
    released = dp_images.pixelize(flat, epsilon, rng(), cell=cell, pixels=pixels)
    numbers = released[:, :, ::cell, ::cell].flatten() - 0.5
    scale = channels * pixels / (cell**2 * epsilon)
    assert stats.kstest(numbers.numpy(), stats.laplace(scale=scale).cdf).pvalue > 0.01
    pair = torch.full((2, channels, 8, 8), 0.5)
    pair[:, :, 0, :pixels] = torch.tensor([0.0, 1.0])[:, None, None]
    without = [dp_images.pixelize(x[None], 1e9, rng(), cell=cell, pixels=pixels) for x in pair]
    moved = (without[0] - without[1])[:, :, ::cell, ::cell].abs().sum().item()
    assert moved == pytest.approx(scale * epsilon, abs=1e-4)  # reached: across two cells, too


def test_density_ratio_of_neighbors_is_bounded_and_nearly_reached():
    pair = torch.tensor([[-3.0], [3.0]])
    made = [
        dp_images.noise_codes(c.expand(200_000, 1), 1.0, rng(i), bound=3.0)
        for i, c in enumerate(pair)
    ]
    edges = torch.linspace(-20, 20, 21)
    first, second = (torch.histc(m, 20, edges[0].item(), edges[-1].item()) for m in made)
    ratio = (first / second).log()
    error = (1 / first + 1 / second).sqrt()
    assert (ratio.abs() < 1 + 4 * error).all() and ratio[0] > 0.9 and ratio[-1] < -0.9


@pytest.mark.parametrize("dim", [1, 10])
def test_codes_are_clipped_and_corners_reach_the_sensitivity(dim):
    corners = torch.tensor([[-9.0], [9.0]]).expand(2, dim)
    without = dp_images.noise_codes(corners, 1e9, rng(), bound=3.0)
    assert (without[1] - without[0]).sum().item() == pytest.approx(6 * dim, abs=1e-3)
    noisy = dp_images.noise_codes(torch.zeros(3000, dim), 2.0, rng(), bound=3.0).flatten()
    assert stats.kstest(noisy.numpy(), stats.laplace(scale=3 * dim).cdf).pvalue > 0.01


def test_clipping_and_levels_come_after_the_noise():
    """Post-processing touches the release alone: the same noise, then clip, then 8 bits."""
    images = torch.rand(4, 3, 8, 8, generator=rng(1))
    means = torch.nn.functional.avg_pool2d(images, 4)
    noisy = dp_images.add_laplace(means, 3 / 16, 0.5, rng())
    assert noisy.min() < 0 and noisy.max() > 1
    released = dp_images.pixelize(images, 0.5, rng(), cell=4)
    assert torch.equal(released[:, :, ::4, ::4], noisy.clamp(0, 1))
    assert torch.equal(files.to_levels(released), files.to_levels(files.to_levels(released)))


def test_noise_lies_on_a_grid_far_below_its_scale():
    noisy = dp_images.add_laplace(torch.rand(100), 3.0, 1.0, rng())
    grid = 2.0**-8
    assert torch.equal(noisy / grid, (noisy / grid).round())


@pytest.mark.parametrize("epsilon", [0, -1, math.nan])
def test_an_epsilon_that_cannot_be(epsilon, latent):
    photo = torch.rand(1, 3, 32, 32)
    for release in (
        lambda: dp_images.pixelize(photo, epsilon, rng(), cell=4),
        lambda: dp_images.noise_values(photo, epsilon, rng()),
        lambda: dp_images.noise_latent(photo, epsilon, rng(), latent=latent),
        lambda: dp_images.noise_features(photo, epsilon, rng(), latent=latent),
        lambda: dp_images.noise_identity(photo, epsilon, rng(), latent=latent),
    ):
        with pytest.raises(ValueError, match="above 0"):
            release()


@pytest.mark.parametrize("cell, pixels", [(5, 1), (0, 1), (4, 0)])
def test_cells_that_do_not_fill(cell, pixels):
    with pytest.raises(ValueError, match="must fill"):
        dp_images.pixelize(torch.rand(1, 1, 8, 8), 1.0, rng(), cell=cell, pixels=pixels)


def test_a_protection_is_repeatable_and_has_other_noise_for_other_photos(public):
    from functools import partial

    protect = dp_images.protection(partial(dp_images.pixelize, cell=4), 1.0)
    first, again = protect(public), protect(public)
    assert torch.equal(first, again)
    less = protect(public.subset(range(4)))
    assert not torch.equal(less, first[:4])
    assert not torch.equal(first[0], first[1])


def test_singular_values_and_vectors_apart():
    images = torch.rand(3, 1, 8, 8)
    values = torch.linalg.svdvals(images)
    torch.testing.assert_close(dp_images.with_values(images[:1], values[0]), images[:1])
    torch.testing.assert_close(dp_images.with_vectors(images[:1], images[0]), images[:1])
    released = dp_images.noise_values(images, 1e6, rng(), count=8)
    torch.testing.assert_close(released, images, atol=1e-3, rtol=0)


def test_the_code_is_divided_without_loss_and_identity_tells_people_apart(public, latent):
    whole = latent.faces.decode(latent.faces.encode(public.images))
    divided = latent.split(public.images)
    torch.testing.assert_close(latent.join(divided), whole, atol=1e-3, rtol=0)
    torch.testing.assert_close(divided.std(0), torch.ones(24), atol=1e-2, rtol=0)
    means = torch.stack([divided[public.labels == k].mean(0) for k in range(30)])
    between = means.var(0) / divided.var(0)
    assert 1 <= latent.identity < 24
    assert between[: latent.identity].min() > between[latent.identity :].max()
    assert between[: latent.identity].min() > 0.4 > between[latent.identity :].mean()


def test_identity_noise_leaves_the_attribute_code(public, latent):
    photos, k = public.images[:5], latent.identity
    calm = latent._replace(bound=1e-3)  # so that decoding clips nothing
    released = dp_images.noise_identity(photos, 1.0, rng(), latent=calm)
    before, after = latent.split(photos), latent.split(released)
    assert (after[:, :k]).abs().max() < 0.3 < before[:, :k].abs().max()
    assert (after[:, k:] - before[:, k:]).abs().mean() < 0.2


def test_people_are_alike_in_a_latent_release(public, latent):
    """With epsilon for any two photos, a wholly black and a white photo are hardly told apart."""
    pair = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])

    def release(photos, draws):
        return dp_images.noise_latent(photos, 1.0, draws, latent=latent)

    assert dp_images.keeps(*dp_images.distinguish(release, pair, rng(), trials=2000), 1.0)


def test_a_crop_is_replaced_inside_its_box_alone(latent):
    images = torch.rand(2, 3, 64, 64)
    boxes = torch.tensor([[10.2, 12.0, 40.0, 50.5], [-3.0, -3.0, 20.0, 90.0]])
    released = dp_images.replace_crops(images, 1.0, rng(), boxes=boxes, latent=latent)
    _, places = dp_images.cut(images, boxes, 32)
    assert places == [[10, 12, 41, 52], [0, 0, 21, 64]]
    outside = torch.ones(2, 64, 64, dtype=torch.bool)
    for where, (left, top, right, bottom) in zip(outside, places, strict=True):
        where[top:bottom, left:right] = False
    outside = outside[:, None].expand_as(images)
    assert torch.equal(released[outside], images[outside])
    assert (released[~outside] != images[~outside]).float().mean() > 0.9


def test_a_code_of_one_number_has_no_two_parts(public):
    with pytest.raises(ValueError, match="two numbers"):
        dp_images.fit_latent(public.images, public.labels, 1)
    with pytest.raises(ValueError, match="below the 5 photos"):
        dp_images.fit_latent(public.images[:5], public.labels[:5], 5)


def test_limits_by_hand():
    assert dp_images.most_named(0, 40) == pytest.approx(1 / 40)
    assert dp_images.most_named(math.log(3), 2) == pytest.approx(0.75)
    assert dp_images.most_named(math.log(3), 4) == pytest.approx(0.5)
    assert dp_images.most_named(1000, 2) == 1
    assert dp_images.least_rate(0, 10) == 0
    assert dp_images.least_rate(10, 10) == pytest.approx(0.001 ** (1 / 10))
    low = dp_images.least_rate(30, 100)
    assert stats.binom.sf(29, 100, low) == pytest.approx(0.001)
    with pytest.raises(ValueError, match="cannot be"):
        dp_images.least_rate(11, 10)


def test_the_strongest_of_many_attackers_needs_more_evidence():
    hits = next(n for n in range(100) if dp_images.least_rate(n, 100) > 0.5)
    assert not dp_images.keeps(hits, 100, 0.0) and dp_images.keeps(hits, 100, 0.0, attackers=10)


def test_identity_release_without_attributes_forgets_them(public, latent):
    photos, k = public.images[:3], latent.identity
    codes = latent.split(photos).clamp(-latent.bound, latent.bound)
    codes[:, k:] = 0
    made = dp_images.noise_identity(photos, 1e9, rng(), latent=latent, attributes=False)
    torch.testing.assert_close(made, latent.join(codes), atol=1e-3, rtol=0)


def audited(dim, noise, seed, trials=20_000):
    corners = torch.tensor([[-3.0], [3.0]]).expand(2, dim)

    def release(codes, draws):
        return dp_images.noise_codes(codes, 1 / noise, draws, bound=3.0)

    return dp_images.keeps(*dp_images.distinguish(release, corners, rng(seed), trials=trials), 1.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "dim, noise, kept",
    [(1, 1, True), (64, 1, True), (64, 1 / 64, False), (64, 0.1, False), (1, 0.5, False)],
)
def test_the_audit_passes_the_honest_and_catches_who_lies(dim, noise, kept, seed):
    assert audited(dim, noise, seed) is kept


@pytest.mark.parametrize("noise, kept", [(1, True), (0.5, False), (1 / 3, False)])
def test_the_audit_of_dp_pix(noise, kept):
    """Half the noise, or the three channels forgotten, are caught."""
    pair = torch.full((2, 3, 8, 8), 0.5)
    pair[:, :, 0, 0] = torch.tensor([0.0, 1.0])[:, None]

    def release(photos, draws):
        return dp_images.pixelize(photos, 1.5 / noise, draws, cell=4)

    centers = transforms.pixelate(pair, 4)
    found = dp_images.distinguish(release, pair, rng(3), centers=centers)
    assert dp_images.keeps(*found, 1.5) is kept


def test_the_audit_finds_the_bits_of_floating_point():
    pair = torch.tensor([[-3.0], [3.0]])

    def release(codes, draws):
        return codes + dp_images.laplace(codes, 6.0, draws)

    assert not dp_images.keeps(*dp_images.distinguish(release, pair, rng()), 1.0)


CASES = {
    "release": [
        (lambda x, e, g, c, m: x[..., :4], "return"),
        (lambda x, e, g, c, m: x + dp_images.laplace(x, 0.01, g), "each cell has one value"),
        (lambda x, e, g, c, m: exercises.solve_release(x, 3 * e, g, c, m), "channels count"),
        (lambda x, e, g, c, m: exercises.solve_release(x, e, g, c, 1), "not in one"),
        (lambda x, e, g, c, m: exercises.solve_release(x, e / c, g, c, m), "not by 1 / cell"),
        (lambda x, e, g, c, m: transforms.pixelate(x, c), "no noise"),
        (
            lambda x, e, g, c, m: exercises.solve_release(0 * x + 0.5, e, g, c, m),
            "hardly any noise",
        ),
    ],
    "whole_face": [
        (lambda h, w, c, m, e: e * math.ceil(h * w / m), "channels"),
        (lambda h, w, c, m, e: c * e * h * w / m, "round up"),
        (lambda h, w, c, m, e: c * e * (h * w // m), "not down"),
    ],
    "code_scale": [
        (lambda a, b, e: ((b - a).max() / e).item(), "one number"),
        (lambda a, b, e: (b.sum() / e).item(), "high - low"),
        (lambda a, b, e: ((b - a).norm() / e).item(), "L2"),
        (lambda a, b, e: (b - a).sum().item(), "divide by epsilon"),
    ],
    "evidence": [
        (lambda r, a, b, s: -exercises.solve_evidence(r, a, b, s), "the sign"),
        (lambda r, a, b, s: exercises.solve_evidence(r, a, b, 1), "scale"),
        (lambda r, a, b, s: exercises.solve_evidence(r, a, b, s) / 2, "not mean"),
        (lambda r, a, b, s: ((r - a) ** 2 - (r - b) ** 2).sum(-1) / s, "Gaussian"),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_exercises(name):
    assert_judges(exercises, name, CASES[name])
