"""Which images a clone's owner asks about: chosen by the clone (ActiveThief), or bred (Ripper).

As in `extraction_functionality`, `ask` is the victim as a black box, and nothing else of it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vplib.attacks.extraction_functionality import knockoff
from vplib.nets import training

STRATEGIES = ("random", "uncertainty", "k-center")
NUM_ROUNDS = 5  # of active learning
# Of breeding: latent vectors an image and generation, how many of them have offspring, the standard
# deviation of a mutation, and images that are bred at a time.
POPULATION, ELITE, SPREAD, LINEAGES = 20, 5, 0.5, 256


def choose_actively(
    asks: Sequence[knockoff.Ask],
    build: training.Build,
    images: Tensor,
    num_classes: int,
    budget: int,
    strategy: str,
    *,
    num_steps: int,
    lr: float = 0.01,
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
            that is asked, in the clone's answers).
        num_steps: training steps of the clones a round.
        lr: their learning rate.
        seed: decides the first round, the random strategy and the clones.

    Returns:
        (K, budget) rows of the pool, and (K, budget, classes) targets.

    Raises:
        ValueError: the strategy is unknown, or the pool is smaller than the budget.

    Source:
        Pal et al., ActiveThief, AAAI 2020, without its strategies by DeepFool's distance.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    rows = knockoff.draw_rows(len(images), budget, len(asks), seed).to(images.device)
    if strategy == "random":
        return rows, knockoff.ask_all(asks, images[rows], num_classes)
    sizes = [len(part) for part in torch.arange(budget).chunk(NUM_ROUNDS)]
    rows = rows[:, : sizes[0]]
    targets = knockoff.ask_all(asks, images[rows], num_classes)
    for size in sizes[1:]:
        clones = knockoff.train_clones(
            build, images[rows], targets, num_steps=num_steps, lr=lr, seed=seed
        )
        answers = clones.probabilities(images)
        if strategy == "k-center":
            pairs = zip(answers, rows, strict=True)
            new = torch.stack([k_center(a, asked, size) for a, asked in pairs])
        else:
            entropy = -(answers * answers.clamp_min(1e-12).log()).sum(-1)
            new = entropy.scatter(1, rows, -torch.inf).topk(size, dim=1).indices
        rows = torch.cat([rows, new], 1)
        found = knockoff.ask_all(asks, images[new], num_classes)
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


def breed(
    ask: knockoff.Ask,
    generate: Callable[[Tensor], Tensor],
    wanted: Tensor,
    num_latents: int,
    num_classes: int,
    *,
    num_generations: int = 4,
    blind: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Breeds generated images that the black box is sure about, one for each wanted class.

    Every image that is looked at is a query: `POPULATION` a generation and image. The fittest of
    the last generation is kept.

    Args:
        ask: the black box.
        generate: from (N, num_latents) latent vectors to images: the attacker's own generator.
        wanted: (N,) classes, one for each image to breed.
        num_latents: size of a latent vector.
        num_classes: of the black box.
        num_generations: populations that are asked about.
        blind: parents and the image that is kept are drawn by lot: all but the selection. Only what
            is kept is asked about.
        seed: decides populations, mutations and lots.

    Returns:
        (N, C, H, W) images, and (N, classes) what the black box said of them.

    Source:
        Barbalau et al., Black-box ripper, NeurIPS 2020, algorithm 1. The paper stops an image's
        evolution where its answer is near enough, at the latest after ten generations.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for some in torch.as_tensor(wanted).split(LINEAGES):
        latents = torch.randn(len(some), POPULATION, num_latents, generator=generator)
        goal = torch.eye(num_classes)[some][:, None]
        for generation in range(num_generations):
            images = generate(latents.flatten(0, 1))
            if blind:
                judged = torch.rand(*latents.shape[:2], num_classes, generator=generator)
            else:
                answers = knockoff.as_targets(ask(images), num_classes)
                judged = answers.cpu().view(*latents.shape[:2], -1)
            best = fittest(judged, goal, ELITE)
            if generation < num_generations - 1:
                parents = latents.gather(1, best[..., None].expand(-1, -1, num_latents))
                latents = parents.repeat(1, POPULATION // ELITE, 1)
                latents += SPREAD * torch.randn(latents.shape, generator=generator)
        kept = (torch.arange(len(some)) * POPULATION + best[:, 0]).to(images.device)
        said = knockoff.as_targets(ask(images[kept]), num_classes) if blind else answers[kept]
        found.append((images[kept], said))
    return tuple(map(torch.cat, zip(*found, strict=True)))
