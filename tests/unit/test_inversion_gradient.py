"""Gradient inversion: equal to autograd and to torch's L-BFGS, and an error for what cannot be."""

import dataclasses
import inspect

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


def test_one_image_comes_back_without_its_label():
    model, (images, labels) = network(), clients(2)
    found = attack.invert_gradient(
        sent_by(model, images, labels), model, SHAPE, num_classes=CLASSES, num_evaluations=80,
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
    found = attack.invert_gradient(update, model, SHAPE, **recipe, **settings)
    assert attack.score_psnr(found.images, images).min() > 22
    found = attack.invert_gradient(sent_by(model, images, labels), model, SHAPE, **settings)
    assert attack.score_psnr(found.images, images).min() > 22


def test_batch_norm_in_training_mode_is_inverted_in_that_mode_only():
    model, (images, labels) = with_norm(True), clients(1)
    messages = sent_by(model, images, labels)
    settings = dict(labels=labels, num_evaluations=50)
    right = attack.invert_gradient(messages, model, SHAPE, **settings)
    wrong = attack.invert_gradient(messages, model.eval(), SHAPE, **settings)
    assert right.values[0] < 0.1 * wrong.values[0]


def test_signed_adam_stays_in_the_box_and_improves():
    model, (images, labels) = network("relu"), clients()
    found = attack.invert_gradient(
        sent_by(model, images, labels), model, SHAPE, labels=labels, objective=cosine,
        optimizer="signed adam", num_evaluations=30, keep_every=10, start="uniform",
    )  # fmt: skip
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert (found.values < found.path_values[0]).all()


def cosine(found, wanted):
    dot = sum((found[name] * wanted[name]).sum() for name in wanted)
    norms = [sum(side[name].square().sum() for name in wanted).sqrt() for side in (found, wanted)]
    return 1 - dot / (norms[0] * norms[1])


def without_zeros(found, wanted):
    kept = {name: found[name] * (wanted[name] != 0) for name in wanted}
    return attack.squared_distance(kept, wanted)


def test_the_objective_and_the_prior_are_what_is_minimized():
    model, (images, labels) = network(), clients(batch=2)
    sent = sent_by(model, images, labels)
    settings = dict(labels=labels, num_images=2, num_evaluations=1)
    found = attack.invert_gradient(
        sent, model, SHAPE, objective=cosine, prior=lambda x: 3 * x.mean(), **settings
    )
    gray = torch.full_like(images[0], 0.5)
    for k, message in enumerate(sent):
        guess = federated.share_gradient(model, gray, labels[k])
        by_hand = cosine(guess.values, message.values) + 1.5
        assert torch.allclose(found.values[k], by_hand)
    with pytest.raises(ValueError, match="each give one number"):
        attack.invert_gradient(sent, model, SHAPE, prior=lambda x: x.mean((1, 2, 3)), **settings)


def test_the_squared_distance_by_hand():
    wanted = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    found = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[2.0]])}
    assert attack.squared_distance(found, wanted) == 5 / 25


