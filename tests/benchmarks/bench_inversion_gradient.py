"""Gradient inversion: iterations a second against the loop of Deep leakage from gradients.

    python tests/benchmarks/bench_inversion_gradient.py

The published loop, rebuilt from its description: one image at a time, `torch.optim.LBFGS` over the
image and label logits, a closure that computes the gradient with a graph and differentiates the
squared distance through it. Both sides invert the same messages of the same LeNet with the same
loss, from gray, in the same precision (published: float32, and steps of length one); an iteration
is one evaluation of the closure, or of one client's objective. They are warmed up and take turns,
on one thread, each for a fixed number of evaluations. The quality reached stands beside, for fast
and wrong is none. Nothing is asserted.
"""

import argparse
import platform

import torch
import torch.nn.functional as F
from bench_training import medians

from vplib import datasets
from vplib.attacks.inversion_gradient import leakage as attack
from vplib.attacks.inversion_gradient.network import lenet
from vplib.victims import federated


def published(model, messages, images, classes, evaluations, line_search):
    """One client after another with torch's optimizer: images, and how often the closure ran."""
    parameters, found, total = list(model.parameters()), [], 0
    for k, message in enumerate(messages):
        wanted = list(message.values.values())
        torch.manual_seed(k)
        x = torch.full_like(images[k], 0.5).requires_grad_()
        z = torch.randn(len(x), classes, dtype=x.dtype, requires_grad=True)
        stepper = torch.optim.LBFGS(
            [x, z], max_iter=evaluations, max_eval=evaluations, tolerance_grad=0,
            tolerance_change=0, line_search_fn="strong_wolfe" if line_search else None,
        )  # fmt: skip
        count = 0

        def closure(x=x, z=z, stepper=stepper, wanted=wanted):
            nonlocal count
            count += 1
            stepper.zero_grad()
            loss = torch.mean(torch.sum(-z.softmax(-1) * F.log_softmax(model(x), -1), 1))
            slopes = torch.autograd.grad(loss, parameters, create_graph=True)
            distance = sum(((a - b) ** 2).sum() for a, b in zip(slopes, wanted, strict=True))
            distance.backward()
            return distance

        stepper.step(closure)
        found.append(x.detach())
        total += count
    return torch.stack(found), total


def ours(model, messages, images, classes, evaluations, line_search):
    """All clients at once."""
    found = attack.invert_gradient(
        messages, model, images.shape[2:], num_classes=classes, num_evaluations=evaluations,
        line_search=line_search,
    )  # fmt: skip
    return found.images, int(found.evaluations.sum())


def compare(size: int, dtype, clients: int, evaluations: int, rounds: int, line_search: bool):
    """Times both sides and prints the ratio."""
    data = datasets.load("faces", "test", num_images=clients)
    images = F.interpolate(data.images, size=(size, size), mode="area").to(dtype)[:, None]
    torch.manual_seed(0)
    model = lenet(images.shape[2:], len(data.classes), spread=0.1).to(dtype)
    sent = [
        federated.share_gradient(model, x, y[None])
        for x, y in zip(images, data.labels, strict=True)
    ]
    settings = (model, sent, images, len(data.classes), evaluations, line_search)
    sides = {"vplib": lambda: ours(*settings), "published": lambda: published(*settings)}
    seconds, found = medians(sides, rounds)
    rates = {name: found[name][1] / seconds[name] for name in sides}
    search = "strong Wolfe" if line_search else "unit steps"
    print(f"\n{size}x{size} pixels, {dtype}, {clients} clients, {search}")
    for name in sides:
        quality = attack.score_psnr(found[name][0], images).median()
        print(
            f"  {name:10} {rates[name]:8.0f} iterations a second   median {quality:.1f} dB after "
            f"{found[name][1] / clients:.0f} each"
        )
    as_published = not line_search and dtype == torch.float32
    goal = "   goal 2x: the loop as published" if as_published else ""
    print(f"  ratio      {rates['vplib'] / rates['published']:8.2f}x{goal}")


def main() -> None:
    """Compares both at the sizes of the notebook."""
    parser = argparse.ArgumentParser(description="gradient inversion against the published loop")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--clients", type=int, default=20, help="messages inverted")
    parser.add_argument("--evaluations", type=int, default=40, help="for each message")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"Deep leakage, LeNet with sigmoids; one thread; median of {options.rounds} interleaved "
        f"runs after a warm-up; torch {torch.__version__}, {platform.machine()}"
    )
    for size, dtype, line_search in (
        (32, torch.float64, True), (32, torch.float32, False), (16, torch.float32, True),
    ):  # fmt: skip
        compare(size, dtype, options.clients, options.evaluations, options.rounds, line_search)


if __name__ == "__main__":
    main()
