"""Exercises of attacks/extraction_functionality: reference solutions, and checks."""

import torch
import torch.nn.functional as F


def solve_clone_loss(logits, answers):
    """The cross-entropy of the clone against the black box's probabilities, as a mean."""
    return -(answers * logits.log_softmax(-1)).sum(-1).mean().item()


def check_clone_loss(attempt) -> str | None:
    """Checks the loss on answers that are not certain, where a label is not enough."""
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
    answers = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    value = attempt(logits.clone(), answers.clone())
    if value is None:
        return None
    value = float(value)

    def near(other):
        return abs(value - float(other)) < 1e-4

    right = solve_clone_loss(logits, answers)
    if near(right):
        return "right: every class counts, weighted by the black box's probability of it"
    if near(2 * right):
        return "take the mean over the images, not the sum: the step must not grow with the batch"
    if near(right / 3):
        return "sum over the classes, and take the mean over the images only"
    if near(F.cross_entropy(logits, answers.argmax(-1))):
        return "you trained on the black box's label only; its probabilities say more"
    if near(-(logits.softmax(-1) * answers.log()).sum(-1).mean()):
        return "the roles are swapped: the black box's probabilities are the weights"
    if near(-right):
        return "the sign is wrong: a loss falls as the clone agrees more"
    return "sum answers times the log-softmax of the logits over classes, negate, take the mean"


def solve_agreement(clone, victim):
    """The share of images on which both give the same label."""
    return (clone.argmax(-1) == victim.argmax(-1)).double().mean().item()


def check_agreement(attempt) -> str | None:
    """Checks the share on answers that agree in the label and differ in all numbers."""
    clone = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25]])
    victim = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.0, 0.1, 0.9], [0.3, 0.4, 0.3]])
    value = attempt(clone.clone(), victim.clone())
    if value is None:
        return None
    value = float(value)
    if abs(value - 0.5) < 1e-6:
        return "right: agreement asks what the victim says, not what is true"
    if abs(value - 2) < 1e-6:
        return "that is the number of images; take the share"
    if abs(value) < 1e-6:
        return "compare the labels; probabilities are never equal"
    return "take the argmax of both answers, and the share of images where they are equal"


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
    asked = torch.tensor([0])
    rows = attempt(probabilities.clone(), asked.clone(), 2)
    if rows is None:
        return None
    rows = sorted(int(row) for row in rows)
    if len(rows) != 2 or len(set(rows)) != 2:
        return f"give 2 different rows here, not {rows}"
    if 0 in rows:
        return "row 0 was asked about already: its answer is known, and asking again is paid for"
    if rows == [2, 3]:
        return "right: the most spread answers, and each image is paid for once"
    if rows == [1, 5]:
        return "these are the most certain ones"
    if 1 in rows:
        return "0 * log 0 is not a number in floats: clamp the probabilities before the logarithm"
    return "take the entropy of each row, exclude those asked about, take the largest"
