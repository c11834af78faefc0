"""The pretended GPU refuses what a GPU refuses, and nothing else."""

import copy
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import virtual_gpu  # noqa: E402

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def gpu():
    with virtual_gpu.pretended():
        yield


@pytest.fixture
def x():
    return torch.arange(12.0, device="cuda").view(3, 4)


@pytest.fixture
def y():
    return torch.ones(3, 4)


@pytest.mark.parametrize(
    "mixing",
    [
        lambda x, y: x + y,
        lambda x, y: x @ y.T,
        lambda x, y: torch.cat([x, y]),
        lambda x, y: torch.stack([x[0, 0], y[0, 0]]),
        lambda x, y: x.add_(y),
        lambda x, y: y.add_(x),
        lambda x, y: y * x[0, 0],  # 0-d, but of the GPU
        lambda x, y: torch.where(y > 0, x, 0.0),
        lambda x, y: x.gather(1, y.long()),
        lambda x, y: x.index_select(0, torch.tensor([0])),
        lambda x, y: F.embedding(torch.tensor([0]), x),
        lambda x, y: F.mse_loss(x, y),
        lambda x, y: F.cross_entropy(x, torch.zeros(3, dtype=torch.long)),
        lambda x, y: nn.Linear(4, 2)(x),
        lambda x, y: nn.Linear(4, 2, device="cuda")(y),
        lambda x, y: torch.func.vmap(torch.mul)(x, y),
    ],
)
def test_two_devices_in_one_operation_are_refused(mixing, x, y):
    with pytest.raises(RuntimeError, match="same device, but found at least two devices"):
        mixing(x, y)


def test_numpy_and_what_calls_it(x, y):
    for convert in (torch.Tensor.numpy, np.asarray, lambda t: np.mean([t, t])):
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            convert(x)
    assert np.asarray(y).sum() == y.numpy().sum() == 12
    assert x.cpu().numpy().sum() == x.numpy(force=True).sum() == 66
    assert x.sum().item() == float(x.sum()) == 66 and x[0].tolist() == [0, 1, 2, 3]


def test_a_generator_of_the_other_device(x):
    ours, others = torch.Generator("cuda").manual_seed(0), torch.Generator().manual_seed(0)
    assert (ours.device, others.device) == (GPU, CPU)
    for draw in (
        lambda g: torch.rand(3, generator=g, device="cuda"),
        lambda g: torch.randperm(3, generator=g, device="cuda"),
        lambda g: x.normal_(generator=g),
        lambda g: torch.bernoulli(torch.full_like(x, 0.5), generator=g),
    ):
        assert draw(ours).device == GPU
        with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
            draw(others)
    with pytest.raises(RuntimeError, match="Expected a 'cpu' device type for generator"):
        torch.rand(3, generator=ours)


def test_indices_may_come_from_the_cpu_but_not_from_the_gpu(x, y):
    rows = torch.tensor([0, 2])
    assert x[rows].device == x[y > 0].device == GPU
    x[rows] = 5.0
    assert x.sum() == 62
    for index in (rows.cuda(), x > 0):
        with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same"):
            y[index]
        with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same"):
            y[index] = 0.0
    assert y[rows.cuda()[1]].device == CPU  # one number is read, not indexed with


def test_values_are_copied_between_devices_by_slices_only(x, y):
    x[:2], y[:2] = y[:2].clone(), x[:2].clone()
    assert (x.device, y.device, x[:2].sum(), y[:2].sum()) == (GPU, CPU, 8, 28)
    with pytest.raises(RuntimeError, match="same device"):
        x[torch.tensor([0])] = y[:1]


def test_numbers_of_the_cpu_mix(x):
    number = torch.tensor(2.0)
    assert all((r.device, r.sum()) == (GPU, 132) for r in (x * number, number * x, x * 2))
    assert x.clamp(max=number).device == GPU
    assert torch.where(x > 3, x, number).device == GPU


def test_to_and_its_forms(x, y):
    for moved in (y.to("cuda"), y.to(GPU), y.to(0), y.cuda(), y.to(x), y.to(device="cuda")):
        assert moved.device == GPU and moved.is_cuda and y.device == CPU
    assert x.to("cuda") is x and y.to("cpu") is y and y.cpu() is y
    assert x.to(y).device == x.to("cpu").device == x.cpu().device == CPU
    assert y.to("cuda", torch.float64).dtype == y.to(x.double()).dtype == torch.float64
    assert x.to(torch.float64).device == x.double().device == GPU
    assert y.to("cuda", non_blocking=True, copy=True).device == GPU
    assert x.is_cpu is False and x.get_device() == 0 and y.get_device() == -1
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        y.to("cuda:1")


