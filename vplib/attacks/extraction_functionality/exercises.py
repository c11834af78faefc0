"""Exercises of attacks/extraction_functionality: reference solutions, and checks."""

import torch
import torch.nn.functional as F

from vplib.exercises import judge


def solve_clone_loss(logits, answers):
    """The cross-entropy of the clone against the black box's probabilities, as a mean."""
    return -(answers * logits.log_softmax(-1)).sum(-1).mean().item()


def check_clone_loss(attempt) -> str | None:
    """Checks the loss on answers that are not certain, where a label is not enough."""
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
    answers = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    right = solve_clone_loss(logits, answers)
    labels_only = F.cross_entropy(logits, answers.argmax(-1))
    swapped = -(logits.softmax(-1) * answers.log()).sum(-1).mean()
    mistakes = {
        "take the mean over the images, not the sum, or the step grows with the batch": 2 * right,
        "sum over the classes, and take the mean over the images only": right / 3,
        "you trained on the black box's label only; its probabilities say more": labels_only,
        "the roles are swapped: the black box's probabilities are the weights": swapped,
        "the sign is wrong: a loss falls as the clone agrees more": -right,
    }
    why = "every class counts, weighted by the black box's probability of it"
    hint = "sum answers times the log-softmax of the logits over classes, negate, take the mean"
    return judge(attempt(logits.clone(), answers.clone()), right, why, mistakes, hint)


def solve_agreement(clone, victim):
    """The share of images on which both give the same label."""
    return (clone.argmax(-1) == victim.argmax(-1)).double().mean().item()


def check_agreement(attempt) -> str | None:
    """Checks the share on answers that agree in the label and differ in all numbers."""
    clone = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25]])
    victim = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.0, 0.1, 0.9], [0.3, 0.4, 0.3]])
    mistakes = {
        "that is the number of images; take the share": 2,
        "compare the labels; probabilities are never equal": 0,
    }
    why = "agreement asks what the victim says, not what is true"
    hint = "take the argmax of both answers, and the share of images where they are equal"
    return judge(attempt(clone.clone(), victim.clone()), 0.5, why, mistakes, hint)


def solve_most_uncertain(probabilities, asked, num_new):
    """The rows with the highest entropy that were not asked about yet."""
    entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(-1)
    return entropy.index_fill(0, asked, -torch.inf).topk(num_new).indices


def check_most_uncertain(attempt) -> str | None:
    """Checks the rows, with the most uncertain one asked about and a zero probability."""
    probabilities = torch.tensor([
        [0.34, 0.33, 0.33], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.48, 0.26, 0.26],
        [0.8, 0.1, 0.1], [0.9, 0.1, 0.0],
    ])  # fmt: skip
    rows = attempt(probabilities.clone(), torch.tensor([0]), 2)
    if isinstance(rows, list | tuple | torch.Tensor):
        rows = torch.as_tensor(rows).sort().values  # in any order
    mistakes = {
        "give 2 different rows": lambda rows: rows[0] == rows[1],
        "row 0 was asked about already, and asking again is paid for": lambda rows: 0 in rows,
        "these are the most certain ones": [1, 5],
        "0 * log 0 is no number: clamp before the logarithm": lambda rows: 1 in rows,
    }
    why = "the most spread answers, and each image is paid for once"
    hint = "take the entropy of each row, exclude those asked about, take the 2 largest"
    return judge(rows, torch.tensor([2, 3]), why, mistakes, hint)
