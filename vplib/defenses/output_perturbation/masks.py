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

from vplib import threads
from vplib.nets import models, training
from vplib.victims import endpoint

# Of MemGuard's search: the length of a gradient step in the space of logits, and the weights of the
# distortion in the loss, rising; each starts a search of its own, until one fails, and the last
# success is the noise.
STEP, WEIGHTS = 0.1, (0.1, 1.0, 10.0, 100.0)


def check_answers(answers: Tensor, *, dims: int | None = None, masked: bool = False) -> None:
    """Refuses what is no answer of a model, for every function of this folder.

    Args:
        answers: (..., classes).
        dims: how many dimensions they must have; None allows any.
        masked: they come from a mask, and need not sum to 1 any more.

    Raises:
        ValueError: they are no numbers of two classes or more, one is not in [0, 1] (NaN is not),
            or they do not sum to 1.
    """
    shape = tuple(answers.shape)
    if not shape or shape[-1] < 2 or dims not in (None, len(shape)):
        raise ValueError(f"answers must be (N, classes) of two classes or more, not {shape}")
    if not answers.is_floating_point() or not ((answers >= 0) & (answers <= 1)).all():
        raise ValueError("answers must be probabilities in [0, 1]: no NaN, whole numbers or logits")
    if not masked and ((answers.sum(-1) - 1).abs() > 1e-3).any():
        raise ValueError("the probabilities of an answer must sum to 1")


def top_k(probabilities: Tensor, k: int) -> Tensor:
    """The k largest probabilities of each answer (..., classes); zeros elsewhere.

    Raises:
        ValueError: k is below 1, or answers are none.
    """
    check_answers(probabilities)
    return endpoint.top_k(probabilities, k)


def rounded(probabilities: Tensor, decimals: int) -> Tensor:
    """Each probability (..., classes) rounded to so many decimals, the label alone at the top.

    Raises:
        ValueError: decimals are negative, or answers are none.
    """
    check_answers(probabilities)
    return endpoint.rounded(probabilities, decimals)


def temperature(probabilities: Tensor, t: float) -> Tensor:
    """The softmax of the logits over `t`: above 1 all answers move towards uniform.

    Args:
        probabilities: (..., classes).
        t: temperature, above 0; 1 / t undoes t, as far as a float goes.

    Raises:
        ValueError: `t` is not above 0 or infinite, or answers are none.

    Source:
        Shokri et al., Membership inference attacks against machine learning models, S&P 2017,
        section VIII.
    """
    if not 0 < t < torch.inf:
        raise ValueError(f"the temperature must be above 0 and finite, not {t}")
    check_answers(probabilities)
    return endpoint.keep_label((_logits(probabilities) / t).softmax(-1), probabilities)


