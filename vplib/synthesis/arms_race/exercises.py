"""Exercises of synthesis/arms_race: reference solutions, and checks that name mistakes."""

import torch

from vplib.exercises import judge
from vplib.synthesis.arms_race.matrix import best_column


def solve_left(attack, undefended, floor):
    """The share of the lead over the floor that is left, at least 0."""
    return ((attack - floor) / (undefended - floor)).clamp(min=0)


def check_left(attempt) -> str | None:
    """Checks four defenses: half left, nothing, below the floor, more than without one."""
    attack, undefended, floor = torch.tensor([0.6, 0.5, 0.46, 0.75]), 0.7, 0.5
    right = solve_left(attack, undefended, floor)
    mistakes = {
        "below the floor nothing is left, and less than nothing is no better: clamp at 0": (
            attack - floor
        )
        / (undefended - floor),
        "take the floor from both, or a guess counts as an attack": attack / undefended,
        "that is what the defense took; return what it left": 1 - right,
        "a defense may help an attack: do not cut at 1": right.clamp(max=1),
    }
    why = "0 at the best guess, 1 as without the defense"
    hint = "the lead over the floor with the defense, over the lead without it"
    return judge(attempt(attack, undefended, floor), right, why, mistakes, hint)


def solve_choose(risks, accuracies, least):
    """The column with the smallest maximum among the accurate ones."""
    worst = risks.nan_to_num(nan=-torch.inf).amax(0)
    worst[accuracies < least] = torch.inf
    return worst.argmin().item()


def check_choose(attempt) -> str | None:
    """Checks four defenses, of which each mistake chooses another."""
    nan = torch.nan
    risks = torch.tensor(
        [
            [0.70, 0.51, 0.60, 0.52, 0.58, 0.63],
            [0.72, 0.52, 0.61, 0.71, nan, 0.50],
            [0.66, 0.53, 0.59, 0.50, 0.65, 0.50],
        ]
    )
    accuracies = torch.tensor([0.75, 0.30, 0.74, 0.76, 0.75, 0.73])
    found = attempt(risks.clone(), accuracies.clone(), 0.72)
    if found is None:
        return None
    mistakes = {
        "that one is not accurate enough for this owner": 1,
        "that is the best on average; who attacks takes the attack that works": 5,
        "that has the smallest single number: some attacks fail, and another comes": 3,
        "a NaN is no risk and no protection: leave it out of the maximum": 4,
    }
    why = "the smallest of the largest, among those that are accurate enough"
    hint = "per column the largest risk that is no NaN; then the smallest of the accurate columns"
    return judge(found, best_column(risks, accuracies, 0.72), why, mistakes, hint)


def solve_reversals(unaware, aware, by):
    """How many pairs of defenses stand one way for one attacker, the other way for the other."""
    first = unaware[:, None] - unaware < -by
    second = aware[:, None] - aware > by
    return (first & second).sum().item()


def check_reversals(attempt) -> str | None:
    """Checks the number on six defenses, of which two pairs change places clearly."""
    unaware = torch.tensor([0.74, 0.60, 0.55, 0.66, 0.58, 0.50])
    aware = torch.tensor([0.74, 0.61, 0.66, 0.65, 0.605, 0.52])
    found = attempt(unaware, aware, 0.02)
    first = unaware[:, None] - unaware
    second = aware[:, None] - aware
    mistakes = {
        "each pair once: (a, b) and (b, a) are one": 2 * solve_reversals(unaware, aware, 0.02),
        "both differences must exceed `by`": solve_reversals(unaware, aware, 0.0),
        "that is how many pairs keep their order": int(((first < -0.02) & (second < -0.02)).sum()),
    }
    right = solve_reversals(unaware, aware, 0.02)
    hint = "compare all pairs: unaware[:, None] - unaware is below -by and the aware one above by"
    why = "pairs that change places"
    return judge(found, right, why, mistakes, hint)
