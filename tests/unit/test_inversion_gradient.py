"""Gradient inversion: equal to autograd and to torch's L-BFGS, and an error for what cannot be."""

import dataclasses
import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vplib import exercises
from vplib.attacks.inversion_gradient import exercises as solutions
from vplib.attacks.inversion_gradient import lbfgs
from vplib.attacks.inversion_gradient import leakage as attack
from vplib.attacks.inversion_gradient.network import lenet
from vplib.attacks.inversion_gradient.protection import add_noise, prune
from vplib.attacks.inversion_gradient.side_by_side import concurrently
from vplib.victims import federated

SHAPE, CLASSES = (1, 8, 8), 5


def network(activation="sigmoid", seed=0):
    torch.manual_seed(seed)
    return lenet(SHAPE, CLASSES, activation, channels=6, spread=0.2).double()


def clients(num=3, batch=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((num, batch, *SHAPE), generator=generator, dtype=torch.float64)
    return images, torch.randint(CLASSES, (num, batch), generator=generator)


def sent_by(model, images, labels):
    return [federated.share_gradient(model, *c) for c in zip(images, labels, strict=True)]


def one_hot(labels):
    return F.one_hot(labels, CLASSES).double()


def with_norm(mode):
    torch.manual_seed(0)
    layers = list(lenet(SHAPE, CLASSES, channels=6, spread=0.2))
    return nn.Sequential(layers[0], nn.BatchNorm2d(6), *layers[1:]).double().train(mode)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("build", [network, lambda: with_norm(True), lambda: with_norm(False)])
def test_simulated_gradients_are_those_of_autograd(build, batch):
    model, (images, labels) = build(), clients(batch=batch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = attack.simulate(model, images, one_hot(labels))
    for k, message in enumerate(sent_by(model, images, labels)):
        for name, value in message.values.items():
            assert torch.allclose(found[name][k], value, atol=1e-12)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])  # running statistics too


@pytest.mark.parametrize("build", [network, lambda: with_norm(False)])  # unfolded, and by vmap
def test_simulated_updates_are_those_of_the_client(build):
    model, (images, labels) = build(), clients(batch=4)
    recipe = dict(lr=0.3, num_steps=5, batch_size=2)
    found = attack.simulate(model, images, one_hot(labels), **recipe)
    for k in range(len(images)):
        update = federated.share_update(model, images[k], labels[k], **recipe)
        for name, value in update.values.items():
            assert torch.allclose(found[name][k], value, atol=1e-12)


def test_reconstructions_side_by_side_are_those_in_a_row():
    images, labels = clients(batch=2)
    recipe = dict(lr=0.3, num_steps=2, batch_size=1)
    calls = {}
    for name, model in (("unfolded", network()), ("vmap", with_norm(True))):
        sent = sent_by(model, images, labels)
        for optimizer in ("lbfgs", "signed adam"):
            settings = dict(optimizer=optimizer, num_evaluations=8, labels=labels, num_images=2)
            calls[name, optimizer] = partial(attack.invert_gradient, model, sent, SHAPE, **settings)
    model = network()
    late = [federated.share_update(model, *c, **recipe) for c in zip(images, labels, strict=True)]
    calls["update"] = partial(
        attack.invert_gradient, model, late, SHAPE, num_images=2, labels=labels,
        num_evaluations=8, **recipe,
    )  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    found = concurrently(calls)
    torch.set_num_threads(before)
    for name, call in calls.items():
        assert torch.equal(found[name].images, call().images), name


def test_one_image_comes_back_without_its_label():
    model, (images, labels) = network(), clients(2)
    found = attack.invert_gradient(
        model, sent_by(model, images, labels), SHAPE, num_classes=CLASSES, num_evaluations=80,
        keep_every=25,
    )  # fmt: skip
    assert attack.score_psnr(found.images, images).min() > 30
    assert (found.labels.argmax(-1) == labels).all()
    assert found.path.shape == (5, 2, 1, *SHAPE) and found.path_values.shape == (5, 2)
    assert (found.path_values[-1] == found.values).all()


