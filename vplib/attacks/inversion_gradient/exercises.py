"""Exercises of attacks/inversion_gradient: reference solutions, and checks that name mistakes."""

import torch


def solve_relative_distance(found, wanted):
    """The squared distance over the squared norm of what is wanted, over all tensors."""
    distance = sum((a - b).square().sum() for a, b in zip(found, wanted, strict=True))
    return (distance / sum(b.square().sum() for b in wanted)).item()


def check_relative_distance(attempt) -> str | None:
    """Checks the distance on two tensors of different size."""
    found = [torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([3.0])]
    wanted = [torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([1.0])]
    value = attempt([v.clone() for v in found], [v.clone() for v in wanted])
    if value is None:
        return None
    value = float(value)

    def near(other):
        return abs(value - float(other)) < 1e-4

    right = solve_relative_distance(found, wanted)
    pairs = list(zip(found, wanted, strict=True))
    if near(right):
        return "right: one number for all layers, and the scale of the message is gone"
    if near(sum((a - b).square().sum() for a, b in pairs)):
        return "divide by the squared norm of the wanted gradient"
    if near(right**0.5):
        return "do not take the root: its slope is infinite where the gradients agree"
    if near(sum((a - b).square().sum() / b.square().sum() for a, b in pairs)):
        return "divide the sum by the sum; you divided layer by layer, which weighs them anew"
    if near(sum((a - b).square().sum() for a, b in pairs) / sum(a.square().sum() for a in found)):
        return "divide by the norm of the wanted gradient: the other one moves with the guess"
    return "sum the squared differences of all entries, divide by the summed squares of `wanted`"


def solve_label_from_bias(bias_gradient):
    """The gradient is p - y: negative at the true class alone."""
    return int(bias_gradient.argmin())


def check_label_from_bias(attempt) -> str | None:
    """Checks the class where the most confident one, and the smallest in size, are others."""
    probabilities = torch.tensor([0.6, 0.1, 0.05, 0.25])
    gradient = probabilities - torch.tensor([0.0, 1.0, 0.0, 0.0])
    label = attempt(gradient.clone())
    if label is None:
        return None
    label = int(label)
    if label == 1:
        return "right: p - y is negative at the true class alone, whatever the layer's input was"
    if label == 0:
        return "that is the class the model believes in; the true one has the negative entry"
    if label == 2:
        return "do not take the absolute value: the sign is what tells"
    return "the gradient of cross-entropy by the bias is p - y: which entry can be negative?"


def solve_image_from_linear(weight_gradient, bias_gradient):
    """A row of the weight's gradient over the same entry of the bias's, where that is largest."""
    row = int(bias_gradient.abs().argmax())
    return weight_gradient[row] / bias_gradient[row]


def check_image_from_linear(attempt) -> str | None:
    """Checks the image on a layer with a dead unit, whose row is zero."""
    x = torch.tensor([0.2, 0.9, 0.0, 0.5])
    delta = torch.tensor([0.0, -0.3, 0.1])
    found = attempt(delta[:, None] * x, delta.clone())
    if found is None:
        return None
    found = torch.as_tensor(found).detach().float().flatten()
    if found.shape != x.shape:
        return f"give one value for each of the {len(x)} inputs, not {tuple(found.shape)}"
    if not found.isfinite().all():
        return "a unit that is off has a zero row and a zero bias gradient: take another one"
    if torch.allclose(found, x, atol=1e-5):
        return "right: one division, no optimization; a first layer with a bias hides nothing"
    if torch.allclose(found, -0.3 * x, atol=1e-5) or torch.allclose(found, 0.1 * x, atol=1e-5):
        return "this is the image times that row's entry of the bias gradient: divide by it"
    return "row i of the weight's gradient is delta_i times x, and the bias's entry is delta_i"
