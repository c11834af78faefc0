"""Stealing what a black box does: ask it about images of one's own, train a clone on the answers.

Throughout, `ask` is the victim as a black box, from images to probabilities or labels: all that
these attackers have of it. Experiments repeat an attack K times, each time against a victim of
its own: then `asks` holds K black boxes, and images and targets are (K, B, ...), B queries each.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vplib import seeding
from vplib.datasets.imageset import is_whole
from vplib.nets import training

Ask = Callable[[Tensor], Tensor]
REWARDS = ("certainty", "diversity", "loss")
COIN = "coin"  # a reward that says nothing: the control of what the others teach a policy
BATCH = 64  # images a step of a clone
# Of the adaptive choice: the bandit's step, queries a round (the policy moves between rounds),
# training steps of its clone a round, and the recent rewards that scale and baseline come from.
BANDIT_LR, ROUND, CLONE_STEPS, WINDOW = 0.5, 20, 2, 100


def draw_rows(num_images: int, budget: int, num_draws: int, seed: int = 0) -> Tensor:
    """The random policy: for each of several attackers, a budget of different rows of a pool.

    The first b columns are the rows for a budget of b: a larger budget goes on where a smaller one
    stopped.

    Args:
        num_images: size of the pool.
        budget: queries an attacker.
        num_draws: attackers.
        seed: decides the rows.

    Returns:
        (num_draws, budget) rows.

    Raises:
        ValueError: the pool is smaller than the budget.
    """
    if budget > num_images:
        raise ValueError(f"a pool of {num_images} images has no {budget} different queries")
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(num_images)[:budget] for _ in range(num_draws)]
    return torch.from_numpy(np.stack(orders))


def budgets_with(own: int | None, budgets: Sequence[int], most: int, name: str) -> list[int]:
    """The budgets of a sweep in order, with one of the reader's own among them.

    Args:
        own: the reader's; None: none.
        budgets: of the profile.
        most: different queries that the smallest pool has.
        name: of the transfer set that the pool's size comes from, for the message.

    Raises:
        ValueError: the reader's is no whole number from 1 to `most`.
    """
    if own is not None and not (is_whole(own, 1) and own <= most):
        raise ValueError(
            f"BUDGET must be a whole number from 1 to {most}, as many different queries as there "
            f"are with {name!r} as the other set, not {own!r}"
        )
    return sorted({*budgets, *([] if own is None else [own])})


def as_targets(answers: Tensor, num_classes: int) -> Tensor:
    """Answers as what a clone is trained on: probabilities that sum to one.

    Args:
        answers: (N, classes) probabilities, masked or not, or (N,) labels.
        num_classes: of the black box.

    Returns:
        (N, classes); a label becomes a one, masked probabilities are divided by their sum.
    """
    if answers.ndim == 1:
        return F.one_hot(answers, num_classes).float()
    return answers / answers.sum(-1, keepdim=True)


def ask_all(asks: Sequence[Ask], images: Tensor, num_classes: int) -> Tensor:
    """Each attacker's black box answers that attacker's queries; each image is paid for once.

    Args:
        asks: K black boxes.
        images: (K, B, C, H, W) queries.
        num_classes: of the black boxes.

    Returns:
        (K, B, classes) targets to train clones on.
    """
    pairs = zip(asks, images, strict=True)
    return torch.stack([as_targets(ask(queries), num_classes) for ask, queries in pairs])


def train_clones(
    build: training.Build,
    images: Tensor,
    targets: Tensor,
    *,
    num_steps: int,
    lr: float = 0.01,
    seed: int = 0,
) -> training.Ensemble:
    """K clones, each on its own images and answers, with Adam and cross-entropy.

    Args:
        build: makes one untrained clone: the attacker's choice of architecture.
        images: (K, B, C, H, W) images that were asked about.
        targets: (K, B, classes) what the black boxes said.
        num_steps: about how many steps, whatever the budget: otherwise few queries would also mean
            little training.
        lr: learning rate.
        seed: of initialization and order.

    Source:
        Orekondy et al., Knockoff nets, CVPR 2019, section 4.2. The paper trains with SGD, and from
        ImageNet's weights, as `pretrained` has them.
    """
    num_clones, budget = images.shape[:2]
    rows = torch.arange(num_clones * budget).view(num_clones, budget)
    pool = images.flatten(0, 1), targets.flatten(0, 1)
    num_epochs = max(1, round(num_steps / -(-budget // BATCH)))
    settings = dict(num_epochs=num_epochs, optimizer="adam", lr=lr, batch_size=BATCH, seed=seed)
    return training.fit_many(build, *pool, rows, description="clones", **settings)


def reward_certainty(answers: Tensor) -> Tensor:
    """The margin between the two largest probabilities of each answer.

    Args:
        answers: (N, classes) probabilities.

    Source:
        Orekondy et al. 2019, equation 4.
    """
    first, second = answers.topk(2, dim=-1).values.unbind(-1)
    return first - second


def reward_diversity(answers: Tensor, past: Tensor) -> Tensor:
    """How much more of each class an answer has than the answers so far had on average.

    Args:
        answers: (N, classes) probabilities.
        past: (M, classes) earlier answers.

    Source:
        Orekondy et al. 2019, equation 5.
    """
    return (answers - past.mean(0)).clamp_min(0).sum(-1)


def reward_loss(answers: Tensor, clone: Tensor) -> Tensor:
    """The cross-entropy of the clone's answers against the black box's.

    Args:
        answers: (N, classes) probabilities of the black box.
        clone: (N, classes) probabilities of the clone.

    Source:
        Orekondy et al. 2019, equation 6.
    """
    return -(answers * clone.clamp_min(1e-12).log()).sum(-1)


def update_preferences(
    preferences: Tensor, actions: Tensor, advantages: Tensor, lr: float
) -> Tensor:
    """One step of the gradient bandit for each action of a round, all from the same policy.

    Args:
        preferences: (A,); the policy is their softmax.
        actions: (n,) which ones were taken.
        advantages: (n,) the reward of each, less the mean of recent rewards.
        lr: step size.

    Source:
        Orekondy et al. 2019, equations 2 and 3; Sutton and Barto, section 2.8.
    """
    gained = torch.zeros_like(preferences).index_add(0, actions, advantages)
    return preferences + lr * (gained - advantages.sum() * preferences.softmax(-1))


class Policy(NamedTuple):
    """What the adaptive attacker chose, and how its policy over sources moved.

    Args:
        rows: (B,) rows of the pool, in order.
        targets: (B, classes) the answers to them.
        shares: (rounds, sources) probability of each source before each round.
    """

    rows: Tensor
    targets: Tensor
    shares: Tensor


def choose_adaptively(
    ask: Ask,
    build: training.Build,
    images: Tensor,
    sources: Tensor,
    num_classes: int,
    budget: int,
    *,
    rewards: Sequence[str],
    lr: float = 0.003,
    seed: int = 0,
) -> Policy:
    """Learns while asking which source of a pool is worth asking about.

    A policy chooses a source, then an image of it that was not asked about yet. A clone that is
    trained on the way gives the loss.

    Args:
        ask: the black box.
        build: makes the clone.
        images: (N, C, H, W) the attacker's pool.
        sources: (N,) the source of each image, as an index: the attacker's labels of own images.
        num_classes: of the black box.
        budget: queries, exactly.
        rewards: one or more of `REWARDS`, or `COIN`; of several the sum counts, each scaled to
            [0, 1].
        lr: learning rate of the clone.
        seed: decides the draws and the clone.

    Raises:
        ValueError: a reward is unknown, or the pool is smaller than the budget.

    Source:
        Orekondy et al. 2019, section 4.1.2. Asks in rounds instead of one image at a time; the
        paper's policy chooses within a source, too, down a tree of classes.
    """
    if not rewards or not set(rewards) <= {*REWARDS, COIN}:
        raise ValueError(f"rewards must be one or more of {', '.join(REWARDS)}, not {rewards}")
    if budget > len(images):
        raise ValueError(f"a pool of {len(images)} images has no {budget} different queries")
    rng, sources = np.random.default_rng(seed), sources.cpu()
    clone = seeding.initialized(build, seed).to(images.device)
    stepper = torch.optim.Adam(clone.parameters(), lr=lr)
    left = [rng.permutation(torch.where(sources == s)[0]).tolist() for s in sources.unique()]
    preferences, shares = torch.zeros(len(left)), []
    rows, targets, history = [], images.new_zeros(0, num_classes), {"sum": []}
    while len(rows) < budget:
        empty = torch.tensor([not of_source for of_source in left])
        shares.append(preferences.masked_fill(empty, -torch.inf).softmax(-1))
        chances, taken, new = shares[-1].double(), [], []
        size = min(ROUND, budget - len(rows))
        for source in rng.choice(len(left), size, p=chances / chances.sum()):
            if left[source]:
                taken.append(int(source))
                new.append(left[source].pop())
        found = as_targets(ask(images[new]), num_classes)
        past = torch.cat([targets, found])[-len(found) - WINDOW :]
        with torch.no_grad():
            said = clone.eval()(images[new]).softmax(-1)
        each = dict(certainty=reward_certainty(found), diversity=reward_diversity(found, past))
        each |= {"loss": reward_loss(found, said), COIN: torch.from_numpy(rng.random(len(new)))}
        total = _scaled_sum({name: each[name] for name in rewards}, history)
        advantages = total - float(np.mean(history["sum"][-WINDOW:]))
        preferences = update_preferences(preferences, torch.tensor(taken), advantages, BANDIT_LR)
        rows += new
        targets = torch.cat([targets, found])
        clone.train()
        for _ in range(CLONE_STEPS):
            some = torch.from_numpy(rng.integers(len(rows), size=min(BATCH, 2 * len(rows))))
            loss = F.cross_entropy(clone(images[torch.tensor(rows)[some]]), targets[some])
            stepper.zero_grad()
            loss.backward()
            stepper.step()
    return Policy(torch.tensor(rows), targets, torch.stack(shares))


def _scaled_sum(rewards: dict[str, Tensor], history: dict) -> Tensor:
    """The sum of rewards, each scaled to [0, 1] by its recent range; notes what it has seen."""
    total = 0
    for name, values in rewards.items():
        recent = (history.get(name, []) + values.tolist())[-WINDOW:]
        history[name], low = recent, min(recent)
        total = total + (values - low).clamp_min(0) / max(max(recent) - low, 1e-9)
    history["sum"] += total.tolist()
    return total.cpu().float()
