"""Training that is meant to hide who was in the training set: each defense a pure function.

All have one signature: `build` makes an untrained network; `images`, `labels` are a pool, of which
each row of `subsets` (K, n) trains one network; `references` is an image set that no network may
leak, given to the defender (some defenses do without). What follows by name is the defense's own,
then the recipe of `training.fit_many`. The K networks come back as an ensemble whose `subsets` are
the records that are to be hidden, whatever the networks themselves were trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vplib import seeding
from vplib.nets import models, objectives, training

Choose = Callable[[Tensor], Tensor]


def train_plain(build, images, labels, subsets, references=None, **recipe) -> training.Ensemble:
    """Networks without a defense; fewer epochs stop early, `weight_decay` is an L2 penalty."""
    return training.fit_many(build, images, labels, subsets, **recipe)


def train_with_dropout(
    build, images, labels, subsets, references=None, *, rate: float, **recipe
) -> training.Ensemble:
    """Networks of which each step trains a part: a hidden unit is left out with chance `rate`.

    Source:
        Salem et al., ML-Leaks, NDSS 2019, section VI-A (there also of the inputs).
    """
    dropped = objectives.dropout(rate)
    return training.fit_many(build, images, labels, subsets, objective=dropped, **recipe)


def inference_gain(inside: Tensor, outside: Tensor) -> Tensor:
    """How well an adversary tells members from references: minus its binary cross-entropy.

    Args:
        inside: (..., B) its logits of members, high where it says "member".
        outside: (..., B) its logits of references.

    Returns:
        (...) gains: minus log 2 for an adversary that knows nothing, 0 for a perfect one.

    Source:
        Nasr, Shokri and Houmansadr, Machine learning with membership privacy using adversarial
        regularization, CCS 2018, equation 5, from logits.
    """
    return (F.logsigmoid(inside).mean(-1) + F.logsigmoid(-outside).mean(-1)) / 2


def train_adversarially(
    build,
    images,
    labels,
    subsets,
    references,
    *,
    strength: float,
    gain: objectives.Gain = inference_gain,
    width: int = 64,
    adversary_lr: float = 0.01,
    adversary_steps: int = 7,
    **recipe,
) -> training.Ensemble:
    """Networks that minimize their loss plus `strength` times the gain of an adversary each.

    The references' labels are used.

    Args:
        build: as everywhere here, and so the next four.
        images: of the pool.
        labels: of the pool.
        subsets: rows of the pool.
        references: labelled images like those of the pool, in no training set.
        strength: weight of the gain (lambda in the paper, 1 to 10 there).
        gain: what the adversary maximizes, from its logits of members and of references.
        width: hidden units of the adversary.
        adversary_lr: its learning rate.
        adversary_steps: its steps for one of the network, over as many of the last batches.
        **recipe: of `training.fit_many`.

    Source:
        Nasr et al. 2018, algorithm 1 (there on batches drawn anew). The adversary sees the answer
        beside the label in one network, not in three.
    """
    num_classes = build()(images[:1].cpu()).shape[-1]
    adversary = partial(models.mlp, (2 * num_classes,), 1, (width,))
    pair = objectives.against(
        adversary, references.images, references.labels, strength=strength, gain=gain,
        lr=adversary_lr, steps=adversary_steps,
    )  # fmt: skip
    return training.fit_many(build, images, labels, subsets, objective=pair, **recipe)


def lowest_entropy(probabilities: Tensor, share: float) -> Tensor:
    """The references about which a teacher is surest.

    Args:
        probabilities: (K, R, classes) answers of K teachers.
        share: which part of the R, above 0 to 1.

    Returns:
        (K, n) rows, the surest first.

    Raises:
        ValueError: the share is out of range, or leaves no reference.

    Source:
        Shejwalkar and Houmansadr, Membership privacy for machine learning models through knowledge
        transfer, AAAI 2021, section 4.
    """
    num = _part(share, probabilities.shape[1])
    entropy = torch.special.entr(probabilities).sum(-1)
    return entropy.argsort(dim=-1, stable=True)[:, :num]


def distill(build, images: Tensor, targets: Tensor, **recipe) -> training.Ensemble:
    """Students of K teachers, each trained on images and soft labels of its own.

    Args:
        build: makes an untrained student.
        images: (K, n, ...).
        targets: (K, n, classes) probabilities.
        **recipe: of `training.fit_many`.

    Raises:
        ValueError: there are not as many targets as images.
    """
    if images.shape[:2] != targets.shape[:2]:
        raise ValueError(
            f"images (K, n, ...) need targets (K, n, classes) for the same students and images, "
            f"not {tuple(images.shape[:2])} and {tuple(targets.shape[:2])}"
        )
    rows = torch.arange(images.shape[0] * images.shape[1]).view(images.shape[:2])
    return training.fit_many(build, images.flatten(0, 1), targets.flatten(0, 1), rows, **recipe)


def train_distilled(
    build,
    images,
    labels,
    subsets,
    references,
    *,
    share: float = 0.5,
    choose: Choose | None = None,
    seed: int = 0,
    **recipe,
) -> training.Ensemble:
    """Students that never see a record: they learn what a teacher says about references.

    The references' labels are not used.

    Args:
        build: as everywhere here, and so the next four.
        images: of the pool.
        labels: of the pool.
        subsets: rows of the pool, for the teachers.
        references: images like those of the pool, in no training set.
        share: the part of the references that is taken, those of lowest entropy.
        choose: in its place, from the teachers' answers (K, R, classes) to rows (K, n).
        seed: of the teachers, and by it of the students.
        **recipe: of `training.fit_many`, for teachers and students.

    Source:
        Shejwalkar and Houmansadr 2021, algorithm 1, with answers at temperature 1.
    """
    teachers = train_plain(build, images, labels, subsets, seed=seed, **recipe)
    answers = teachers.probabilities(references.images)
    rows = choose(answers) if choose else lowest_entropy(answers, share)
    targets = answers.gather(1, rows[..., None].expand(-1, -1, answers.shape[-1]))
    own = seeding.derive(seed, "students")
    students = distill(build, references.images[rows], targets, seed=own, **recipe)
    return replace(students, subsets=subsets)


def magnitude_mask(weights: Tensor, share: float) -> Tensor:
    """1 for the weights that stay when the smallest of each network are pruned, else 0.

    Args:
        weights: (K, ...) one layer of K networks.
        share: the part that is pruned, from 0 to below 1.

    Raises:
        ValueError: the share is out of range.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share {share} must be at least 0 and below 1")
    sizes = weights.flatten(1).abs()
    kept = sizes.argsort(dim=1, descending=True, stable=True)
    kept = kept[:, : round((1 - share) * sizes.shape[1])]
    return torch.zeros_like(sizes).scatter_(1, kept, 1.0).view_as(weights)


