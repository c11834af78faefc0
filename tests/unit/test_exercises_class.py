"""The exercises of class inversion name the mistakes that readers make."""

import pytest
import torch

from vplib import exercises
from vplib.attacks.inversion_class import exercises as solutions


def descend(cost, clip=lambda x: x.clamp(0, 1), last=lambda x: x, carry=True):
    """The attack as a reader might write it."""

    def attempt(model, targets, start, num_steps, lr):
        x = start
        for _ in range(num_steps):
            x = (x if carry else start).clone().requires_grad_()
            log_f = model(x).log_softmax(1)[range(len(x)), targets]
            (slope,) = torch.autograd.grad(cost(log_f), x)
            x = clip(x.detach() - lr * slope)
        return last(x)

    return attempt


def minus_sum(log_f):
    return -log_f.sum()


SAID = {
    "invert": [
        (descend(minus_sum), ": right"),
        (descend(lambda log_f: log_f.sum()), "sign is wrong"),
        (descend(lambda log_f: -log_f.mean()), "mean over the batch"),
        (descend(minus_sum, clip=lambda x: x), "not never"),
        (descend(minus_sum, clip=lambda x: x, last=lambda x: x.clamp(0, 1)), "not once"),
        (descend(lambda log_f: (1 - log_f.exp()).sum()), "the paper's 1 - f"),
        (descend(minus_sum, carry=False), "one step"),
        (lambda model, targets, start, num_steps, lr: start, "nothing moved"),
        (lambda model, targets, start, num_steps, lr: start[0], "return numbers of shape"),
        (descend(lambda log_f: -2 * log_f.sum()), "one step against it"),
    ],
    "slope": [
        (lambda p, x, c, h: h * solutions.solve_slope(p, x, c, h), "divide the change"),
        (lambda p, x, c, h: solutions.solve_slope(p, x, 1 - c, h), "other class"),
        (lambda p, x, c, h: [solutions.solve_slope(p, x, c, h) for _ in "ab"][0], "10 queries"),
        (lambda p, x, c, h: solutions.solve_slope(p, x, c, h) + 1, "move one pixel"),
    ],
    "attribute": [
        (lambda p, y, prior, s: abs(p - y).argmin(), "smallest error"),
        (lambda p, y, prior, s: prior.argmax(), "most frequent"),
        (lambda p, y, prior, s: 0.5, "index of a value"),
    ],
}


@pytest.mark.parametrize(
    "name, attempt, said", [(n, a, s) for n, pairs in SAID.items() for a, s in pairs]
)
def test_a_mistake_is_named(name, attempt, said, capsys):
    exercises.check(f"inversion_class.{name}", attempt)
    assert said in capsys.readouterr().out
