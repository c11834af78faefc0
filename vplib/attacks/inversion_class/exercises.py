"""Exercises of attacks/inversion_class: reference solutions, and checks that name mistakes."""

import numpy as np
import torch


def solve_cost(logits, targets):
    """-log f of the wanted class, for each image of a batch."""
    return -logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def check_cost(attempt) -> str | None:
    """Checks the cost on sure, unsure and hopeless answers."""
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0], [200.0, 0.0, 0.0]])
    targets = torch.tensor([0, 2, 1])
    value = attempt(logits.clone(), targets.clone())
    if value is None:
        return None
    if not isinstance(value, torch.Tensor):
        return "return a tensor with a cost for each image"
    right = solve_cost(logits, targets)
    if value.shape != right.shape:
        return "one cost for each image: images are inverted side by side, not as one mean"
    if torch.allclose(value, right, atol=1e-4):
        return "right: and its slope does not vanish where f is near zero"
    if torch.allclose(value, 1 - (-right).exp(), atol=1e-4):
        return "that is the paper's 1 - f; take -log f, which is steep where f is near zero"
    if torch.allclose(value, -right, atol=1e-4):
        return "the sign is wrong: the cost falls as the victim gets surer"
    if torch.allclose(value[:2], right[:2], atol=1e-3):
        return "log(softmax) overflows for the last image: use log_softmax"
    return "take the log-softmax of each row, the wanted class's entry, and negate it"


def solve_slope(predict, image, target, difference):
    """Forward differences of one class's confidence, a pixel at a time."""
    moved = image + difference * torch.eye(image.numel()).view(-1, *image.shape)
    change = predict(moved)[:, target] - predict(image[None])[0, target]
    return (change / difference).view(image.shape)


def check_slope(attempt) -> str | None:
    """Compares the slope with that of a known function, and counts the queries."""
    weights = torch.tensor([[0.1, -0.2], [0.3, 0.05]])
    asked = 0

    def predict(images):
        nonlocal asked
        asked += len(images)
        first = 0.5 + (images[:, 0] * weights).sum((1, 2))
        return torch.stack([1 - first, first], 1)

    found = attempt(predict, torch.full((1, 2, 2), 0.4), 1, 0.1)
    if found is None:
        return None
    if not isinstance(found, torch.Tensor) or found.shape != (1, 2, 2):
        return "return one slope a pixel, in the shape of the image"
    if torch.allclose(found, weights[None], atol=1e-4):
        if asked > 5:
            return f"right, but {asked} queries: four pixels need five, the image is asked once"
        return "right: one query a pixel, and one for the image itself"
    if torch.allclose(found, 0.1 * weights[None], atol=1e-4):
        return "divide the change by how far the pixel was moved"
    if torch.allclose(found, -weights[None], atol=1e-4):
        return "the sign is wrong, or it is the other class's slope"
    return "move one pixel, see by how much the confidence of the target changes, and divide"


def solve_attribute(predictions, outcome, priors, sigma):
    """The index of the most probable value: prior times the likelihood of the error."""
    errors = (outcome - np.asarray(predictions)) / sigma
    return int(np.argmax(np.log(priors) - errors**2 / 2))


def check_attribute(attempt) -> str | None:
    """Checks a case where the prior decides, and one where the error does."""
    near, far = np.array([10.0, 11.0, 16.0]), np.array([10.0, 40.0, 11.0])
    priors = np.array([0.1, 0.8, 0.1])
    first = attempt(near, 10.0, priors, 5.0)
    if first is None:
        return None
    second = attempt(far, 10.0, priors, 2.0)
    if int(first) != first or int(second) != second:
        return "return the index of a value"
    if (first, second) == (1, 0):
        return "right: a prior speaks where errors say little, and is overruled where they say much"
    if first == 0:
        return "you took the smallest error; the frequent value explains it nearly as well"
    if (first, second) == (1, 1):
        return "you took the most frequent value; its error is fifteen standard deviations"
    return "score each value by log(prior) - (error / sigma)^2 / 2, and take the largest"