def train_classifier(
    probabilities: Tensor, members: Tensor, *, num_steps: int, seed: int = 0
) -> Callable[[Tensor], Tensor]:
    """A membership classifier on answers in falling order: what a defender expects to meet.

    Args:
        probabilities: (N, classes) answers, masked ones too.
        members: (N,) whether the model was trained on the record; some, not all.
        num_steps: about how many training steps of 128 answers.
        seed: of initialization and order.

    Returns:
        A differentiable function from (N, classes) answers to (N,) logits, above 0 for members.

    Raises:
        ValueError: answers are none, members are no (N,) truth values of both kinds, or there is
            no step.
    """
    check_answers(probabilities, dims=2, masked=True)
    kinds = members.unique().tolist() if members.dtype == torch.bool else []
    if kinds != [False, True] or members.shape != probabilities.shape[:1]:
        wanted = f"{len(probabilities)} truth values, some of them True and some False"
        raise ValueError(f"members must be {wanted}, not {tuple(members.shape)}, {kinds}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be 1 or more, not {num_steps}")
    features = _features(probabilities)
    center, spread = features.mean(0), features.std(0) + 1e-6

    def build() -> nn.Module:
        return models.mlp(features.shape[1:], 2, (64,))

    settings = dict(optimizer="adam", lr=0.003, batch_size=128, seed=seed)
    settings |= dict(num_epochs=max(1, num_steps * 128 // len(features)))
    data = (features - center) / spread, members.long(), torch.arange(len(features))[None]
    name = "membership classifier"
    fitted = training.fit_many(build, *data, description=name, **settings).model(0)

    def classify(asked: Tensor) -> Tensor:
        outside, inside = fitted((_features(asked) - center) / spread).unbind(-1)
        return inside - outside

    return classify


@dataclass(frozen=True)
class MemGuard:
    """Noise that turns the answers into adversarial examples for a membership classifier.

    Phase one finds, for each answer, the smallest noise that brings the defender's classifier to
    one half and leaves the label; phase two adds it with the largest probability that the
    distortion budget allows, where that brings the classifier nearer to one half. Coins are
    decided by the answer itself, so that asking again tells nothing new.

    Args:
        classifier: from (N, classes) answers to (N,) logits of "member", differentiable.
        budget: expected L1 distortion of an answer that is allowed, from 0 to 2.
        num_steps: gradient steps of one search.
        seed: the defender's secret.

    Source:
        Jia et al., MemGuard: defending against black-box membership inference attacks via
        adversarial examples, CCS 2019, algorithm 1 and section 4. All answers at once. The
        paper's search ends with a step across the boundary, so that whoever turns the classifier's
        verdict around is right again; here that step is bisected down to one half, and a coin
        decides on which side of it the answer stays; a search that is stuck starts again from the
        answer at a temperature of 2, 4 and 10.
    """

    classifier: Callable[[Tensor], Tensor]
    budget: float
    num_steps: int = 300
    seed: int = 0

    def __post_init__(self):
        """Refuses a budget and a search that are none.

        Raises:
            ValueError: the budget is negative, NaN or infinite, or the search has no step.
        """
        if not 0 <= self.budget < torch.inf:
            raise ValueError(f"the distortion budget must be 0 or more, at most 2: {self.budget}")
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be 1 or more, not {self.num_steps}")

    def __call__(self, probabilities: Tensor) -> Tensor:
        """(N, classes) answers, some of them with noise; equal answers get equal ones."""
        return self.mixed(probabilities, *self.plan(probabilities))

    def mixed(self, probabilities: Tensor, noisy: Tensor, chance: Tensor) -> Tensor:
        """The answers, each with its noise where its own coin says so: what `plan` planned."""
        added = self._coins(probabilities, "noise") < chance
        return torch.where(added[:, None], noisy, probabilities)

    def plan(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """What the mechanism would do with each answer.

        Args:
            probabilities: (N, classes).

        Returns:
            (N, classes) answers with noise, and (N,) the probability with which it is added.

        Raises:
            ValueError: answers are none.
        """
        check_answers(probabilities, dims=2)
        noisy = self._search(probabilities)
        with torch.no_grad():
            before, after = (
                (self.classifier(p).sigmoid() - 0.5).abs() for p in (probabilities, noisy)
            )
        distortion = (noisy - probabilities).abs().sum(-1)
        chance = (self.budget / distortion.clamp_min(1e-12)).clamp_max(1)
        return noisy, torch.where(before <= after, 0.0, chance)

    @threads.one_thread()
    def _search(self, probabilities: Tensor) -> Tensor:
        """Phase one: the answers with the smallest noise that was found."""
        logits, label = _logits(probabilities), probabilities.argmax(-1, keepdim=True)
        with torch.no_grad():
            side = self.classifier(probabilities).sign()
        near, far = logits.clone(), logits.clone()  # on either side of the classifier's boundary
        missing = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        rows = missing.nonzero().flatten()
        searches = [(weight, 1.0) for weight in WEIGHTS]
        searches += [(WEIGHTS[0], scale) for scale in (0.5, 0.25, 0.1)]
        for weight, scale in searches:
            if scale < 1:  # whoever is stuck starts again, from a flatter answer
                rows = missing.nonzero().flatten()
            if not len(rows):
                continue
            before, after, success = self._descend(
                logits[rows], scale, probabilities[rows], label[rows], side[rows], weight
            )
            rows = rows[success]
            near[rows], far[rows], missing[rows] = before[success], after[success], False
        with torch.no_grad():
            for _ in range(12):
                middle = (near + far) / 2
                crossed = (self.classifier(middle.softmax(-1)) * side <= 0)[:, None]
                near, far = torch.where(crossed, near, middle), torch.where(crossed, middle, far)
            heads = (self._coins(probabilities, "side") < 0.5)[:, None]
            return endpoint.keep_label(torch.where(heads, near, far).softmax(-1), probabilities)

    def _descend(self, logits, scale, clean, label, side, weight) -> tuple[Tensor, Tensor, Tensor]:
        """One search: the logits before and after its last step, and whether that crossed."""
        before, after = logits.clone(), logits * scale
        success = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        rows = torch.arange(len(logits), device=logits.device)
        others = torch.zeros_like(logits).scatter(-1, label, -torch.inf)
        for _ in range(self.num_steps):
            z = after[rows].requires_grad_()
            answer = z.softmax(-1)
            member = self.classifier(answer)
            rival = (z + others[rows]).amax(-1)
            behind = F.relu(rival - z.gather(-1, label[rows]).squeeze(-1))
            moved = (answer - clean[rows]).abs().sum(-1)
            loss = (member.abs() + 10.0 * behind + weight * moved).sum()
            (slope,) = torch.autograd.grad(loss, z)
            with torch.no_grad():
                crossed = (member * side[rows] <= 0) & (answer.argmax(-1) == label[rows, 0])
                success[rows[crossed]] = True
                slope /= slope.abs().amax(-1, keepdim=True).clamp_min(1e-37)  # squares underflow
                slope /= slope.norm(dim=-1, keepdim=True).clamp_min(1e-12)
                rows, slope = rows[~crossed], slope[~crossed]
                before[rows] = after[rows]
                after[rows] -= STEP * slope
            if not len(rows):
                break
        return before, after, success

    def _coins(self, probabilities: Tensor, purpose: str) -> Tensor:
        """(N,) numbers in [0, 1) that depend on the secret and the answer alone.

        Of an answer count its logits to one decimal: a float's last digits change with the batch
        it is computed in, and of rounded probabilities most certain answers would be the same.
        """
        rows = np.ascontiguousarray(_logits(probabilities).detach().cpu().numpy().round(1) + 0.0)
        secret = f"{self.seed} {purpose} ".encode()
        hashed = (hashlib.sha256(secret + row.tobytes()).digest()[:6] for row in rows)
        coins = torch.tensor([int.from_bytes(h, "little") for h in hashed], dtype=torch.float64)
        return (coins / 2**48).to(probabilities.device)


def _logits(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(1e-30).log()


def _features(probabilities: Tensor) -> Tensor:
    """Log-probabilities in falling order: near 0 and 1, the probabilities differ too little.

    A sum and no clamp keeps a slope, however small, for answers that are certain to nine digits.
    """
    return (probabilities.float() + 1e-9).log().sort(-1, descending=True).values
