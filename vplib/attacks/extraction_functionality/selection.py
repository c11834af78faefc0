"""Which images a clone's owner asks about: chosen by the clone (ActiveThief), or bred (Ripper).

As in `extraction_functionality`, `ask` is the victim as a black box, and nothing else of it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vplib.attacks.extraction_functionality.knockoff import (
    Ask,
    as_targets,
    ask_all,
    draw_rows,
    train_clones,
)
from vplib.nets import stacked, training

STRATEGIES = ("random", "uncertainty", "k-center", "margin")
NUM_ROUNDS = 5  # of active learning
# Of breeding: latent vectors a class and generation, how many of them have offspring, generations
# until a new population is drawn, and the standard deviation of a mutation.
POPULATION, ELITE, GENERATIONS, SPREAD = 20, 5, 5, 1.0


class Answered(NamedTuple):
    """What one attacker paid for: B images, and the black box's answers as (B, classes)."""

    images: Tensor
    targets: Tensor


def choose_actively(
    asks: Sequence[Ask],
    build: training.Build,
    images: Tensor,
    num_classes: int,
    budget: int,
    strategy: str,
    *,
    num_steps: int,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Active learning for K attackers at once: train on the answers so far, choose the next images.

    The first of `NUM_ROUNDS` is random, and all are of one size. Images are chosen by what the
    attacker's own clone says about them; none is asked about twice.

    Args:
        asks: K black boxes.
        build: makes one untrained clone.
        images: (N, C, H, W) the pool that all attackers have.
        num_classes: of the black boxes.
        budget: queries an attacker, exactly.
        strategy: one of `STRATEGIES`: "random"; "uncertainty" (entropy); "k-center" (far from all
            that is asked, in the clone's answers); "margin" (near the clone's decision boundary).
        num_steps: training steps of the clones a round.
        seed: decides the first round, the random strategy and the clones.

    Returns:
        (K, budget) rows of the pool, and (K, budget, classes) targets.

    Raises:
        ValueError: the strategy is unknown, or the pool is smaller than the budget.

    Source:
        Pal et al., ActiveThief, AAAI 2020. "margin" is one step of DeepFool, of which the paper's
        DFAL takes as many as it needs.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    rows = draw_rows(len(images), budget, len(asks), seed).to(images.device)
    if strategy == "random":
        return rows, ask_all(asks, images[rows], num_classes)
    sizes = [len(part) for part in torch.arange(budget).chunk(NUM_ROUNDS)]
    rows = rows[:, : sizes[0]]
    targets = ask_all(asks, images[rows], num_classes)
    for size in sizes[1:]:
        clones = train_clones(build, images[rows], targets, num_steps=num_steps, seed=seed)
        answers = clones.probabilities(images)
        if strategy == "k-center":
            pairs = zip(answers, rows, strict=True)
            new = torch.stack([k_center(a, asked, size) for a, asked in pairs])
        else:
            uncertain = (
                -boundary_distance(clones, images)
                if strategy == "margin"
                else (-(answers * answers.clamp_min(1e-12).log()).sum(-1))
            )
            new = uncertain.scatter(1, rows, -torch.inf).topk(size, dim=1).indices
        rows = torch.cat([rows, new], 1)
        found = ask_all(asks, images[new], num_classes)
        targets = torch.cat([targets, found], 1)
    return rows, targets


def k_center(points: Tensor, asked: Tensor, num_new: int) -> Tensor:
    """The greedy cover: again and again the point that is farthest from all centers so far.

    Args:
        points: (N, D).
        asked: (M,) rows that are centers already.
        num_new: how many more.

    Returns:
        (num_new,) rows.

    Source:
        Sener and Savarese, Active learning for convolutional neural networks, ICLR 2018,
        algorithm 1.
    """
    nearest = torch.cdist(points, points[asked]).amin(1)
    nearest[asked] = -1
    chosen = []
    for _ in range(num_new):
        chosen.append(int(nearest.argmax()))
        nearest = nearest.minimum((points - points[chosen[-1]]).norm(dim=1))
        nearest[chosen[-1]] = -1
    return torch.tensor(chosen, device=points.device)


def boundary_distance(clones: training.Ensemble, images: Tensor) -> Tensor:
    """How far each image is from each clone's nearest decision boundary, to first order.

    min over classes c of |z_y - z_c| / ||grad z_y - grad z_c||, y the clone's own label.

    Args:
        clones: the attacker's own K models.
        images: (N, C, H, W).

    Returns:
        (K, N) distances, in units of the pixels' L2 norm.

    Source:
        Moosavi-Dezfooli et al., DeepFool, CVPR 2016, algorithm 2, one step.
    """
    forward = stacked.forward_of(clones.build().eval())
    parts = []
    for some in images.split(1024):
        x = some.expand(len(clones), *some.shape).clone().requires_grad_()
        if forward is None:
            logits = torch.stack([clones.model(k)(x[k]) for k in range(len(clones))])
        else:
            logits = forward(clones.state, x)
        sums = logits.sum((0, 1))
        grads = torch.stack(
            [torch.autograd.grad(z, x, retain_graph=True)[0].flatten(2) for z in sums], 2
        )
        label = logits.argmax(-1, keepdim=True)
        gap = logits.gather(-1, label) - logits
        own = grads.gather(2, label[..., None].expand(-1, -1, 1, grads.shape[-1]))
        distance = gap / (own - grads).norm(dim=-1).clamp_min(1e-9)
        parts.append(distance.scatter(-1, label, torch.inf).amin(-1).detach())
    return torch.cat(parts, 1)


def fittest(answers: Tensor, wanted: Tensor, elite: int) -> Tensor:
    """The individuals whose answers are nearest to what is wanted.

    Args:
        answers: (..., population, classes) probabilities.
        wanted: (..., 1, classes) one-hot vectors.
        elite: how many.

    Returns:
        (..., elite) indices, the fittest first.

    Source:
        Barbalau et al., Black-box ripper, NeurIPS 2020, section 3.
    """
    return ((answers - wanted) ** 2).sum(-1).topk(elite, dim=-1, largest=False).indices


def evolve_queries(
    ask: Ask,
    generate: Callable[[Tensor], Tensor],
    num_latents: int,
    num_classes: int,
    budget: int,
    *,
    seed: int = 0,
) -> Answered:
    """Breeds generated images that the black box is sure about, some for each class.

    Each image that is looked at is a query, and all of them are kept: they are paid for.

    Args:
        ask: the black box.
        generate: from (N, num_latents) latent vectors to images: the attacker's own generator.
        num_latents: size of a latent vector.
        num_classes: of the black box.
        budget: queries, exactly.
        seed: decides populations and mutations.

    Source:
        Barbalau et al., Black-box ripper, NeurIPS 2020, algorithm 1. The paper breeds until one
        image a class is good enough, and trains on that one.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.eye(num_classes)[:, None]
    images, targets, left, latents = [], [], budget, None
    while left:
        if len(images) % GENERATIONS == 0:
            latents = torch.randn(num_classes, POPULATION, num_latents, generator=generator)
        some = generate(latents.flatten(0, 1))[:left]
        found = as_targets(ask(some), num_classes)
        images.append(some)
        targets.append(found)
        left -= len(some)
        if left:
            best = fittest(found.view(num_classes, POPULATION, -1).cpu(), wanted, ELITE)
            parents = latents.gather(1, best[..., None].expand(-1, -1, num_latents))
            parents = parents.repeat(1, -(-POPULATION // ELITE), 1)[:, :POPULATION]
            latents = parents + SPREAD * torch.randn(parents.shape, generator=generator)
    return Answered(torch.cat(images), torch.cat(targets))
