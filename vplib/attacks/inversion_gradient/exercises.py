"""Exercises of attacks/inversion_gradient: reference solutions, and checks that name mistakes."""

import torch

from vplib.exercises import judge


def solve_relative_distance(found, wanted):
    """The squared distance over the squared norm of what is wanted, over all tensors."""
    distance = sum((a - b).square().sum() for a, b in zip(found, wanted, strict=True))
    return (distance / sum(b.square().sum() for b in wanted)).item()


def check_relative_distance(attempt) -> str | None:
    """Checks the distance on two tensors of different size."""
    found = [torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([3.0])]
    wanted = [torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([1.0])]
    right = solve_relative_distance(found, wanted)
    distances, norms, own = torch.tensor([[8.0, 4], [6, 1], [6, 9]])  # squared, of each tensor
    by_own = distances.sum() / own.sum()
    mistakes = {
        "divide by the squared norm of the wanted gradient": distances.sum(),
        "do not take the root: its slope is infinite where the gradients agree": right**0.5,
        "divide the sum by the sum; layer by layer weighs them anew": (distances / norms).sum(),
        "divide by the norm of the wanted gradient: the other one moves with the guess": by_own,
    }
    why = "one number for all layers, and the scale of the message is gone"
    hint = "sum the squared differences of all entries, divide by the summed squares of `wanted`"
    copies = [v.clone() for v in found], [v.clone() for v in wanted]
    return judge(attempt(*copies), right, why, mistakes, hint)


def solve_label_from_bias(bias_gradient):
    """The gradient is p - y: negative at the true class alone."""
    return int(bias_gradient.argmin())


def check_label_from_bias(attempt) -> str | None:
    """Checks the class where the most confident one, and the smallest in size, are others."""
    gradient = torch.tensor([0.6, 0.1, 0.05, 0.25]) - torch.tensor([0.0, 1.0, 0.0, 0.0])
    mistakes = {
        "that is the class the model believes in; the true one has the negative entry": 0,
        "do not take the absolute value: the sign is what tells": 2,
    }
    why = "p - y is negative at the true class alone, whatever the layer's input was"
    hint = "the gradient of cross-entropy by the bias is p - y: which entry can be negative?"
    return judge(attempt(gradient.clone()), 1, why, mistakes, hint)


def solve_image_from_linear(weight_gradient, bias_gradient):
    """A row of the weight's gradient over the same entry of the bias's, where that is largest."""
    row = int(bias_gradient.abs().argmax())
    return weight_gradient[row] / bias_gradient[row]


def check_image_from_linear(attempt) -> str | None:
    """Checks the image on a layer with a dead unit, whose row is zero."""
    x, delta = torch.tensor([0.2, 0.9, 0.0, 0.5]), torch.tensor([0.0, -0.3, 0.1])
    undivided = "this is the image times a row's entry of the bias gradient: divide by it"
    mistakes = {
        "a unit that is off has a zero row and a zero bias gradient: take another one": (
            lambda found: not found.isfinite().all()
        ),
        undivided: lambda found: any(torch.allclose(found, d * x.double()) for d in delta[1:]),
    }
    why = "one division, no optimization; a first layer with a bias hides nothing"
    hint = "row i of the weight's gradient is delta_i times x, and the bias's entry is delta_i"
    found = attempt(delta[:, None] * x, delta.clone())
    return judge(found, x, why, mistakes, hint, tolerance=1e-5)