def train_pruned(
    build, images, labels, subsets, references=None, *, share: float, **recipe
) -> training.Ensemble:
    """Networks of which a share of each layer's weights is zero: trained, pruned, trained again.

    Source:
        Wang et al., Against membership inference attack: pruning is all you need, IJCAI 2021: the
        smallest weights of each layer go. Its pruning patterns and ADMM are left out.
    """
    start = train_plain(build, images, labels, subsets, **recipe).state
    masks = {
        name: magnitude_mask(value, share) if value.ndim > 2 else torch.ones_like(value)
        for name, value in start.items()
    }
    pruned = objectives.masked(start, masks)
    return training.fit_many(build, images, labels, subsets, objective=pruned, **recipe)


@dataclass(frozen=True)
class Stack:
    """Stacked models: two answer, a third learns from their answers; it has what attacks ask of.

    Args:
        lower: the two ensembles of K models that see the image.
        upper: the ensemble of K models that see the two answers.
        subsets: (K, n) rows of the pool that the three were trained on together.
    """

    lower: tuple[training.Ensemble, training.Ensemble]
    upper: training.Ensemble
    subsets: Tensor

    def probabilities(self, images: Tensor) -> Tensor:
        """The answers of all stacks to all images (N, ...): (K, N, classes)."""
        seen = torch.cat([one.probabilities(images) for one in self.lower], -1)
        own = enumerate(seen)
        return torch.stack([self.upper.predict(k)(answers) for k, answers in own])

    def membership(self, num_records: int) -> Tensor:
        """(K, num_records) truth values: was this record of the pool in this stack's subset?"""
        return replace(self.upper, subsets=self.subsets).membership(num_records)


def train_stacked(
    build, images, labels, subsets, references=None, *, seed: int = 0, **recipe
) -> Stack:
    """Stacks whose three models never share a record: a third of the subset for each.

    The thirds follow the subset's order, so it must not be sorted by class.

    Raises:
        ValueError: a subset has fewer than three records.

    Source:
        Salem et al. 2019, section VI-B: a network, a random forest and a logistic regression; here
        a network, and two softmax regressions, which train many at once.
    """
    if subsets.shape[1] < 3:
        raise ValueError(f"a stack needs three records a subset, not {subsets.shape[1]}")
    thirds = subsets.tensor_split(3, 1)
    num_classes = build()(images[:1].cpu()).shape[-1]
    regression = partial(models.mlp, images.shape[1:], num_classes, ())
    lower = tuple(
        training.fit_many(one, images, labels, rows, seed=seed + i, **recipe)
        for i, (one, rows) in enumerate(zip((build, regression), thirds, strict=False))
    )
    seen = torch.cat([one.probabilities(images) for one in lower], -1)  # (K, N, 2 * classes)
    last = thirds[-1]
    inputs = seen.gather(1, last.to(seen.device)[..., None].expand(-1, -1, seen.shape[-1]))
    targets = F.one_hot(labels[last], num_classes).float()
    upper = distill(
        partial(models.mlp, inputs.shape[2:], num_classes, ()), inputs, targets, seed=seed, **recipe
    )
    return Stack(lower, upper, subsets)


def _part(share, total):
    num = round(share * total)
    if not 0 < share <= 1 or not num:
        raise ValueError(f"share {share} of {total} references must be above 0, at most 1, and one")
    return num