def test_a_batch_and_an_update_come_back():
    model, (images, labels) = network(), clients(1, batch=2)
    labels = torch.tensor([[0, 3]])
    recipe = dict(lr=0.5, num_steps=4, batch_size=1)
    update = [federated.share_update(model, images[0], labels[0], **recipe)]
    settings = dict(num_images=2, labels=labels, num_evaluations=90)
    found = attack.invert_gradient(model, update, SHAPE, **recipe, **settings)
    assert attack.score_psnr(found.images, images).min() > 22
    found = attack.invert_gradient(model, sent_by(model, images, labels), SHAPE, **settings)
    assert attack.score_psnr(found.images, images).min() > 22


def test_batch_norm_in_training_mode_is_inverted_in_that_mode_only():
    model, (images, labels) = with_norm(True), clients(1)
    messages = sent_by(model, images, labels)
    settings = dict(labels=labels, num_evaluations=50)
    right = attack.invert_gradient(model, messages, SHAPE, **settings)
    wrong = attack.invert_gradient(model.eval(), messages, SHAPE, **settings)
    assert right.values[0] < 0.1 * wrong.values[0]


def test_signed_adam_stays_in_the_box_and_improves():
    model, (images, labels) = network("relu"), clients()
    found = attack.invert_gradient(
        model, sent_by(model, images, labels), SHAPE, labels=labels, objective="cosine", tv=0.01,
        optimizer="signed adam", num_evaluations=30, keep_every=10, start="uniform",
    )  # fmt: skip
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert (found.values < found.path_values[0]).all()


def test_zeros_of_a_pruned_message_are_left_out():
    model, (images, labels) = network(), clients(2)
    messages = [prune(m, 0.7) for m in sent_by(model, images, labels)]
    quality = [
        attack.score_psnr(
            attack.invert_gradient(
                model, messages, SHAPE, labels=labels, ignore_zeros=known, num_evaluations=50
            ).images,
            images,
        ).median()
        for known in (False, True)
    ]
    assert quality[1] > quality[0] + 5


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh"])
def test_labels_of_single_images(activation):
    model, (images, labels) = network(activation), clients(40)
    messages = sent_by(model, images, labels)
    truth = labels[:, 0].tolist()
    assert [attack.infer_label(m) for m in messages] == truth
    by_sum = [attack.infer_label(m, "sum") for m in messages]
    assert (by_sum == truth) == (activation != "tanh")
    updates = [
        federated.share_update(model, *c, lr=0.1, num_steps=1)
        for c in zip(images, labels, strict=True)
    ]
    assert [attack.infer_label(m) for m in updates] == truth


def test_the_attack_is_given_no_image():
    names = set(inspect.signature(attack.invert_gradient).parameters)
    assert not names & {"images", "truth", "client", "clients", "loss"}
    assert {f.name for f in dataclasses.fields(federated.Message)} == {"values"}


def test_matching_and_psnr_by_hand():
    truth = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])[None]
    found = torch.stack([torch.full((1, 2, 2), 0.9), torch.full((1, 2, 2), 0.1)])[None]
    assert torch.allclose(attack.score_psnr(found, truth), torch.tensor([[20.0, 20.0]]), atol=1e-3)
    assert (attack.score_psnr(truth, truth) == 60).all()
    nothing = attack.score_psnr(torch.full_like(truth, torch.nan), truth)
    assert torch.allclose(nothing, torch.full((1, 2), 6.0206), atol=1e-3)


def test_total_variation_by_hand():
    image = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).view(1, 1, 1, 2, 2)
    assert torch.allclose(attack.total_variation(image), torch.tensor([1.001]), atol=1e-3)


@pytest.mark.parametrize("kind", attack.STARTS)
def test_starts(kind):
    start = attack.draw_starts(2, (3, *SHAPE), kind, 0)
    assert start.shape == (2, 3, *SHAPE)
    if kind == "patterned":
        assert torch.equal(start[..., :2, :2], start[..., 2:4, 4:6])


