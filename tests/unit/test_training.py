"""One by one or all at once: the same models."""

import random
import re
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vplib import datasets, models, seeding, training
from vplib.attacks.inversion_gradient import lenet
from vplib.nets import stacked

QUICK = settings(deadline=None, max_examples=25)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", "all").split(seed=1, pool=400, test=400)


def small_mlp():
    return models.mlp((1, 8, 8), 10, hidden=(32,))


def small_cnn():
    return models.cnn((1, 8, 8), 10, channels=(8, 16), hidden=32)


class Residual(nn.Module):
    """No Sequential: only vmap can batch it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.last(x + self.first(x).relu())


class Scaled(nn.Sequential):
    """A Sequential that computes something else than its layers in a row."""

    def forward(self, x):
        return 3 * super().forward(x)


def with_dropout():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10)
    )


def with_batch_norm():
    body = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)]
    return nn.Sequential(*body)


def with_frozen_layer():
    model = small_mlp()
    model[3].requires_grad_(False)
    return model


def both(build, data, num_models=8, **settings):
    """The same ensemble, trained batched and one by one."""
    subsets = training.half_splits(len(data), num_models)
    arguments = (build, data.images, data.labels, subsets)
    settings = dict(num_epochs=5) | settings
    return [training.fit_many(*arguments, form=form, **settings) for form in ("batched", "loop")]


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# Batched against one by one


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("hidden", [(), (64,), (64, 32)])
@pytest.mark.parametrize(
    "optimizer",
    [
        dict(optimizer="sgd"),
        dict(optimizer="sgd", weight_decay=0.01, momentum=0.7, lr=0.3),
        dict(optimizer="adam", lr=0.01),
        dict(optimizer="adam", lr=0.01, weight_decay=0.01),
    ],
)
def test_batched_mlps_are_the_ones_trained_one_by_one(digits, activation, hidden, optimizer):
    def build():
        return models.mlp((1, 8, 8), 10, hidden=hidden, activation=activation)

    together, loop = both(build, digits.pool, **optimizer)
    ours, theirs = together.logits(digits.test.images), loop.logits(digits.test.images)
    assert (ours - theirs).abs().max() < 1e-3
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
    assert training.accuracy(ours, digits.test.labels).mean() > 0.3  # well off the start


@pytest.mark.parametrize("build", [small_mlp, small_cnn])
def test_soft_labels(digits, build):
    soft = 0.9 * F.one_hot(digits.pool.labels, 10) + 0.01
    subsets = training.half_splits(400, 4)
    arguments = (build, digits.pool.images, soft, subsets)
    together, loop = (
        training.fit_many(*arguments, num_epochs=3, form=form) for form in ("batched", "loop")
    )
    images = digits.test.images
    assert (together.logits(images) - loop.logits(images)).abs().max() < 1e-3


def test_one_hot_labels_train_what_hard_labels_train(digits):
    subsets = training.half_splits(400, 2)
    hard, soft = digits.pool.labels, F.one_hot(digits.pool.labels, 10).float()
    for form in ("batched", "loop"):
        first, second = (
            training.fit_many(
                small_mlp, digits.pool.images, y, subsets, num_epochs=2, form=form
            ).logits(digits.test.images)
            for y in (hard, soft)
        )
        assert (first - second).abs().max() < 1e-3


def test_batched_cnns_are_as_good_as_those_trained_one_by_one(digits):
    together, loop = both(small_cnn, digits.pool, num_epochs=12, lr=0.01, optimizer="adam")
    ours, theirs = (
        training.accuracy(e.logits(digits.test.images), digits.test.labels).mean()
        for e in (together, loop)
    )
    assert abs(ours - theirs) < 0.01
    assert ours > 0.7


def odd_cnn():
    """Everything that the batched forward handles, in one network."""
    return nn.Sequential(
        nn.AvgPool2d(1),
        nn.Conv2d(2, 4, 3, stride=1, padding="same", groups=2, bias=False),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 10, bias=False),
    )


@pytest.mark.parametrize(
    "build",
    [
        odd_cnn,
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), *head(192)),
        lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 4), *head(8)),
        lambda: Scaled(*head(128)),
        lambda: Scaled(nn.Conv2d(2, 3, 3), *head(108)),
        lambda: nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(128, 8)), nn.GELU(), *head(8)),
    ],
    ids=["layers", "circular", "flatten", "subclass", "subclass-cnn", "nested"],
)
def test_the_batched_forward_knows_what_it_does_not_know(digits, build):
    # Two channels: the image, and the image upside down.
    two = torch.cat([digits.pool.images, digits.pool.images.flip(2)], 1)
    subsets = training.half_splits(100, 3 + 1)
    arguments = (build, two, digits.pool.labels, subsets)
    together, loop = (
        training.fit_many(*arguments, num_epochs=2, lr=0.02, form=form)
        for form in ("batched", "loop")
    )
    ours, theirs = together.logits(two), loop.logits(two)
    alone = torch.stack([loop.model(k)(two) for k in range(4)])
    assert (ours - theirs).abs().max() < 1e-3
    assert torch.allclose(theirs, alone, atol=1e-4)


def head(inputs):
    return nn.Flatten(), nn.Linear(inputs, 10)


def test_a_module_that_is_no_sequential_goes_through_vmap(digits):
    together, loop = both(Residual, digits.pool, num_models=4)
    images = digits.test.images
    assert (together.logits(images) - loop.logits(images)).abs().max() < 1e-3
    assert torch.allclose(together.logits(images)[2], together.model(2)(images), atol=1e-4)


def test_images_in_channels_last_memory(digits):
    def build():
        return models.cnn((3, 8, 8), 10, channels=(4,), hidden=8)

    rgb = digits.pool.images.repeat(1, 3, 1, 1)
    last = rgb.contiguous(memory_format=torch.channels_last)
    subsets = training.half_splits(400, 2)
    first, second = (
        training.fit_many(
            build, x, digits.pool.labels, subsets, num_epochs=1, form="batched"
        ).logits(x)
        for x in (rgb, last)
    )
    assert torch.allclose(first, second, atol=1e-3)


def test_auto_takes_the_form_that_wins(digits):
    subsets = training.half_splits(400, 2)
    arguments = (digits.pool.images, digits.pool.labels, subsets)
    for build, form in (
        (small_mlp, "batched"),
        (small_cnn, "batched"),
        (Residual, "loop"),
        (with_dropout, "loop"),
        (with_frozen_layer, "loop"),
    ):
        auto, named = (
            training.fit_many(build, *arguments, num_epochs=1, form=f) for f in ("auto", form)
        )
        assert same_state(auto.state, named.state), build
    assert not stacked.wins(small_cnn(), torch.zeros(1, 1, 28, 28))
    assert stacked.wins(small_mlp(), torch.zeros(1, 1, 28, 28))
    assert stacked.wins(small_cnn(), torch.zeros(1, 1, 28, 28, device="meta"))


# Gradients by hand against autograd


@QUICK
@given(
    hidden=st.lists(st.integers(1, 6), max_size=3),
    activation=st.sampled_from(["relu", "tanh", "sigmoid"]),
    sizes=st.tuples(*[st.integers(1, 5)] * 3, st.integers(2, 4)),
    soft=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_gradients_of_mlps_are_autograds(hidden, activation, sizes, soft, seed):
    num_models, batch, inputs, classes = sizes
    build = partial(models.mlp, (inputs,), classes, hidden, activation)
    check_gradients(build, (inputs,), num_models, batch, classes, soft, seed)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("batch", [32, 7])
@pytest.mark.parametrize(
    "build",
    [
        small_cnn,
        Residual,
        partial(lenet, (1, 8, 8), 10, spread=None),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU()),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.GELU(), nn.Linear(3, 10)),
        lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(64, 3), nn.Tanh(), nn.ReLU(),
                              nn.Linear(3, 10)),
        lambda: nn.Sequential(nn.Linear(8, 2), nn.Flatten(), nn.Linear(16, 10)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Flatten(), nn.Linear(12, 10)),
        lambda: Scaled(nn.Flatten(), nn.Linear(64, 10)),
        lambda: nn.Sequential(OrderedDict(flat=nn.Flatten(), last=nn.Linear(64, 10))),
        lambda: tied(nn.Linear(64, 64)),
    ],
)  # fmt: skip
def test_gradients_of_any_model_are_autograds(build, batch, soft):
    check_gradients(build, (1, 8, 8), 3, batch, 10, soft, seed=1)


def tied(layer):
    return nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer, nn.Linear(64, 10))


def check_gradients(build, shape, num_models, batch, classes, soft, seed):
    """Those of `gradients_of`, and of autograd on the stacked forward, are each model's own."""
    rng = torch.Generator().manual_seed(seed)
    nets = [seeding.initialized(build, seed + k).double() for k in range(num_models)]
    x = torch.randn(num_models, batch, *shape, generator=rng, dtype=torch.float64)
    y = torch.randint(classes, (num_models, batch), generator=rng)
    if soft:
        y = torch.rand(num_models, batch, classes, generator=rng, dtype=torch.float64).softmax(-1)
    state, before = torch.func.stack_module_state(nets)[0], x.clone()
    expected, answers = {name: [] for name in state}, []
    for net, inputs, targets in zip(nets, x, y, strict=True):
        answers.append(net(inputs.clone()))
        F.cross_entropy(answers[-1], targets).backward()
        for name, parameter in net.named_parameters():
            expected[name].append(parameter.grad)
    template = build().double()
    by_autograd = stacked.by_autograd(stacked.forward_of(template), state, x, y)
    by_rule = stacked.gradients_of(template, state)(x, y)
    for logits, found in (by_rule, (by_autograd[0], by_autograd[1].values())):
        assert torch.allclose(logits, torch.stack(answers), atol=1e-9)
        for name, gradient in zip(state, found, strict=True):
            assert torch.allclose(gradient, torch.stack(expected[name]), atol=1e-9), name
    assert torch.equal(x, before)


