"""Model extraction: what reaches a black box and a clone, exact budgets, choices by hand."""

import socket

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vplib import datasets, models, training
from vplib.attacks.extraction_functionality import knockoff as attack
from vplib.attacks.extraction_functionality import selection, transfer
from vplib.nets import gan
from vplib.victims import endpoint as api

SHAPE, CLASSES = (1, 8, 8), 3


class BlackBox:
    """A bare callable that remembers what it was asked; its answers are a fixed linear map's."""

    def __init__(self, labels=False):
        weight = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(7))
        self.weight, self.labels, self.asked = weight, labels, []

    def __call__(self, images):
        self.asked.append(images.clone())
        answers = (images.flatten(1) @ self.weight).softmax(-1)
        return answers.argmax(-1) if self.labels else answers

    def seen(self):
        return torch.cat(self.asked)


def network():
    return models.mlp(SHAPE, CLASSES, (8,))


def pool(num=120):
    """Real digits, in three sources, with their true labels."""
    data = datasets.load("digits", "train", num_images=num)
    return data.images, torch.arange(3).repeat_interleave(num // 3), data.labels


def as_set(images):
    return {image.numpy().tobytes() for image in images}


def adaptively(ask, budget, **settings):
    images, sources, classes = pool()
    settings = dict(rewards=attack.REWARDS) | settings
    choice = attack.choose_adaptively(
        ask, network, images, sources, classes, CLASSES, budget, **settings
    )
    return images[choice.rows], choice.targets


def actively(ask, budget, strategy):
    images, *_ = pool()
    rows, targets = selection.choose_actively(
        [ask], network, images, CLASSES, budget, strategy, num_steps=5
    )
    return images[rows[0]], targets[0]


def generate(latents):
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    return (latents @ weight).sigmoid().view(-1, *SHAPE)


def bred(ask, budget):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "POPULATION", 8)  # a small budget lasts for generations
        return selection.evolve_queries(ask, generate, 4, CLASSES, budget)


ATTACKS = {
    "random": lambda ask, b: (
        pool()[0][:b],
        attack.ask_all([ask], pool()[0][None, :b], CLASSES)[0],
    ),
    "adaptive": adaptively,
    **{s: lambda ask, b, s=s: actively(ask, b, s) for s in selection.STRATEGIES},
    "bred": bred,
}


