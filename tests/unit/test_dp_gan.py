"""Private generators: one door for noise, sensitivities, accountants, clipping, attacks."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from vplib import models
from vplib.attacks.membership_generative import generative as attack
from vplib.defenses.dp_gan import dp_merf, exercises, gs_wgan, pate_gan
from vplib.defenses.dp_gan import dpgan as dp_gan
from vplib.nets import stacked
from vplib.privacy import accounting as dp_accounting

SHAPE, CLASSES, N = (1, 4, 4), 3, 30
GS = dict(num_discriminators=3, warm_up=40, critic_batch=8)


def records(swap=None):
    """Images and labels; with `swap`, another image or another label for record 7."""
    g = torch.Generator().manual_seed(5)
    images = torch.rand(N, *SHAPE, generator=g)
    labels = torch.arange(N) % CLASSES
    if swap == "image":
        images[7] = 1 - images[7]
    if swap == "label":
        labels[7] = (labels[7] + 1) % CLASSES
    return images, labels


def dpgan(pairing, loss="logistic", **settings):
    def train(images, labels, noise):
        generators, critics = dp_gan.train_dpgan(
            images, labels, CLASSES, [noise] * 2, sample_rate=0.9, num_steps=6, critic_steps=2,
            pairing=pairing, loss=loss, hidden=(5,), **settings,
        )  # fmt: skip
        return generators.nets[1] | {f"critic {k}": v for k, v in critics[1].items()}

    return train


def gs(images, labels, noise):
    return gs_wgan.train_gs_wgan(
        images, labels, CLASSES, [noise] * 2, num_steps=4, hidden=(5,), **GS
    ).nets[1]


def pate(images, labels, noise):
    made, _ = pate_gan.train_pate_gan(
        images, labels, CLASSES, [noise] * 2, num_teachers=3, num_rounds=40, hidden=(5,)
    )
    return made.nets[1]


def merf(images, labels, noise):
    return dp_merf.train_dp_merf(images, labels, CLASSES, [noise] * 2, num_steps=15).nets[1]


METHODS = {
    "DPGAN": dpgan("pairs", "wasserstein", weight_clip=0.1, clip=0.5),
    "DP-CGAN": dpgan("halves", clip=0.5),
    "GS-WGAN": gs,
    "PATE-GAN": pate,
    "DP-MERF": merf,
}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("swap", ["image", "label"])
@pytest.mark.parametrize("name", METHODS)
def test_nothing_reaches_the_generator_but_what_is_noised(name, swap, monkeypatch):
    """With `release` replaced by a constant, a swapped record changes nothing that is published."""
    train = METHODS[name]
    before, after = train(*records(), 0.0), train(*records(swap), 0.0)
    assert not equal(before, after)  # without noise the record does show

    def constant(values, scale, law="normal"):
        return torch.linspace(-1, 1, values.numel()).view(values.shape)

    monkeypatch.setattr(dp_gan, "release", constant)
    assert equal(train(*records(), 0.0), train(*records(swap), 0.0))


@pytest.mark.parametrize("swap", ["image", "label"])
@pytest.mark.parametrize(
    ("name", "scale", "reach"),
    [
        ("DPGAN", 0.5 * 1.5, lambda d: d.norm(dim=1).max() <= 2 * 0.5),
        ("DP-CGAN", 0.5 * 1.5, lambda d: d.norm(dim=1).max() <= 2 * 0.5),
        ("GS-WGAN", 2 * 1.5, lambda d: d.norm(dim=2).max() <= 2),
        ("PATE-GAN", 1.5, lambda d: d.abs().max() <= 1),
        ("DP-MERF", 1.5, lambda d: d.flatten(1).norm(dim=1).max() <= 2),
    ],
)
def test_a_swapped_record_moves_the_first_release_within_its_sensitivity(
    name, scale, reach, swap, monkeypatch
):
    """Replaced is removed and added: twice the sensitivity where that is of one record less."""
    seen, scales = [], []

    def watch(values, scale, law="normal"):
        seen.append(values.clone())
        scales.append(scale.clone())
        return values

    monkeypatch.setattr(dp_gan, "release", watch)
    METHODS[name](*records(), 1.5)
    first, count = seen[0], len(seen)
    METHODS[name](*records(swap), 1.5)
    assert reach(seen[count] - first + 0.0)
    assert torch.allclose(scales[0].float(), torch.tensor([scale, scale]))


def test_gs_wgan_changes_only_what_the_records_own_discriminator_answers(monkeypatch):
    seen = []
    monkeypatch.setattr(
        dp_gan, "release", lambda v, s, law="normal": (seen.append(v.clone()), v)[1]
    )
    gs(*records(), 0.0)
    count = len(seen)
    gs(*records("image"), 0.0)
    moved = ((seen[count] - seen[0]).norm(dim=2) > 1e-7).float().mean()
    assert 0 < moved < 0.7  # one of three discriminators


def test_clipped_sums_equal_a_loop_with_autograd():
    critic = models.mlp((6,), 1, (5, 4))
    x = torch.randn(2, 8, 6)
    state = {name: value.detach()[None] for name, value in critic.named_parameters()}
    taken = torch.tensor([[1.0, 1, 0, 1, 1, 1, 1, 1]])
    for loss, value in (
        ("wasserstein", lambda z, real: -z if real else z),
        ("logistic", lambda z, real: torch.nn.functional.softplus(-z if real else z)),
    ):
        parts = [
            stacked.examples(critic, state, x[i][None], dp_gan.push(loss, i == 0))[0]
            for i in (0, 1)
        ]
        for chosen in ([0], [0, 1]):
            want = [torch.zeros_like(p) for p in critic.parameters()]
            for k in range(8):
                total = sum(value(critic(x[i, k][None]), i == 0).sum() for i in chosen)
                found = torch.autograd.grad(total, list(critic.parameters()))
                length = sum((g**2).sum() for g in found).sqrt()
                for w, g in zip(want, found, strict=True):
                    w += taken[0, k] * g * min(1.0, 0.3 / length)
            got, _ = stacked.clipped_sum([parts[i] for i in chosen], 0.3, taken)
            for w, g in zip(want, got.values(), strict=True):
                assert torch.allclose(w, g[0], atol=1e-6)


def test_one_record_weighs_at_most_the_clip_norm():
    nets = dp_gan.new(6, 1, (5,), 1, "cpu")
    x, taken = 5 * torch.randn(1, 8, 6), torch.ones(1, 8)
    parts = [stacked.examples(*nets, x, dp_gan.push("wasserstein", True))[0]]
    without = taken.clone()
    without[0, 3] = 0
    pairs = (stacked.clipped_sum(parts, 0.2, t)[0].values() for t in (taken, without))
    pairs = zip(*pairs, strict=True)
    assert sum(((a - b) ** 2).sum() for a, b in pairs).sqrt() <= 0.2 + 1e-6


def test_noise_has_its_stated_spread():
    """Two-sided tests on 40,000 values each; the four together err once in a thousand runs."""
    torch.manual_seed(0)
    scale, num = torch.tensor([1.0, 3.0]), 40_000
    normal = dp_gan.release(torch.zeros(2, num), scale)
    assert ((normal.std(1) / scale - 1).abs() < 3.7 / math.sqrt(2 * num)).all()
    laplace = dp_gan.release(torch.zeros(2, num), scale, "laplace")
    assert ((laplace.abs().mean(1) / scale - 1).abs() < 3.7 / math.sqrt(num)).all()


def test_poisson_batches_are_independent_coins():
    torch.manual_seed(0)
    hits = torch.zeros(50)
    for _ in range(400):
        rows, taken = dp_gan.poisson_batches(50, 0.2, 3, "cpu")
        assert all(len(set(r.tolist())) == len(r) for r in rows)
        hits.scatter_add_(0, rows.flatten(), taken.flatten())
    assert ((hits / 1200 - 0.2).abs() < 4.5 * math.sqrt(0.16 / 1200)).all()


def test_each_record_is_in_exactly_one_part():
    subsets = torch.stack([torch.arange(40), torch.arange(40) + 40])
    rows, sizes = gs_wgan.partition(subsets, 6)
    for run in (0, 1):
        held = torch.cat([rows[run, k, : sizes[run, k]] for k in range(6)])
        assert sorted(held.tolist()) == subsets[run].tolist()
    drawn = gs_wgan.draw_own(rows, sizes, 9)
    for run in (0, 1):
        for k in range(6):
            own = set(rows[run, k, : sizes[run, k]].tolist())
            assert not own or set(drawn[run, k].tolist()) <= own


def few(method, images, labels, **settings):
    """The generators of a short training by any method."""
    given = dict(images=images, labels=labels, num_classes=CLASSES)
    train, own = {
        "DPGAN": (dp_gan.train_dpgan, dict(sample_rate=0.9, num_steps=4, critic_steps=2)),
        "GS-WGAN": (gs_wgan.train_gs_wgan, dict(num_steps=2, **GS)),
        "PATE-GAN": (pate_gan.train_pate_gan, dict(num_teachers=2, num_rounds=2)),
        "DP-MERF": (dp_merf.train_dp_merf, dict(num_steps=3)),
    }[method]
    noise = "scales" if method == "PATE-GAN" else "sigmas"
    made = train(**given | own | {noise: [0.0, 0.0]} | settings)
    return made if method in ("GS-WGAN", "DP-MERF") else made[0]


TRAINED = ("DPGAN", "GS-WGAN", "PATE-GAN", "DP-MERF")


@pytest.mark.parametrize("method", TRAINED)
def test_runs_see_their_own_rows_only(method):
    subsets = torch.stack([torch.arange(5), torch.arange(10, 15)])  # record 7 is in none
    made = [few(method, *r, subsets=subsets).nets[1] for r in (records(), records("image"))]
    assert equal(*made)


@pytest.mark.parametrize("method", TRAINED)
def test_a_row_given_twice_would_understate_epsilon_and_is_refused(method):
    with pytest.raises(ValueError, match="holds a row twice.*give each row once"):
        few(method, *records(), subsets=torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3]]))


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(subsets=torch.tensor([[0, N], [0, 1]])), "rows 0 to 29 of the 30 images"),
        (dict(subsets=torch.tensor([[0, -1], [0, 1]])), "rows 0 to 29 of the 30 images"),
        (dict(subsets=torch.empty(2, 0, dtype=torch.int64)), "one line for each of 2 runs"),
        (dict(labels=torch.zeros(N, dtype=torch.uint8)), "labels must be int64"),
        (dict(labels=torch.full((N,), -1)), "lie in 0..2"),
        (dict(images=torch.ones(N, *SHAPE, dtype=torch.uint8)), "need float32 .N, C, H, W. images"),
        (dict(images=torch.ones(N, *SHAPE).double()), "not torch.float64 .30, 1, 4, 4. and 30"),
        (dict(images=torch.ones(N, *SHAPE).half()), "not torch.float16 .30, 1, 4, 4. and 30"),
    ],
)
def test_records_that_cannot_be_are_refused_by_every_method(method, change, message):
    images, labels = records()
    with pytest.raises(ValueError, match=message):
        few(method, **dict(images=images, labels=labels) | change)


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf])
def test_noise_that_cannot_be_is_refused_by_every_method(method, noise):
    name = "scales" if method == "PATE-GAN" else "sigmas"
    with pytest.raises(ValueError, match="finite scales of 0 or more"):
        few(method, *records(), **{name: [0.0, noise]})


@pytest.mark.parametrize("method", ["DPGAN", "GS-WGAN"])
def test_no_clipping_goes_without_noise_alone(method):
    with pytest.raises(ValueError, match="clip inf bounds nothing"):
        few(method, *records(), clip=math.inf, sigmas=[0.0, 1.0])
    far, none = (few(method, *records(), clip=clip).nets[1] for clip in (1e9, math.inf))
    assert equal(far, none)  # as right as a clip that nothing reaches


def test_one_part_that_is_always_asked_is_the_gaussian_mechanism():
    for sigma, releases in ((1.0, 1), (4.0, 10)):
        got = gs_wgan.one_of_many_epsilon(sigma, 1, releases, 1e-5)
        want = dp_accounting.epsilon([(sigma, 1.0, releases)], 1e-5)
        assert got == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize(("sigma", "parts"), [(0.8, 10), (2.0, 40)])
def test_one_release_costs_at_least_its_exact_epsilon(sigma, parts):
    """The exact curve: delta(e') = q * delta_Gauss(ln(1 + (exp(e') - 1) / q))."""
    delta = 1e-5

    def exact(epsilon):
        inner = math.log1p(math.expm1(epsilon) * parts)
        mass = norm.cdf(0.5 / sigma - inner * sigma)
        return (mass - math.exp(inner) * norm.cdf(-0.5 / sigma - inner * sigma)) / parts

    got = gs_wgan.one_of_many_epsilon(sigma, parts, 1, delta)
    assert exact(got) <= delta < exact(0.3 * got)


def test_parts_in_secret_cost_more_than_poisson_and_less_than_none():
    got = gs_wgan.one_of_many_epsilon(2.0, 40, 5000, 1e-4)
    assert got > dp_accounting.epsilon([(2.0, 1 / 40, 5000)], 1e-4)
    assert got < gs_wgan.one_of_many_epsilon(2.0, 20, 5000, 1e-4)
    sigma = gs_wgan.one_of_many_sigma(3.0, 40, 5000, 1e-4)
    assert 2.9 < gs_wgan.one_of_many_epsilon(sigma, 40, 5000, 1e-4) <= 3.0


def test_accountants_at_the_edge():
    exact = 696.8  # of one Gaussian release at sigma 0.03, by its hockey-stick divergence
    assert exact <= gs_wgan.one_of_many_epsilon(0.03, 1, 1, 1e-5) <= 1.05 * exact
    for spent in (
        lambda noise, num: gs_wgan.one_of_many_epsilon(noise, 40, num, 1e-4),
        lambda noise, num: pate_gan.vote_epsilon(noise, num, 1e-4),
    ):
        assert spent(0.0, 1) == math.inf
        assert spent(0.0, 0) == spent(1.0, 0) == 0.0
        assert 0 <= spent(1e6, 1) < 0.1  # what the highest order leaves
        for noise, num in ((-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, -1)):
            with pytest.raises(ValueError, match="need noise of 0 or more"):
                spent(noise, num)
    assert gs_wgan.one_of_many_epsilon(50.0, 1, 1, 0.9) == 0.0
    with pytest.raises(ValueError, match="num_parts must be 1 or more, not 0"):
        gs_wgan.one_of_many_epsilon(1.0, 0, 1, 1e-4)
    for delta in (0.0, 1.0):
        with pytest.raises(ValueError, match="a delta between 0 and 1"):
            pate_gan.vote_epsilon(1.0, 1, delta)


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_that_no_noise_meets_is_refused(target):
    with pytest.raises(ValueError, match="no noise from 0.01 to 1e5 gives epsilon"):
        gs_wgan.one_of_many_sigma(target, 40, 100, 1e-4)
    with pytest.raises(ValueError, match="no noise from 0.01 to 1e5 gives epsilon"):
        pate_gan.vote_scale(target, 100, 1e-4)


def test_votes_cost_what_laplace_noise_costs():
    assert pate_gan.vote_epsilon(2.0, 1, 1e-5) <= 0.5
    scale = pate_gan.vote_scale(3.0, 200, 1e-4)
    assert 2.9 < pate_gan.vote_epsilon(scale, 200, 1e-4) <= 3.0
    x = np.linspace(-60, 60, 400_001)
    p, q = np.exp(-abs(x - 1) / 2) / 4, np.exp(-abs(x) / 2) / 4
    order = pate_gan.ORDERS.tolist().index(3)
    by_hand = np.log(np.trapezoid(p**3 / q**2, x)) / 2
    assert pate_gan.laplace_renyi(2.0)[order] == pytest.approx(by_hand, rel=1e-4)


def test_random_features_are_unit_vectors_and_approximate_the_kernel():
    torch.manual_seed(0)
    x = torch.rand(5, 6)
    features = dp_merf.random_features(x, torch.randn(6, 20_000) / 0.7)
    assert torch.allclose(features.norm(dim=1), torch.ones(5), atol=1e-4)
    kernel = (-(torch.cdist(x, x) ** 2) / (2 * 0.7**2)).exp()
    assert torch.allclose(features @ features.T, kernel, atol=0.04)


def test_dp_merf_learns_class_means():
    images, labels = records()
    images = torch.where(labels.view(-1, 1, 1, 1) == 0, 0.9, 0.1) + 0 * images
    made = dp_merf.train_dp_merf(images, labels, CLASSES, [0.0, 0.0], num_steps=300)
    samples = made.sample(torch.tensor([0, 1, 2] * 20))
    means = samples.mean((2, 3, 4)).view(2, 20, 3).mean(1)
    assert means[:, 0].min() > 0.7 and means[:, 1:].max() < 0.3


def test_samples_are_images_of_the_seed():
    made = dp_merf.train_dp_merf(*records(), CLASSES, [1.0, 1.0], num_steps=2)
    labels = torch.arange(9) % CLASSES
    one, other = made.sample(labels, 1), made.sample(labels, 2)
    assert one.shape == (2, 9, *SHAPE) and 0 <= one.min() and one.max() <= 1
    assert torch.equal(one, made.sample(labels, 1)) and not torch.equal(one, other)


def test_equal_seeds_train_equal_generators():
    for train in METHODS.values():
        assert equal(train(*records(), 1.0), train(*records(), 1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(pairing="pair"), "did you mean 'pairs'"),
        (dict(loss="wassertein"), "did you mean 'wasserstein'"),
        (dict(sample_rate=1.2), "sample_rate must lie in .0, 1., not 1.2"),
        (dict(clip=0.0), "clip must be a norm above 0, not 0.0"),
        (dict(clip=math.nan), "clip must be a norm above 0, not nan"),
        (dict(critic_steps=0), "critic_steps must be 1 or more, not 0"),
        (dict(sigmas=[]), "scales of 0 or more"),
        (dict(num_steps=0), "num_steps must be 1 or more"),
        (dict(num_classes=2), "labels must be int64 and lie in 0..1"),
        (dict(images=torch.rand(N, 16)), "need float32 .N, C, H, W. images"),
        (dict(weight_clip=0.0), "weight_clip must be above 0, not 0.0; math.inf for no box"),
        (dict(weight_clip=-0.1), "weight_clip must be above 0, not -0.1"),
        (dict(weight_clip=math.nan), "weight_clip must be above 0, not nan"),
        (dict(subsets=torch.arange(4)), "subsets must be int64 rows"),
    ],
)
def test_bad_settings_are_refused(change, message):
    images, labels = records()
    settings = dict(images=images, labels=labels, num_classes=CLASSES, sigmas=[1.0])
    settings |= dict(sample_rate=0.5, num_steps=3) | change
    with pytest.raises(ValueError, match=message):
        dp_gan.train_dpgan(**settings)


def test_methods_with_parts_need_one():
    with pytest.raises(ValueError, match="num_discriminators must be 1 or more, not 0"):
        few("GS-WGAN", *records(), num_discriminators=0)
    with pytest.raises(ValueError, match="num_teachers must be 1 or more, not 0"):
        few("PATE-GAN", *records(), num_teachers=0)
    with pytest.raises(ValueError, match="warm_up must be 0 or more, not -1"):
        few("GS-WGAN", *records(), warm_up=-1)


def test_divergence_is_said():
    with pytest.raises(FloatingPointError, match="lower lr from 1e"):
        dp_gan.train_dpgan(
            *records(), CLASSES, [0.0], sample_rate=0.9, num_steps=9, critic_steps=1,
            loss="wasserstein", generator_lr=1e38,
        )  # fmt: skip


def test_rankings_by_hand():
    images = torch.zeros(2, 1, 1, 2)
    images[1] = 1.0
    samples = torch.tensor([[[[[0.0, 0.5]]], [[[1.0, 0.0]]]]])  # one generator, two samples
    got = attack.rank_by_samples(samples, images)
    assert torch.allclose(got, torch.tensor([[-0.5, -1.0]]))
    scores = attack.rank_by_discriminator(lambda x: x.sum((2, 3)), images)
    assert scores.tolist() == [0.0, 2.0]
    with pytest.raises(ValueError, match="samples are .1, 2, 2. images"):
        attack.rank_by_samples(torch.zeros(3, 1, 2, 2), images)


WRONG = {
    "clipped_pairs": [
        (lambda r, f, c: None, None),
        (lambda r, f, c: exercises.solve_clipped_pairs(r, f, c) / 3, "the mean"),
        (lambda r, f, c: (r + f).sum(0) / (r + f).sum(0).norm(), "clipped the batch gradient"),
        (lambda r, f, c: (r + f).sum(0), "nothing is clipped"),
        (lambda r, f, c: r + f, "return numbers of shape (2,), not numbers of shape (3, 2)"),
        (
            lambda r, f, c: sum(x * (1 / x.norm()).clamp_max(1) for h in (r, f) for x in h),
            "DP-CGAN",
        ),
        (lambda r, f, c: ((r + f) / (r + f).norm(dim=1, keepdim=True)).sum(0), "does not stretch"),
        (lambda r, f, c: torch.zeros(2), "add the halves"),
    ],
    "reference_score": [
        (lambda x, s, r: None, None),
        (lambda x, s, r: -exercises.solve_reference_score(x, s, r), "turn the sign"),
        (lambda x, s, r: -torch.cdist(x, s).amin(1), "references are missing"),
        (
            lambda x, s, r: torch.cdist(x, r.flatten(0, 1)).amin(1) - torch.cdist(x, s).amin(1),
            "always near",
        ),
        (lambda x, s, r: torch.cdist(x, s), "return numbers of shape (3,), not numbers of"),
        (lambda x, s, r: torch.zeros(3), "of each reference, averaged"),
    ],
    "sanitize": [
        (lambda g, c, s: None, None),
        (lambda g, c, s: g, "return 2 values, not numbers of shape (3, 2)"),
        (lambda g, c, s: (g / g.norm(), 3.0), "whole batch at once"),
        (
            lambda g, c, s: (g.sum(0), 3.0),
            "return numbers of shape (3, 2), not numbers of shape (2,)",
        ),
        (lambda g, c, s: (g, 3.0), "shorten each row"),
        (
            lambda g, c, s: (exercises.solve_sanitize(g, c, s)[0], 1.5),
            "one clip norm is not enough",
        ),
        (lambda g, c, s: (exercises.solve_sanitize(g, c, s)[0], 7.0), "sigma times the most"),
    ],
    "mean_embedding": [
        (lambda f, y, k: None, None),
        (lambda f, y, k: f.sum(0), "a row a class, a column a feature"),
        (lambda f, y, k: torch.stack([f[y == c].mean(0) for c in range(k)]), "0 / 0"),
        (lambda f, y, k: exercises.solve_mean_embedding(f, y, k) / 4, "after the noise"),
        (
            lambda f, y, k: torch.stack(
                [f[y == c].sum(0) / (y == c).sum().clamp_min(1) for c in range(k)]
            ),
            "divides by its size",
        ),
        (lambda f, y, k: torch.ones(k, 2), "add up the features"),
    ],
}


@pytest.mark.parametrize("name", WRONG)
def test_exercises_know_the_solution_and_the_mistakes(name):
    check = getattr(exercises, f"check_{name}")
    assert check(getattr(exercises, f"solve_{name}")).startswith("right")
    for attempt, message in WRONG[name]:
        said = check(attempt)
        assert said is None if message is None else message in said
