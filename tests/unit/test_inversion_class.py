"""Class inversion: gradients by hand, both forms of descent, networks and GAMIN on tiny victims."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vplib import metrics, models, plots, training
from vplib.attacks.inversion_class import search as attack
from vplib.attacks.inversion_class import trained
from vplib.attacks.inversion_class.attribute import infer_attribute
from vplib.attacks.inversion_class.trained import train_gamin, train_inverters
from vplib.victims import endpoint as api
from vplib.victims import recognition

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def patterns():
    """Three classes, each a bright quarter of the image, under noise."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.full((3, *SHAPE), 0.3)
    for c, (i, j) in enumerate(((0, 0), (0, 4), (4, 0))):
        clean[c, 0, i : i + 4, j : j + 4] = 0.8
    labels = torch.arange(3).repeat(40)
    noise = 0.1 * torch.randn((120, *SHAPE), generator=generator)
    return clean, (clean[labels] + noise).clamp(0, 1), labels


@pytest.fixture(scope="module")
def victims(patterns):
    _, images, labels = patterns
    subsets = torch.arange(120).view(2, 60)
    return training.fit_many(
        lambda: models.mlp(SHAPE, 3, ()), images, labels, subsets, num_epochs=20, keep=False
    )


def gray(n=3):
    return torch.full((n, *SHAPE), 0.5)


@pytest.mark.parametrize("logarithm", [True, False])
def test_one_step_is_the_formula(victims, logarithm):
    targets = torch.tensor([2, 0, 1])
    found = attack.invert_class(
        victims, targets, gray(), num_steps=1, lr=0.1, logarithm=logarithm, trace_at=(1,)
    )
    for k in range(2):
        weight = victims.state["1.weight"][k]
        for i, c in enumerate(targets):
            f = victims.model(k)(gray(1)).softmax(-1)[0].detach()
            slope = weight[c] - f @ weight  # of log f, of softmax regression
            step = 0.1 * slope * (1 if logarithm else f[c])
            assert torch.allclose(found.images[k, i].flatten(), 0.5 + step, atol=1e-5)
    assert found.trace.shape == (2, 2, 3, *SHAPE)
    assert torch.equal(found.trace[0, 0], gray()) and torch.equal(found.trace[1], found.images)


def test_descent_finds_the_pattern_and_its_confidence(victims, patterns):
    clean = patterns[0]
    found = attack.invert_class(victims, torch.arange(3), gray(), num_steps=30, lr=0.3)
    assert found.confidences.min() > 0.9
    for k in range(2):
        likeness = F.cosine_similarity(
            (found.images[k] - 0.5).flatten(1)[:, None], (clean - clean.mean(0)).flatten(1), dim=-1
        )
        assert torch.equal(likeness.argmax(1), torch.arange(3))
        said = victims.predict(k)(found.images[k])[torch.arange(3), torch.arange(3)]
        assert torch.allclose(said, found.confidences[k], atol=1e-5)


def test_versions_do_not_depend_on_who_else_is_inverted(victims):
    both = attack.invert_class(victims, torch.tensor([0, 1]), gray(2), num_steps=5, lr=1.0)
    alone = attack.invert_class(victims, torch.tensor([1]), gray(1), num_steps=5, lr=1.0)
    assert torch.allclose(both.images[:, 1], alone.images[:, 0], atol=1e-6)


