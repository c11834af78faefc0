"""Exercises of attacks/membership_label_only: reference solutions, checks that name mistakes."""

import torch

from vplib.exercises import judge
from vplib.victims import endpoint


def solve_with_budget(predict_label, budget):
    """A callable that answers as `predict_label` until so many images were asked about."""
    spent = 0

    def ask(images):
        nonlocal spent
        if spent + len(images) > budget:
            raise endpoint.BudgetSpent(f"{spent} of {budget} queries are spent")
        spent += len(images)
        return predict_label(images)

    return ask


def check_with_budget(attempt) -> str | None:
    """Asks for five images of a budget of seven, then too many, then the rest."""
    asked = []

    def predict_label(images):
        asked.append(len(images))
        return torch.zeros(len(images), dtype=torch.int64)

    ask = attempt(predict_label, 7)
    if ask is None:
        return None
    if not callable(ask):
        return "return a function from images to labels"
    images = torch.zeros(5, 1, 2, 2)
    if len(ask(images)) != 5:
        return "within the budget, answer as the victim does"
    for number in (5, 3):
        try:
            ask(images[:number])
        except endpoint.BudgetSpent:
            if sum(asked) != 5:
                return "check before you ask the victim: those answers were already paid for"
            continue
        return "each image is a query: 5 and 3 exceed 7 (did you count calls?)"
    try:
        ask(images[:2])
    except endpoint.BudgetSpent:
        return "a refused request costs nothing, and a budget of 7 allows 7: 5 and 2 are within it"
    return "right: exact, and nothing is answered over budget"


def solve_bisect(predict_label, image, start, label, num_steps):
    """The point on the line from image to start that is nearest to the image and outside."""
    low, high = 0.0, 1.0
    for _ in range(num_steps):
        middle = (low + high) / 2
        point = image + middle * (start - image)
        if predict_label(point[None])[0] == label:
            low = middle
        else:
            high = middle
    return image + high * (start - image)


def check_bisect(attempt) -> str | None:
    """Looks for a boundary at 30 % of the way, with ten queries."""
    image, start = torch.full((1, 2, 2), 0.2), torch.full((1, 2, 2), 0.8)
    asked = 0

    def predict_label(images):
        nonlocal asked
        asked += len(images)
        return (images.flatten(1).mean(1) > 0.38).long()

    point = attempt(predict_label, image, start, 0, 10)
    if point is None:
        return None
    if not isinstance(point, torch.Tensor) or point.shape != image.shape:
        return "return one image of the shape of the record"
    share = (point.mean().item() - 0.2) / 0.6
    if share <= 0.3:
        return "your point still has the record's label: return the outer end of the interval"
    if asked > 10:
        return f"ten queries were allowed, you made {asked}"
    if share < 0.3 + 2 / 2**10:
        return "right: within a thousandth of the way, on the far side"
    return f"too far out: your point is {share:.3f} of the way, the boundary 0.300; halve each time"


def solve_direction(left, directions):
    """The Monte Carlo estimate of the normal of the boundary, with its baseline."""
    sign = 2.0 * left - 1
    if sign.mean().abs() < 1:
        sign = sign - sign.mean()
    found = (sign[:, None] * directions).sum(0)
    return found / found.norm()


def check_direction(attempt) -> str | None:
    """Checks the estimate on five directions, three of which leave the label."""
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0], [0.8, -0.6]])
    left = torch.tensor([True, True, True, False, False])
    right, sign = solve_direction(left, directions), 2.0 * left - 1
    found, whole = attempt(left, directions), directions.sum(0)
    no_baseline, one_sided = (sign[:, None] * directions).sum(0), directions[left].sum(0)
    mistakes = {
        "the wrong way round: go where the label is left": -right,
        "subtract the mean of the signs: without this baseline the estimate is noisier": (
            no_baseline / no_baseline.norm()
        ),
        "the directions that keep the label tell something too: they count with minus one": (
            one_sided / one_sided.norm()
        ),
        "the direction is right; scale it to length one": (
            lambda found: torch.allclose(found / found.norm(), right.double(), atol=1e-4)
        ),
    }
    why = "and where all directions leave, their mean is the best guess"
    hint = "sum the directions, weighted with +1 where the label is left, -1 else, minus the mean"
    said = judge(found, right, why, mistakes, hint)
    if said and said.startswith("right"):
        found = attempt(torch.ones(5, dtype=torch.bool), directions)
        hint = "nearly: when all answers are equal the baseline leaves nothing; drop it then"
        said = judge(found, whole / whole.norm(), why, {}, hint)
    return said


def solve_rounded(probabilities, decimals):
    """Rounded answers whose label is the same and alone at the top."""
    return endpoint.rounded(probabilities, decimals)


def check_rounded(attempt) -> str | None:
    """Checks a mask on answers whose plain rounding ties, or loses everything."""
    answers = torch.tensor([[0.46, 0.54, 0.0], [0.52, 0.46, 0.02], [0.04, 0.04, 0.92]])
    masked = attempt(answers.clone(), 1)
    if masked is None:
        return None
    if not isinstance(masked, torch.Tensor) or masked.shape != answers.shape:
        return "return as many numbers as you were given"
    if not torch.allclose(masked * 10, (masked * 10).round(), atol=1e-4):
        return "each number must be a multiple of a tenth"
    if not torch.equal(masked.argmax(-1), answers.argmax(-1)):
        return "the label of 0.46 against 0.54 changed: both round to 0.5, and the first one wins"
    tops = (masked == masked.amax(-1, keepdim=True)).sum(-1)
    if (tops > 1).any():
        return "a tie hides the label: take a tenth from whoever ties with it"
    if (masked - answers).abs().max() > 0.1 + 1e-6:
        return "no number need move by more than a tenth"
    return "right: coarse, and the label is kept"