def test_messages_that_cannot_be_inverted_are_refused():
    model, (images, labels) = network(), clients(1)
    (message,) = sent_by(model, images, labels)
    settings = dict(shape=SHAPE, labels=labels)

    def refused(messages, match, **more):
        with pytest.raises(ValueError, match=match):
            attack.invert_gradient(model, messages, **{**settings, **more})

    refused([], "no message")
    refused([message.map(torch.zeros_like)], "message 0 is zero everywhere")
    refused([message, message.map(lambda v: v * torch.nan)], "message 1 holds NaN or infinite")
    wide = lenet(SHAPE, CLASSES, channels=7, spread=None).double()
    refused(sent_by(wide, images, labels), r"0\.bias is \(7,\), not \(6,\); invert with the model")
    fewer = {n: v for n, v in message.values.items() if n != "7.bias"}
    refused([federated.Gradients(fewer)], r"7\.bias is absent, not \(5,\)")
    update = federated.share_update(model, images[0], labels[0], lr=0.1, num_steps=2)
    refused([update], "give lr and num_steps")
    refused([message, update], "all gradients or all updates", lr=0.1, num_steps=2)
    refused([message], "num_steps is for updates", lr=0.1, num_steps=2)
    refused([message], "did you mean 'squared'", objective="square")
    refused([message], "unknown optimizer", optimizer="sgd")
    refused([message], "did you mean 'gray'", start="grey")
    refused([message], "num_classes", labels=None)
    with pytest.raises(ValueError, match="'product' or 'sum'"):
        attack.infer_label(message, "max")


def test_dropout_in_training_mode_is_refused():
    model, (images, labels) = nn.Sequential(*network(), nn.Dropout()).train(), clients(1)
    messages = sent_by(model, images, labels)
    with pytest.raises(ValueError, match="which units the client dropped"):
        attack.invert_gradient(model, messages, SHAPE, labels=labels)
    attack.invert_gradient(model.eval(), messages, SHAPE, labels=labels, num_evaluations=2)


def rosenbrock(x):
    return (100 * (x[..., 1::2] - x[..., ::2] ** 2) ** 2 + (1 - x[..., ::2]) ** 2).sum(-1)


def evaluate(points, rows):
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        values = rosenbrock(points) * (1 + rows)  # a different function each
        (slopes,) = torch.autograd.grad(values.sum(), points)
    return values.detach(), slopes


def test_lbfgs_finds_all_minima_and_rows_do_not_mix():
    starts = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = lbfgs.minimize(evaluate, starts, 200, line_search=True)
    assert found.values.max() < 1e-15
    assert torch.allclose(found.points, torch.ones_like(starts), atol=1e-5)
    assert found.evaluations.max() < 200  # each has ended by itself
    first = lbfgs.minimize(evaluate, starts[:1], 30, line_search=True)
    together = lbfgs.minimize(evaluate, starts, 30, line_search=True)
    assert torch.allclose(first.points[0], together.points[0], atol=1e-9)


def test_without_a_line_search_it_is_torchs_lbfgs():
    matrix = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
    start = torch.linspace(-1, 1, 6, dtype=torch.float64)

    def quadratic(points, rows):
        return 0.5 * ((points @ matrix) * points).sum(-1) + points.exp().sum(-1), (
            points @ matrix + points.exp()
        )

    found = lbfgs.minimize(quadratic, start[None], 9, line_search=False)
    point = start.clone().requires_grad_()
    stepper = torch.optim.LBFGS([point], max_iter=8, tolerance_grad=0, tolerance_change=0)

    def closure():
        stepper.zero_grad()
        value = quadratic(point[None], None)[0].sum()
        value.backward()
        return value

    stepper.step(closure)
    assert torch.allclose(found.points[0], point.detach(), atol=1e-10)


@pytest.mark.parametrize("name", ["relative_distance", "label_from_bias", "image_from_linear"])
def test_exercises_accept_their_solution_and_notice_nothing(name, capsys):
    exercises.check(f"inversion_gradient.{name}", getattr(solutions, f"solve_{name}"))
    assert ": right" in capsys.readouterr().out
    exercises.check(f"inversion_gradient.{name}", lambda *_: None)
    assert "not attempted yet" in capsys.readouterr().out


