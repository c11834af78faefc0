"""Exercises of defenses/gradient_defenses: reference solutions, and checks that name mistakes."""

import torch

from vplib.defenses.gradient_defenses.adaptive import direction
from vplib.exercises import judge


def solve_soteria(weight_gradient, norms, r, share):
    """The columns of the units with the smallest norms / r are zero."""
    scores = (norms / r).abs()
    gone = scores.topk(round(share * len(scores)), largest=False).indices
    return weight_gradient.index_fill(1, gone, 0.0)


def check_soteria(attempt) -> str | None:
    """Checks a layer where norms alone, r alone and the other end rank otherwise."""
    gradient = torch.arange(1.0, 16.0).view(3, 5)
    norms = torch.tensor([0.1, 0.2, 1.2, 0.4, 1.05])
    r = torch.tensor([0.1, 0.8, -0.6, 0.5, 0.7])

    def without(*units):
        return gradient.index_fill(1, torch.tensor(units), 0.0)

    given = gradient.clone()
    found = attempt(given, norms.clone(), r.clone(), 0.4)
    if found is not None and not given.equal(gradient):
        return "the client's own gradient has changed: work on a copy"
    mistakes = {
        "these are the units with the largest scores: the smallest go": without(2, 4),
        "divide by r: a norm alone does not say how large the unit is": without(0, 1),
        "a unit's size counts, not its sign: take the absolute value": without(1, 2),
        "these are the largest units: the norms count as well": without(1, 4),
        "nothing was taken away": gradient,
        "this keeps the defended columns and takes the others": without(0, 2, 4),
    }
    why = "two of five columns are zero, and the others as they were"
    return judge(found, without(1, 3), why, mistakes, "columns are units, rows are classes")


def solve_left_out(found, wanted, ignored):
    """The direction over all parameters but one."""
    rest = [name for name in wanted if name != ignored]
    return direction({n: found[n] for n in rest}, {n: wanted[n] for n in rest})


def check_left_out(attempt) -> str | None:
    """Checks messages of which the ignored part would decide."""
    found = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([1.0]), "c": torch.ones(4)}
    wanted = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([-2.0]), "c": torch.zeros(4)}
    counted = direction(found, wanted)
    mistakes = {
        "the ignored parameter still counts": counted,
        "that is the cosine; the attacker minimizes one minus it": 1
        - solve_left_out(found, wanted, "c"),
    }
    why = "what was defended is not compared, so that the true image fits exactly"
    hint = "drop the name from both dictionaries, then take `direction` of the rest"
    value = attempt(dict(found), dict(wanted), "c")
    return judge(value, solve_left_out(found, wanted, "c"), why, mistakes, hint)


def solve_clip_and_noise(values, clip, sigma, noise):
    """One norm over all parameters, then noise in its units."""
    norm = sum(value.square().sum() for value in values.values()).sqrt()
    factor = min(1.0, clip / norm.item())
    return {name: value * factor + clip * sigma * noise[name] for name, value in values.items()}


def check_clip_and_noise(attempt) -> str | None:
    """Checks a message that is too long, and one that is short enough."""
    values = {"w": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    noise = {"w": torch.tensor([1.0, -1.0]), "b": torch.tensor([0.5])}
    right, found = [], []
    for size in (1.0, 0.1):
        given = {name: size * value for name, value in values.items()}
        answer = attempt(dict(given), 2.0, 0.1, noise)
        if answer is None:
            return None
        if not isinstance(answer, dict) or set(answer) != set(values):
            return "give a dictionary with the names of `values`"
        found.append(torch.cat([answer[n].flatten() for n in values]))
        solved = solve_clip_and_noise(given, 2.0, 0.1, noise)
        right.append(torch.cat([solved[n] for n in values]))
    flat = torch.cat([noise[n] for n in values])
    long, short = torch.tensor([3.0, 0.0, 4.0]), torch.tensor([0.3, 0.0, 0.4])
    by_hand = {
        "each tensor was clipped alone: the norm is of the whole message": (
            torch.tensor([2.0, 0.0, 2.0]) + 0.2 * flat,
            short + 0.2 * flat,
        ),
        "a short message was stretched: the factor is at most 1": (
            0.4 * long + 0.2 * flat,
            4 * short + 0.2 * flat,
        ),
        "sigma is in units of the clip: multiply the noise by both": (
            0.4 * long + 0.1 * flat,
            short + 0.1 * flat,
        ),
    }
    mistakes = {said: torch.stack(pair) for said, pair in by_hand.items()}
    why = "whatever the image was, the message is at most `clip` long below its noise"
    hint = "min(1, clip / norm) times each value, plus clip times sigma times the noise"
    return judge(torch.stack(found), torch.stack(right), why, mistakes, hint)
