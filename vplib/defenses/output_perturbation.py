"""Masks over a model's answers: less is said, the label stays.

Each is a function from probabilities (N, classes) to masked ones of the same shape, to stand
between a model and whoever asks: `lambda images: mask(predict(images))`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vplib import models, training
from vplib.api import keep_label, rounded, top_k

__all__ = ["MemGuard", "keep_label", "rounded", "temperature", "top_k", "train_classifier"]


def temperature(probabilities: Tensor, t: float) -> Tensor:
    """The softmax of the logits over `t`: above 1 all answers move towards uniform.

    Args:
        probabilities: (..., classes).
        t: temperature, above 0.

    Raises:
        ValueError: `t` is not above 0.

    Source:
        Shokri et al., Membership inference attacks against machine learning models, S&P 2017,
        section VIII.
    """
    if not t > 0:
        raise ValueError(f"the temperature must be above 0, not {t}")
    return keep_label((_logits(probabilities) / t).softmax(-1), probabilities)


def train_classifier(
    probabilities: Tensor, members: Tensor, *, num_steps: int = 1000, seed: int = 0
) -> Callable[[Tensor], Tensor]:
    """A membership classifier on answers in falling order: what a defender expects to meet.

    Args:
        probabilities: (N, classes) answers.
        members: (N,) whether the model was trained on the record.
        num_steps: about how many training steps of 128 answers.
        seed: of initialization and order.

    Returns:
        A differentiable function from (N, classes) answers to (N,) logits, above 0 for members.
    """
    features = _features(probabilities)
    center, spread = features.mean(0), features.std(0) + 1e-6

    def build() -> nn.Module:
        return models.mlp(features.shape[1:], 2, (64,))

    fitted = training.fit_many(
        build,
        (features - center) / spread,
        members.long(),
        torch.arange(len(features))[None],
        num_epochs=max(1, num_steps * 128 // len(features)),
        optimizer="adam",
        lr=0.003,
        batch_size=128,
        seed=seed,
        description="membership classifier",
    ).model(0)

    def classify(asked: Tensor) -> Tensor:
        outside, inside = fitted((_features(asked) - center) / spread).unbind(-1)
        return inside - outside

    return classify


@dataclass(frozen=True)
class MemGuard:
    """Noise that turns the answers into adversarial examples for a membership classifier.

    Phase one finds, for each answer, the smallest noise that carries the defender's classifier
    over its decision boundary and leaves the label; phase two adds it with the largest probability
    that the distortion budget allows, where that brings the classifier nearer to one half. The
    coin is decided by the answer itself, so that asking again tells nothing new.

    Args:
        classifier: from (N, classes) answers to (N,) logits of "member", differentiable.
        budget: expected L1 distortion of an answer that is allowed, from 0 to 2.
        num_steps: gradient steps of one search.
        step: length of a gradient step in the space of logits.
        weights: of the distortion in the loss, rising; each starts a search of its own, until one
            fails, and the last success is the noise.
        seed: the defender's secret.

    Source:
        Jia et al., MemGuard: defending against black-box membership inference attacks via
        adversarial examples, CCS 2019, algorithm 1 and equations 11 to 18. All answers at once.
    """

    classifier: Callable[[Tensor], Tensor]
    budget: float = 1.0
    num_steps: int = 300
    step: float = 0.1
    weights: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0)
    seed: int = 0

    def __post_init__(self):
        """Refuses a budget that is none.

        Raises:
            ValueError: the budget is negative or NaN.
        """
        if not self.budget >= 0:
            raise ValueError(f"the distortion budget must be 0 or more, not {self.budget}")

    def __call__(self, probabilities: Tensor) -> Tensor:
        """(N, classes) answers, some of them with noise; equal answers get equal ones."""
        noisy, chance = self.plan(probabilities)
        return torch.where((self._coins(probabilities) < chance)[:, None], noisy, probabilities)

    def plan(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """What the mechanism would do with each answer.

        Args:
            probabilities: (N, classes).

        Returns:
            (N, classes) answers with noise, and (N,) the probability with which it is added.
        """
        noisy = self._search(probabilities)
        with torch.no_grad():
            before, after = (
                (self.classifier(p).sigmoid() - 0.5).abs() for p in (probabilities, noisy)
            )
        distortion = (noisy - probabilities).abs().sum(-1)
        chance = (self.budget / distortion.clamp_min(1e-12)).clamp_max(1)
        return noisy, torch.where(before <= after, 0.0, chance)

    def _search(self, probabilities: Tensor) -> Tensor:
        """Phase one: the answers with the smallest noise that was found."""
        logits, label = _logits(probabilities), probabilities.argmax(-1, keepdim=True)
        with torch.no_grad():
            side = self.classifier(probabilities).sign()
        best, rows = probabilities.clone(), torch.arange(len(probabilities))
        for weight in self.weights:
            found, success = self._descend(
                logits[rows], probabilities[rows], label[rows], side[rows], weight
            )
            rows = rows.to(success.device)[success]
            best[rows] = found[success]
            if not len(rows):
                break
        return best

    def _descend(self, logits, clean, label, side, weight) -> tuple[Tensor, Tensor]:
        """One search: the answers at its end, and for which of them it succeeded."""
        noise, success = torch.zeros_like(logits), torch.zeros(len(logits), dtype=torch.bool)
        success, rows = success.to(logits.device), torch.arange(len(logits), device=logits.device)
        others = torch.zeros_like(logits).scatter(-1, label, -torch.inf)
        for _ in range(self.num_steps):
            z = (logits[rows] + noise[rows]).requires_grad_()
            answer = z.softmax(-1)
            member = self.classifier(answer)
            rival = (z + others[rows]).amax(-1)
            behind = F.relu(rival - z.gather(-1, label[rows]).squeeze(-1))
            moved = (answer - clean[rows]).abs().sum(-1)
            loss = (member.abs() + 10.0 * behind + weight * moved).sum()
            with torch.no_grad():
                crossed = (member * side[rows] <= 0) & (answer.argmax(-1) == label[rows, 0])
                success[rows[crossed]] = True
                (slope,) = torch.autograd.grad(loss, z)
                slope = slope / slope.norm(dim=-1, keepdim=True).clamp_min(1e-12)
                rows, slope = rows[~crossed], slope[~crossed]
                noise[rows] -= self.step * slope
            if not len(rows):
                break
        return keep_label((logits + noise).softmax(-1), clean), success

    def _coins(self, probabilities: Tensor) -> Tensor:
        """(N,) numbers in [0, 1) that depend on the secret and the answer alone."""
        rows = np.ascontiguousarray(probabilities.detach().cpu().numpy().round(3) + 0.0)
        secret = self.seed.to_bytes(8, "little", signed=True)
        found = [
            int.from_bytes(hashlib.sha256(secret + row.tobytes()).digest()[:6], "little")
            for row in rows
        ]
        coins = torch.tensor(found, dtype=torch.float64) / 2**48
        return coins.to(probabilities.device)


def _logits(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(1e-30).log()


def _features(probabilities: Tensor) -> Tensor:
    """Log-probabilities in falling order: near 0 and 1, the probabilities differ too little."""
    return probabilities.clamp_min(1e-9).log().sort(-1, descending=True).values
