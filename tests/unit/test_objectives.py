"""Objectives beside cross-entropy: many models at once are the ones trained one by one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vplib import datasets, models, seeding, training
from vplib.nets import objectives


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", "all").split(seed=1, pool=120, others=50, test=400)


def small_mlp():
    return models.mlp((1, 8, 8), 10, hidden=(16,))


def small_cnn():
    return models.cnn((1, 8, 8), 10, channels=(4,), hidden=16)


def adversary():
    return models.mlp((20,), 1, (8,))


def gain(inside, outside):
    return (F.logsigmoid(inside).mean(-1) + F.logsigmoid(-outside).mean(-1)) / 2


def against(digits, strength=2.0, **changes):
    settings = dict(strength=strength, gain=gain, lr=0.02) | changes
    return objectives.against(adversary, digits.others.images, digits.others.labels, **settings)


def masks_of(start):
    draws = torch.Generator().manual_seed(0)
    return {name: (torch.rand(v.shape, generator=draws) > 0.5).float() for name, v in start.items()}


def fitted(digits, objective=None, build=small_mlp, num_models=5, **changes):
    subsets = training.half_splits(120, 6)[:num_models]
    settings = dict(num_epochs=4, keep=False, seed=3) | changes
    return training.fit_many(
        build, digits.pool.images, digits.pool.labels, subsets, objective=objective, **settings
    )


def furthest(a, b):
    return max((a.state[name] - b.state[name]).abs().max().item() for name in a.state)


@pytest.mark.parametrize("build", [small_mlp, small_cnn])
@pytest.mark.parametrize("kind", ["against", "dropout", "masked"])
@pytest.mark.parametrize("optimizer", [dict(), dict(optimizer="adam", lr=0.01, weight_decay=0.01)])
def test_many_at_once_are_the_ones_trained_one_by_one(digits, monkeypatch, build, kind, optimizer):
    start = fitted(digits, build=build, num_epochs=1).state
    objective = {
        "against": against(digits),
        "dropout": objectives.dropout(0.3),
        "masked": objectives.masked(start, masks_of(start)),
    }[kind]
    together = fitted(digits, objective, build, **optimizer)
    monkeypatch.setitem(training.CHUNK, "cpu", 1)
    singly = fitted(digits, objective, build, **optimizer)
    assert furthest(together, singly) < 1e-5
    assert furthest(together, fitted(digits, build=build, **optimizer)) > 1e-3


def test_a_model_does_not_depend_on_how_many_there_are(digits):
    five, two = (fitted(digits, against(digits), num_models=k) for k in (5, 2))
    assert (five.state["1.weight"][:2] - two.state["1.weight"]).abs().max() < 1e-5


def test_an_adversary_without_weight_changes_nothing(digits):
    assert furthest(fitted(digits, against(digits, strength=0.0)), fitted(digits)) < 1e-5


def test_the_adversary_and_the_model_step_by_turns(digits):
    """Against a loop over autograd and optimizer objects, one batch and one reference."""
    few = digits.pool.subset(range(6))
    net = seeding.initialized(small_mlp, seeding.derive(0, 0))
    judge = seeding.initialized(adversary, seeding.derive(seeding.derive(0, 0), "adversary"))
    down = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    up = torch.optim.Adam(judge.parameters(), 0.02)
    other = digits.others.subset([0] * 6)

    def gained(logits, strangers):
        both = (logits, few.labels), (strangers, other.labels)
        seen = [torch.cat([z.softmax(1), F.one_hot(y, 10)], 1) for z, y in both]
        return gain(*(judge(one)[:, 0] for one in seen))

    for turn in range(3):
        logits, strangers = net(few.images), net(other.images).detach()
        for _ in range(min(turn + 1, 2)):  # of one batch there is one at first, then two
            up.zero_grad()
            (-gained(logits.detach(), strangers)).backward()
            up.step()
        down.zero_grad()
        (F.cross_entropy(logits, few.labels) + 2 * gained(logits, strangers)).backward()
        down.step()
    objective = objectives.against(
        adversary, other.images[:1], other.labels[:1], strength=2.0, gain=gain, lr=0.02, steps=2
    )
    rows = torch.arange(6)[None]
    found = training.fit_many(
        small_mlp, few.images, few.labels, rows, objective=objective, num_epochs=3, keep=False
    )
    for name, value in net.state_dict().items():
        assert torch.allclose(found.state[name][0], value, atol=1e-5)


def test_the_adversary_sees_the_last_batches_again(digits):
    """With steps for all batches of a pass, it has seen each record once a turn."""
    seen = []

    def watching(inside, outside):
        seen.append(inside.shape[-1])
        return gain(inside, outside)

    fitted(digits, against(digits, gain=watching, steps=3), num_models=1, num_epochs=2)
    # 60 records in batches of 32 and 28; the last of each turn is the classifier's
    assert seen == [32, 32, 32, 28, 28, 32, 28, 32, 32, 28, 32, 28, 28]


def test_soft_labels_of_members_and_references(digits):
    pool, others = digits.pool, digits.others
    hard = fitted(digits, against(digits))
    soft = objectives.against(
        adversary,
        others.images,
        F.one_hot(others.labels, 10).float(),
        strength=2.0,
        gain=gain,
        lr=0.02,
    )
    subsets = training.half_splits(120, 6)[:5]
    targets = F.one_hot(pool.labels, 10).float()
    settings = dict(objective=soft, num_epochs=4, keep=False, seed=3)
    found = training.fit_many(small_mlp, pool.images, targets, subsets, **settings)
    assert furthest(hard, found) < 1e-4


def test_dropout_of_nothing_is_plain_training(digits):
    assert furthest(fitted(digits, objectives.dropout(0.0)), fitted(digits)) < 1e-5


def test_dropout_keeps_the_mean():
    """With a linear network above the hidden units, the mean over coins is the plain output."""
    net = models.mlp((4,), 2, (2000,))
    objective, seen = objectives.dropout(0.5), []
    state = {name: p.detach()[None].clone().requires_grad_() for name, p in net.named_parameters()}
    gradients = objective(net, state, torch.tensor([0]), [7])
    x = torch.ones(1, 50, 4)
    seen, _ = gradients(x, torch.zeros(1, 50, dtype=torch.long))
    plain = net(x[0])[0]
    assert (seen[0].mean(0) - plain).abs().max() < 0.1
    assert seen[0].std(0).min() > 0.01


def test_masked_weights_stay_zero_and_the_others_go_on(digits):
    start = fitted(digits).state
    masks = masks_of(start)
    for optimizer in (dict(), dict(optimizer="adam", lr=0.01, weight_decay=0.1)):
        found = fitted(digits, objectives.masked(start, masks), **optimizer).state
        for name, mask in masks.items():
            assert (found[name][mask == 0] == 0).all()
            assert not torch.equal(found[name], start[name] * mask)


def test_objectives_decide_what_the_cache_keeps(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("VPLIB_CACHE", str(tmp_path))
    arms = [objectives.dropout(0.2), objectives.dropout(0.4), against(digits), None]
    first = [fitted(digits, arm, keep=True, num_epochs=1) for arm in arms]
    again = [fitted(digits, arm, keep=True, num_epochs=1) for arm in arms]
    assert all(furthest(a, b) == 0 for a, b in zip(first, again, strict=True))
    assert all(furthest(a, b) > 0 for a, b in zip(first, first[1:], strict=False))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: against(d, strength=-1.0), "strength -1.0 must be 0 or more"),
        (lambda d: against(d, steps=0), "steps 0 1 or more"),
        (lambda d: against(d, strength=float("nan")), "strength nan"),
        (
            lambda d: objectives.against(
                adversary, d.others.images, d.others.labels[1:], strength=1.0, gain=gain
            ),
            "50 references but 49 labels",
        ),
        (
            lambda d: objectives.against(
                adversary, d.others.images[:0], d.others.labels[:0], strength=1.0, gain=gain
            ),
            "0 references",
        ),
        (lambda d: objectives.dropout(1.0), "rate 1.0 must be"),
        (lambda d: objectives.dropout(-0.1), "rate -0.1 must be"),
    ],
)
def test_what_is_out_of_range_is_said(digits, make, message):
    with pytest.raises(ValueError, match=message):
        make(digits)


def test_an_objective_needs_stacked_models(digits):
    with pytest.raises(ValueError, match="an objective needs models that can be stacked"):
        fitted(digits, objectives.dropout(0.5), form="loop")
    with pytest.raises(ValueError, match="an objective needs models that can be stacked"):
        fitted(digits, objectives.dropout(0.5), lambda: nn.Sequential(*small_mlp(), nn.Dropout()))
    with pytest.raises(ValueError, match="an objective needs models that can be stacked"):
        fitted(digits, objectives.dropout(0.5), loss=F.mse_loss)
