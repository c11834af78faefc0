"""The federated loop: what the server sees, and that averaging is what McMahan et al. say."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vplib import datasets, models, training
from vplib.victims import federated

SHAPE = (1, 8, 8)


def network(seed=0):
    torch.manual_seed(seed)
    return models.mlp(SHAPE, 10, (16,))


def clients(num=4, size=30):
    data = datasets.load("digits", "train", num_images=num * size)
    return [
        (data.images[k * size : (k + 1) * size], data.labels[k * size : (k + 1) * size])
        for k in range(num)
    ]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", [federated.Gradients, federated.Update])
def test_a_message_holds_named_tensors_and_nothing_else(kind):
    source = torch.ones(3, requires_grad=True)
    message = kind({"weight": source * 2})
    assert [field.name for field in dataclasses.fields(message)] == ["values"]
    for name in ("images", "labels", "loss", "values"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(message, name, torch.zeros(1))
    with pytest.raises(TypeError):
        message.values["images"] = torch.zeros(1)
    with pytest.raises(TypeError):
        kind({"weight": torch.ones(3)}, labels=torch.zeros(1))
    value = message.values["weight"]
    assert value.grad_fn is None and not value.requires_grad  # no way back to an image
    assert type(message.map(torch.neg)) is kind


@pytest.mark.parametrize("value", [torch.tensor([1, 2]), [0.5], None, "5"])
def test_a_message_refuses_labels_and_objects(value):
    with pytest.raises(TypeError, match="'labels' is "):
        federated.Gradients({"labels": value})


def test_a_message_is_a_copy():
    source = torch.zeros(2)
    message = federated.Update({"w": source})
    source += 1
    assert message.values["w"].tolist() == [0, 0]


def test_the_gradient_is_autograds_and_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))
    images, labels = clients(1)[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    message = federated.share_gradient(model, images, labels)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    F.cross_entropy(model(images), labels).backward()
    assert message.values.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.allclose(message.values[name], parameter.grad, atol=1e-6)


def test_one_local_step_is_minus_the_rate_times_the_gradient():
    model, (images, labels) = network(), clients(1)[0]
    update = federated.share_update(model, images, labels, lr=0.5, num_steps=1)
    gradient = federated.share_gradient(model, images, labels)
    for name, value in update.values.items():
        assert torch.allclose(value, -0.5 * gradient.values[name], atol=1e-6)


def test_local_steps_are_those_of_sgd_in_order():
    model, (images, labels) = network(), clients(1)[0]
    update = federated.share_update(model, images, labels, lr=0.2, num_steps=4, batch_size=12)
    before = weights(model)
    stepper = torch.optim.SGD(model.parameters(), lr=0.2)
    for rows in (slice(0, 12), slice(12, 24), slice(24, 30), slice(0, 12)):
        stepper.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        stepper.step()
    flat = torch.cat([value.flatten() for value in update.values.values()])
    assert torch.allclose(weights(model) - before, flat, atol=1e-6)


def test_fedsgd_over_all_clients_is_a_step_on_the_pooled_images():
    sizes, federation = (10, 20, 30), clients(1, 60)[0]
    parts = list(zip(*(t.split(sizes) for t in federation), strict=True))
    model, pooled = network(), network()
    federated.train(model, parts, 1, algorithm="fedsgd", lr=0.3)
    message = federated.share_gradient(pooled, *federation)
    federated.aggregate(pooled, [message], lr=0.3)
    assert torch.allclose(weights(model), weights(pooled), atol=1e-6)


def test_fedavg_with_one_step_is_fedsgd():
    first, second = network(), network()
    federated.train(first, clients(), 3, algorithm="fedsgd", lr=0.2)
    federated.train(second, clients(), 3, algorithm="fedavg", lr=0.2, num_steps=1)
    assert torch.allclose(weights(first), weights(second), atol=1e-5)


def test_both_algorithms_learn():
    for algorithm in ("fedsgd", "fedavg"):
        model, federation = network(), clients(5, 100)
        federated.train(model, federation, 40, algorithm=algorithm, lr=0.5, num_steps=3)
        images, labels = (torch.cat(parts) for parts in zip(*federation, strict=True))
        assert training.accuracy(model(images), labels) > 0.8


def test_participation_and_seeds():
    def run(seed, share):
        sent, model = [], network()
        federated.train(
            model, clients(), 8, share=share, seed=seed,
            protect=lambda message, generator: (sent.append(message), message)[1],
        )  # fmt: skip
        return weights(model), sent

    (half, sent), (again, _), (other, _) = run(1, 0.5), run(1, 0.5), run(2, 0.5)
    assert len(sent) == 8 * 2 and torch.equal(half, again) and not torch.equal(half, other)
    (first, sent), (second, _) = run(1, 1.0), run(2, 1.0)
    assert len(sent) == 8 * 4 and torch.equal(first, second)  # the seed decides who takes part


def test_what_a_client_protects_is_all_the_server_gets():
    model = network()
    federated.train(model, clients(), 1, protect=lambda m, g: m.map(torch.zeros_like))
    assert torch.equal(weights(model), weights(network()))


def test_frozen_layers_stay_as_they_are():
    model = network()
    model[1].requires_grad_(False)
    first, last = model[1].weight.clone(), model[3].weight.clone()
    for algorithm in ("fedsgd", "fedavg"):
        federated.train(model, clients(), 1, algorithm=algorithm, num_steps=2)
    assert torch.equal(model[1].weight, first) and not torch.equal(model[3].weight, last)


def test_labels_of_32_bits_and_whole_weights():
    one, two = network(), network()
    federated.train(one, [(images, labels.int()) for images, labels in clients()], 1)
    federated.train(two, clients(), 1)
    assert torch.equal(weights(one), weights(two))
    messages = [federated.share_gradient(one, *client) for client in clients(2)]
    federated.aggregate(one, messages, [3, 0], lr=0.1)
    federated.aggregate(two, messages[:1], lr=0.1)
    assert torch.allclose(weights(one), weights(two))


def test_errors():
    model, (images, labels) = network(), clients(1)[0]
    with pytest.raises(ValueError, match="batch_size from 1 to 30"):
        federated.share_update(model, images, labels, lr=0.1, num_steps=1, batch_size=31)
    with pytest.raises(ValueError, match="num_steps of 1 or more"):
        federated.share_update(model, images, labels, lr=0.1, num_steps=0)
    with pytest.raises(ValueError, match="'fedsgd' or 'fedavg'"):
        federated.train(model, clients(), 1, algorithm="fedprox")
    with pytest.raises(ValueError, match="a share above 0"):
        federated.train(model, clients(), 1, share=0)
    with pytest.raises(ValueError, match="need clients"):
        federated.train(model, [], 1)
    with pytest.raises(ValueError, match="one or more messages"):
        federated.aggregate(model, [])
    gradient = federated.share_gradient(model, images, labels)
    for wrong in ([0, 0], [1], [1, -1], [float("nan"), 1]):
        with pytest.raises(ValueError, match="a weight of 0 or more each"):
            federated.aggregate(model, [gradient, gradient], wrong)
    for some, theirs in ((images[:0], labels[:0]), (images, labels[:3]), (images, labels * 1.0)):
        with pytest.raises(ValueError, match="a client needs images and a whole number for each"):
            federated.share_gradient(model, some, theirs)
    with pytest.raises(ValueError, match="all gradients or all updates"):
        federated.aggregate(model, [gradient, federated.Update(gradient.values)])
