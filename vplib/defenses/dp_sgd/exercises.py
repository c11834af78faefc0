"""Exercises of defenses/dp_sgd: reference solutions, and checks that name mistakes."""

import math

import torch


def solve_clipped_sum(gradients, clip):
    """Each example's gradient scaled to at most the clip norm, then summed."""
    norms = gradients.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return (gradients * (clip / norms).clamp(max=1)).sum(0)


def check_clipped_sum(attempt) -> str | None:
    """Checks the sum on a long, a short and a zero gradient."""
    gradients, clip = torch.tensor([[30.0, 40.0], [0.3, 0.4], [0.0, 0.0], [-6.0, 8.0]]), 2.0
    value = attempt(gradients.clone(), clip)
    if value is None:
        return None
    value = torch.as_tensor(value, dtype=torch.float32)
    if value.shape != (2,):
        return f"give one sum for the batch, (2,) here, not {tuple(value.shape)}"
    if value.isnan().any():
        return "a gradient of zero has norm zero: do not divide by it"
    right, total = solve_clipped_sum(gradients, clip), gradients.sum(0)

    def near(other):
        return torch.allclose(value, other, atol=1e-4)

    if near(right):
        return "right: no example can move the sum by more than the clip norm"
    if near(total * min(1.0, clip / total.norm())):
        return "you clipped the batch gradient, not each example's: one record may fill it alone"
    if near(right / len(gradients)):
        return "that is the mean; the noise is calibrated to the sum"
    norms = gradients.norm(dim=1, keepdim=True).clamp_min(1e-12)
    if near((gradients * clip / norms).sum(0)):
        return "you scaled every gradient to the clip norm; short ones stay as they are"
    if near(gradients.clamp(-clip, clip).sum(0)):
        return "you clipped each coordinate; the norm of a gradient can still be clip * sqrt(D)"
    return "scale each row by min(1, clip / its norm), then sum the rows"


def solve_noise_of_mean(sigma, clip, batch_size):
    """Sigma times the clip norm on the sum, divided as the sum is."""
    return sigma * clip / batch_size


def check_noise_of_mean(attempt) -> str | None:
    """Checks the number where clip norm, sigma and batch size all count."""
    sigma, clip, size = 1.5, 8.0, 50
    value = attempt(sigma, clip, size)
    if value is None:
        return None
    value = float(value)

    def near(other):
        return abs(value - other) < 1e-6

    if near(sigma * clip / size):
        return "right: the sum has noise sigma * clip, and dividing divides it"
    if near(sigma * clip):
        return "that is the noise on the sum; the mean divides it by the batch size"
    if near(sigma / size) or near(sigma):
        return "sigma is a multiple of the clip norm: without it, a clip norm of 8 hides nothing"
    if near(sigma * clip / math.sqrt(size)):
        return "one noise vector is added to the sum, not one an example: divide by the size itself"
    return "the noise on the sum has standard deviation sigma * clip; then divide by the batch size"


def solve_epochs_allowed(sigma, epsilon, delta):
    """The largest number of epochs whose zCDP converts to at most epsilon."""
    logarithm = math.log(1 / delta)
    rho = (math.sqrt(logarithm + epsilon) - math.sqrt(logarithm)) ** 2
    return math.floor(rho * 2 * sigma**2 + 1e-9)


def check_epochs_allowed(attempt) -> str | None:
    """Checks the number at two budgets."""
    sigma, delta = 8.0, 1e-5
    values = [attempt(sigma, epsilon, delta) for epsilon in (2.0, 8.0)]
    if values[0] is None:
        return None
    right = [solve_epochs_allowed(sigma, epsilon, delta) for epsilon in (2.0, 8.0)]
    if [float(value) for value in values] == right:
        return "right: rho adds up over epochs, epsilon does not"
    if any(float(value) != int(value) for value in values):
        return "epochs come whole: round down, for the next one would overspend"
    if all(value == r + 1 for value, r in zip(values, right, strict=True)):
        return "one too many: it spends more than the budget"
    singles = [1 / (2 * sigma**2) + 2 * math.sqrt(math.log(1e5) / (2 * sigma**2))] * 2
    if all(
        value == math.floor(e / single)
        for value, e, single in zip(values, (2.0, 8.0), singles, strict=True)
    ):
        return "you added up epsilons; add up rho, and convert once at the end"
    return "find the rho whose epsilon is the budget, and divide it by the cost of an epoch"


def solve_highest_tpr(fpr, epsilon, delta):
    """The smaller of the two bounds that the definition gives, for a set and its complement."""
    return min(math.exp(epsilon) * fpr + delta, 1 - math.exp(-epsilon) * (1 - delta - fpr), 1.0)


def check_highest_tpr(attempt) -> str | None:
    """Checks a small and a large false-positive rate, where different bounds bind."""
    epsilon, delta = 1.0, 0.01
    values = [attempt(fpr, epsilon, delta) for fpr in (0.05, 0.9)]
    if values[0] is None:
        return None
    low, high = (float(value) for value in values)
    right = [solve_highest_tpr(fpr, epsilon, delta) for fpr in (0.05, 0.9)]
    if abs(low - right[0]) < 1e-6 and abs(high - right[1]) < 1e-6:
        return "right: one bound for the set that says 'member', one for its complement"
    if abs(low - right[0]) < 1e-6:
        if high > 1:
            return "a rate is at most 1; and the complement of the set gives a tighter bound there"
        return "right at the left end; at a large rate, apply the definition to the complement"
    if abs(low - math.exp(epsilon) * 0.05) < 1e-6:
        return "delta is missing: at a rate of 0 the attack may still be right that often"
    if abs(low - (epsilon * 0.05 + delta)) < 1e-6:
        return "the factor is e to the epsilon, not epsilon"
    return "Pr[in] <= e^epsilon Pr[out] + delta holds for the set of outputs, and its complement"
