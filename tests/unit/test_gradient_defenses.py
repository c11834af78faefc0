"""Defenses of gradients: what leaves, bit for bit, and an attacker who knows; bad input refused."""

import math

import pytest
import torch
from torch import nn

from vplib import exercises
from vplib.attacks import inversion_gradient
from vplib.defenses import gradient_defenses as defense
from vplib.defenses.gradient_defenses import exercises as ex
from vplib.victims import federated

SHAPE, CLASSES = (1, 8, 8), 5


def network(activation="tanh", spread=None):
    torch.manual_seed(0)
    return inversion_gradient.lenet(SHAPE, CLASSES, activation, 4, spread=spread).double()


def clients(num=3, batch=1):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand((num, batch, *SHAPE), generator=generator, dtype=torch.float64)
    return images, torch.randint(CLASSES, (num, batch), generator=generator)


def noise():
    return torch.Generator().manual_seed(2)


def test_ranking_by_hand():
    """r = (2x, 3x + y, 4) of the pixels (x, y) = (1, 2): slopes 2, sqrt 10, 0; r 2, 5, 4."""
    first, last = nn.Linear(2, 3), nn.Linear(3, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[2.0, 0.0], [3.0, 1.0], [0.0, 0.0]]))
        first.bias.copy_(torch.tensor([0.0, 0.0, 4.0]))
    model = nn.Sequential(nn.Flatten(), first, last)
    images = torch.tensor([1.0, 2.0]).view(1, 1, 1, 1, 2)
    scores = defense.sensitivities(model, images[0])
    assert torch.allclose(scores, torch.tensor([[1.0, math.sqrt(10) / 5, 0.0]]))
    sent = [federated.share_gradient(model, images[0], torch.tensor([1]))]
    for share, gone in ((0.0, []), (1 / 3, [2]), (2 / 3, [1, 2]), (1.0, [0, 1, 2])):
        (found,) = defense.soteria(sent, model, images, share=share)
        zero = (found.values["2.weight"] == 0).all(0)
        assert zero.nonzero().flatten().tolist() == gone


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
def test_sensitivities_are_those_of_autograd(activation):
    model, (images, _) = network(activation), clients()
    for image, found in zip(images, defense.sensitivities(model, images[:, 0]), strict=True):
        slopes = torch.autograd.functional.jacobian(model[:-1], image)[0].flatten(1)
        expected = (slopes.norm(dim=1) / model[:-1](image)[0]).detach()
        dead = model[:-1](image)[0] == 0
        assert found[dead].isinf().all()
        assert torch.allclose(found[~dead], expected[~dead])


@pytest.mark.parametrize("batch", [1, 3])
def test_soteria_changes_one_layer_and_nothing_else(batch):
    model, (images, labels) = network(), clients(batch=batch)
    sent = [federated.share_gradient(model, *c) for c in zip(images, labels, strict=True)]
    before = [{n: v.clone() for n, v in m.values.items()} for m in sent]
    scores = defense.sensitivities(model, images.flatten(0, 1)).view(3, batch, -1).sum(1).abs()
    found = defense.soteria(sent, model, images, share=0.6)
    for old, message, kept, score in zip(before, found, sent, scores, strict=True):
        gone = score.argsort()[: round(0.6 * len(score))]
        for name, value in message.values.items():
            assert kept.values[name].equal(old[name])  # nothing that was passed in changes
            if name != "7.weight":
                assert value.equal(old[name])
        rest = torch.ones_like(score, dtype=torch.bool).index_fill(0, gone, False)
        assert not message.values["7.weight"][:, gone].any()
        assert message.values["7.weight"][:, rest].equal(old["7.weight"][:, rest])


def test_layers_that_work_in_place_change_nothing():
    model, (images, _) = network("relu"), clients()
    first, before = defense.sensitivities(model, images[:, 0]), images.clone()
    layers = [nn.ReLU(inplace=True) if isinstance(m, nn.ReLU) else m for m in model]
    assert defense.sensitivities(nn.Sequential(*layers), images[:, 0]).equal(first)
    shifted = images[:, 0] - 0.5
    kept = shifted.clone()
    defense.sensitivities(nn.Sequential(nn.ReLU(inplace=True), *layers), shifted)
    assert shifted.equal(kept) and images.equal(before)


def test_a_client_is_defended_alone_as_among_others():
    model, (images, labels) = network(), clients()
    sent = defense.send(model, images, labels)
    together = defense.soteria(sent, model, images, share=0.5)
    for k in range(3):
        (alone,) = defense.soteria(sent[k : k + 1], model, images[k : k + 1], share=0.5)
        assert all(v.equal(together[k].values[n]) for n, v in alone.values.items())


