"""Exercises of attacks/inversion_class: reference solutions, and checks that name mistakes."""

import numpy as np
import torch

from vplib.exercises import judge


def solve_cost(logits, targets):
    """-log f of the wanted class, for each image of a batch."""
    return -logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def check_cost(attempt) -> str | None:
    """Checks the cost on sure, unsure and hopeless answers."""
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0], [200.0, 0.0, 0.0]])
    targets = torch.tensor([0, 2, 1])
    right = solve_cost(logits, targets)
    overflown = -logits.softmax(-1).gather(1, targets[:, None]).squeeze(1).log()
    mistakes = {
        "one cost for each image: they are inverted side by side, not as a mean": right.mean(),
        "that is the paper's 1 - f; take -log f, steep where f is near zero": 1 - (-right).exp(),
        "the sign is wrong: the cost falls as the victim gets surer": -right,
        "log(softmax) overflows for the last image: use log_softmax": overflown,
    }
    why = "and its slope does not vanish where f is near zero"
    hint = "take the log-softmax of each row, the wanted class's entry, and negate it"
    return judge(attempt(logits.clone(), targets.clone()), right, why, mistakes, hint)


def solve_slope(predict, image, target, difference):
    """Forward differences of one class's confidence, a pixel at a time."""
    moved = image + difference * torch.eye(image.numel()).view(-1, *image.shape)
    change = predict(moved)[:, target] - predict(image[None])[0, target]
    return (change / difference).view(image.shape)


def check_slope(attempt) -> str | None:
    """Compares the slope with that of a known function, and counts the queries."""
    weights = torch.tensor([[[0.1, -0.2], [0.3, 0.05]]])
    asked = []

    def predict(images):
        asked.append(len(images))
        first = 0.5 + (images * weights).sum((1, 2, 3))
        return torch.stack([1 - first, first], 1)

    found = attempt(predict, torch.full((1, 2, 2), 0.4), 1, 0.1)
    mistakes = {
        "divide the change by how far the pixel was moved": 0.1 * weights,
        "the sign is wrong, or it is the other class's slope": -weights,
    }
    why = "one query a pixel, and one for the image itself"
    if sum(asked) > 5:
        why = f"but {sum(asked)} queries: four pixels need five, the image is asked once"
    hint = "move one pixel, see by how much the confidence of the target changes, and divide"
    return judge(found, weights, why, mistakes, hint)


def solve_attribute(predictions, outcome, priors, sigma):
    """The index of the most probable value: prior times the likelihood of the error."""
    errors = (outcome - np.asarray(predictions)) / sigma
    return int(np.argmax(np.log(priors) - errors**2 / 2))


def check_attribute(attempt) -> str | None:
    """Checks a case where the prior decides, and one where the error does."""
    near, far = np.array([10.0, 11.0, 16.0]), np.array([10.0, 40.0, 11.0])
    priors = np.array([0.1, 0.8, 0.1])
    found = [attempt(near, 10.0, priors, 5.0), attempt(far, 10.0, priors, 2.0)]
    mistakes = {
        "return the index of a value": lambda found: any(int(i) != i for i in found),
        "you took the smallest error; the frequent value explains it nearly as well": [0, 0],
        "you took the most frequent value; its error is fifteen standard deviations": [1, 1],
    }
    why = "a prior speaks where errors say little, and is overruled where they say much"
    hint = "score each value by log(prior) - (error / sigma)^2 / 2, and take the largest"
    return judge(found, [1, 0], why, mistakes, hint)
