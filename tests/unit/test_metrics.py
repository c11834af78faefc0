"""Metrics against hand counts, scikit-learn, scipy, scikit-image and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binomtest
from skimage.metrics import peak_signal_noise_ratio as skimage_psnr
from skimage.metrics import structural_similarity
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve
from torchmetrics.functional.image import peak_signal_noise_ratio

from vplib import metrics

QUICK = settings(deadline=None, max_examples=40)

# Scores with many ties, and at least one member and one nonmember.
labelled = st.lists(
    st.tuples(st.integers(-3, 3).map(float), st.booleans()), min_size=2, max_size=40
).filter(lambda pairs: len({member for _, member in pairs}) == 2)


def tensors(pairs):
    scores, members = zip(*pairs, strict=True)
    return torch.tensor(scores), torch.tensor(members)


def some_victims(victims=8, records=60, seed=0):
    rng = torch.Generator().manual_seed(seed)
    members = torch.rand(victims, records, generator=rng) < 0.5
    return torch.randn(victims, records, generator=rng) + members, members


# ROC and AUC


@QUICK
@given(labelled)
def test_auc_is_the_chance_that_a_member_outscores_a_nonmember(pairs):
    scores, members = tensors(pairs)
    inside, outside = scores[members], scores[~members]
    wins = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside)
    assert metrics.auc(scores, members) == pytest.approx(float(wins.mean()), abs=1e-12)


def test_auc_by_hand():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    members = torch.tensor([True, False, True, False])  # 3 of 4 pairs are in order
    assert metrics.auc(scores, members) == pytest.approx(0.75)
    assert metrics.auc(-scores, members) == pytest.approx(0.25)
    assert metrics.auc(torch.zeros(4), members) == 0.5


@QUICK
@given(labelled)
def test_roc_is_scikit_learns(pairs):
    scores, members = tensors(pairs)
    fpr, tpr = metrics.roc(scores, members)
    peer_fpr, peer_tpr, _ = roc_curve(members.numpy(), scores.numpy())
    assert np.array_equal(fpr, peer_fpr) and np.array_equal(tpr, peer_tpr)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all()
    area = roc_auc_score(members.numpy(), scores.numpy())
    assert metrics.auc(scores, members) == pytest.approx(area, abs=1e-12)


def test_several_victims_are_pooled():
    scores, members = some_victims()
    assert metrics.auc(scores, members) == metrics.auc(scores.flatten(), members.flatten())
    for ours, flat in zip(
        metrics.roc(scores, members),
        metrics.roc(scores.flatten(), members.flatten()),
        strict=True,
    ):
        assert np.array_equal(ours, flat)


def test_scores_may_carry_gradients():
    scores, members = some_victims()
    assert metrics.auc(scores.requires_grad_(), members) > 0.5


# TPR at FPR


def test_tpr_at_fpr_by_hand():
    outside = torch.arange(100) / 100  # 0.00 to 0.99
    inside = torch.tensor([0.5, 0.97, 0.975, 0.985, 2.0])
    scores = torch.cat([inside, outside])
    members = torch.arange(105) < 5
    # One of 100 may lie above the threshold: 0.98 it is, and above it are 0.985 and 2.0.
    assert metrics.tpr_at_fpr(scores, members, 0.01).value == pytest.approx(2 / 5)
    # Two: the threshold is 0.97, and 0.97 itself is not above it.
    assert metrics.tpr_at_fpr(scores, members, 0.02).value == pytest.approx(3 / 5)
    # 2.9 % of 100 allows two.
    assert metrics.tpr_at_fpr(scores, members, 0.029).value == pytest.approx(3 / 5)
    assert metrics.tpr_at_fpr(scores, members, 0.5).value == pytest.approx(5 / 5)
    assert metrics.tpr_at_fpr(scores, members, 1.0).value == 1


def test_tpr_at_fpr_with_ties():
    scores = torch.tensor([1.0, 1, 0, 1, 1, 0, 0])
    members = torch.tensor([True, True, True, False, False, False, False])
    # A threshold below 1 lets two of four nonmembers through, so 25 % allows none of the ties.
    assert metrics.tpr_at_fpr(scores, members, 0.25).value == 0
    assert metrics.tpr_at_fpr(scores, members, 0.5).value == pytest.approx(2 / 3)


@QUICK
@given(labelled, st.floats(0.05, 1), st.integers(-4, 4).map(float))
def test_rates_by_counting_pairs(pairs, fpr, threshold):
    scores, members = tensors(pairs)
    inside = [s for s, m in pairs if m]
    outside = [s for s, m in pairs if not m]
    advantage = sum(s > threshold for s in inside) / len(inside)
    advantage -= sum(s > threshold for s in outside) / len(outside)
    assert metrics.membership_advantage(scores, members, threshold) == pytest.approx(advantage)
    if fpr * len(outside) < 1:
        return
    # All cuts there are: a member is found where it lies above the cut, never where it ties.
    cuts = [-math.inf, *sorted({s for s, _ in pairs})]
    found = [
        sum(s > cut for s in inside) / len(inside)
        for cut in cuts
        if sum(s > cut for s in outside) <= fpr * len(outside) + 1e-9
    ]
    assert metrics.tpr_at_fpr(scores, members, fpr).value == pytest.approx(max(found))


def test_constant_scores_find_nobody():
    scores, members = torch.ones(40), torch.arange(40) < 20
    assert metrics.auc(scores, members) == 0.5
    assert metrics.tpr_at_fpr(scores, members, 0.9).value == 0
    assert metrics.membership_advantage(scores, members, 1.0) == 0
    assert metrics.balanced_accuracy(scores, members, 1.0) == 0.5


def test_infinite_scores_are_scores():
    scores = torch.tensor([math.inf, 1.0, math.inf, 0.0, -math.inf])
    members = torch.tensor([True, True, False, False, False])
    fpr, tpr = metrics.roc(scores, members)
    assert list(zip(fpr, tpr, strict=True)) == [
        (0, 0),
        (pytest.approx(1 / 3), 0.5),
        (pytest.approx(1 / 3), 1),
        (1, 1),
    ]
    assert metrics.auc(scores, members) == pytest.approx((2.5 + 2) / 6)
    assert metrics.tpr_at_fpr(scores, members, 0.34).value == 1


def test_rounding_does_not_cost_a_nonmember():
    assert 0.29 * 100 < 29
    # 29 of 100 nonmembers lie above 70; every member lies between the 29th and the 30th.
    scores = torch.cat([torch.full((10,), 70.5), torch.arange(100.0)])
    members = torch.arange(110) < 10
    assert metrics.tpr_at_fpr(scores, members, 0.29).value == 1
    assert metrics.tpr_at_fpr(scores, members, 0.289).value == 0


@QUICK
@given(labelled, st.floats(0.05, 1))
@example([(0.0, False), (0.0, True)], 1 - 2**-53)  # one of one, but for rounding
def test_tpr_at_fpr_is_the_best_point_of_the_curve(pairs, fpr):
    scores, members = tensors(pairs)
    outside = int((~members).sum())
    allowed = outside * fpr + 1e-9
    if allowed < 1:
        with pytest.raises(ValueError, match="cannot resolve"):
            metrics.tpr_at_fpr(scores, members, fpr)
        return
    peer_fpr, peer_tpr, _ = roc_curve(members, scores, drop_intermediate=False)
    best = peer_tpr[peer_fpr * outside <= allowed].max()
    assert metrics.tpr_at_fpr(scores, members, fpr).value == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("caught", [0, 1, 3, 10])
def test_the_interval_is_clopper_and_pearsons(caught):
    scores = torch.cat([torch.arange(10) < caught, torch.arange(20) < 1]).float()
    members = torch.arange(30) < 10
    found = metrics.tpr_at_fpr(scores, members, 0.05)
    low = 0 if caught == 0 else beta.ppf(0.025, caught, 11 - caught)
    high = 1 if caught == 10 else beta.ppf(0.975, caught + 1, 10 - caught)
    assert found == pytest.approx((caught / 10, low, high), abs=1e-9)
    peer = binomtest(caught, 10).proportion_ci(0.95, method="exact")
    assert found[1:] == pytest.approx((peer.low, peer.high), abs=1e-9)


def test_clopper_pearson_of_the_textbook():
    # No success in ten: the 95 % interval ends at 1 - 0.025 ** (1 / 10).
    scores = torch.cat([torch.zeros(10), torch.ones(20)])
    found = metrics.tpr_at_fpr(scores, torch.arange(30) < 10, 0.05)
    assert found == pytest.approx((0, 0, 1 - 0.025**0.1), abs=1e-9)


def test_too_few_nonmembers():
    scores, members = torch.rand(60), torch.arange(60) < 10
    message = "50 nonmembers cannot resolve a false-positive rate of 0.01; at least 100 are needed"
    with pytest.raises(ValueError, match=message):
        metrics.tpr_at_fpr(scores, members, 0.01)


@pytest.mark.parametrize("fpr", [0, -0.1, 1.1, float("nan")])
def test_what_is_no_rate(fpr):
    scores, members = some_victims()
    with pytest.raises(ValueError, match=f"must lie above 0 and at most at 1, not {fpr}"):
        metrics.tpr_at_fpr(scores, members, fpr)


# Advantage and balanced accuracy


@QUICK
@given(labelled, st.floats(-4, 4))
def test_advantage_is_tpr_minus_fpr(pairs, threshold):
    scores, members = tensors(pairs)
    guessed = scores > threshold
    tpr = (guessed & members).sum() / members.sum()
    fpr = (guessed & ~members).sum() / (~members).sum()
    advantage = metrics.membership_advantage(scores, members, threshold)
    assert advantage == pytest.approx(float(tpr - fpr), abs=1e-6)
    balanced = metrics.balanced_accuracy(scores, members, threshold)
    assert balanced == pytest.approx((1 + advantage) / 2, abs=1e-12)
    peer = balanced_accuracy_score(members, guessed)
    assert balanced == pytest.approx(peer, abs=1e-12)


def test_the_gap_attacks_advantage_is_the_gap():
    # Yeom et al. 2018: "member if answered rightly" has the advantage train minus test accuracy.
    right = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.7
    members = torch.arange(200) < 80
    gap = right[members].double().mean() - right[~members].double().mean()
    advantage = metrics.membership_advantage(right.float(), members, 0.5)
    assert advantage == pytest.approx(float(gap), abs=1e-12)


def test_a_threshold_for_each_victim():
    scores = torch.tensor([[1.0, 2, 3, 4], [11, 12, 13, 14]])
    members = torch.tensor([[False, False, True, True]] * 2)
    thresholds = torch.tensor([[2.5], [12.5]])
    assert metrics.membership_advantage(scores, members, thresholds) == 1
    assert metrics.balanced_accuracy(scores, members, thresholds) == 1
    assert metrics.membership_advantage(scores, members, 2.5) == 0.5


def test_a_score_at_the_threshold_is_no_member():
    scores, members = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    assert metrics.membership_advantage(scores, members, 1.0) == 0


# Bootstrap


def test_bootstrap_is_reproducible_and_contains_the_value():
    scores, members = some_victims()
    found = metrics.bootstrap(metrics.auc, scores, members, seed=3)
    assert found == metrics.bootstrap(metrics.auc, scores, members, seed=3)
    assert found != metrics.bootstrap(metrics.auc, scores, members, seed=4)
    assert found.value == metrics.auc(scores, members)
    assert found.low <= found.value <= found.high


def test_bootstrap_of_equal_victims_has_no_width():
    scores, members = some_victims(victims=1)
    found = metrics.bootstrap(metrics.auc, scores.expand(5, -1), members.expand(5, -1))
    assert found.low == pytest.approx(found.value) == found.high


def test_bootstrap_widens_with_confidence():
    scores, members = some_victims()
    narrow, wide = (
        metrics.bootstrap(metrics.auc, scores, members, confidence=c) for c in (0.5, 0.99)
    )
    assert wide.low < narrow.low < narrow.high < wide.high


def test_bootstrap_resamples_victims_as_the_normal_theory_says(monkeypatch):
    monkeypatch.setattr(metrics, "NUM_RESAMPLES", 2000)
    # The mean over victims of a number that each victim has: 2 x 1.96 standard errors.
    values = torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
    members = torch.ones(40, 1, dtype=torch.bool)
    found = metrics.bootstrap(lambda s, m: float(s.mean()), values, members)
    expected = 2 * 1.96 * float(values.std(correction=0)) / math.sqrt(40)
    assert found.high - found.low == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("shape", [(1, 10), (10,), (2, 3, 4)])
def test_bootstrap_needs_two_victims(shape):
    with pytest.raises(ValueError, match="need .victims, records. with two victims, not "):
        metrics.bootstrap(metrics.auc, torch.rand(shape), torch.rand(shape) < 0.5)


# What every metric refuses


CALLS = {
    "roc": metrics.roc,
    "auc": metrics.auc,
    "tpr_at_fpr": lambda s, m: metrics.tpr_at_fpr(s, m, 0.5),
    "balanced_accuracy": lambda s, m: metrics.balanced_accuracy(s, m, 0.5),
    "membership_advantage": lambda s, m: metrics.membership_advantage(s, m, 0.5),
}


@pytest.mark.parametrize("name", CALLS)
def test_errors(name):
    scores, members = torch.tensor([0.1, 0.9, 0.5, 0.4]), torch.tensor([True, False, True, False])
    CALLS[name](scores, members)
    call = CALLS[name]
    with pytest.raises(ValueError, match="2 scores are NaN"):
        call(torch.tensor([math.nan, 0.9, math.nan, 0.4]), members)
    with pytest.raises(ValueError, match=r"scores \(4,\) but members \(4, 1\)"):
        call(scores, members[:, None])
    for dtype in (torch.int64, torch.uint8, torch.float32):
        message = rf"members must be truth values, not {dtype}: pass members.bool\(\)"
        with pytest.raises(ValueError, match=message):
            call(scores, members.to(dtype))
    for everyone in (True, False):
        with pytest.raises(ValueError, match="need at least one member and one nonmember"):
            call(scores, torch.full((4,), everyone))


# Estimate


def test_an_estimate_prints_its_interval():
    estimate = metrics.Estimate(0.731, 0.7, 0.754)
    assert f"{estimate:.2f}" == "0.73 [0.70, 0.75]"
    assert f"{estimate:.1%}" == "73.1% [70.0%, 75.4%]"
    value, low, high = estimate
    assert (value, low, high) == (0.731, 0.7, 0.754)


# PSNR and SSIM


def some_images(n=4, channels=1, side=24, seed=0):
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(n, channels, side, side, generator=rng)
    noise = 0.2 * torch.randn(images.shape, generator=rng)
    return images, (images + noise).clamp(0, 1)


def test_psnr_by_hand():
    references = torch.full((3, 1, 4, 4), 0.5)
    images = references + torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    assert metrics.psnr(images, references).tolist() == pytest.approx([20, 40, math.inf], abs=1e-3)


def test_psnr_and_ssim_of_a_broken_image_pass_no_bar():
    images, references = some_images(n=2)
    images[0, 0, 3, 3] = math.nan
    for metric, bar in ((metrics.psnr, 0), (metrics.ssim, -1)):
        found = metric(images, references)
        assert found[0].isnan() and found[1] > bar
        assert (found > bar).tolist() == [False, True]


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_image_metrics_refuse_bytes_and_other_shapes(metric):
    images, references = some_images()
    message = r"in \[0, 1\], not (be )?torch.uint8. divide"
    for pair in ((images, (255 * references).byte()), ((255 * images).byte(), references)):
        with pytest.raises(ValueError, match=message):
            metric(*pair)
    with pytest.raises(ValueError, match=r"references: images must lie in \[0, 1\], these lie in"):
        metric(255 * images, 255 * references)
    assert metric(images * 3 - 1, references).isfinite().all()  # what an attack leaves unclamped
    with pytest.raises(ValueError, match=r"must both be \(N, C, H, W\), not \(4, 1, 24, 24\) and"):
        metric(images, references[:1])
    with pytest.raises(ValueError, match="must both be"):
        metric(images[0], references[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_is_scikit_images(channels):
    images, references = some_images(channels=channels)
    pairs = zip(references.numpy(), images.numpy(), strict=True)
    peer = [skimage_psnr(*pair, data_range=1.0) for pair in pairs]
    assert metrics.psnr(images, references).tolist() == pytest.approx(peer, abs=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_is_that_of_torchmetrics(channels):
    images, references = some_images(channels=channels)
    wanted = peak_signal_noise_ratio(
        images, references, data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    assert torch.allclose(metrics.psnr(images, references), wanted, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_of_equal_images(channels):
    images, _ = some_images(channels=channels)
    assert torch.allclose(metrics.ssim(images, images), torch.ones(4), atol=1e-5)


@pytest.mark.parametrize("channels, side", [(1, 8), (1, 24), (3, 24)])
def test_ssim_is_scikit_images_on_mirrored_images(channels, side):
    # scikit-image leaves out a border of 5 pixels; mirrored by as much, both see the same pixels.
    images, references = some_images(channels=channels, side=side)
    for ours, image, reference in zip(
        metrics.ssim(images, references), images.double(), references.double(), strict=True
    ):
        a, b = (
            np.pad(x.numpy(), ((0, 0), (5, 5), (5, 5)), mode="reflect") for x in (image, reference)
        )
        options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        peer = structural_similarity(a, b, data_range=1.0, channel_axis=0, **options)
        assert float(ours) == pytest.approx(peer, abs=2e-4)


def test_ssim_is_near_scikit_images_on_the_images_themselves():
    images, references = some_images(n=2, side=64)
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)
    peer = [
        structural_similarity(a[0].numpy(), b[0].numpy(), **options)
        for a, b in zip(images.double(), references.double(), strict=True)
    ]
    assert metrics.ssim(images, references).tolist() == pytest.approx(peer, abs=0.02)


def test_ssim_is_differentiable():
    images, references = some_images()
    better = images.clone().requires_grad_()
    before = metrics.ssim(better, references)
    (gradient,) = torch.autograd.grad(before.sum(), better)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    after = metrics.ssim((better + 0.1 * gradient / gradient.abs().max()).detach(), references)
    assert (after > before).all()
    index = (0, 0, 5, 7)
    step = torch.zeros_like(images, dtype=torch.float64)
    step[index] = 1e-6
    up, down = (metrics.ssim(images.double() + s, references.double())[0] for s in (step, -step))
    assert float(gradient[index]) == pytest.approx(float(up - down) / 2e-6, rel=1e-2, abs=1e-6)


def test_ssim_is_symmetric_and_falls_with_noise():
    images, references = some_images()
    assert torch.allclose(
        metrics.ssim(images, references), metrics.ssim(references, images), atol=1e-6
    )
    worse = torch.rand(images.shape, generator=torch.Generator().manual_seed(5))
    assert (metrics.ssim(images, worse) < metrics.ssim(images, references)).all()


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_image_metrics_give_one_number_an_image(metric):
    images, references = some_images(n=5)
    together = metric(images, references)
    alone = torch.cat([metric(images[i : i + 1], references[i : i + 1]) for i in range(5)])
    assert together.shape == (5,)
    assert torch.allclose(together, alone, atol=1e-5)
    with pytest.raises((ValueError, RuntimeError)):
        metric(images, references[..., :-1])