def test_factories(x):
    for made in (
        torch.zeros(2, device="cuda"),
        torch.tensor([1, 2], device=x.device),
        torch.as_tensor(np.ones(3), device="cuda"),
        torch.zeros_like(x),
        x.new_zeros(2),
        x.new_tensor([1.0]),
        torch.eye(3, device="cuda")[1:].T,
    ):
        assert made.device == GPU
    for made in (torch.zeros(2), torch.zeros_like(x, device="cpu"), torch.tensor([x[0, 0], 2])):
        assert made.device == CPU
    with torch.device("cuda"):
        assert torch.ones(2).device == GPU
    assert copy.deepcopy(x).device == GPU


def _network():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def test_modules_move_with_parameters_and_buffers():
    model = _network().to("cuda")
    for network in (model, copy.deepcopy(model)):
        held = [*network.parameters(), *network.buffers()]
        assert {tensor.device for tensor in held} == {GPU}
    assert {p.device for p in model.cpu().parameters()} == {CPU}
    assert nn.Linear(4, 5, device="cuda").weight.device == GPU


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
        lambda p: torch.optim.LBFGS(p, max_iter=3),
    ],
)
def test_optimizers_step_as_on_the_cpu(build, x):
    losses = []
    for device in (CPU, GPU):
        torch.manual_seed(0)
        model = _network().to(device)
        images, labels = x.to(device), torch.tensor([0, 1, 0], device=device)
        optimizer = build(model.parameters())

        def closure(model=model, images=images, labels=labels, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        losses.append([optimizer.step(closure).item() for _ in range(3)])
        assert {p.grad.device for p in model.parameters()} == {device}
    assert losses[0] == losses[1] and losses[0][2] < losses[0][0]


def test_gradients_also_inside_hooks_and_functions(x):
    seen = {}

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            seen["forward"] = value.device
            return value * 2

        @staticmethod
        def backward(ctx, gradient):
            seen["backward"] = gradient.device
            return gradient * torch.full((), 2.0, device=gradient.device)

    layer = nn.Linear(4, 2).cuda()
    layer.register_full_backward_hook(lambda m, gi, go: seen.update(hook=go[0].device))
    value = x.clone().requires_grad_()
    value.register_hook(lambda g: seen.update(tensor=g.to("cuda").device))
    layer(Twice.apply(value)).sum().backward()
    assert seen == dict.fromkeys(("forward", "backward", "hook", "tensor"), GPU)
    assert value.grad.device == GPU
    (gradient,) = torch.autograd.grad(value[torch.tensor([0])].max() + value.amax(), value)
    assert (gradient + x).device == GPU
    with pytest.raises(RuntimeError):
        value.grad = torch.zeros(3, 4)


def test_functorch(x):
    def loss(weight, row):
        return (row * weight + torch.zeros(4, device=row.device)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(x[0], x)
    assert each.device == GPU and torch.equal(each.cpu(), (2 * x * x * x[0]).cpu())
    assert torch.func.jacrev(torch.sin)(x[0]).device == GPU
    stacked, buffers = torch.func.stack_module_state([_network().cuda() for _ in range(2)])
    assert {value.device for value in (*stacked.values(), *buffers.values())} == {GPU}


def test_gradients_of_each_example_by_opacus(x):
    """Opacus keeps gradients that the engine hands it, and adds noise drawn for them."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    layer = nn.Linear(4, 2).cuda()
    model = GradSampleModule(layer)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=3,
        generator=torch.Generator("cuda"),
    )
    model(x.requires_grad_()).sum().backward()
    assert layer.weight.grad_sample.device == GPU
    optimizer.step()
    assert {p.summed_grad.device for p in model.parameters()} == {GPU}


def test_seeds_and_threads(x):
    from vplib import experiment, seeding

    with seeding.seeded(3):
        first = torch.rand(2, device="cuda")
    with seeding.seeded(3):
        assert torch.equal(first, torch.rand(2, device="cuda"))
    assert experiment.device("auto").type == experiment.device("cuda").type == "cuda"
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.ones(2, device="cuda") + x[0, :2]))
    thread.start()
    thread.join()
    assert found[0].device == GPU