@pytest.mark.parametrize("labels", [False, True], ids=["probabilities", "labels"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_clone_learns_from_the_black_box_alone(name, labels):
    """Each training image was asked about, each target is the answer, and each is paid for."""
    box = BlackBox(labels)
    images, targets = ATTACKS[name](box, 50)
    asked = box.seen()
    assert len(asked) == 50 and torch.equal(asked, images)
    assert torch.allclose(targets, attack.as_targets(BlackBox(labels)(images), CLASSES))


@pytest.mark.parametrize("name", ATTACKS)
def test_no_test_image_and_no_true_label_reaches_the_clone(name, monkeypatch):
    """The judge's images and the pool's true labels are nowhere in what clones are trained on."""
    trained_on = []
    fit_many = training.fit_many

    def recording(build, images, labels, subsets, **settings):
        trained_on.append((images.clone(), labels.clone()))
        return fit_many(build, images, labels, subsets, **settings)

    monkeypatch.setattr(training, "fit_many", recording)
    box, test = BlackBox(), datasets.load("digits", "test").images
    images, targets = ATTACKS[name](box, 40)
    attack.train_clones(network, images[None], targets[None], num_steps=3)
    for seen, labels in trained_on:
        assert as_set(seen) <= as_set(box.seen())
        assert not as_set(seen) & as_set(test)
        assert labels.is_floating_point()  # answers; labels would be whole numbers
        assert torch.allclose(labels, BlackBox()(seen))


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("budget", [20, 37, 50])
def test_budgets_are_spent_exactly(name, budget):
    endpoint = api.Endpoint(BlackBox(), budget=budget)
    ATTACKS[name](endpoint, budget)
    assert endpoint.queries == budget
    with pytest.raises(api.BudgetSpent):
        endpoint(pool()[0][:1])


@pytest.mark.parametrize("name", [n for n in ATTACKS if n != "bred"])
def test_no_image_is_paid_for_twice(name):
    box = BlackBox()
    ATTACKS[name](box, 60)
    assert len(box.seen().flatten(1).unique(dim=0)) == 60


@pytest.mark.parametrize("name", ATTACKS)
def test_equal_seeds_ask_the_same(name):
    first, second = BlackBox(), BlackBox()
    ATTACKS[name](first, 40)
    ATTACKS[name](second, 40)
    assert torch.equal(first.seen(), second.seen())


def test_targets_of_labels_and_of_masked_answers():
    labels = attack.as_targets(torch.tensor([2, 0]), 3)
    assert labels.tolist() == [[0, 0, 1], [1, 0, 0]]
    masked = attack.as_targets(torch.tensor([[0.6, 0.2, 0.0]]), 3)
    assert torch.allclose(masked, torch.tensor([[0.75, 0.25, 0.0]]))


def test_a_larger_budget_goes_on_where_a_smaller_one_stopped():
    small, large = (attack.draw_rows(50, b, 3, seed=1) for b in (10, 50))
    assert torch.equal(large[:, :10], small)
    assert all(len(set(rows.tolist())) == 50 for rows in large)
    assert not torch.equal(large[0], large[1])
    with pytest.raises(ValueError, match="a pool of 5 images has no 6 different queries"):
        attack.draw_rows(5, 6, 1)


def test_clones_of_two_attackers_differ_and_learn():
    box, images = BlackBox(), transfer.noise_images(800, SHAPE).view(2, 400, *SHAPE)
    targets = attack.ask_all([box, box], images, CLASSES)
    clones = attack.train_clones(network, images, targets, num_steps=400)
    assert not torch.equal(clones.state["1.weight"][0], clones.state["1.weight"][1])
    fresh = transfer.noise_images(300, SHAPE, seed=9)
    agree = (clones.logits(fresh).argmax(-1) == box(fresh).argmax(-1)).float().mean(-1)
    assert agree.min() > 0.8


def test_rewards_by_hand():
    answers = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2]])
    assert torch.allclose(attack.reward_certainty(answers), torch.tensor([0.5, 0.0]))
    past = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.1, 0.4]])  # mean 0.5, 0.3, 0.2
    assert torch.allclose(attack.reward_diversity(answers, past), torch.tensor([0.2, 0.1]))
    uniform = torch.full((2, 3), 1 / 3)
    assert torch.allclose(attack.reward_loss(answers, uniform), torch.tensor(3.0).log().expand(2))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.floats(-2, 2), st.floats(0.01, 1))
def test_the_bandit_keeps_the_sum_of_preferences(num, advantage, lr):
    start = torch.randn(num, generator=torch.Generator().manual_seed(num))
    action, gain = torch.tensor([num - 1]), torch.tensor([advantage])
    after = attack.update_preferences(start, action, gain, lr)
    assert torch.allclose(after.sum(), start.sum(), atol=1e-5)
    moved = (after - start)[-1]
    assert moved * advantage >= -1e-6  # towards what was better than usual, away otherwise


def test_the_policy_prefers_the_source_that_pays():
    """Answers are certain on the last source only, so certainty must lead there."""
    images, sources, classes = pool(600)
    images[sources < 2] *= 0.01

    def ask(some):
        return (
            F.one_hot(some.flatten(1).argmax(1) % CLASSES, CLASSES).float()
            * (some.flatten(1).amax(1, keepdim=True) > 0.5)
            * 0.97
            + 0.01
        )

    choice = attack.choose_adaptively(
        ask, network, images, sources, classes, CLASSES, 180, rewards=("certainty",)
    )
    assert choice.shares[0].tolist() == pytest.approx([1 / 3] * 3)
    assert choice.shares[-1, 2] > 0.6


def test_the_policy_goes_on_when_a_class_is_used_up():
    box = BlackBox()
    adaptively(box, 120)  # the whole pool
    assert len(box.seen().flatten(1).unique(dim=0)) == 120


def test_unknown_rewards_and_strategies_are_refused():
    with pytest.raises(ValueError, match="rewards must be one or more of certainty"):
        adaptively(BlackBox(), 20, rewards=("speed",))
    with pytest.raises(ValueError, match="rewards must be"):
        adaptively(BlackBox(), 20, rewards=())
    with pytest.raises(ValueError, match="unknown strategy 'best'"):
        actively(BlackBox(), 20, "best")
    for choose in (adaptively, lambda ask, b: actively(ask, b, "margin")):
        box = BlackBox()
        with pytest.raises(ValueError, match="a pool of 120 images has no 121"):
            choose(box, 121)
        assert not box.asked


