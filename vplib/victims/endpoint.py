"""The victim as an endpoint: what it answers, what it counts, when it stops answering.

An `Endpoint` wraps a model in this process; `http.serve` puts it behind HTTP.
"""

import math
import threading
import uuid
from collections.abc import Callable

import torch
from torch import Tensor

from vplib import cache, experiment
from vplib.datasets.imageset import check_range

ANSWERS = ("probabilities", "labels")


class BudgetSpent(RuntimeError):
    """The endpoint would have to answer more queries than it allows."""


class Endpoint:
    """A model as others see it: a callable from images to answers that counts what it is asked."""

    def __init__(
        self,
        predict: Callable[[Tensor], Tensor],
        *,
        answers: str = "probabilities",
        top_k: int | None = None,
        decimals: int | None = None,
        budget: int | None = None,
    ):
        """Wraps a model; nothing is asked yet.

        Args:
            predict: from (N, C, H, W) images to (N, classes) probabilities; where labels are
                answered also to (N,) labels. A model of float64 weights gets float64 images.
            answers: "probabilities" or "labels".
            top_k: answer with the k largest probabilities and zeros elsewhere.
            decimals: answer with probabilities rounded to so many decimals, the label kept.
            budget: how many images it answers for at most; repeats count. None: no limit.

        Raises:
            ValueError: a setting is out of range, or labels are to be masked.
        """
        if answers not in ANSWERS:
            raise ValueError(f"unknown answers {answers!r}; {experiment.nearest(answers, ANSWERS)}")
        if answers == "labels" and (top_k is not None or decimals is not None):
            raise ValueError("labels cannot be masked: drop top_k and decimals")
        limits = ("top_k", top_k, 1), ("decimals", decimals, 0), ("budget", budget, 0)
        for name, value, least in limits:
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, not {value}")
        self.answers, self.budget, self.queries = answers, budget, 0
        self._predict, self._top_k, self._decimals = predict, top_k, decimals
        self._lock, self._taken = threading.Lock(), set()  # shapes of images it has answered for
        self._unlike = uuid.uuid4().hex

    @property
    def id(self) -> str:
        """Equal for equal victims that answer alike, whatever they were asked and may be.

        A victim that does not tell what it holds (a lock, a connection) is equal to itself alone.
        """
        how = self.answers, self._top_k, self._decimals
        try:
            return cache.fingerprint(self._predict, *how)
        except TypeError:
            return cache.fingerprint(self._unlike, *how)

    def __call__(self, images: Tensor) -> Tensor:
        """The answers to some images; each image is one query.

        Args:
            images: (N, C, H, W) float32 in [0, 1].

        Returns:
            (N, classes) probabilities, masked as the endpoint masks, or (N,) labels.

        Raises:
            ValueError: the images are not as above, or the model fails on them and has answered
                for none of their shape before. They cost nothing.
            BudgetSpent: they would exceed the budget: none is answered, none is counted.
            TypeError: the model's answers are neither probabilities nor whole labels. They, too,
                cost nothing.
            RuntimeError: the model failed on images of a shape that it takes.
        """
        if not isinstance(images, Tensor) or images.dtype != torch.float32 or images.ndim != 4:
            kind = f"{type(images).__name__} {getattr(images, 'dtype', '')}"
            kind += f" of shape {tuple(getattr(images, 'shape', ()))}"
            raise ValueError(f"images must be float32 of shape (N, C, H, W), not {kind}")
        check_range(images)
        with self._lock:  # counted before it is answered, so that two callers cannot overdraw
            if self.budget is not None and self.queries + len(images) > self.budget:
                raise BudgetSpent(
                    f"{self.queries} of {self.budget} queries are spent; "
                    f"{len(images)} more would exceed the budget"
                )
            self.queries += len(images)
        try:
            return self._masked(self._answer(images))
        except BaseException:
            with self._lock:
                self.queries -= len(images)  # no answer, no charge
            raise

    def _masked(self, found: Tensor) -> Tensor:
        if self.answers == "labels":
            return found if found.ndim == 1 else found.argmax(-1)
        if self._top_k is not None:
            found = top_k(found, self._top_k)
        return found if self._decimals is None else rounded(found, self._decimals)

    def _answer(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape[1:])
        try:
            found = self._predict(images).detach()
        except (ValueError, RuntimeError) as error:
            if images.dtype == torch.float32 and "double" in str(error).lower():
                return self._answer(images.double())  # so torch says that weights are float64
            kind = RuntimeError if shape in self._taken else ValueError  # whose fault it is
            asked = f"{str(images.dtype).removeprefix('torch.')} images of shape {shape}"
            raise kind(f"the model cannot answer for {asked}") from error
        dims = (1, 2) if self.answers == "labels" else (2,)
        if found.ndim not in dims or len(found) != len(images):
            raise TypeError(f"predict gives {tuple(found.shape)}, not (N, classes) probabilities")
        if found.is_complex() or found.layout != torch.strided:  # HTTP has no form for them
            raise TypeError(f"answers must be real and dense, not {found.dtype} {found.layout}")
        if found.ndim == 1 and found.is_floating_point():
            raise TypeError(f"labels must be whole numbers, not {found.dtype}")
        self._taken.add(shape)
        return found


def keep_label(masked: Tensor, probabilities: Tensor) -> Tensor:
    """Masked answers in which the label is the largest entry again, and alone at the top.

    Args:
        masked: (..., classes), changed as little as a float allows where another class has
            reached the label's value.
        probabilities: (..., classes) whose argmax is the label.
    """
    label = probabilities.argmax(-1, keepdim=True)
    top = masked.gather(-1, label)
    below = torch.nextafter(top, torch.full_like(top, -math.inf))
    return masked.minimum(below).scatter(-1, label, top)


def top_k(probabilities: Tensor, k: int) -> Tensor:
    """The k largest probabilities of each answer, unchanged; zeros elsewhere.

    Args:
        probabilities: (..., classes).
        k: how many to keep; all, if there are fewer.

    Raises:
        ValueError: k is below 1.

    Source:
        Shokri et al., Membership inference attacks against machine learning models, S&P 2017,
        section VIII.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, not {k}")
    label = probabilities.argmax(-1, keepdim=True)  # of equal ones topk may keep another
    first = probabilities.scatter(-1, label, math.inf)
    index = first.topk(min(k, probabilities.shape[-1]), dim=-1).indices
    return torch.zeros_like(probabilities).scatter(-1, index, probabilities.gather(-1, index))


def rounded(probabilities: Tensor, decimals: int) -> Tensor:
    """Each probability rounded; where another class ties with the label, it loses one unit.

    Args:
        probabilities: (..., classes).
        decimals: 0 or more digits after the point.

    Raises:
        ValueError: `decimals` is negative.
    """
    if decimals < 0:
        raise ValueError(f"decimals must be 0 or more, not {decimals}")
    units = (probabilities.double() * 10**decimals).round()
    label = probabilities.argmax(-1, keepdim=True)
    top = units.gather(-1, label).clamp_min(1)  # all may round to zero
    units = units.minimum(top - 1).scatter(-1, label, top)
    found = (units / 10**decimals).to(probabilities.dtype)
    return keep_label(found, probabilities)  # of many decimals a float has not all