@pytest.mark.parametrize("patch", [1, 2])
def test_finite_differences_step_as_the_slope_does(victims, patch):
    targets = torch.arange(3)
    ask = api.Endpoint(victims.predict(1))
    black = attack.invert_class_black_box(
        ask, targets, gray(), num_steps=1, lr=0.1, difference=0.001, patch=patch
    )
    white = attack.invert_class(victims, targets, gray(), num_steps=1, lr=0.1).images[1]
    step = F.avg_pool2d(white - 0.5, patch).repeat_interleave(patch, -1)
    assert torch.allclose(black.images - 0.5, step.repeat_interleave(patch, -2), atol=2e-3)
    assert ask.queries == 3 * (64 // patch**2 + 1) + 3  # and one for the confidence at the end


def test_black_box_images_stay_in_range_and_moves_go_inwards(victims):
    asked = []

    def predict(images):
        asked.append(images)
        return victims.predict(0)(images)

    start = torch.rand(3, *SHAPE)
    found = attack.invert_class_black_box(predict, torch.arange(3), start, num_steps=3, lr=50.0)
    for images in (found.images, *asked):
        assert 0 <= images.min() and images.max() <= 1
    assert found.images.shape == start.shape


def test_answers_that_never_change_move_nothing():
    def predict(images):
        return torch.tensor([1.0, 0.0]).expand(len(images), 2)

    found = attack.invert_class_black_box(
        predict, torch.tensor([0, 1]), gray(2), num_steps=2, lr=2.0
    )
    assert torch.equal(found.images, gray(2))


def test_latents_of_an_identity_decoder_find_what_pixels_find(victims):
    found = attack.invert_latents(
        victims, torch.arange(3), lambda z: z.sigmoid().view(-1, *SHAPE), torch.zeros(3, 64),
        num_steps=40, lr=0.2, trace_at=(40,),
    )  # fmt: skip
    assert found.confidences.min() > 0.9 and found.trace.shape == (2, 2, 3, *SHAPE)
    assert torch.allclose(found.trace[0], torch.tensor(0.5))


def test_a_prior_keeps_latents_short(victims):
    def spread(prior):
        made = attack.invert_latents(
            victims, torch.arange(3), lambda z: z.sigmoid().view(-1, *SHAPE), torch.zeros(3, 64),
            num_steps=40, lr=0.2, prior=prior,
        )  # fmt: skip
        return (made.images - 0.5).abs().mean()

    assert spread(1.0) < 0.5 * spread(0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(targets=torch.tensor([0])), "give a start for each int64 target"),
        (dict(targets=torch.tensor([], dtype=torch.int64), start=gray(0)), "give a start"),
        (dict(targets=torch.arange(3, dtype=torch.int32)), "give a start for each int64 target"),
        (dict(targets=torch.tensor([0, 1, -1])), r"must lie in 0\.\.2"),
        (dict(targets=torch.tensor([0, 1, 3])), r"must lie in 0\.\.2"),
        (dict(start=255 * gray()), "divide 8-bit images by 255"),
        (dict(start=gray() * torch.nan), "must lie in"),
        (dict(num_steps=0), "must be positive"),
        (dict(lr=-1.0), "must be positive"),
    ],
)
def test_wrong_settings_are_refused(victims, change, message):
    settings = dict(targets=torch.arange(3), start=gray(), num_steps=5, lr=1.0) | change
    with pytest.raises(ValueError, match=message):
        attack.invert_class(victims, **settings)
    with pytest.raises(ValueError, match=message):
        attack.invert_class_black_box(victims.predict(0), **settings)


@pytest.mark.parametrize(
    "change",
    [dict(start=torch.full((3, 64), torch.nan)), dict(prior=-0.1), dict(prior=torch.nan)],
)
def test_latents_and_priors_are_refused(victims, change):
    def decode(z):
        return z.sigmoid().view(-1, *SHAPE)

    settings = dict(start=torch.zeros(3, 64), num_steps=1, lr=0.1) | change
    with pytest.raises(ValueError, match="must be finite, prior 0 or more"):
        attack.invert_latents(victims, torch.arange(3), decode, **settings)


def test_black_box_settings_are_refused(victims):
    for change, message in ((dict(difference=0.6), "difference"), (dict(patch=3), "patches of 3")):
        with pytest.raises(ValueError, match=message):
            attack.invert_class_black_box(
                victims.predict(0), torch.arange(3), gray(), num_steps=1, lr=1.0, **change
            )


def test_victims_with_buffers_are_refused():
    def build():
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))

    ensemble = training.Ensemble(build, {}, torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="cannot be batched"):
        attack.white_box(ensemble)


def test_inversion_networks_beat_the_mean_image_and_are_independent(victims, patterns):
    _, images, _ = patterns
    answers = victims.probabilities(images)
    draw = train_inverters(answers, images, num_epochs=40, seed=3)
    drawn = draw(answers)
    assert drawn.shape == (2, 120, *SHAPE) and 0 <= drawn.min() and drawn.max() <= 1
    spread = (images - images.mean(0)).square().mean()
    assert ((drawn - images).square().mean((1, 2, 3, 4)) < 0.6 * spread).all()
    again = train_inverters(answers, images, num_epochs=40, seed=3)
    assert torch.equal(again(answers), drawn)
    swapped = train_inverters(answers[:1].repeat(2, 1, 1), images, num_epochs=40, seed=3)
    assert torch.allclose(swapped(answers[:1].repeat(2, 1, 1))[0], drawn[0], atol=1e-3)


def test_inverters_refuse_answers_of_other_images(patterns):
    with pytest.raises(ValueError, match=r"\(networks, 120, classes\)"):
        train_inverters(torch.rand(2, 5, 3), patterns[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_epochs=0), "num_epochs"),
        (dict(answers=torch.full((2, 120, 3), torch.nan)), "probabilities"),
        (dict(answers=torch.full((2, 120, 3), 5.0)), "probabilities"),
        (dict(images=torch.rand(120, *SHAPE) * 255), "divide 8-bit images by 255"),
    ],
)
def test_inverters_refuse_what_is_no_answer_and_no_image(change, message):
    settings = dict(answers=torch.rand(2, 120, 3), images=torch.rand(120, *SHAPE)) | change
    with pytest.raises(ValueError, match=message):
        train_inverters(**settings)


