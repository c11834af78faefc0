"""Exercises of attacks/extraction_functionality: each mistake is named."""

import pytest
import torch
import torch.nn.functional as F

from vplib.attacks.extraction_functionality import exercises as ex


def train(clone, queries, targets, num_steps, sign=1.0):
    optimizer = torch.optim.Adam(clone.parameters(), lr=0.03)
    for _ in range(num_steps):
        optimizer.zero_grad()
        (sign * F.cross_entropy(clone(queries), targets)).backward()
        optimizer.step()
    return clone


def the_whole_pool(ask, images, clone, budget, num_steps):
    return train(clone, images[:budget], ask(images)[:budget], num_steps)


def at_each_step(ask, images, clone, budget, num_steps):
    for _ in range(num_steps):
        train(clone, images[:budget], ask(images[:budget]), 1)
    return clone


def with_repeats(ask, images, clone, budget, num_steps):
    queries = images[torch.arange(budget) % 50]
    return train(clone, queries, ask(queries), num_steps)


def made_up(ask, images, clone, budget, num_steps):
    queries = torch.rand_like(images[:budget])
    return train(clone, queries, ask(queries), num_steps)


def half_the_budget(ask, images, clone, budget, num_steps):
    queries = images[: budget // 2]
    return train(clone, queries, ask(queries), num_steps)


def by_labels(ask, images, clone, budget, num_steps):
    queries = images[:budget]
    return train(clone, queries, ask(queries).argmax(-1), num_steps)


def untrained(ask, images, clone, budget, num_steps):
    ask(images[:budget])
    return clone


def uphill(ask, images, clone, budget, num_steps):
    return train(clone, images[:budget], ask(images[:budget]), num_steps, sign=-1)


@pytest.mark.parametrize(
    ("check", "attempt", "said"),
    [
        (ex.check_agreement, lambda c, v: (c == v).double().mean(), "never equal"),
        (ex.check_agreement, lambda c, v: (c.argmax(-1) == v.argmax(-1)).sum(), "take the share"),
        (ex.check_steal, the_whole_pool, "400 images were asked about"),
        (ex.check_steal, at_each_step, "keep the answers"),
        (ex.check_steal, with_repeats, "repeats are paid for"),
        (ex.check_steal, made_up, "images of the pool"),
        (ex.check_steal, half_the_budget, "only 50 of the 100"),
        (ex.check_steal, by_labels, "train on the probabilities"),
        (ex.check_steal, untrained, "all steps, downhill"),
        (ex.check_steal, uphill, "all steps, downhill"),
        (ex.check_steal, lambda ask, x, clone, b, n: ask(x[:b]), "return the trained clone"),
        (ex.check_most_uncertain, lambda p, a, n: torch.tensor([0, 2]), "asked about already"),
        (ex.check_most_uncertain, lambda p, a, n: torch.tensor([2, 2]), "2 different rows"),
    ],
)  # fmt: skip
def test_mistakes_are_named(check, attempt, said):
    assert said in check(attempt)


@pytest.mark.parametrize("seed", range(3))
def test_stealing_is_right_whatever_is_drawn(seed):
    torch.manual_seed(seed)
    before = torch.random.get_rng_state()
    assert ex.check_steal(ex.solve_steal).startswith("right: ")
    assert torch.equal(torch.random.get_rng_state(), before)