def test_zeros_of_a_pruned_message_are_left_out():
    model, (images, labels) = network(), clients(2)
    messages = [prune(m, 0.7) for m in sent_by(model, images, labels)]
    quality = [
        attack.score_psnr(
            attack.invert_gradient(
                messages, model, SHAPE, labels=labels, objective=objective, num_evaluations=50
            ).images,
            images,
        ).median()
        for objective in (attack.squared_distance, without_zeros)
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


def test_labels_of_two_classes_are_not_read_off_the_products():
    torch.manual_seed(0)
    model = lenet(SHAPE, 2, spread=0.2).double()
    images, _ = clients(6)
    truth = [0, 1, 0, 1, 1, 0]
    messages = sent_by(model, images, torch.tensor(truth)[:, None])
    assert [attack.infer_label(m, "sum") for m in messages] == truth
    with pytest.raises(ValueError, match="two classes"):
        attack.infer_label(messages[0])


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
    with pytest.raises(ValueError, match=r"must both be \(K, B, C, H, W\)"):
        attack.score_psnr(found[:, :1], truth)


@pytest.mark.parametrize("kind", attack.STARTS)
def test_starts(kind):
    start = attack.draw_starts(2, (3, *SHAPE), kind, 0)
    assert start.shape == (2, 3, *SHAPE)
    if kind == "patterned":
        assert torch.equal(start[..., :2, :2], start[..., 2:4, 4:6])


def test_starts_of_any_size_and_no_other_kind():
    start = attack.draw_starts(1, (1, 30, 29), "patterned", 0)
    assert start.shape == (1, 1, 30, 29)
    assert torch.equal(start[..., :8, :8], start[..., 8:16, 16:24])
    with pytest.raises(ValueError, match="did you mean 'patterned'"):
        attack.draw_starts(1, SHAPE, "pattern", 0)


def test_messages_that_cannot_be_inverted_are_refused():
    model, (images, labels) = network(), clients(1)
    (message,) = sent_by(model, images, labels)
    settings = dict(shape=SHAPE, labels=labels)

    def refused(messages, match, **more):
        with pytest.raises(ValueError, match=match):
            attack.invert_gradient(messages, model, **{**settings, **more})

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
    refused([message], "unknown optimizer", optimizer="sgd")
    refused([message], "did you mean 'gray'", start="grey")
    refused([message], "num_classes", labels=None)
    refused([update], "num_steps must be a whole number", lr=0.1, num_steps=0)
    refused([update], "lr must be above 0", lr=0.0, num_steps=2)
    refused([message], "lr must be above 0", step_size=0.0)
    for name in ("num_evaluations", "keep_every", "num_images"):
        refused([message], f"{name} must be a whole number, 1 or more, not 0", **{name: 0})
    refused([message], "labels must be whole numbers from 0 to 4", labels=torch.tensor([[5]]))
    refused([message], r"one an image: \(1, 1\); these are", labels=torch.tensor([0, 1]))
    refused([message], "these are torch.float32", labels=torch.tensor([[0.0]]))
    with pytest.raises(ValueError, match="unknown rule 'max'; known: product, sum"):
        attack.infer_label(message, "max")


def test_frozen_layers_are_neither_sent_nor_matched():
    for model in (network(), with_norm(False)):
        model[0].requires_grad_(False)
        images, labels = clients(2)
        messages = sent_by(model, images, labels)
        assert "0.weight" not in messages[0].values
        found = attack.simulate(model, images, one_hot(labels))
        for k, message in enumerate(messages):
            assert found.keys() == message.values.keys()
            for name, value in message.values.items():
                assert torch.allclose(found[name][k], value, atol=1e-12)
    late = [
        federated.share_update(model, *c, lr=0.1, num_steps=3)
        for c in zip(images, labels, strict=True)
    ]
    found = attack.simulate(model, images, one_hot(labels), lr=0.1, num_steps=3)
    assert torch.allclose(found["8.weight"][1], late[1].values["8.weight"], atol=1e-12)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="all parameters are frozen"):
        attack.invert_gradient(messages, model, SHAPE, labels=labels)


def test_padding_by_name_and_labels_of_32_bits_are_as_any_other():
    plain, (images, labels) = network(), clients(2)
    named = nn.Sequential(*plain[:4], nn.Conv2d(6, 6, 5, padding="same"), *plain[5:]).double()
    named.load_state_dict(plain.state_dict())
    messages = sent_by(plain, images, labels)
    found = attack.simulate(named, images, one_hot(labels))
    assert all(torch.allclose(found[n][1], v) for n, v in messages[1].values.items())
    short = sent_by(plain, images, labels.int())
    assert all(torch.equal(short[0].values[n], v) for n, v in messages[0].values.items())
    settings = dict(num_evaluations=3)
    found = attack.invert_gradient(short, plain, SHAPE, labels=labels.int(), **settings)
    same = attack.invert_gradient(messages, plain, SHAPE, labels=labels, **settings)
    assert torch.equal(found.images, same.images)