# Models that train one by one


@pytest.mark.parametrize("build", [with_dropout, with_batch_norm, with_frozen_layer])
def test_some_models_train_one_by_one(digits, build):
    subsets = training.half_splits(400, 2)
    arguments = (build, digits.pool.images, digits.pool.labels, subsets)
    first, second = (training.fit_many(*arguments, num_epochs=8, lr=0.05) for _ in range(2))
    assert same_state(first.state, second.state)
    logits = first.logits(digits.test.images)
    assert training.accuracy(logits, digits.test.labels).min() > 0.4
    for k in range(2):
        assert torch.allclose(logits[k], first.model(k)(digits.test.images), atol=1e-5)
    message = "batch norm, frozen weights or a loss of their own train one by one: form='loop'"
    with pytest.raises(ValueError, match=message):
        training.fit_many(*arguments, num_epochs=1, form="batched")


def flat_batch_norm():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))


@pytest.mark.parametrize(("count", "batch"), [(33, 32), (65, 64), (5, 2)])
def test_an_image_that_is_left_over_joins_the_batch_before_it(digits, count, batch, monkeypatch):
    """Batch norm has no statistics of one image, and no image is left out."""
    some = digits.pool.subset(range(count))
    sizes = []

    def counting(logits, labels):
        sizes.append(len(labels))
        return F.cross_entropy(logits, labels)

    settings = dict(num_epochs=2, batch_size=batch, lr=0.01)
    model = seeding.initialized(flat_batch_norm, 0)
    training.fit(model, some.images, some.labels, loss=counting, **settings)
    assert sizes == [*[batch] * (count // batch - 1), batch + 1] * 2
    assert model[2].num_batches_tracked == 2 * (count // batch)
    subsets = torch.arange(count)[None]
    many = training.fit_many(flat_batch_norm, some.images, some.labels, subsets, **settings)
    assert many.logits(some.images).isfinite().all()
    sizes.clear()  # without batch norm, as ever
    training.fit(small_mlp(), some.images, some.labels, loss=counting, **settings)
    assert sizes == [*[batch] * (count // batch), 1] * 2


@pytest.mark.parametrize(("count", "batch"), [(1, 32), (40, 1)])
def test_batch_norm_of_one_image_is_refused(digits, count, batch):
    some = digits.pool.subset(range(count))
    message = "batch norm needs two images a step: raise batch_size or take more"
    for build in (flat_batch_norm, with_batch_norm):
        with pytest.raises(ValueError, match=message):
            training.fit(build(), some.images, some.labels, num_epochs=1, batch_size=batch)
        with pytest.raises(ValueError, match=message):
            rows = torch.arange(count)[None]
            training.fit_many(build, some.images, some.labels, rows, num_epochs=1, batch_size=batch)
    with pytest.raises(ValueError, match=message):  # a pool of many, of which a model sees one
        rows = torch.tensor([[0], [1]])
        training.fit_many(
            flat_batch_norm, digits.pool.images, digits.pool.labels, rows, num_epochs=1
        )


def test_frozen_weights_stay(digits):
    ensemble = training.fit_many(
        with_frozen_layer,
        digits.pool.images,
        digits.pool.labels,
        training.half_splits(400, 2),
        num_epochs=1,
    )
    for k in range(2):
        start = seeding.initialized(with_frozen_layer, seeding.derive(0, k))
        assert torch.equal(ensemble.model(k)[3].weight, start[3].weight)
        assert not torch.equal(ensemble.model(k)[1].weight, start[1].weight)


# Seeds


@pytest.mark.parametrize("form", ["batched", "loop"])
@pytest.mark.parametrize("build", [small_mlp, small_cnn])
def test_equal_calls_give_equal_models(digits, build, form):
    subsets = training.half_splits(400, 4)
    arguments = (build, digits.pool.images, digits.pool.labels, subsets)
    first, second, other = (
        training.fit_many(*arguments, num_epochs=2, form=form, seed=seed) for seed in (5, 5, 6)
    )
    assert same_state(first.state, second.state)
    assert not same_state(first.state, other.state)


@pytest.mark.parametrize("form", ["batched", "loop"])
def test_model_k_depends_on_neither_the_others_nor_the_chunks(digits, form, monkeypatch):
    subsets = training.half_splits(400, 8)
    arguments = (small_mlp, digits.pool.images, digits.pool.labels)
    settings = dict(num_epochs=3, form=form, seed=2)
    all_eight = training.fit_many(*arguments, subsets, **settings)
    first_three = training.fit_many(*arguments, subsets[:3], **settings)
    monkeypatch.setitem(training.CHUNK, "cpu", 3)
    in_chunks = training.fit_many(*arguments, subsets, **settings)
    images = digits.test.images
    assert torch.equal(in_chunks.subsets, subsets) and len(in_chunks) == 8
    logits = all_eight.logits(images)
    assert torch.allclose(first_three.logits(images), logits[:3], atol=1e-4)
    assert torch.allclose(in_chunks.logits(images), logits, atol=1e-4)


def test_each_model_has_its_own_start_and_order(digits):
    subsets = torch.arange(100).expand(4, 100)  # all on the same records
    ensemble = training.fit_many(
        small_mlp, digits.pool.images, digits.pool.labels, subsets, num_epochs=1
    )
    weights = ensemble.state["1.weight"]
    assert all(not torch.equal(weights[0], w) for w in weights[1:])
    seeds = {seeding.derive(seed, k) for seed in range(10) for k in range(100)}
    assert len(seeds) == 1000


@pytest.mark.parametrize("build", [small_mlp, small_cnn, Residual, with_dropout, with_batch_norm])
def test_the_callers_generators_are_left_alone(digits, build):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    ensemble = training.fit_many(
        build,
        digits.pool.images,
        digits.pool.labels,
        training.half_splits(400, 2),
        num_epochs=1,
        lr=0.01,
    )
    ensemble.logits(digits.test.images)
    ensemble.predict(0)(digits.test.images)
    training.fit(build(), digits.pool.images, digits.pool.labels, num_epochs=1, lr=0.01)
    torch.set_rng_state(before[0])  # build() itself drew, in the line above
    training.fit(ensemble.model(1), digits.pool.images, digits.pool.labels, num_epochs=1, lr=0.01)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_seeded_as_torch_seeds():
    torch.manual_seed(123)
    expected = torch.rand(3), nn.Linear(2, 2).weight
    with seeding.seeded(123):
        assert torch.equal(torch.rand(3), expected[0])
        assert torch.equal(nn.Linear(2, 2).weight, expected[1])
        assert torch.initial_seed() == 123


def test_the_callers_seed_decides_nothing(digits):
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        ensemble = training.fit_many(
            with_dropout,
            digits.pool.images,
            digits.pool.labels,
            training.half_splits(400, 2),
            num_epochs=1,
        )
        found.append(ensemble.state)
    assert same_state(*found)


# The ensemble


@pytest.mark.parametrize("build", [small_mlp, small_cnn, with_batch_norm])
def test_an_ensemble_answers_as_its_models_do(digits, build, monkeypatch):
    subsets = training.half_splits(400, 4)
    ensemble = training.fit_many(
        build, digits.pool.images, digits.pool.labels, subsets, num_epochs=1, lr=0.02
    )
    images = digits.test.images[:50]
    logits = ensemble.logits(images)
    assert logits.shape == (4, 50, 10) and len(ensemble) == 4
    monkeypatch.setattr(training, "AT_ONCE", 7)
    assert torch.allclose(ensemble.logits(images), logits, atol=1e-5)
    monkeypatch.setitem(training.CHUNK, "cpu", 3)
    assert torch.allclose(ensemble.logits(images), logits, atol=1e-5)
    probabilities = ensemble.probabilities(images)
    assert torch.allclose(probabilities, logits.softmax(-1), atol=1e-6)
    assert torch.allclose(probabilities.sum(-1), torch.ones(4, 50))
    for k in range(4):
        model = ensemble.model(k)
        assert not model.training
        assert torch.allclose(model(images), logits[k], atol=1e-5)
        answer = ensemble.predict(k)(images)
        assert torch.allclose(answer, probabilities[k], atol=1e-5) and not answer.requires_grad
        assert torch.equal(ensemble.predict(k)(images.double()), answer)
    assert not logits.requires_grad


def test_membership():
    subsets = torch.tensor([[0, 2], [3, 1], [4, 0]])
    ensemble = training.Ensemble(small_mlp, {}, subsets)
    assert ensemble.membership(6).tolist() == [
        [True, False, True, False, False, False],
        [False, True, False, True, False, False],
        [True, False, False, False, True, False],
    ]


@QUICK
@given(
    num_records=st.integers(1, 20).map(lambda n: 2 * n),
    num_models=st.integers(1, 8).map(lambda n: 2 * n),
    seed=st.integers(0, 2**32),
)
def test_half_splits(num_records, num_models, seed):
    rows = training.half_splits(num_records, num_models, seed)
    assert rows.shape == (num_models, num_records // 2) and rows.dtype == torch.int64
    inside = training.Ensemble(small_mlp, {}, rows).membership(num_records)
    assert (inside.sum(0) == num_models // 2).all()
    assert (inside.sum(1) == num_records // 2).all()
    assert torch.equal(inside[::2], ~inside[1::2])
    assert torch.equal(rows, training.half_splits(num_records, num_models, seed))


def test_half_splits_differ():
    inside = [training.half_splits(100, 4, seed).sort().values for seed in (0, 1)]
    assert not torch.equal(*inside) and not torch.equal(inside[0][0], inside[0][2])


@pytest.mark.parametrize("numbers", [(3, 2), (4, 3), (0, 2), (2, 0), (-2, 2), (4, -2)])
def test_half_splits_of_odd_numbers(numbers):
    message = "need even numbers, not {} records and {} models".format(*numbers)
    with pytest.raises(ValueError, match=message):
        training.half_splits(*numbers)


def test_accuracy():
    logits = torch.tensor([[[0.0, 1], [2, 1], [0, 3]], [[1, 0], [1, 2], [3, 0]]])
    labels = torch.tensor([1, 1, 1])
    assert training.accuracy(logits, labels).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert training.accuracy(logits[0], labels).item() == pytest.approx(2 / 3)


# One model


def test_fit_is_gradient_descent(digits):
    images, labels = digits.pool.images[:50], digits.pool.labels[:50]
    ours, peer = (seeding.initialized(small_mlp, 0) for _ in range(2))
    stepper = torch.optim.SGD(peer.parameters(), lr=0.2, momentum=0.8, weight_decay=0.01)
    for _ in range(4):
        stepper.zero_grad()
        F.cross_entropy(peer(images), labels).backward()
        stepper.step()
    settings = dict(lr=0.2, momentum=0.8, weight_decay=0.01)
    training.fit(ours, images, labels, num_epochs=4, batch_size=50, **settings)
    for a, b in zip(ours.parameters(), peer.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_fit_is_adam(digits):
    images, labels = digits.pool.images[:50], digits.pool.labels[:50]
    ours, peer = (seeding.initialized(small_mlp, 0) for _ in range(2))
    stepper = torch.optim.Adam(peer.parameters(), lr=0.01)
    for _ in range(3):
        stepper.zero_grad()
        F.cross_entropy(peer(images), labels).backward()
        stepper.step()
    training.fit(ours, images, labels, num_epochs=3, batch_size=50, lr=0.01, optimizer="adam")
    assert torch.allclose(ours(images), peer(images), atol=1e-3)


def test_fit_trains_in_place_and_returns_the_model_ready_for_use(digits):
    model = seeding.initialized(small_cnn, 0)
    found = training.fit(model, digits.pool.images, digits.pool.labels, num_epochs=10)
    assert found is model and not model.training
    assert training.accuracy(model(digits.test.images), digits.test.labels) > 0.75


def test_fit_goes_on_from_the_weights_it_is_given(digits):
    images, labels = digits.pool.images, digits.pool.labels
    model = seeding.initialized(small_mlp, 0)
    training.fit(model, images, labels, num_epochs=5)
    before = F.cross_entropy(model(images), labels)
    training.fit(model, images, labels, num_epochs=1, lr=0.01)
    assert F.cross_entropy(model(images), labels) < before + 0.05


def test_the_seed_of_fit_decides_the_order(digits):
    found = []
    for seed in (0, 0, 1):
        model = seeding.initialized(small_mlp, 0)
        training.fit(model, digits.pool.images, digits.pool.labels, num_epochs=1, seed=seed)
        found.append(model[1].weight)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


# Errors


def fit_one(build, images, labels, **settings):
    return training.fit(build(), images, labels, **settings)


def fit_batched(build, images, labels, **settings):
    subsets = training.half_splits(max(2, len(images)), 2)
    return training.fit_many(build, images, labels, subsets, form="batched", **settings)


def fit_loop(build, images, labels, **settings):
    subsets = training.half_splits(max(2, len(images)), 2)
    return training.fit_many(build, images, labels, subsets, form="loop", **settings)


FITS = pytest.mark.parametrize("fit", [fit_one, fit_batched, fit_loop])
BUILDS = pytest.mark.parametrize("build", [small_mlp, small_cnn, Residual])


@FITS
@BUILDS
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda y: y - 1, "labels must lie in 0..9 for a model of 10 classes, these lie in -1..8"),
        (lambda y: y + 1, "labels must lie in 0..9 for a model of 10 classes, these lie in 1..10"),
        (lambda y: y[:-1], "400 images but 399 labels"),
        (lambda y: y.float(), "labels must be int64 of shape (400,) or probabilities of shape"),
        (lambda y: y.int(), "not torch.int32 of shape (400,)"),
        (lambda y: y[:, None], "not torch.int64 of shape (400, 1)"),
        (
            lambda y: torch.rand(400, 7),
            "probabilities of shape (400, 10), not torch.float32 of sha",
        ),
        (lambda y: torch.rand(400, 1), "not torch.float32 of shape (400, 1)"),
    ],
)
def test_labels_that_do_not_fit(digits, fit, build, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(build, digits.pool.images, change(digits.pool.labels), num_epochs=1)


@FITS
@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_epochs=0), "num_epochs 0, batch_size 32 and lr 0.1 must be positive"),
        (dict(batch_size=0), "num_epochs 1, batch_size 0 and lr 0.1 must be positive"),
        (dict(lr=0), "num_epochs 1, batch_size 32 and lr 0 must be positive"),
        (dict(lr=float("nan")), "lr nan must be positive"),
        (dict(optimizer="lbfgs"), "unknown optimizer 'lbfgs'; known: sgd, adam"),
    ],
)
def test_settings_that_cannot_be(digits, fit, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(small_mlp, digits.pool.images, digits.pool.labels, **(dict(num_epochs=1) | settings))


@FITS
def test_nothing_to_train_on(digits, fit):
    nothing = digits.pool.images[:0], digits.pool.labels[:0]
    with pytest.raises(ValueError, match="there is no image to train on"):
        fit(small_mlp, *nothing, num_epochs=1)


@FITS
@BUILDS
def test_a_learning_rate_that_diverges(digits, fit, build):
    message = r"training diverged \(loss (nan|inf)\); lower lr from 1000000000000.0"
    with pytest.raises(FloatingPointError, match=message):
        fit(build, digits.pool.images, digits.pool.labels, num_epochs=3, lr=1e12)


@pytest.mark.parametrize(
    "subsets, message",
    [
        (torch.arange(10), "subsets must be (models, rows), not (10,)"),
        (torch.zeros(0, 5).long(), "subsets must be (models, rows), not (0, 5)"),
        (torch.zeros(2, 0).long(), "subsets must be (models, rows), not (2, 0)"),
        ([[0, 400]], "subsets must hold rows 0..399 of the pool"),
        ([[-1, 3]], "subsets must hold rows 0..399 of the pool"),
        (torch.ones(2, 400, dtype=torch.bool), "must be int64 rows of the pool, not torch.bool"),
        (torch.ones(2, 4), "subsets must be int64 rows of the pool, not torch.float32"),
    ],
)
@pytest.mark.parametrize("form", ["batched", "loop"])
def test_subsets_that_are_none(digits, subsets, message, form):
    with pytest.raises(ValueError, match=re.escape(message)):
        training.fit_many(
            small_mlp, digits.pool.images, digits.pool.labels, subsets, num_epochs=1, form=form
        )


@pytest.mark.parametrize("given_as", [list, torch.Tensor.numpy])
def test_subsets_of_any_make(digits, given_as):
    subsets = training.half_splits(20, 2)
    arguments = (small_mlp, digits.pool.images, digits.pool.labels)
    listed = subsets.tolist() if given_as is list else given_as(subsets)
    first, second = (training.fit_many(*arguments, s, num_epochs=1) for s in (subsets, listed))
    assert same_state(first.state, second.state)


def test_unknown_form(digits):
    for form, hint in (("batch", "did you mean 'batched'?"), ("x", "known: auto, batched, loop")):
        with pytest.raises(ValueError, match=re.escape(f"unknown form {form!r}; {hint}")):
            training.fit_many(
                small_mlp,
                digits.pool.images,
                digits.pool.labels,
                [[0, 1]],
                num_epochs=1,
                form=form,
            )


# The models themselves


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_mlp(hidden):
    model = models.mlp((1, 8, 8), 10, hidden, "tanh")
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    widths = [64, *hidden, 10]
    weights = sum(a * b + b for a, b in zip(widths, widths[1:], strict=False))
    assert sum(p.numel() for p in model.parameters()) == weights
    assert sum(isinstance(m, nn.Tanh) for m in model) == len(hidden)


def test_cnn():
    model = models.cnn((3, 9, 12), 5, channels=(4, 6), hidden=7)
    assert model(torch.zeros(2, 3, 9, 12)).shape == (2, 5)
    expected = 3 * 4 * 9 + 4 + 4 * 6 * 9 + 6 + (6 * 2 * 3 * 7 + 7) + (7 * 5 + 5)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_images_too_small_for_a_cnn():
    with pytest.raises(ValueError, match="8x3 images cannot be halved 2 times"):
        models.cnn((1, 8, 3), 10)
