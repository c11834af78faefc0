"""Model extraction: what reaches a black box and a clone, exact budgets, choices by hand."""

import socket
import urllib.error

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vplib import datasets, models, training
from vplib.attacks.extraction_functionality import knockoff as attack
from vplib.attacks.extraction_functionality import pretrained, selection, transfer
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
    """Real digits, in three sources."""
    images = datasets.load("digits", "train", num_images=num).images
    return images, torch.arange(3).repeat_interleave(num // 3)


def as_set(images):
    return {image.numpy().tobytes() for image in images}


def adaptively(ask, budget, **settings):
    images, sources = pool()
    settings = dict(rewards=attack.REWARDS, build=network) | settings
    build = settings.pop("build")
    choice = attack.choose_adaptively(ask, build, images, sources, CLASSES, budget, **settings)
    return images[choice.rows], choice.targets


def actively(ask, budget, strategy):
    images, _ = pool()
    rows, targets = selection.choose_actively(
        [ask], network, images, CLASSES, budget, strategy, num_steps=5
    )
    return images[rows[0]], targets[0]


def generate(latents):
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    return (latents @ weight).sigmoid().view(-1, *SHAPE)


ATTACKS = {
    "random": lambda ask, b: (
        pool()[0][:b],
        attack.ask_all([ask], pool()[0][None, :b], CLASSES)[0],
    ),
    "adaptive": adaptively,
    "coin": lambda ask, b: adaptively(ask, b, rewards=(attack.COIN,)),
    **{s: lambda ask, b, s=s: actively(ask, b, s) for s in selection.STRATEGIES},
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
@pytest.mark.parametrize("budget", [1, 3, 20, 37, 50])
def test_budgets_are_spent_exactly(name, budget):
    endpoint = api.Endpoint(BlackBox(), budget=budget)
    ATTACKS[name](endpoint, budget)
    assert endpoint.queries == budget
    with pytest.raises(api.BudgetSpent):
        endpoint(pool()[0][:1])


@pytest.mark.parametrize("name", ATTACKS)
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
    images, sources = pool(600)
    images[sources < 2] *= 0.01

    def ask(some):
        return (
            F.one_hot(some.flatten(1).argmax(1) % CLASSES, CLASSES).float()
            * (some.flatten(1).amax(1, keepdim=True) > 0.5)
            * 0.97
            + 0.01
        )

    choice = attack.choose_adaptively(
        ask, network, images, sources, CLASSES, 180, rewards=("certainty",)
    )
    assert choice.shares[0].tolist() == pytest.approx([1 / 3] * 3)
    assert choice.shares[-1, 2] > 0.6


def with_batch_norm():
    body = torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8)
    return torch.nn.Sequential(*body, torch.nn.Linear(8, CLASSES))


@pytest.mark.parametrize("budget", [1, 21, 41])
def test_a_clone_with_batch_norm_may_be_asked_about_one_image(budget):
    """The last round is of one image, of which batch norm has no statistics."""
    box = BlackBox()
    images, targets = adaptively(box, budget, build=with_batch_norm)
    assert len(images) == len(targets) == len(box.seen()) == budget


def test_clones_with_batch_norm_learn_from_65_images():
    images = transfer.noise_images(65, SHAPE)
    targets = attack.ask_all([BlackBox()], images[None], CLASSES)
    clones = attack.train_clones(with_batch_norm, images[None], targets, num_steps=4)
    assert clones.logits(images).isfinite().all()


def test_a_coin_teaches_the_policy_nothing():
    """Where one source pays, the coin's policy stays about where it began."""
    images, sources = pool(600)

    def ask(some):
        sure = F.one_hot(some.flatten(1).argmax(1) % CLASSES, CLASSES).float()
        return sure * (some.flatten(1).amax(1, keepdim=True) > 0.5) * 0.97 + 0.01

    images[sources < 2] *= 0.01
    ends = {}
    for reward in ("certainty", attack.COIN):
        found = [
            attack.choose_adaptively(
                ask, network, images, sources, CLASSES, 180, rewards=(reward,), seed=seed
            )
            for seed in range(6)
        ]
        ends[reward] = torch.stack([choice.shares[-1, 2] for choice in found]).mean()
    assert ends["certainty"] > 0.6 > 0.5 > ends[attack.COIN]


def test_the_policy_goes_on_when_a_source_is_used_up():
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
    for choose in (adaptively, lambda ask, b: actively(ask, b, "k-center")):
        box = BlackBox()
        with pytest.raises(ValueError, match="a pool of 120 images has no 121"):
            choose(box, 121)
        assert not box.asked


def test_k_center_takes_the_farthest():
    points = torch.tensor([[0.0], [1.0], [5.0], [9.0]])
    assert selection.k_center(points, torch.tensor([0]), 3).tolist() == [3, 2, 1]


def bred(ask, wanted=range(CLASSES), **settings):
    wanted = torch.tensor(list(wanted))
    return selection.breed(ask, generate, wanted, 4, CLASSES, **settings)


def test_bred_images_are_paid_for_and_carry_their_answers():
    box = BlackBox()
    images, targets = bred(box, [0, 1, 2, 0, 1], num_generations=3)
    assert images.shape == (5, *SHAPE)
    assert len(box.seen()) == 5 * selection.POPULATION * 3  # all that is looked at is asked about
    assert as_set(images) <= as_set(box.asked[-1])
    assert torch.allclose(targets, BlackBox()(images))


def test_breeding_is_seeded_and_the_same_in_parts(monkeypatch):
    first, again = (bred(BlackBox(), num_generations=2, seed=1)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, bred(BlackBox(), num_generations=2, seed=2)[0])
    monkeypatch.setattr(selection, "LINEAGES", 2)
    images, targets = bred(BlackBox(), [0, 1, 2], num_generations=2)
    assert images.shape == (3, *SHAPE) and torch.allclose(targets, BlackBox()(images))


def test_selection_is_what_makes_the_black_box_sure():
    wanted = torch.arange(30) % CLASSES
    answers = [bred(BlackBox(), wanted, blind=blind)[1] for blind in (False, True)]
    sure, blind = (found.gather(1, wanted[:, None]).mean() for found in answers)
    assert sure > blind + 0.2
    box = BlackBox()
    images, targets = bred(box, wanted, blind=True)
    assert torch.equal(box.seen(), images) and torch.allclose(targets, answers[1])


def test_the_fittest_by_hand():
    answers = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.6, 0.4]])
    assert selection.fittest(answers, torch.tensor([[1.0, 0.0]]), 2).tolist() == [1, 2]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 16, 16)])