def test_dropout_in_training_mode_is_refused():
    model, (images, labels) = nn.Sequential(*network(), nn.Dropout()).train(), clients(1)
    messages = sent_by(model, images, labels)
    with pytest.raises(ValueError, match="which units the client dropped"):
        attack.invert_gradient(messages, model, SHAPE, labels=labels)
    attack.invert_gradient(messages, model.eval(), SHAPE, labels=labels, num_evaluations=2)


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


@pytest.mark.parametrize("name", ["label_from_bias", "image_from_linear", "dlg"])
def test_exercises_accept_their_solution_and_notice_nothing(name, capsys):
    exercises.check(f"inversion_gradient.{name}", getattr(solutions, f"solve_{name}"))
    assert ": right" in capsys.readouterr().out
    exercises.check(f"inversion_gradient.{name}", lambda *_: None)
    assert "not attempted yet" in capsys.readouterr().out


def descend(stepper, sign=1, held=(0, 1), rounds=60, **settings):
    """The attack as a reader might write it: which optimizer, on what, up or down."""

    def attempt(model, wanted, x, z, num_evaluations):
        guess = [v.clone().requires_grad_() for v in (x, z)]
        optimizer = stepper([guess[i] for i in held], **settings)

        def closure():
            state = attack.simulate(model, guess[0][None], guess[1].softmax(-1)[None])
            value = attack.squared_distance({n: v[0] for n, v in state.items()}, wanted)
            for v, slope in zip(guess, torch.autograd.grad(sign * value, guess), strict=True):
                v.grad = slope
            return sign * value

        for _ in range(rounds):
            optimizer.step(closure)
        return guess[0]

    return attempt


LBFGS = dict(stepper=torch.optim.LBFGS, rounds=1, max_iter=60, line_search_fn="strong_wolfe")


def without_graph(model, wanted, x, z, num_evaluations):
    loss = -(z.softmax(-1) * model(x).log_softmax(-1)).sum()
    return torch.autograd.grad(torch.autograd.grad(loss, model.parameters())[0].sum(), x)[0]


def failing(*_):
    raise RuntimeError("something else")


@pytest.mark.parametrize(
    ("name", "attempt", "says"),
    [
        ("label_from_bias", lambda g: g.argmax(), "believes in"),
        ("label_from_bias", lambda g: g.abs().argmin(), "absolute value"),
        ("label_from_bias", lambda g: 3, "p - y"),
        ("image_from_linear", lambda w, b: w[0] / b[0], "a unit that is off"),
        ("image_from_linear", lambda w, b: w[1], "divide by it"),
        ("image_from_linear", lambda w, b: w, "return numbers of shape (4,)"),
        ("image_from_linear", lambda w, b: w.sum(0), "delta_i"),
        ("dlg", descend(**LBFGS, tolerance_grad=0, tolerance_change=0), ": right"),
        ("dlg", descend(**LBFGS), "stopped early"),
        ("dlg", descend(torch.optim.Adam, held=[1]), "hold `x`"),
        ("dlg", descend(torch.optim.Adam, sign=-1, lr=0.1), "minimize"),
        ("dlg", descend(torch.optim.Adam, lr=0.01), "nearer, but not there"),
        ("dlg", without_graph, "does not depend on `x`"),
        ("dlg", failing, "stopped with RuntimeError: something else"),
        ("dlg", lambda model, wanted, x, z, n: x[0], "return numbers of shape (1, 1, 2, 4)"),
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
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"share must lie in \[0, 1\]"):
            prune(message, wrong)
    for wrong in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="ratio must be 0 or more"):
            add_noise(message, wrong, torch.Generator())


def test_networks_that_cannot_be():
    with pytest.raises(ValueError, match="10x8 images cannot be halved twice"):
        lenet((1, 10, 8), 5, spread=0.1)
    with pytest.raises(ValueError, match="shape must be"):
        lenet((8, 8), 5, spread=0.1)
    with pytest.raises(ValueError, match="did you mean 'sigmoid'"):
        lenet(SHAPE, 5, "sigmoids", spread=0.1)
    with pytest.raises(ValueError, match="spread must be above 0"):
        lenet(SHAPE, 5, spread=0.0)
