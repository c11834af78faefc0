"""Exercises of attacks/extraction_functionality: reference solutions, and checks."""

import torch
import torch.nn.functional as F
from torch import nn

from vplib.exercises import judge


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


def solve_steal(ask, images, clone, budget, num_steps):
    """Asks once about a random part of the images, and trains the clone on the answers."""
    queries = images[torch.randperm(len(images))[:budget]]
    answers = ask(queries)
    optimizer = torch.optim.Adam(clone.parameters(), lr=0.01)
    for _ in range(num_steps):
        rows = torch.randint(budget, (64,))
        optimizer.zero_grad()
        F.cross_entropy(clone(queries[rows]), answers[rows]).backward()
        optimizer.step()
    return clone


def check_steal(attempt) -> str | None:
    """Steals a linear black box that is never sure, and counts what was asked about."""

    def ask(queries):
        asked.extend(tuple(query.flatten().tolist()) for query in queries)
        return (queries.flatten(1)[:, :3] * 3).softmax(-1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        images, new, asked = *torch.rand(2, 400, 1, 2, 2), []
        found = attempt(ask, images, nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 100, 500)
    if not isinstance(found, nn.Module):
        return None if found is None else f"return the trained clone, not {type(found).__name__}"
    spent, different = len(asked), len(set(asked) & set(map(tuple, images.flatten(1).tolist())))
    said, right = found.eval()(new).softmax(-1), ask(new)
    agreed = (said.argmax(-1) == right.argmax(-1)).double().mean()
    off = (said - right).abs().sum(-1).mean()
    mistakes = {
        f"{spent} images were asked about, of 100: ask once, keep the answers": spent > 100,
        "ask about different images of the pool, for repeats are paid for": different < spent,
        f"only {spent} of the 100 queries were spent": spent < 100,
        f"the clone agrees on {agreed:.0%} only: take all steps, downhill": agreed < 0.85,
        "its labels are right, not how sure it is: train on the probabilities": off > 0.2,
    }
    return next((m for m, made in mistakes.items() if made), "right: a copy, within its budget")


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
