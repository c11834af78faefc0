"""Exercises of attacks/membership_shadow: reference solutions, and checks that name mistakes."""

import math

import torch
from sklearn.linear_model import LogisticRegression

from vplib.attacks.membership_shadow.shadow import attack_set
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


def solve_shadow_attack(shadow_answers, shadow_labels, shadow_members, answers, labels):
    """Trains a logistic regression for each class on the shadows' answers, and asks it."""
    examples, classes, inside = attack_set(shadow_answers, shadow_labels, shadow_members)
    scores = torch.zeros(len(labels))
    for c in range(answers.shape[1]):
        judge = LogisticRegression().fit(examples[classes == c], inside[classes == c])
        said = judge.predict_proba(answers[labels == c])[:, 1]
        scores[labels == c] = torch.tensor(said, dtype=scores.dtype)
    return scores


def check_shadow_attack(attempt) -> str | None:
    """Checks the probabilities where the same answer means "in" of one class, "out" of another."""
    draws = torch.Generator().manual_seed(0)
    labels, members = torch.arange(40) % 4, torch.rand(7, 40, generator=draws) < 0.5
    # Members of classes 0 and 1 are answered right, others wrong; of 2 and 3 it is the reverse.
    right = members == (labels < 2)
    right[5] = ~right[5]  # one shadow misleads, so that nothing is certain
    largest = torch.where(right, labels, labels ^ 1)
    sure = 0.7 + 0.2 * torch.rand(7, 40, 1, generator=draws)
    answers = ((1 - sure) / 3).expand(7, 40, 4).scatter(-1, largest[..., None], sure)
    said, inside = attempt(answers[:6], labels, members[:6], answers[6], labels), members[6]
    mistakes = {
        "take the other column: that is 'out'": lambda s: ((s < 0.5) == inside).all(),
        "fit each attack model on its class alone": lambda s: (s - 0.5).abs().max() < 0.3,
        "learn it from the shadows, do not assume it": lambda s: ((s > 0.5) == right[6]).all(),
        "mostly right: your classifier learns the shadows' answers by heart, take a smoother one": (
            lambda s: ((s > 0.5) == inside).double().mean() > 0.7
        ),
    }
    why = "an attack model for each class, which learns from the shadows and judges the victim"
    hint = "for each class: fit on the shadows' examples of it, score the victim's records of it"
    found = judge(said, inside.double(), why, mistakes, hint, tolerance=0.49)
    if found and found.startswith("right: ") and set(torch.as_tensor(said).tolist()) <= {0, 1}:
        return "these are decisions: return probabilities, for a ROC curve needs a ranking"
    return found


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
