"""Membership inference from a model's answers, with shadow models and without.

Throughout, `answers` is all that the attacker has of a victim: what it said about each record,
(..., N, classes), for one victim or for many at once. What attackers bring themselves (shadow
models, and who was in them) comes as `probabilities` (K, N, classes) and `members` (K, N).
"""

import math

import numpy as np
import torch
from sklearn.metrics import roc_curve
from torch import Tensor

from vplib.nets import models, training
from vplib.show import metrics


def attack_set(
    probabilities: Tensor, labels: Tensor, members: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the attack model learns from: the shadows' answers, and who was in the shadow.

    Args:
        probabilities: (K, N, classes) answers of K shadow models to the N records of their pool.
        labels: (N,) classes of the records.
        members: (K, N) whether the shadow was trained on the record.

    Returns:
        (K * N, classes) answers, (K * N,) classes, and (K * N,) 1 for members and 0 otherwise.

    Raises:
        ValueError: members are no truth values, or not one a shadow and record.

    Source:
        Shokri et al., Membership inference attacks against machine learning models, S&P 2017,
        section V-E.
    """
    _check_members(members, probabilities)
    num_models = len(probabilities)
    return probabilities.flatten(0, 1), labels.repeat(num_models), members.flatten().long()


def train_attack_models(
    probabilities: Tensor,
    labels: Tensor,
    members: Tensor,
    groups: Tensor | None = None,
    *,
    num_epochs: int = 30,
    seed: int = 0,
) -> training.Ensemble:
    """One attack model a class: a network with one hidden layer that tells "in" from "out".

    Args:
        probabilities: (K, N, classes) answers of K shadow models to the N records of their pool.
        labels: (N,) classes of the records, known to the attacker.
        members: (K, N) whether the shadow was trained on the record; the attacker trained it.
        groups: (G, k) shadows that each of G attacks learns from; by default one attack learns
            from all.
        num_epochs: passes over the attack set of a class.
        seed: of initialization and order.

    Returns:
        An ensemble of G * classes models, each from (N, classes) answers to 2 logits.

    Raises:
        ValueError: a class has no record, so that its attack model has nothing to learn from; or
            members as in `attack_set`.

    Source:
        Shokri et al. 2017, section V-E. Classes with fewer records repeat theirs, so that all
        attack models take equally many steps.
    """
    answers, classes, inside = attack_set(probabilities, labels, members)
    num_shadows, num_records, num_classes = probabilities.shape
    groups = torch.arange(num_shadows)[None] if groups is None else torch.as_tensor(groups)
    shadow = torch.arange(num_shadows, device=classes.device).repeat_interleave(num_records)
    rows = [
        (torch.isin(shadow, group.to(shadow)) & (classes == c)).nonzero().flatten()
        for group in groups
        for c in range(num_classes)
    ]
    if not all(len(r) for r in rows):
        empty = [c for c in range(num_classes) if not (labels == c).any()]
        raise ValueError(f"the shadow pool has no record of class {empty}; take a larger pool")
    longest = max(len(r) for r in rows)
    subsets = torch.stack([r.repeat(-(-longest // len(r)))[:longest] for r in rows])
    return _fit(answers, inside, subsets, num_epochs, seed, lr=0.01, batch_size=64)


def score_members(attack_models: training.Ensemble, answers: Tensor, labels: Tensor) -> Tensor:
    """The attack models' probability that each record was in the training set.

    Args:
        attack_models: from `train_attack_models`.
        answers: (..., N, classes) what one victim, or many, answered about N records.
        labels: (N,) classes of the records, known to the attacker.

    Returns:
        (..., N) probabilities, or (G, ..., N) for the attack models of G groups of shadows; above
        0.5 the attack says "member".
    """
    shape, num_classes = answers.shape[:-1], answers.shape[-1]
    said = attack_models.probabilities(answers.flatten(0, -2))[..., 1]
    said = said.view(-1, num_classes, *shape)  # group, class, victims, record
    found = said.gather(1, labels.expand(len(said), 1, *shape)).squeeze(1)
    return found if len(found) > 1 else found[0]


def losses(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of answers that come as probabilities.

    Args:
        probabilities: (..., N, classes).
        labels: (N,) class indices.

    Returns:
        (..., N) losses, at most 87.5 (the smallest float32 is about 1e-38).
    """
    index = labels.expand(probabilities.shape[:-1]).unsqueeze(-1)
    return -probabilities.gather(-1, index).squeeze(-1).clamp_min(1e-38).log()


def score_by_correctness(answers: Tensor, labels: Tensor) -> Tensor:
    """1 where the victim is right and 0 where it errs: the gap attack.

    Its advantage (threshold 0.5) is the training accuracy minus the test accuracy, exactly.

    Args:
        answers: (..., N, classes) the victims' answers; only their labels are used.
        labels: (N,) classes of the records.

    Returns:
        (..., N) zeros and ones.

    Source:
        Yeom et al., Privacy risk in machine learning, CSF 2018, adversary 1 for bounded loss.
    """
    return (answers.argmax(-1) == labels).double()


def score_by_loss(answers: Tensor, labels: Tensor) -> Tensor:
    """Minus the victim's loss on each record: one threshold on it for all records.

    Args:
        answers: (..., N, classes) the victims' answers.
        labels: (N,) classes of the records.

    Returns:
        (..., N) scores, higher for members.

    Source:
        Yeom et al. 2018, adversary 2; Sablayrolles et al. 2019, MALT.
    """
    return -losses(answers, labels)


def train_agnostic_attack(
    probabilities: Tensor,
    members: Tensor,
    groups: Tensor | None = None,
    *,
    num_steps: int = 1000,
    seed: int = 0,
) -> training.Ensemble:
    """Attack models for all classes at once, from the largest probabilities of an answer in order.

    Args:
        probabilities: (K, N, classes) answers of K shadow models, one is enough, to the N records
            of their pool.
        members: (K, N) whether the shadow was trained on the record; the attacker trained it.
        groups: (G, k) shadows that each of G attack models learns from; by default one attack
            model learns from all.
        num_steps: about how many training steps, whatever the number of shadows; with few the
            attack model only learns to threshold the largest probability.
        seed: of initialization and order.

    Returns:
        An ensemble of G models, from `sorted_answers` to 2 logits.

    Raises:
        ValueError: members as in `attack_set`.

    Source:
        Salem et al., ML-Leaks, NDSS 2019, section IV (adversary 1).
    """
    _check_members(members, probabilities)
    answers = sorted_answers(probabilities).flatten(0, 1)
    shadows = torch.arange(len(probabilities))[None] if groups is None else torch.as_tensor(groups)
    rows = shadows[..., None] * members.shape[1] + torch.arange(members.shape[1])
    steps_an_epoch = -(-rows[0].numel() // 256)
    inside, num_epochs = members.flatten().long(), max(1, num_steps // steps_an_epoch)
    return _fit(answers, inside, rows.flatten(1), num_epochs, seed, lr=0.03, batch_size=256)


def sorted_answers(probabilities: Tensor) -> Tensor:
    """Logarithms of an answer's three largest probabilities in falling order, of any classes.

    The paper takes the probabilities; but members and nonmembers differ in how near to 1 the first
    one comes, which a small network cannot see on that scale.

    Args:
        probabilities: (..., classes).

    Returns:
        (..., 3) logarithms, or two for two classes; at least -10, for zero has no logarithm.
    """
    largest = probabilities.topk(min(3, probabilities.shape[-1]), dim=-1).values
    return largest.clamp_min(math.exp(-10)).log()


def score_agnostic(attack_models: training.Ensemble, answers: Tensor) -> Tensor:
    """The class-agnostic attack's probability that each record was in the training set.

    Args:
        attack_models: from `train_agnostic_attack`.
        answers: (..., N, classes) the victims' answers; the records' classes are not needed.

    Returns:
        (G, ..., N) probabilities, a row an attack model.
    """
    asked = sorted_answers(answers)
    said = attack_models.probabilities(asked.flatten(0, -2))[..., 1]
    return said.unflatten(1, asked.shape[:-1])


def threshold_from_shadows(scores: Tensor, members: Tensor) -> float:
    """The threshold with the largest membership advantage on the attacker's own shadows.

    Args:
        scores: (...) the attack's scores of shadows, higher means member.
        members: (...) who was in them.

    Returns:
        The threshold; scores above it count as members.

    Raises:
        ValueError: shapes differ, a score is NaN, members are no truth values, or one of the two
            groups is empty.
    """
    asked = scores.flatten().cpu().numpy()
    metrics.roc(scores, members)  # refuses what has no threshold
    false_positives, true_positives, thresholds = roc_curve(members.flatten().cpu().numpy(), asked)
    best = (true_positives - false_positives)[1:].argmax() + 1  # the first one is infinite
    number = asked.dtype.type  # roc_curve counts equality as member: the next smaller such number
    return float(np.nextafter(number(thresholds[best]), number(-np.inf)))


def _check_members(members: Tensor, probabilities: Tensor) -> None:
    if members.dtype != torch.bool:  # rows of the pool would pass for labels
        raise ValueError(f"members must be truth values, not {members.dtype}")
    if members.shape != probabilities.shape[:2]:
        raise ValueError(
            f"members must be (shadows, records), {tuple(probabilities.shape[:2])} for these "
            f"answers, not {tuple(members.shape)}"
        )


def _fit(answers, inside, rows, num_epochs, seed, **settings) -> training.Ensemble:
    """Networks with one hidden layer from answers to "out" and "in", each on its own rows."""
    settings |= dict(num_epochs=num_epochs, optimizer="adam", description="attack models")

    def build():
        return models.mlp(answers.shape[1:], 2, (64,))

    return training.fit_many(build, answers, inside, rows, seed=seed, **settings)
