"""Exercises of defenses/dp_sgd: reference solutions, and checks that name mistakes."""

import math

import torch

from vplib.exercises import judge


def solve_private_sum(gradients, clip, sigma, noise):
    """Each example's gradient scaled to at most the clip norm, the sum of all, and the noise."""
    norms = gradients.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return (gradients * (clip / norms).clamp(max=1)).sum(0) + sigma * clip * noise


def check_private_sum(attempt) -> str | None:
    """Checks the noised sum on a long, a short and a zero gradient."""
    gradients, clip = torch.tensor([[30.0, 40.0], [0.3, 0.4], [0.0, 0.0], [-6.0, 8.0]]), 2.0
    sigma, noise = 1.5, torch.tensor([0.5, -1.0])
    right, total = solve_private_sum(gradients, clip, sigma, noise), gradients.sum(0)
    added = sigma * clip * noise
    clipped = right - added
    stretched = clip * torch.nn.functional.normalize(gradients, dim=1).sum(0)
    mistakes = {
        "a gradient of zero has norm zero: do not divide by it": lambda value: value.isnan().any(),
        "you clipped the batch gradient, not each example's: one record may fill it alone": (
            total * min(1.0, clip / total.norm()) + added
        ),
        "that is the mean; the noise is calibrated to the sum": right / len(gradients),
        "short gradients stay as they are: you scaled every one to the norm": stretched + added,
        "you clipped each coordinate, not the norm": gradients.clamp(-clip, clip).sum(0) + added,
        "clipped, but not private yet: the noise is missing": clipped,
        "sigma is a multiple of the clip norm, and that is missing": clipped + sigma * noise,
        "the noise is for the sum, not for each example": clipped + len(gradients) * added,
    }
    why = "no example moves the sum by more than the clip norm, and the noise is sigma times that"
    hint = "scale each row by min(1, clip / its norm), sum the rows, add sigma * clip * noise once"
    return judge(attempt(gradients.clone(), clip, sigma, noise), right, why, mistakes, hint)


def solve_noise_of_mean(sigma, clip, batch_size):
    """Sigma times the clip norm on the sum, divided as the sum is."""
    return sigma * clip / batch_size


def check_noise_of_mean(attempt) -> str | None:
    """Checks the number where clip norm, sigma and batch size all count."""
    sigma, clip, size = 1.5, 8.0, 50
    no_clip = "sigma is a multiple of the clip norm: without it, a clip norm of 8 hides nothing"
    roots = "one noise vector is added to the sum, not one an example: divide by the size itself"
    mistakes = {
        "that is the noise on the sum; the mean divides it by the batch size": sigma * clip,
        no_clip: lambda value: float(value) in (sigma, sigma / size),
        roots: sigma * clip / math.sqrt(size),
    }
    why = "the sum has noise sigma * clip, and dividing divides it"
    hint = "the noise on the sum has standard deviation sigma * clip; then divide by the batch size"
    return judge(attempt(sigma, clip, size), sigma * clip / size, why, mistakes, hint)


def solve_highest_tpr(fpr, epsilon, delta):
    """The smaller of the two bounds that the definition gives, for a set and its complement."""
    return min(math.exp(epsilon) * fpr + delta, 1 - math.exp(-epsilon) * (1 - delta - fpr), 1.0)


def check_highest_tpr(attempt) -> str | None:
    """Checks a small and a large false-positive rate, where different bounds bind."""
    epsilon, delta, fprs = 1.0, 0.01, (0.05, 0.9)
    right = [solve_highest_tpr(fpr, epsilon, delta) for fpr in fprs]

    def low_is(wanted):
        return lambda values: abs(float(values[0]) - wanted) < 1e-6

    mistakes = {
        "a rate is at most 1; and the complement of the set gives a tighter bound there": (
            [math.exp(epsilon) * fpr + delta for fpr in fprs]
        ),
        "right at the left end; at a large rate, apply the definition to the complement": (
            low_is(right[0])
        ),
        "delta is missing: at a rate of 0 the attack may still be right that often": (
            low_is(math.exp(epsilon) * fprs[0])
        ),
        "the factor is e to the epsilon, not epsilon": low_is(epsilon * fprs[0] + delta),
    }
    why = "one bound for the set that says 'member', one for its complement"
    hint = "Pr[in] <= e^epsilon Pr[out] + delta holds for the set of outputs, and its complement"
    values = [attempt(fpr, epsilon, delta) for fpr in fprs]
    return judge(values, right, why, mistakes, hint, tolerance=1e-6)
