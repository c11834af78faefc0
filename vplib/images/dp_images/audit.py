"""What a promised epsilon allows an attacker, and whether a release keeps to it."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor


def most_named(epsilon: float, people: int) -> float:
    """The highest rate of right names, if a release satisfies epsilon for any two of the people.

    They are equally likely; e^epsilon / (e^epsilon + people - 1).
    """
    return 1 / (1 + (people - 1) * math.exp(-epsilon))


def least_rate(hits: int, trials: int, confidence: float = 0.999) -> float:
    """The lower end of Clopper and Pearson's interval, one-sided: a rate that is surely reached."""
    from scipy.stats import beta

    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(f"{hits} hits of {trials} trials cannot be")
    return float(beta.ppf(1 - confidence, hits, trials - hits + 1)) if hits else 0.0


def distinguish(
    release: Callable[[Tensor, Generator], Tensor],
    pair: Tensor,
    rng: Generator,
    *,
    centers: Tensor | None = None,
    trials: int = 20_000,
    answered: float = 0.1,
) -> tuple[int, int]:
    """How often an attacker who knows the two candidates tells which one was released.

    It compares likelihoods under Laplace noise, and answers only where it is most sure: under
    epsilon, no output makes one of two candidates likelier than e^epsilon to 1, and so its answers
    are right at a rate of at most `most_named(epsilon, 2)`, however it selects them.

    Args:
        release: the mechanism, from (N, ...) inputs and a generator to (N, ...) outputs.
        pair: (2, ...) the candidates, the worst neighbors there are.
        rng: of coins and noise.
        centers: (2, ...) what would be released without noise; the pair by default.
        trials: releases, each of a candidate by a fair coin.
        answered: share of them that the attacker answers.

    Returns:
        Right answers, and all answers.
    """
    centers = pair if centers is None else centers
    truth = torch.randint(2, (trials,), generator=rng).to(pair.device)
    made = release(pair[truth], rng).flatten(1)
    first, second = ((made - center.flatten()).abs().sum(1) for center in centers)
    evidence = first - second  # for the second one
    sure = evidence.abs().argsort(descending=True)[: max(1, int(answered * trials))]
    return int(((evidence > 0) == truth.bool())[sure].sum()), len(sure)


def keeps(hits: int, trials: int, epsilon: float, people: int = 2, *, attackers: int = 1) -> bool:
    """Whether a rate of right names is no evidence against epsilon.

    `attackers`: the strongest of so many was chosen on these trials (Bonferroni's correction).
    """
    return least_rate(hits, trials, 1 - 0.001 / attackers) <= most_named(epsilon, people)