def squares(found, wanted):
    """Layer by layer, the squared distance and the squared norm of what is wanted."""
    pairs = zip(found, wanted, strict=True)
    return torch.tensor([[((a - b) ** 2).sum(), (b**2).sum()] for a, b in pairs]).T


@pytest.mark.parametrize(
    ("name", "attempt", "says"),
    [
        ("relative_distance", lambda f, w: squares(f, w)[0].sum(), "divide by"),
        ("relative_distance", lambda f, w: solutions.solve_relative_distance(f, w) ** 0.5, "root"),
        ("relative_distance", lambda f, w: (squares(f, w)[0] / squares(f, w)[1]).sum(), "by layer"),
        ("relative_distance", lambda f, w: solutions.solve_relative_distance(w, f), "moves with"),
        ("relative_distance", lambda f, w: 7.0, "sum the squared"),
        ("label_from_bias", lambda g: g.argmax(), "believes in"),
        ("label_from_bias", lambda g: g.abs().argmin(), "absolute value"),
        ("label_from_bias", lambda g: 3, "p - y"),
        ("image_from_linear", lambda w, b: w[0] / b[0], "a unit that is off"),
        ("image_from_linear", lambda w, b: w[1], "divide by it"),
        ("image_from_linear", lambda w, b: w, "return numbers of shape (4,)"),
        ("image_from_linear", lambda w, b: w.sum(0), "delta_i"),
    ],
)  # fmt: skip
def test_exercises_name_the_mistake(name, attempt, says, capsys):
    exercises.check(f"inversion_gradient.{name}", attempt)
    assert says in capsys.readouterr().out


def test_noise_and_pruning():
    message = federated.Gradients({"a": torch.full((100, 100), 3.0), "b": torch.full((4,), -3.0)})
    noisy = add_noise(message, 0.5, torch.Generator().manual_seed(0))
    noise = noisy.values["a"] - 3
    assert abs(noise.std() - 1.5) < 0.05 and abs(noise.mean()) < 0.05
    pruned = prune(federated.Update({"a": torch.tensor([[3.0, -1.0], [-4.0, 2.0]])}), 0.5)
    assert pruned.values["a"].tolist() == [[3, 0], [-4, 0]]
    assert type(pruned) is federated.Update


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_concurrent_calls_run_at_the_same_time_and_keep_their_order(two_threads):
    meet = threading.Barrier(2, timeout=30)  # who comes alone waits, and fails

    def call(value):
        meet.wait()
        return value, torch.get_num_threads()

    calls = {name: partial(call, i) for i, name in enumerate("dcba")}
    found = concurrently(calls, description="four")
    assert list(found.items()) == [(name, (i, 1)) for i, name in enumerate("dcba")]
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2  # threads to come have theirs


def test_concurrent_results_are_those_of_one_after_another(two_threads):
    weights = [torch.randn(30, 30, generator=torch.Generator().manual_seed(i)) for i in range(6)]

    def slopes(weight):
        x = torch.ones(30, requires_grad=True)
        return torch.autograd.grad((weight @ x).sigmoid().sum(), x)[0]

    found = concurrently({i: partial(slopes, w) for i, w in enumerate(weights)})
    assert all(torch.equal(found[i], slopes(w)) for i, w in enumerate(weights))


@pytest.mark.parametrize(("threads", "device"), [(1, "cpu"), (2, "cuda")])
def test_one_core_and_a_gpu_take_one_call_after_another(two_threads, threads, device):
    torch.set_num_threads(threads)
    calls = {i: threading.get_ident for i in range(3)}
    assert set(concurrently(calls, device).values()) == {threading.get_ident()}
    assert concurrently({}, device) == {}


def test_a_failing_call_raises_and_stops_those_to_come(two_threads):
    begun = []

    def call(i):
        begun.append(i)
        time.sleep(0.05)
        if i == 1:
            raise ValueError("the second")

    with pytest.raises(ValueError, match="the second"):
        concurrently({i: partial(call, i) for i in range(40)})
    assert len(begun) < 40
    assert torch.get_num_threads() == 2
