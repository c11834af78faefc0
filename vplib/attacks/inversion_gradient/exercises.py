"""Exercises of attacks/inversion_gradient: reference solutions, and checks that name mistakes."""

import torch
from torch import nn

from vplib.attacks.inversion_gradient.leakage import simulate, squared_distance
from vplib.exercises import judge
from vplib.victims.federated import share_gradient


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
        "a unit that is off divides 0 by 0: take another": lambda found: not found.isfinite().all(),
        undivided: lambda found: any(torch.allclose(found, d * x.double()) for d in delta[1:]),
    }
    why = "one division, no optimization; a first layer with a bias hides nothing"
    hint = "row i of the weight's gradient is delta_i times x, and the bias's entry is delta_i"
    found = attempt(delta[:, None] * x, delta.clone())
    return judge(found, x, why, mistakes, hint, tolerance=1e-5)


def solve_dlg(model, wanted, x, z, num_evaluations):
    """L-BFGS on a guessed image and its label's logits, until their gradient is the message."""
    x, z = (guess.clone().requires_grad_() for guess in (x, z))
    limits = dict(max_iter=num_evaluations, max_eval=num_evaluations)
    limits |= dict(tolerance_grad=0, tolerance_change=0)
    stepper = torch.optim.LBFGS([x, z], line_search_fn="strong_wolfe", **limits)

    def closure():
        found = simulate(model, x[None], z.softmax(-1)[None])
        value = squared_distance({name: slopes[0] for name, slopes in found.items()}, wanted)
        x.grad, z.grad = torch.autograd.grad(value, [x, z])
        return value

    stepper.step(closure)
    return x.detach()


def check_dlg(attempt) -> str | None:
    """Checks the image that comes back from a small network's gradient."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 3)).double()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    truth = torch.rand(1, 1, 2, 4, generator=generator).double()
    wanted = dict(share_gradient(model, truth, torch.tensor([1])).values)
    gray, z = torch.full_like(truth, 0.5), torch.zeros(1, 3).double()
    mistakes = {
        "the image is where it started: does the optimizer hold `x`, and take a step?": gray,
        "the image ran away from the client's: minimize": lambda x: (x - truth).norm() > 1.5,
        "close, but stopped early: set both tolerances to 0": lambda x: (x - truth).norm() < 0.01,
    }
    hint = "nearer, but not there: LBFGS over `x` and `z`, strong_wolfe, all evaluations"
    asked = []
    model.register_forward_hook(lambda *_: asked.append(1))
    try:
        found = attempt(model, wanted, gray.clone(), z.clone(), 60)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        return "the distance does not depend on `x` for autograd: x.clone().requires_grad_()"
    if len(asked) > 100:  # LBFGS ends its last line search above the limit
        return f"{len(asked)} evaluations, of 60 allowed: let max_iter and max_eval count them"
    return judge(found, truth, "its gradient is the message", mistakes, hint, tolerance=5e-5)