def test_transfer_sets_are_images_and_seeded(shape):
    sets = {
        "noise": lambda seed: transfer.noise_images(12, shape, seed),
        "strokes": lambda seed: transfer.stroke_images(12, shape, seed),
        "patches": lambda seed: transfer.photograph_patches(12, shape, seed)[0],
    }
    for make in sets.values():
        images = make(0)
        datasets.ImageSet(images, torch.zeros(12).long(), ("any",))  # refuses what is no image
        assert images.shape == (12, *shape)
        assert torch.equal(images, make(0)) and not torch.equal(images, make(1))
    assert transfer.photograph_patches(60, shape)[1].max() < len(transfer.PHOTOGRAPHS)


def test_photographs_smaller_than_what_is_wanted_are_scaled_up():
    images, _ = transfer.photograph_patches(2, (1, 320, 310), names=("coins",))  # 303 pixels high
    assert images.shape == (2, 1, 320, 310) and images.isfinite().all()


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
    images = transfer.stroke_images(64, SHAPE)

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


def test_budgets_have_the_readers_among_them():
    assert attack.budgets_with(None, (30, 300), 4000, "mnist5k") == [30, 300]
    assert attack.budgets_with(300, (30, 300), 4000, "mnist5k") == [30, 300]
    assert attack.budgets_with(45, (30, 300), 4000, "mnist5k") == [30, 45, 300]
    assert attack.budgets_with(1, (30, 300), 4000, "mnist5k")[0] == 1


@pytest.mark.parametrize("own", [0, -5, 60_000, 4001, 2.5, True, "300"])
def test_a_budget_that_no_transfer_set_has(own):
    with pytest.raises(
        ValueError, match="BUDGET must be a whole number from 1 to 4000.*'mnist5k'.*not "
    ):
        attack.budgets_with(own, (30, 300), 4000, "mnist5k")


def test_two_folders_that_share_an_image_are_not_apart(tmp_path):
    """Whatever size they are loaded at, as long as it is one."""
    rng = np.random.default_rng(0)
    shared = rng.integers(256, size=(24, 24), dtype=np.uint8)
    for name in ("mine", "yours"):
        for kind in ("cat", "dog"):
            (tmp_path / name / kind).mkdir(parents=True)
            drawn = rng.integers(256, size=(24, 24), dtype=np.uint8)
            pixels = shared if kind == "cat" else drawn
            Image.fromarray(pixels).save(tmp_path / name / kind / "1.png")
    mine, yours = (
        datasets.load(f"folder:{tmp_path / name}", "all", image_size=16)
        for name in ("mine", "yours")
    )
    with pytest.raises(ValueError, match="holds images of"):
        datasets.check_apart(mine, yours)


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 20, 12), (1, 8, 8), (1, 12, 20)])
@pytest.mark.parametrize("name", ["digits", "random:cifar10"])
def test_any_set_is_asked_about_in_the_victims_shape(name, shape):
    """Gray to a victim in colour, colours to a gray one, and sizes that are not square."""
    other = datasets.load(name, "all", num_images=20)
    images = transfer.as_queries(other, shape)
    assert images.shape == (20, *shape) and images.is_contiguous()
    assert images.min() >= 0 and images.max() <= 1
    if shape[0] == 3 and name == "digits":
        assert torch.equal(images[:, 0], images[:, 2])  # gray is three equal colours
    if shape == (3, 16, 16) and name == "digits":
        assert torch.equal(images[:, :1], transfer.fill_frame(other.images, 16))
    if shape == (1, 8, 8) and name == "random:cifar10":
        mean = datasets.resize(other.images, 8).mean(1, keepdim=True)
        assert torch.allclose(images, mean, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_a_network_that_is_to_start_from_imagenet(shape):
    build = pretrained.squeezenet
    model = build(7, size=40, weights="random").eval()
    images = torch.rand(2, *shape)
    assert model(images).shape == (2, 7)
    red = model[0](torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 50, 50))
    assert red.shape == (1, 3, 50, 50) and red.abs().max() < 1e-6  # the mean colour is zero
    assert model[0](images).shape == (2, 3, 40, 40)
    with pytest.raises(ValueError, match="weights must be one of imagenet, random, not 'coco'"):
        build(7, size=40, weights="coco")


def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setenv("VPLIB_DATA", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(datasets.DatasetUnavailable, match="ImageNet's weights.*or use 'random'"):
        pretrained.squeezenet(7, size=40)


def test_weights_from_a_file(tmp_path, monkeypatch):
    from torchvision import models as tv

    kept = tv.squeezenet1_1(weights=None).state_dict()
    monkeypatch.setattr(pretrained, "_imagenet", lambda: kept)
    model = pretrained.squeezenet(7, size=40)
    assert torch.equal(model[1].features[0].weight, kept["features.0.weight"])
