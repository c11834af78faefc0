"""Exercises of attacks/membership_shadow: reference solutions, and checks that name mistakes."""

import torch


def solve_gap_attack(predict_label, images, labels):
    """Says "member" where the victim's label is right."""
    return predict_label(images) == labels


def check_gap_attack(attempt) -> str | None:
    """Checks the guesses on a victim that is right about every second record."""
    images, labels = torch.zeros(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    answers = torch.tensor([0, 0, 2, 1, 1, 0])
    guesses = attempt(lambda asked: answers[: len(asked)], images, labels)
    if guesses is None:
        return None
    guesses = torch.as_tensor(guesses).bool()
    if guesses.shape != (6,):
        return f"give one guess a record, (6,) here, not {tuple(guesses.shape)}"
    if (guesses == (answers != labels)).all():
        return "the wrong way round: a model is right more often about what it was trained on"
    if (guesses == (answers == labels)).all():
        return "right: correct answers count as members"
    return "compare the victim's label with the true label, record by record"


def solve_advantage(guesses, members):
    """True-positive minus false-positive rate."""
    return (guesses[members].double().mean() - guesses[~members].double().mean()).item()


def check_advantage(attempt) -> str | None:
    """Checks the number on groups of unequal size, where accuracy and advantage part."""
    guesses = torch.tensor([True, True, True, False, True, False, False, False, False, False])
    members = torch.tensor([True] * 4 + [False] * 6)
    value = attempt(guesses, members)
    if value is None:
        return None
    value = float(value)
    if abs(value - (0.75 - 1 / 6)) < 1e-6:
        return "right: true-positive rate 3/4 minus false-positive rate 1/6"
    if abs(value - 0.8) < 1e-6:
        return "that is the accuracy, which depends on how many records of each kind there are"
    if abs(value - (0.75 - 1 / 4)) < 1e-6:
        return "divide the false positives by the number of nonmembers, not of members or positives"
    if abs(value + (0.75 - 1 / 6)) < 1e-6:
        return "the sign is wrong: true-positive rate minus false-positive rate"
    return "take the share of members guessed 'in', minus the share of nonmembers guessed 'in'"


def solve_top_k(probabilities, k):
    """Keeps the k largest probabilities of each answer and sets the others to zero."""
    values, index = probabilities.topk(k, dim=-1)
    return torch.zeros_like(probabilities).scatter(-1, index, values)


def check_top_k(attempt) -> str | None:
    """Checks a masked answer: right entries, right places, nothing renormalized."""
    answer = torch.tensor([[0.1, 0.6, 0.05, 0.25], [0.4, 0.1, 0.3, 0.2]])
    masked = attempt(answer.clone(), 2)
    if masked is None:
        return None
    masked = torch.as_tensor(masked)
    expected = solve_top_k(answer, 2)
    if masked.shape != answer.shape:
        return f"keep the shape {tuple(answer.shape)}: mask the other classes, do not drop them"
    if torch.allclose(masked, expected):
        return "right: the two largest stay, in their places"
    if torch.allclose(masked, expected / expected.sum(-1, keepdim=True)):
        return "the paper's filter does not rescale what stays to sum to one"
    if ((masked != 0) != (expected != 0)).any():
        return "the wrong entries stay: choose the k largest of each row"
    return "the entries that stay must keep their values"


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
    value = attempt(confidence, inside, outside)
    if value is None:
        return None
    value = float(value)
    right = solve_likelihood_ratio(confidence, inside, outside)

    def near(other):
        return abs(value - float(other)) < 1e-3

    def log_prob(group, correction):
        spread = group.std(correction=correction)
        return torch.distributions.Normal(group.mean(), spread).log_prob(confidence)

    if near(right) or near(log_prob(inside, 1) - log_prob(outside, 1)):
        return "right: how much likelier this confidence is with the record than without"
    if near(-right):
        return "upside down: the likelihood with the record stands on top"
    if near(torch.tensor(right).exp()):
        return "take the logarithm: ratios of many records span hundreds of powers of ten"
    if near((confidence - outside.mean()) ** 2 - (confidence - inside.mean()) ** 2):
        return "you compared distances to the means; each group has a spread of its own"
    return "fit a normal to each group (mean, standard deviation), subtract the log-densities"
