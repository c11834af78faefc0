"""Masks keep the label; MemGuard keeps its budget besides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vplib.defenses.output_perturbation import masks, train_purifier

QUICK = settings(deadline=None, max_examples=40)


@st.composite
def answers(draw, most=6):
    """Probabilities from flat to nearly certain, some with ties."""
    n, classes = draw(st.integers(1, most)), draw(st.integers(2, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(n, classes, generator=generator) * draw(st.sampled_from([0.1, 1, 5, 30]))
    if draw(st.booleans()):
        logits = logits.round()  # equal logits
    return logits.softmax(-1)


def classifier(p):
    """A membership classifier like a trained one: sure of members where the answer is sure."""
    top = p.clamp_min(1e-9).log().sort(-1, descending=True).values
    return 2 * top[..., 0] - 0.3 * top[..., 1] + 0.5


@given(answers(), st.integers(1, 14))
@QUICK
def test_top_k_keeps_label_and_values(p, k):
    masked = masks.top_k(p, k)
    assert torch.equal(masked.argmax(-1), p.argmax(-1))
    kept = masked != 0
    assert torch.equal(masked[kept], p[kept]) and (kept.sum(-1) <= k).all()
    if k >= p.shape[-1]:
        assert torch.equal(masked, p)


@given(answers(), st.integers(0, 9))
@QUICK
def test_rounding_keeps_the_label_alone_at_the_top(p, decimals):
    masked = masks.rounded(p, decimals)
    assert torch.equal(masked.argmax(-1), p.argmax(-1))
    units = masked.double() * 10**decimals
    assert (units - units.round()).abs().max() <= 1e-7 * 10**decimals
    top = masked.amax(-1, keepdim=True)
    assert ((masked == top).sum(-1) == 1).all()
    plain = (p.double() * 10**decimals).round() / 10**decimals
    assert (plain - masked).abs().max() <= 10**-decimals + 1e-7


@given(answers(), st.floats(0.05, 100))
@QUICK
def test_temperature_keeps_the_label(p, t):
    masked = masks.temperature(p, t)
    assert torch.equal(masked.argmax(-1), p.argmax(-1))
    assert torch.allclose(masked.sum(-1), torch.ones(len(p)), atol=1e-5)


@given(answers(), st.sampled_from([0.5, 5.0, 20.0]))
@QUICK
def test_the_inverse_temperature_undoes_it(p, t):
    p = (0.999 * p + 0.001 / p.shape[-1]).double()
    assert torch.allclose(masks.temperature(masks.temperature(p, t), 1 / t), p, atol=1e-6)


def test_temperature_by_hand():
    p = torch.tensor([[0.64, 0.36]])
    assert torch.allclose(masks.temperature(p, 2.0), torch.tensor([[8 / 14, 6 / 14]]))


@given(answers(), st.floats(0, 2))
@settings(deadline=None, max_examples=25)
def test_memguard_keeps_label_validity_and_expected_distortion(p, budget):
    guard = masks.MemGuard(classifier, budget=budget, num_steps=40)
    noisy, chance = guard.plan(p)
    for masked in (noisy, guard(p)):
        assert torch.equal(masked.argmax(-1), p.argmax(-1))
        assert (masked >= 0).all()
        assert torch.allclose(masked.sum(-1), torch.ones(len(p)), atol=1e-4)
    assert ((chance >= 0) & (chance <= 1)).all()
    assert (chance * (noisy - p).abs().sum(-1) <= budget + 1e-5).all()


@given(answers(most=3))
@settings(deadline=None, max_examples=15)
def test_memguard_says_the_same_when_asked_again(p):
    guard = masks.MemGuard(classifier, budget=0.3, num_steps=20)
    first = guard(p)
    assert torch.equal(first, guard(p))
    again = guard(p.flip(0)).flip(0)  # in any order, within a float's last digits
    assert torch.allclose(first, again, atol=1e-4)


def test_memguard_carries_the_classifier_to_one_half():
    generator = torch.Generator().manual_seed(0)
    p = (5 * torch.randn(200, 10, generator=generator)).softmax(-1)
    guard = masks.MemGuard(classifier, budget=2.0)
    noisy, chance = guard.plan(p)
    before, after = ((classifier(x).sigmoid() - 0.5).abs() for x in (p, noisy))
    assert (after[chance > 0] < before[chance > 0]).all()
    assert after.mean() < 0.3 * before.mean()


def test_memguard_moves_answers_that_are_certain_to_ten_digits():
    logits = torch.zeros(300, 4)
    logits[torch.arange(300), torch.arange(300) % 4] = 25.0 + torch.arange(300) / 30
    p = (logits + 0.1 * torch.randn(300, 4)).softmax(-1)  # the others' sum is below 1e-10

    def sure(asked):  # sure of members while the second place stays below 1e-6
        return -1.0 - (asked.sort(-1, descending=True).values[..., 1] + 1e-9).log() - 12.8

    noisy, chance = masks.MemGuard(sure, budget=1.0).plan(p)
    assert (sure(p) > 0).all() and (chance == 1).all()
    assert sure(noisy).abs().max() < 0.05
    above = (sure(noisy) > 0).double().mean()
    assert 0.3 < above < 0.7  # and which side it stays on says nothing


def test_doubles_are_masked_as_floats_are():
    p = (3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0))).softmax(-1)
    judge = masks.train_classifier(p, torch.arange(50) % 2 == 0, num_steps=5)
    guard = masks.MemGuard(judge, budget=1.0, num_steps=40)
    for mask in (lambda q: masks.temperature(q, 3.0), lambda q: masks.rounded(q, 1)):
        assert torch.allclose(mask(p.double()), mask(p).double(), atol=1e-6)
    noisy, chance = guard.plan(p.double())  # whose search may take another way in the last digits
    assert noisy.dtype == torch.float64 and torch.equal(noisy.argmax(-1), p.argmax(-1))
    assert (judge(noisy).abs() < judge(p).abs())[chance > 0].all() and (chance > 0).any()


def test_memguard_without_a_budget_changes_nothing():
    p = torch.randn(20, 5).softmax(-1)
    assert torch.equal(masks.MemGuard(classifier, budget=0.0, num_steps=20)(p), p)


def test_memguard_spends_its_budget_in_expectation():
    p = (3 * torch.randn(2000, 6)).softmax(-1)
    guard = masks.MemGuard(classifier, budget=0.1, num_steps=60)
    noisy, chance = guard.plan(p)
    expected = (chance * (noisy - p).abs().sum(-1)).mean()
    spent = (guard(p) - p).abs().sum(-1).mean()
    assert abs(spent - expected) < 0.02
    other = masks.MemGuard(classifier, budget=0.1, num_steps=60, seed=1)
    assert not torch.equal(guard(p), other(p))  # the coins depend on the secret


def test_a_trained_classifier_tells_members_and_is_differentiable():
    generator = torch.Generator().manual_seed(0)
    scale = torch.where(torch.arange(400) % 2 == 0, 6.0, 1.0)
    p = (scale[:, None] * torch.randn(400, 5, generator=generator)).softmax(-1)
    judge = masks.train_classifier(p, torch.arange(400) % 2 == 0, num_steps=300)
    right = (judge(p) > 0) == (torch.arange(400) % 2 == 0)
    assert right.double().mean() > 0.8
    p.requires_grad_()
    (slope,) = torch.autograd.grad(judge(p).sum(), p)
    assert torch.isfinite(slope).all() and slope.abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: masks.top_k(p, 0), "k must be 1 or more"),
        (lambda p: masks.rounded(p, -1), "decimals must be 0 or more"),
        (lambda p: masks.temperature(p, 0.0), "temperature must be above 0"),
        (lambda p: masks.temperature(p, float("nan")), "temperature must be above 0"),
        (lambda p: masks.temperature(p, float("inf")), "temperature must be above 0"),
        (lambda p: masks.MemGuard(classifier, budget=float("inf")), "budget must be 0 or more"),
        (lambda p: masks.MemGuard(classifier, budget=1.0, num_steps=0), "num_steps must be 1"),
        (lambda p: judge(p, [True, False], num_steps=0), "num_steps must be 1"),
        (lambda p: judge(p, [True, True]), "some of them True and some False"),
        (lambda p: judge(p, [False, False]), "some of them True and some False"),
        (lambda p: judge(p, [1, 0]), "members must be 2 truth values"),
        (lambda p: judge(p, [True, False, True]), "members must be 2 truth values"),
        (lambda p: masks.MemGuard(classifier, budget=-1.0), "budget must be 0 or more"),
        (lambda p: masks.MemGuard(classifier, budget=float("nan")), "budget must be 0 or more"),
    ],
)
def test_errors_say_what_was_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.full((2, 2), 0.5))


def judge(p, members, num_steps=1):
    return masks.train_classifier(p, torch.tensor(members), num_steps=num_steps)


PUBLIC = {
    "top_k": lambda p: masks.top_k(p, 2),
    "rounded": lambda p: masks.rounded(p, 1),
    "temperature": lambda p: masks.temperature(p, 2.0),
    "MemGuard": lambda p: masks.MemGuard(classifier, budget=1.0, num_steps=2)(p),
    "train_purifier": lambda p: train_purifier(p, num_epochs=1),
    "purify": lambda p: train_purifier(torch.full((8, 3), 1 / 3), num_epochs=1)(p),
    "train_classifier": lambda p: judge(p, [True, False]),
}


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([[0.5, 0.5, float("nan")], [0.2, 0.3, 0.5]], "no NaN"),
        ([[0.5, 0.5, float("inf")], [0.2, 0.3, 0.5]], "in \\[0, 1\\]"),
        ([[1.2, -0.2, 0.0], [0.2, 0.3, 0.5]], "in \\[0, 1\\]"),
        ([[3.0, -2.0, 0.5], [0.2, 0.3, 0.5]], "or logits"),
        ([[1, 0, 0], [0, 1, 0]], "no NaN, whole numbers"),
        ([[1.0], [1.0]], "two classes or more"),
        ([[0.5, 0.1, 0.1], [0.2, 0.3, 0.5]], "must sum to 1"),
        ([[0.9, 0.9, 0.9], [0.2, 0.3, 0.5]], "must sum to 1"),
    ],
)
def test_every_function_refuses_what_is_no_answer(name, wrong, message):
    if name == "train_classifier" and "sum" in message:
        assert judge(torch.tensor(wrong), [True, False])  # it learns from masked answers, too
        return
    with pytest.raises(ValueError, match=message):
        PUBLIC[name](torch.tensor(wrong))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_mask_takes_answers_of_any_batch(name):
    for n in (0, 1, 5):
        p = torch.eye(3)[torch.arange(n) % 3] * 0.7 + 0.1
        if name in ("train_purifier", "train_classifier"):
            continue
        assert PUBLIC[name](p).shape == p.shape
