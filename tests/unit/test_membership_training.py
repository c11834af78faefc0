"""Defenses by training: what each may see, and comparison at equal accuracy."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vplib import datasets, models, training
from vplib.defenses import membership_training as defense

RECIPE = dict(num_epochs=3, keep=False)
DEFENSES = {
    "plain": defense.train_plain,
    "dropout": partial(defense.train_with_dropout, rate=0.4),
    "adversary": partial(defense.train_adversarially, strength=3.0),
    "distilled": defense.train_distilled,
    "pruned": partial(defense.train_pruned, share=0.7),
    "stacked": defense.train_stacked,
}


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", "all").split(seed=2, pool=120, others=60, test=100)


def build():
    return models.mlp((1, 8, 8), 10, hidden=(16,))


def trained(digits, name, subsets=None, references=None, **changes):
    subsets = training.half_splits(120, 4) if subsets is None else subsets
    given = digits.pool.images, digits.pool.labels, subsets, references or digits.others
    return DEFENSES[name](build, *given, **RECIPE | changes)


@pytest.mark.parametrize("name", DEFENSES)
def test_one_form_for_all(digits, name, monkeypatch):
    subsets = training.half_splits(120, 4)
    together = trained(digits, name, seed=5)
    answers = together.probabilities(digits.test.images)
    assert answers.shape == (4, 100, 10)
    assert torch.allclose(answers.sum(-1), torch.ones(4, 100), atol=1e-5)
    held = together.membership(120)
    assert torch.equal(held, torch.zeros(4, 120, dtype=torch.bool).scatter_(1, subsets, True))
    monkeypatch.setitem(training.CHUNK, "cpu", 1)
    singly = trained(digits, name, seed=5).probabilities(digits.test.images)
    assert (answers - singly).abs().max() < 1e-5
    two = trained(digits, name, subsets[:2], seed=5).probabilities(digits.test.images)
    assert (answers[:2] - two).abs().max() < 1e-5
    assert (answers - trained(digits, name, seed=6).probabilities(digits.test.images)).abs().max()


@pytest.mark.parametrize("name", ["plain", "dropout", "pruned", "stacked", "distilled"])
def test_labels_of_references_are_not_read(digits, name):
    blinded = digits.others.subset(torch.arange(60))
    blinded = type(blinded)(**vars(blinded) | dict(labels=torch.zeros_like(blinded.labels)))
    with_them, without = (
        trained(digits, name, references=r).probabilities(digits.test.images)
        for r in (digits.others, blinded)
    )
    assert torch.equal(with_them, without)


def test_the_inference_gain_by_hand():
    inside, outside = torch.tensor([2.0, -1.0]), torch.tensor([0.5])
    h = [1 / (1 + np.exp(-z)) for z in (2.0, -1.0, 0.5)]
    by_hand = (np.log(h[0]) + np.log(h[1])) / 4 + np.log(1 - h[2]) / 2
    assert defense.inference_gain(inside, outside).item() == pytest.approx(by_hand, abs=1e-6)
    nothing = defense.inference_gain(torch.zeros(3, 4), torch.zeros(3, 2))
    assert torch.allclose(nothing, torch.full((3,), -np.log(2)))
    sure = torch.full((4,), 300.0)
    assert defense.inference_gain(sure, -sure) == 0
    assert defense.inference_gain(-sure, sure) == -300


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 7))
def test_lowest_entropy_by_loops(seed, number):
    draws = np.random.default_rng(seed)
    answers = draws.dirichlet(np.full(4, 0.3), size=(3, 7))
    rows = defense.lowest_entropy(torch.tensor(answers), number / 7)
    for one, found in zip(answers, rows, strict=True):
        entropies = [-sum(p * np.log(p) for p in answer if p > 0) for answer in one]
        assert found.tolist() == np.argsort(entropies, kind="stable")[:number].tolist()


def test_zero_probabilities_have_no_entropy():
    answers = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]])
    assert defense.lowest_entropy(answers, 0.5).tolist() == [[1]]


def test_students_learn_the_teachers_answers_about_the_chosen_alone(digits):
    """By hand: the teachers of the same seed, then students of images and answers."""
    subsets = training.half_splits(120, 4)
    asked = []

    def last_ten(answers):
        asked.append(answers)
        return torch.arange(50, 60).expand(len(answers), -1)

    found = trained(digits, "distilled", choose=last_ten, seed=4)
    pool, others = digits.pool, digits.others
    teachers = training.fit_many(build, pool.images, pool.labels, subsets, seed=4, **RECIPE)
    answers = teachers.probabilities(others.images)
    assert torch.equal(asked[0], answers)
    changed = type(others)(**vars(others) | dict(images=others.images.clone()))
    changed.images[:50] = 0
    again = trained(digits, "distilled", references=changed, choose=last_ten, seed=4)
    same = found.probabilities(digits.test.images), again.probabilities(digits.test.images)
    assert torch.allclose(*same, atol=1e-6)
    images = others.images[50:].expand(4, *others.images[50:].shape)
    students = defense.distill(build, images, answers[:, 50:], num_epochs=60, keep=False)
    said = students.probabilities(others.images[50:])
    far = (said - answers[:, 50:]).abs().mean(), (said - 0.1).abs().mean()
    assert far[0] < far[1] / 3


def test_each_student_has_a_teacher_of_its_own():
    images = torch.rand(2, 12, 1, 8, 8)
    targets = torch.zeros(2, 12, 10)
    targets[0, :, 3] = targets[1, :, 7] = 1
    said = defense.distill(build, images, targets, **RECIPE).probabilities(images[0])
    assert (said.argmax(-1) == torch.tensor([[3], [7]])).all()


@pytest.mark.parametrize(("share", "kept"), [(0.0, 6), (0.5, 3), (0.8, 1)])
def test_the_largest_weights_stay(share, kept):
    weights = torch.tensor([[[0.1, -2.0, 0.3], [1.0, -0.2, 0.05]], [[3, 0, 0], [0, 0, 0]]])
    mask = defense.magnitude_mask(weights, share)
    assert mask.flatten(1).sum(1).tolist() == [kept, kept]
    gone = weights[0].abs()[mask[0] == 0]
    assert not len(gone) or gone.max() < weights[0].abs()[mask[0] == 1].min()


def test_pruned_networks_have_the_share_of_zeros(digits):
    state = trained(digits, "pruned").state
    for value in state.values():
        zeros = (value == 0).flatten(1).double().mean(1)
        assert torch.allclose(zeros, torch.full_like(zeros, 0.7 * (value.ndim > 2)), atol=0.01)


def test_no_model_of_a_stack_shares_a_record(digits, monkeypatch):
    seen = []
    fit_many = training.fit_many

    def recording(build, images, labels, subsets, **settings):
        seen.append((len(images), subsets))
        return fit_many(build, images, labels, subsets, **settings)

    monkeypatch.setattr(training, "fit_many", recording)
    stack = trained(digits, "stacked", training.half_splits(120, 2))
    first, second = (rows for _, rows in seen[:2])
    assert [tuple(rows.shape) for _, rows in seen] == [(2, 20), (2, 20), (2, 20)]
    assert not torch.isin(first[0], second[0]).any()
    assert torch.isin(torch.cat([first[0], second[0]]), stack.subsets[0]).all()


# At equal accuracy


def test_frontier_leaves_out_what_another_beats():
    accuracies = [0.9, 0.1, 0.8, 0.7, 0.8]
    risks = [0.64, 0.5, 0.6, 0.62, 0.61]
    have, found = defense.frontier(accuracies, risks)
    assert have.tolist() == [0.1, 0.8, 0.9]
    assert found.tolist() == [0.5, 0.6, 0.64]


def test_equal_points_stay_one_answer():
    assert defense.risk_at_accuracy([0.5, 0.5], [0.6, 0.6], 0.5) == 0.6


def test_between_two_settings_the_risk_is_mixed_for_each_victim():
    accuracies, risks = [0.8, 0.1, 0.9], [[0.6, 0.58], [0.5, 0.5], [0.7, 0.62]]
    assert np.allclose(defense.risk_at_accuracy(accuracies, risks, 0.825), [0.625, 0.59])
    assert np.allclose(defense.risk_at_accuracy(accuracies, risks, 0.99), [0.7, 0.62])
    assert np.allclose(defense.risk_at_accuracy(accuracies, risks, 0.0), [0.5, 0.5])
    assert defense.accuracy_at_risk(accuracies, risks, 0.59) == pytest.approx(0.8)
    assert defense.accuracy_at_risk(accuracies, risks, 0.9) == pytest.approx(0.9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.5, 1)), min_size=1, max_size=6))
def test_a_setting_of_the_baseline_is_never_better_than_the_baseline(points):
    accuracies, risks = (np.array(values) for values in zip(*points, strict=True))
    have, found = defense.frontier(accuracies, risks)
    assert (np.diff(have) >= 0).all() and (np.diff(found) >= 0).all()
    for accuracy, risk in points:
        assert defense.risk_at_accuracy(accuracies, risks, accuracy) <= risk + 1e-9
        assert defense.accuracy_at_risk(accuracies, risks, risk) >= accuracy - 1e-9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: defense.frontier([], []), "one of each a point"),
        (lambda: defense.frontier([0.5, 0.6], [0.5]), "one of each a point"),
        (lambda: defense.frontier([0.5, float("nan")], [0.5, 0.6]), "not finite"),
        (lambda: defense.frontier([0.5], [[0.5, float("inf")]]), "not finite"),
        (lambda: defense.lowest_entropy(torch.rand(1, 5, 3), 0.0), "share 0.0 of 5 references"),
        (lambda: defense.lowest_entropy(torch.rand(1, 5, 3), 1.1), "share 1.1 of 5 references"),
        (lambda: defense.lowest_entropy(torch.rand(1, 5, 3), 0.05), "share 0.05 of 5 references"),
        (lambda: defense.magnitude_mask(torch.rand(1, 5), 1.0), "share 1.0 must be"),
        (lambda: defense.magnitude_mask(torch.rand(1, 5), -0.1), "share -0.1 must be"),
        (
            lambda: defense.distill(build, torch.rand(2, 5, 1, 8, 8), torch.rand(2, 4, 10)),
            "same students and images",
        ),
        (
            lambda: defense.train_stacked(
                build, torch.rand(4, 1, 8, 8), torch.zeros(4).long(), torch.tensor([[0, 1]])
            ),
            "three records a subset, not 2",
        ),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