def test_messages_of_all_clients_at_once_are_those_of_each():
    model, (images, labels) = network(), clients(batch=2)
    for found, *client in zip(defense.send(model, images, labels), images, labels, strict=True):
        expected = federated.share_gradient(model, *client).values
        assert all(torch.allclose(v, expected[n]) for n, v in found.values.items())


@pytest.mark.parametrize(("clip", "norm"), [(1e-3, 1e-3), (1e3, None)])
def test_clipping_is_of_the_whole_message(clip, norm):
    model, (images, labels) = network(), clients(1)
    sent = defense.send(model, images, labels)
    given = dict(clip=clip, generator=noise())
    (found,) = defense.clip_and_noise(sent, model, images, sigma=0.0, **given)
    flat, old = (torch.cat([v.flatten() for v in m.values.values()]) for m in (found, sent[0]))
    assert torch.allclose(flat, old if norm is None else old * norm / old.norm())
    (noisy,) = defense.clip_and_noise(sent, model, images, sigma=0.5, **given)
    added = torch.cat([noisy.values[n].flatten() - v.flatten() for n, v in found.values.items()])
    assert added.std() == pytest.approx(0.5 * clip, rel=0.1)


def test_a_zero_message_stays_zero_below_its_noise():
    model, (images, _) = network(), clients(1)
    zero = [federated.Gradients({n: torch.zeros_like(p) for n, p in model.named_parameters()})]
    given = dict(clip=1.0, sigma=0.0, generator=noise())
    (found,) = defense.clip_and_noise(zero, model, images, **given)
    assert not any(v.any() for v in found.values.values())


def test_who_ignores_the_layer_is_not_stopped_and_who_ignores_another_is():
    model, (images, labels) = network(), clients()
    sent = defense.soteria(defense.send(model, images, labels), model, images, share=0.6)
    given = dict(labels=labels, num_evaluations=150)

    def quality(ignore_layers=(), objective=defense.direction):
        compared = defense.leave_out(model, ignore_layers, objective)
        settings = given | dict(objective=compared)
        found = inversion_gradient.invert_gradient(sent, model, SHAPE, **settings)
        return inversion_gradient.score_psnr(found.images, images).median()

    assert quality(ignore_layers=["7.weight"]) > 40
    assert quality(ignore_layers=["7"]) > 30
    assert quality(objective=defense.skip_zeros) > 40
    assert quality(ignore_layers=["4.weight"]) < 20
    assert quality() < 30


def test_direction_and_zeros_by_hand():
    found = {"w": torch.tensor([3.0, 4.0])}
    assert defense.direction(found, {"w": torch.tensor([6.0, 8.0])}) == pytest.approx(0, abs=1e-6)
    assert defense.direction(found, {"w": torch.tensor([0.0, 1.0])}) == pytest.approx(0.2)
    assert defense.skip_zeros(found, {"w": torch.tensor([0.0, 1.0])}) == 0


def test_training_asks_all_before_it_asks_again_and_learns():
    torch.manual_seed(0)
    labels = torch.arange(40) % 2
    images = torch.rand(40, *SHAPE) * 0.2 + labels.view(-1, 1, 1, 1) * 0.5
    model = inversion_gradient.lenet(SHAPE, 2, "tanh", 4, spread=None)
    seen = []

    def watch(gradients, model, images, mark):
        assert mark == "set"
        seen.append(images[:, 0])
        return gradients

    given = dict(num_rounds=20, num_clients=10, lr=0.01, seed=0, defend=watch, mark="set")
    assert defense.train(model, images, labels, **given) is model
    first = torch.cat(seen[:4]).flatten(1)
    assert first.unique(dim=0).shape == (40, 64)
    assert (model(images).argmax(1) == labels).all()


