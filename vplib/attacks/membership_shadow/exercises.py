"""Exercises of attacks/membership_shadow: reference solutions, and checks that name mistakes."""

import math

import torch

from vplib.exercises import judge


def solve_gap_attack(predict_label, images, labels):
    """Says "member" where the victim's label is right."""
    return predict_label(images) == labels


def check_gap_attack(attempt) -> str | None:
    """Checks the guesses on a victim that is right about every second record."""
    images, labels = torch.zeros(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    answers = torch.tensor([0, 0, 2, 1, 1, 0])
    guesses = attempt(lambda asked: answers[: len(asked)], images, labels)
    wrong_way = "the wrong way round: a model is right more often about what it was trained on"
    why = "correct answers count as members"
    hint = "compare the victim's label with the true label, record by record"
    return judge(guesses, answers == labels, why, {wrong_way: answers != labels}, hint)


def solve_advantage(guesses, members):
    """True-positive minus false-positive rate."""
    return (guesses[members].double().mean() - guesses[~members].double().mean()).item()


def check_advantage(attempt) -> str | None:
    """Checks the number on groups of unequal size, where accuracy and advantage part."""
    guesses = torch.tensor([True, True, True, False, True, False, False, False, False, False])
    members = torch.tensor([True] * 4 + [False] * 6)
    mistakes = {
        "that is the accuracy, which depends on how many records of each kind there are": 0.8,
        "divide the false positives by the number of nonmembers, not of members or positives": 0.5,
        "the sign is wrong: true-positive rate minus false-positive rate": 1 / 6 - 3 / 4,
    }
    why = "true-positive rate 3/4 minus false-positive rate 1/6"
    hint = "take the share of members guessed 'in', minus the share of nonmembers guessed 'in'"
    return judge(attempt(guesses, members), 3 / 4 - 1 / 6, why, mistakes, hint)


def solve_top_k(probabilities, k):
    """Keeps the k largest probabilities of each answer and sets the others to zero."""
    values, index = probabilities.topk(k, dim=-1)
    return torch.zeros_like(probabilities).scatter(-1, index, values)


def check_top_k(attempt) -> str | None:
    """Checks a masked answer: right entries, right places, nothing renormalized."""
    answer = torch.tensor([[0.1, 0.6, 0.05, 0.25], [0.4, 0.1, 0.3, 0.2]])
    right = solve_top_k(answer, 2)
    rescaled = right / right.sum(-1, keepdim=True)
    mistakes = {
        "mask the other classes, do not drop them": answer.topk(2).values,
        "the paper's filter does not rescale what stays to sum to one": rescaled,
        "the wrong entries stay: choose the k largest of each row": (
            lambda masked: ((masked != 0) != (right != 0)).any()
        ),
    }
    why = "the two largest stay, in their places"
    hint = "the k largest of each row keep their places and their values, the others are zero"
    return judge(attempt(answer.clone(), 2), right, why, mistakes, hint)


def solve_likelihood_ratio(confidence, inside, outside):
    """The log-likelihood ratio of two normals fitted to the shadows' confidences."""
    normal = torch.distributions.Normal
    with_record = normal(inside.mean(), inside.std(correction=0))
    without = normal(outside.mean(), outside.std(correction=0))
    return (with_record.log_prob(confidence) - without.log_prob(confidence)).item()


def check_likelihood_ratio(attempt) -> str | None:
    """Checks the ratio for a record with unequal spreads, where a distance is not enough."""
    inside, outside = torch.tensor([4.0, 5.0, 6.0, 5.0]), torch.tensor([0.0, 2.0, 4.0, 2.0])
    confidence = torch.tensor(4.5)
    right = solve_likelihood_ratio(confidence, inside, outside)
    near, far = (confidence - inside.mean()) ** 2, (confidence - outside.mean()) ** 2
    why = "how much likelier this confidence is with the record than without"
    unlogged = "take the logarithm: ratios of many records span hundreds of powers of ten"
    mistakes = {
        # variances with n - 1, 2/3 and 8/3, are as good
        f"right: {why}": math.log(2) + 3 / 16 * far - 3 / 4 * near,
        "upside down: the likelihood with the record stands on top": -right,
        unlogged: math.exp(right),
        "you compared distances to the means; each group has a spread of its own": far - near,
    }
    hint = "fit a normal to each group (mean, standard deviation), subtract the log-densities"
    value = attempt(confidence, inside, outside)
    return judge(value, right, why, mistakes, hint, tolerance=1e-3)
