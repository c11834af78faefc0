"""Exercises of attacks/inversion_class: reference solutions, and checks that name mistakes."""

import numpy as np
import torch

from vplib.exercises import judge


def solve_invert(model, targets, start, num_steps, lr):
    """The pictures after descent on -log f of each one's own target, kept in [0, 1]."""
    return _descend(model, targets, start, num_steps, lr)


def _descend(model, targets, x, num_steps, lr, cost=torch.neg, total=torch.sum, clip=True):
    for _ in range(num_steps):
        x = x.detach().requires_grad_()
        log_f = model(x).log_softmax(-1).gather(1, targets[:, None])
        x = x - lr * torch.autograd.grad(total(cost(log_f)), x)[0]
        x = x.clamp(0, 1) if clip else x
    return x.detach()


def check_invert(attempt) -> str | None:
    """Compares the pictures with those of a known model after three steps."""
    weights = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 1.5, -1.0, 0.5], [-0.5, 0.0, 1.0, 2.0]])
    start, targets = torch.linspace(0.2, 0.8, 8).view(2, 1, 2, 2), torch.tensor([2, 0])

    def model(x):
        return x.flatten(1) @ weights.T

    def descended(num_steps=3, lr=0.4, **changes):
        return _descend(model, targets, start, num_steps, lr, **changes)

    mistakes = {
        "the sign is wrong: these pictures lose the victim's confidence": descended(lr=-0.4),
        "you take the mean over the batch: more pictures, shorter steps": descended(
            total=torch.mean
        ),
        "clip to [0, 1] after every step, not never": descended(clip=False),
        "clip to [0, 1] after every step, not once": descended(clip=False).clamp(0, 1),
        "that is the paper's 1 - f; take -log f": descended(cost=lambda log_f: -log_f.exp()),
        "that is one step: start the next where the last one ended": descended(1),
        "nothing moved: return the last picture, not the start": start,
    }
    why = "the victim is surer of each, and the slope does not vanish where f is near zero"
    hint = "in each step: the slope of -log f summed over the batch, one step against it, clip"
    found = attempt(model, targets.clone(), start.clone(), 3, 0.4)
    return judge(found, descended(), why, mistakes, hint, tolerance=1e-3)


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