MODEL, (IMAGES, LABELS) = network(), clients()
SENT = defense.send(MODEL, IMAGES, LABELS)
GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: defense.soteria(SENT, MODEL, IMAGES, share=60), "60 %"),
        (lambda: defense.soteria(SENT, MODEL, IMAGES, share=math.nan), "share must lie"),
        (
            lambda: defense.soteria(SENT, MODEL, IMAGES[:2], share=0.5),
            "3 messages, but images of 2",
        ),
        (lambda: defense.soteria(SENT, MODEL, IMAGES[:, 0], share=0.5), r"\(clients, batch"),
        (lambda: defense.soteria([], MODEL, IMAGES[:0], share=0.5), r"\(clients, batch"),
        (lambda: defense.soteria(SENT, MODEL[:-1], IMAGES, share=0.5), "ends in Linear"),
        (
            lambda: defense.soteria(
                [federated.Gradients({"a": torch.ones(1)})], MODEL, IMAGES[:1], share=0.5
            ),
            "lacks 7.weight",
        ),
        (
            lambda: defense.soteria(
                [federated.Gradients({"7.weight": torch.ones(5)})], MODEL, IMAGES[:1], share=0.5
            ),
            "lacks 7.weight",
        ),
        (lambda: defense.soteria(SENT, MODEL, IMAGES * math.nan, share=0.5), "must be finite"),
        (
            lambda: defense.clip_and_noise(
                [SENT[0].map(lambda v: v * math.inf)],
                MODEL,
                IMAGES[:1],
                clip=1,
                sigma=1,
                generator=GENERATOR,
            ),
            "no clipping bounds it",
        ),
        (lambda: defense.sensitivities(nn.Linear(2, 2), IMAGES[0]), "ends in Linear"),
        (
            lambda: defense.clip_and_noise(
                SENT, MODEL, IMAGES, clip=0, sigma=1, generator=GENERATOR
            ),
            "clip above 0",
        ),
        (
            lambda: defense.clip_and_noise(
                SENT, MODEL, IMAGES, clip=1, sigma=math.inf, generator=GENERATOR
            ),
            "sigma of 0 or more",
        ),
        (lambda: defense.leave_out(MODEL, ["9"]), "no parameter '9'"),
        (lambda: defense.leave_out(MODEL, ["0", "2", "4", "7"]), "nothing is left"),
        (
            lambda: defense.train(
                MODEL, IMAGES[:, 0], LABELS[:, 0], num_rounds=0, num_clients=1, lr=0.1, seed=0
            ),
            "num_rounds must be",
        ),
        (
            lambda: defense.train(
                MODEL, IMAGES[:, 0], LABELS[:, 0], num_rounds=1, num_clients=4, lr=0.1, seed=0
            ),
            "4 clients a round of 3",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def by_largest(gradient, norms, r, share):
    scores = (norms / r).abs()
    return gradient.index_fill(1, scores.topk(round(share * len(scores))).indices, 0.0)


def lowest(rank):
    def attempt(gradient, norms, r, share):
        gone = rank(norms, r).topk(round(share * len(r)), largest=False).indices
        return gradient.index_fill(1, gone, 0.0)

    return attempt


def in_place(gradient, norms, r, share):
    gone = (norms / r).abs().topk(round(share * len(r)), largest=False).indices
    gradient[:, gone] = 0
    return gradient


def each_alone(values, clip, sigma, noise):
    solved = {n: ex.solve_clip_and_noise({n: v}, clip, 0.0, noise)[n] for n, v in values.items()}
    return {n: v + clip * sigma * noise[n] for n, v in solved.items()}


def stretched(values, clip, sigma, noise):
    norm = sum(v.square().sum() for v in values.values()).sqrt()
    return {n: v * clip / norm + clip * sigma * noise[n] for n, v in values.items()}


def bare_sigma(values, clip, sigma, noise):
    return ex.solve_clip_and_noise(values, clip, sigma / clip, noise)


@pytest.mark.parametrize(
    ("name", "attempt", "said"),
    [
        ("soteria", ex.solve_soteria, "right: "),
        ("soteria", by_largest, "the smallest go"),
        ("soteria", lowest(lambda norms, r: norms), "divide by r"),
        ("soteria", lowest(lambda norms, r: norms / r), "absolute value"),
        ("soteria", lowest(lambda norms, r: -r), "norms count as well"),
        ("soteria", in_place, "work on a copy"),
        ("soteria", lambda g, *_: g, "nothing was taken away"),
        ("soteria", lambda g, *o: g - ex.solve_soteria(g, *o), "takes the others"),
        ("left_out", ex.solve_left_out, "right: "),
        ("left_out", lambda f, w, i: defense.direction(f, w), "still counts"),
        ("left_out", lambda f, w, i: 1 - ex.solve_left_out(f, w, i), "that is the cosine"),
        ("clip_and_noise", ex.solve_clip_and_noise, "right: "),
        ("clip_and_noise", each_alone, "each tensor was clipped alone"),
        ("clip_and_noise", stretched, "at most 1"),
        ("clip_and_noise", bare_sigma, "in units of the clip"),
        ("clip_and_noise", lambda *_: 3, "give a dictionary"),
    ],
)
def test_exercises_name_mistakes(name, attempt, said):
    assert said in exercises.check(f"gradient_defenses.{name}", attempt).said


@pytest.mark.parametrize("name", ["soteria", "left_out", "clip_and_noise"])
def test_stubs_are_not_attempted(name):
    verdict = exercises.check(f"gradient_defenses.{name}", lambda *given: None)
    assert not verdict
    assert verdict.said == "not attempted yet"