@pytest.mark.parametrize(
    ("targets", "shape", "message"),
    [
        ([0, 3], SHAPE, r"in 0\.\.2"),
        ([-1], SHAPE, r"in 0\.\.2"),
        ([0.0], SHAPE, "int64"),
        ([], SHAPE, "int64"),
        ([0], (1, 30, 32), "sizes 4 divides"),
    ],
)
def test_gamin_refuses_other_classes_and_sizes(victims, targets, shape, message):
    with pytest.raises(ValueError, match=message):
        train_gamin(victims.predict(0), torch.tensor(targets), shape, 3, num_steps=1)


def test_gamin_raises_confidence_with_counted_queries(victims):
    ask = api.Endpoint(victims.predict(0))
    make = train_gamin(ask, torch.arange(3), SHAPE, 3, num_steps=120)
    assert ask.queries == 120 * (3 * trained.PER_CLASS + trained.NUM_NOISE)
    images = make(5)
    assert images.shape == (5, 3, *SHAPE) and 0 <= images.min() and images.max() <= 1
    said = victims.predict(0)(images.flatten(0, 1)).view(5, 3, 3)
    assert torch.diagonal(said, dim1=1, dim2=2).mean() > 0.6
    with pytest.raises(ValueError, match="1 or more"):
        train_gamin(ask, torch.arange(3), SHAPE, 3, num_steps=0)


def test_attribute_by_hand():
    records, outcomes = np.array([[1.0, 9.0], [2.0, 9.0]]), np.array([3.0, 2.1])
    known = dict(values=np.array([0.0, 2.0]), sigma=1.0)
    found = infer_attribute(
        lambda x: x.sum(1), records, 1, outcomes, priors=np.array([0.5, 0.5]), **known
    )
    assert found.tolist() == [2.0, 0.0]  # 1 + 2 = 3 and 2 + 0 = 2 fit best
    rare = infer_attribute(
        lambda x: x.sum(1), records, 1, outcomes, priors=np.array([0.99, 0.01]), **known
    )
    assert rare.tolist() == [0.0, 0.0]  # log 99 = 4.6 outweighs an error of two sigmas, 2
    assert (records[:, 1] == 9).all(), "the records were changed"
    each = np.array(
        [[0.01, 0.99], [0.5, 0.5]]
    )  # of the first record the value 2 is as good as known
    found = infer_attribute(lambda x: x.sum(1), records, -1, outcomes - 2, priors=each, **known)
    assert found.tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(priors=np.array([1.0, 0.0])), "above 0"),
        (dict(priors=np.array([0.5, np.nan])), "finite"),
        (dict(priors=np.ones((3, 2))), "priors"),
        (dict(priors=np.ones(3)), "priors"),
        (dict(sigma=0.0), "above 0"),
        (dict(sigma=np.nan), "above 0"),
        (dict(column=2), r"columns 0\.\.1, not 2"),
        (dict(outcomes=np.ones(3)), "an outcome for each record"),
        (dict(records=np.ones((0, 2)), outcomes=np.ones(0)), "an outcome for each record"),
        (dict(records=np.ones(2)), "an outcome for each record"),
        (dict(outcomes=np.array([1.0, np.nan])), "must be finite"),
        (dict(records=np.array([[np.nan, 1.0], [1.0, 1.0]])), "must be finite"),
    ],
)
def test_attribute_settings_are_refused(change, message):
    settings = dict(records=np.ones((2, 2)), column=1, outcomes=np.ones(2), sigma=1.0)
    settings |= dict(values=np.array([0.0, 2.0]), priors=np.array([0.5, 0.5]))
    unknown = np.array([[1.0, np.nan], [1.0, 1.0]])  # the attribute itself may be a gap
    infer_attribute(lambda x: x.sum(1), **settings | dict(records=unknown))
    with pytest.raises(ValueError, match=message):
        infer_attribute(lambda x: x.sum(1), **settings | change)


def test_ranks_by_hand():
    gallery = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=-1)
    probes = F.normalize(torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.9]]), dim=-1)
    people, truth = torch.tensor([4, 7, 9]), torch.tensor([4, 4, 8])
    assert recognition.ranks(gallery, people, probes, truth).tolist() == [1, 3, 4]


def test_strips_show_all_rows_on_one_scale():
    rows = {"a": torch.rand(9, 1, 4, 4), "b": torch.rand(8, 1, 4, 4)}
    axes = plots.image_strips(rows)
    shown = axes.images[0]
    assert shown.get_array().shape == (16, 64) and shown.get_clim() == (0, 1)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"]
    assert torch.isfinite(metrics.psnr(rows["b"], rows["a"][:8])).all()
