"""Purifier: an autoencoder between a model and whoever asks, after which answers are more alike."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vplib.defenses.output_perturbation.masks import check_answers
from vplib.nets import models, training

HIDDEN, LR, BATCH = 32, 0.003, 64


def train_purifier(
    answers: Tensor, *, width: int = 4, label_weight: float = 0.1, num_epochs: int, seed: int = 0
) -> Callable[[Tensor], Tensor]:
    """An autoencoder of answers, trained on what a model says about images it has not seen.

    Args:
        answers: (N, classes) of one model, or of several alike, to the defender's reference images,
            which no model was trained on.
        width: numbers that an answer is squeezed into.
        label_weight: of the cross-entropy that keeps the label, beside the squared error.
        num_epochs: passes over the answers.
        seed: of initialization and order.

    Returns:
        A mask: from (..., classes) answers to purified ones of the same shape. Nearly always, not
        always, the label stays.

    Raises:
        ValueError: answers are none, or a setting is out of range; by the mask, too.

    Source:
        Yang et al., Defending model inversion and membership inference attacks via prediction
        purification, arXiv 2005.03915, 2020, the purifier without an adversary. Not the method of
        the same name of AAAI 2023.
    """
    check_answers(answers, dims=2)
    if width < 1 or not 0 <= label_weight < torch.inf:
        raise ValueError(f"width must be 1 or more, label_weight 0: not {width}, {label_weight}")
    shape = answers.shape[1:]

    def build() -> nn.Module:
        return models.mlp(shape, shape[0], (HIDDEN, width, HIDDEN), "tanh")

    loss = partial(purifier_loss, label_weight=label_weight)
    settings = dict(num_epochs=num_epochs, optimizer="adam", lr=LR, batch_size=BATCH, loss=loss)
    data = _features(answers), answers.float(), torch.arange(len(answers))[None]
    fitted = training.fit_many(build, *data, seed=seed, description="purifier", **settings).model(0)

    @torch.no_grad()
    def purify(asked: Tensor) -> Tensor:
        check_answers(asked)
        if asked.shape[-1:] != shape:
            raise ValueError(f"answers have {asked.shape[-1]} classes, the purifier {shape[0]}")
        return fitted(_features(asked.flatten(0, -2))).softmax(-1).view_as(asked).to(asked.dtype)

    return purify


def purifier_loss(logits: Tensor, answers: Tensor, label_weight: float) -> Tensor:
    """How far purified answers are from the model's, and whether their labels are the same."""
    distance = (logits.softmax(-1) - answers).square().sum(-1).mean()
    return distance + label_weight * F.cross_entropy(logits, answers.argmax(-1))


def _features(answers: Tensor) -> Tensor:
    return answers.float().clamp_min(1e-6).log() / 5 + 1
