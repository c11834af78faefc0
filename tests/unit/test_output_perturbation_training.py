"""Purifier and MID: what they keep, what they limit, and what they refuse."""

import pytest
import torch

from vplib.defenses import output_perturbation as masks
from vplib.defenses.output_perturbation import bottleneck, purifier
from vplib.nets import training


def answers(num, classes=5, seed=0, scale=4.0):
    return (
        scale * torch.randn(num, classes, generator=torch.Generator().manual_seed(seed))
    ).softmax(-1)


def test_purified_answers_are_probabilities_and_mostly_keep_the_label():
    purify = masks.train_purifier(answers(600), num_epochs=30)
    asked = answers(300, seed=1)
    said = purify(asked)
    assert said.shape == asked.shape and said.dtype == asked.dtype
    assert torch.allclose(said.sum(-1), torch.ones(300), atol=1e-5)
    assert (said.argmax(-1) == asked.argmax(-1)).double().mean() > 0.85
    assert torch.equal(purify(asked), said), "asking again tells nothing new"
    assert torch.allclose(purify(asked.view(3, 100, 5)).flatten(0, 1), said, atol=1e-6)
    assert purify(asked.double()).dtype == torch.float64


def test_a_narrow_purifier_leaves_less_than_a_wide_one():
    seen, asked = answers(800, 8), answers(300, 8, seed=1)
    narrow, wide = (masks.train_purifier(seen, width=w, num_epochs=30) for w in (1, 16))
    assert (narrow(asked) - asked).abs().sum() > 2 * (wide(asked) - asked).abs().sum()


def test_the_purifiers_loss_by_hand():
    logits, said = torch.zeros(1, 2), torch.tensor([[0.8, 0.2]])
    half = torch.tensor(2.0).log()
    assert purifier.purifier_loss(logits, said, 0.0).item() == pytest.approx(2 * 0.3**2)
    assert purifier.purifier_loss(logits, said, 2.0).item() == pytest.approx(0.18 + 2 * half.item())


def test_a_bottleneck_answers_alike_each_time_and_draws_in_training():
    net = masks.Bottleneck((1, 4, 4), 3, hidden=8, code=2)
    images = torch.rand(5, 1, 4, 4)
    net.eval()
    assert net(images).shape == (5, 3) and torch.equal(net(images), net(images))
    net.train()
    first, second = net(images), net(images)
    assert first.shape == (5, 4) and not torch.equal(first[:, :-1], second[:, :-1])
    assert torch.equal(first[:, -1], second[:, -1]) and (first[:, -1] >= 0).all()


def test_the_information_is_the_divergence_from_a_standard_normal():
    net = masks.Bottleneck((1, 2, 2), 2, hidden=4, code=3).train()
    images = torch.rand(6, 1, 2, 2)
    mean, logs = net.encode(images).chunk(2, -1)
    normal = torch.distributions.Normal
    oracle = torch.distributions.kl_divergence(normal(mean, (logs / 2).exp()), normal(0.0, 1.0))
    assert torch.allclose(net(images)[:, -1], oracle.sum(-1), atol=1e-5)


def test_the_weight_limits_the_information():
    images = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = (images.mean((1, 2, 3)) > 0.5).long()
    nats = []
    for weight in (0.0, 1.0):
        fitted = training.fit_many(
            lambda: masks.Bottleneck((1, 4, 4), 2, hidden=8, code=2),
            images,
            labels,
            torch.arange(60)[None],
            num_epochs=40,
            lr=0.01,
            optimizer="adam",
            loss=masks.limiting(weight),
            keep=False,
        ).model(0)
        nats.append(fitted.train()(images)[:, -1].mean().item())
    assert nats[1] < 0.2 * nats[0]


def test_the_loss_of_mid_by_hand():
    outputs, labels = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 1.0]]), torch.tensor([0, 1])
    half = torch.tensor(2.0).log().item()
    assert bottleneck.information_loss(outputs, labels, 0.5).item() == pytest.approx(half + 1.0)


def test_planned_noise_is_mixed_as_asked():
    p = answers(50)
    guard = masks.MemGuard(lambda q: 3 * q.amax(-1) - 2, budget=0.05, num_steps=30)
    noisy, chance = guard.plan(p)
    assert torch.equal(guard(p), guard.mixed(p, noisy, chance))
    assert torch.equal(guard.mixed(p, noisy, torch.ones(50)), noisy)
    assert torch.equal(guard.mixed(p, noisy, torch.zeros(50)), p)


@pytest.mark.parametrize(
    "mask",
    [
        lambda p: masks.top_k(p, 1),
        lambda p: masks.top_k(p, 3),
        lambda p: masks.rounded(p, 1),
        lambda p: masks.temperature(p, 20.0),
        lambda p: masks.MemGuard(lambda q: 3 * q.amax(-1) - 2, budget=1.0, num_steps=30)(p),
    ],
    ids=["top 1", "top 3", "one decimal", "temperature", "MemGuard"],
)
def test_who_reads_labels_cannot_notice_a_mask(mask):
    p = answers(200)
    assert torch.equal(mask(p).argmax(-1), p.argmax(-1))
    assert torch.equal(mask(p), mask(p)), "equal queries, equal answers"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: masks.train_purifier(torch.rand(4), num_epochs=1), "answers must be"),
        (lambda: masks.train_purifier(torch.ones(4, 1), num_epochs=1), "answers must be"),
        (lambda: masks.train_purifier(answers(4), width=0, num_epochs=1), "width must be 1"),
        (lambda: masks.train_purifier(answers(4), label_weight=-1, num_epochs=1), "label_weight"),
        (lambda: masks.train_purifier(answers(4), num_epochs=0), "num_epochs 0"),
        (lambda: masks.train_purifier(answers(0), num_epochs=1), "no image to train on"),
        (lambda: masks.limiting(-0.1), "must be 0 or more"),
        (lambda: masks.limiting(float("nan")), "must be 0 or more"),
        (lambda: masks.limiting(float("inf")), "must be 0 or more"),
        (lambda: masks.train_purifier(answers(4), label_weight=torch.inf, num_epochs=1), "label_w"),
        (lambda: masks.train_purifier(answers(40), num_epochs=1)(answers(3, 4)), "have 4 classes"),
    ],
)
def test_errors_say_what_was_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