def test_k_center_takes_the_farthest():
    points = torch.tensor([[0.0], [1.0], [5.0], [9.0]])
    assert selection.k_center(points, torch.tensor([0]), 3).tolist() == [3, 2, 1]


@pytest.mark.parametrize("build", [network, lambda: models.mlp(SHAPE, CLASSES, ())])
def test_boundary_distance_is_exact_for_a_linear_model(build):
    images = transfer.noise_images(20, SHAPE)
    targets = torch.rand(2, 20, CLASSES).softmax(-1)
    clones = attack.train_clones(build, images.expand(2, -1, -1, -1, -1), targets, num_steps=3)
    distance = selection.boundary_distance(clones, images)
    assert distance.shape == (2, 20) and (distance >= 0).all()
    if "3.weight" in clones.state:
        return
    weight, logits = clones.state["1.weight"], clones.logits(images)
    for k in range(2):
        for i in range(20):
            y = logits[k, i].argmax()
            others = [c for c in range(CLASSES) if c != y]
            by_hand = min(
                (logits[k, i, y] - logits[k, i, c]) / (weight[k, y] - weight[k, c]).norm()
                for c in others
            )
            assert torch.allclose(distance[k, i], by_hand, atol=1e-4)


def test_breeding_raises_what_the_black_box_says():
    box = BlackBox()
    bred = selection.evolve_queries(box, generate, 4, CLASSES, 300)  # no new population
    chance = box(generate(torch.randn(300, 4, generator=torch.Generator().manual_seed(3))))
    assert (bred.targets.amax(0) >= chance.amax(0) - 0.05).all()
    assert bred.targets[-60:].amax(1).mean() > chance.amax(1).mean()


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 16, 16)])
def test_transfer_sets_are_images_and_seeded(shape):
    sets = {
        "noise": lambda seed: transfer.noise_images(12, shape, seed),
        "strokes": lambda seed: transfer.stroke_images(12, shape, seed)[0],
        "patches": lambda seed: transfer.photograph_patches(12, shape, seed)[0],
    }
    for make in sets.values():
        images = make(0)
        datasets.ImageSet(images, torch.zeros(12).long(), ("any",))  # refuses what is no image
        assert images.shape == (12, *shape)
        assert torch.equal(images, make(0)) and not torch.equal(images, make(1))
    count = transfer.stroke_images(60, shape, 0)[1]
    assert set(count.tolist()) == {0, 1, 2}
    assert transfer.photograph_patches(60, shape)[1].max() < len(transfer.PHOTOGRAPHS)


def test_photographs_need_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    images, source = transfer.photograph_patches(80, (1, 8, 8))
    assert set(source.tolist()) == set(range(len(transfer.PHOTOGRAPHS)))
    assert images.amax((1, 2, 3)).median() > 0.99  # full contrast


def test_fill_frame_finds_the_ink(monkeypatch):
    monkeypatch.setattr(transfer, "MARGIN", 0.0)
    images = torch.zeros(2, 1, 20, 20)
    images[0, 0, 2:6, 3:7] = 0.5
    images[1, 0, 5:15, 9:11] = 1.0
    filled = transfer.fill_frame(images, 8)
    assert torch.allclose(filled[0], torch.ones(1, 8, 8))
    assert filled[1, 0, :, 0].max() < 0.05 and filled[1, 0, :, 4].min() > 0.5
    assert transfer.fill_frame(torch.zeros(1, 1, 9, 9), 8).abs().max() == 0
    assert torch.equal(filled, transfer.fill_frame(1 - images, 8))  # ink on paper


def test_dcgan_shapes_and_training(tmp_path, monkeypatch):
    monkeypatch.setenv("VPLIB_CACHE", str(tmp_path))
    images = transfer.stroke_images(64, SHAPE)[0]

    def trained():
        torch.manual_seed(0)
        generator, discriminator = gan.dcgan(SHAPE, channels=4)
        assert discriminator(images[:3]).shape == (3, 1)
        return gan.fit_gan(generator, discriminator, images, num_steps=3)

    first, cached = trained(), trained()
    latents = torch.randn(6, gan.NUM_LATENTS)
    assert first(latents).shape == (6, *SHAPE) and not first.training
    assert torch.equal(first(latents), cached(latents))
    assert first(latents).min() >= 0 and first(latents).max() <= 1
    with pytest.raises(ValueError, match="cannot be halved twice"):
        gan.dcgan((1, 10, 8), 4)
