"""Exercises of images/adversarial_cloaking: reference solutions, and checks that name mistakes."""

import torch

from vplib.exercises import judge


def solve_protection(said, truth, users):
    """The mean over users of each user's share of photos given another name."""
    shares = [(said[truth == u] != u).double().mean() for u in users]
    return torch.stack(shares).mean().item()


def check_protection(attempt) -> str | None:
    """Checks the number on users with unequally many photos, beside a stranger."""
    truth, said = torch.tensor([0, 0, 0, 0, 1, 2, 2]), torch.tensor([0, 0, 0, 3, 3, 0, 2])
    mistakes = {
        "that is the share of photos: a user with many photos must not count for more": 2 / 5,
        "person 2 asked for no protection: only the users count": 3 / 7,
        "the other way round: a photo that gets another name is protected": 3 / 8,
    }
    why = "1/4 and 1 for the two users, 5/8 on average"
    hint = "for each user, the share of their photos given another name; then the mean over users"
    return judge(attempt(said, truth, [0, 1]), 5 / 8, why, mistakes, hint)


def solve_penalized(distance, dissimilarity, budget, weight):
    """The distance to the target, plus a penalty on the excess, as a share of the budget."""
    return distance + weight * (dissimilarity / budget - 1).clamp(min=0)


def check_penalized(attempt) -> str | None:
    """Checks one photo under its budget and one above, with a gradient."""
    dissimilarity = torch.tensor([0.004, 0.03], requires_grad=True)
    value = attempt(torch.tensor([1.0, 2.0]), dissimilarity, 0.01, 3.0)
    mistakes = {
        "a photo under its budget is rewarded: cut the penalty at zero": torch.tensor([-0.8, 8.0]),
        "the penalty is for the excess, not for the whole": torch.tensor([2.2, 11.0]),
        "measure the excess as a share of the budget": torch.tensor([1.0, 2.06]),
        "give one number a photo: each has its own budget": torch.tensor(9.0),
    }
    why = "no penalty within the budget, 3 x 2 at three times the budget"
    hint = "add weight x max(dissimilarity / budget - 1, 0) to each photo's distance"
    said = judge(value, torch.tensor([1.0, 8.0]), why, mistakes, hint)
    if said and said.startswith("right") and not getattr(value, "requires_grad", False):
        return "the numbers are right, but the gradient is lost: use torch's operations"
    return said


def solve_fit(measure, budget):
    """The largest share of a change that keeps within the budget, by bisection."""
    if measure(1.0) <= budget:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if measure(middle) <= budget else (low, middle)
    return low


def check_fit(attempt) -> str | None:
    """Checks that the share fits, is large, and that the whole change is kept where it fits."""
    calls = []

    def measure(share):
        calls.append(share)
        return 0.05 * float(share) ** 2

    share = attempt(measure, 0.0123)
    if share is None:
        return None
    share, best = float(share), (0.0123 / 0.05) ** 0.5
    if len(calls) > 100:
        return f"you measured {len(calls)} times: halve the interval, and 20 measurements do"
    if 0.05 * share**2 > 0.0123:
        return "the result exceeds its budget: return the end that was measured to fit"
    if abs(float(attempt(measure, 0.2)) - 1) > 1e-3:
        return "where the whole change fits, keep all of it: the share is 1"
    if share < best - 1e-3:
        return f"it fits, but {best:.3f} would fit too, not only {share:.3f}: go on halving"
    return "right: within the budget, and close to it"


def solve_estimate(posted, public):
    """The mean of the posted photos minus the mean of ordinary ones."""
    return posted.mean(0) - public.mean(0)


def check_estimate(attempt) -> str | None:
    """Checks the estimate of one change hidden in many photos, half of them other people's."""
    rng = torch.Generator().manual_seed(0)
    public, private = (torch.rand(400, 1, 4, 4, generator=rng) for _ in range(2))
    change = 0.5 * torch.randn(1, 4, 4, generator=rng).sign()
    found = attempt(private + change, public)
    mistakes = {
        "the sign is wrong: posted minus usual": lambda f: (f + change).abs().max() < 0.12,
        "you kept the average face: subtract that of ordinary photos": (private + change).mean(0),
    }
    why = "the photos average out, what all of them share stays"
    hint = "average the posted photos and subtract the average of ordinary ones: one change for all"
    return judge(found, change, why, mistakes, hint, tolerance=0.12)
