"""Checks of the notebooks' exercises: `check("membership_shadow.gap_attack", my_function)`."""

import dis
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Verdict:
    """What a check found: true for a right answer, so that a grader writes `assert check(...)`.

    Args:
        right: whether the answer is right; what the attempt prints does not count.
        said: the sentence that the reader saw.
    """

    right: bool
    said: str

    def __bool__(self) -> bool:
        """Whether the answer is right."""
        return self.right

    def _ipython_display_(self):
        """Shows nothing: the sentence is printed already."""


def names() -> list[str]:
    """The exercises there are, as "notebook.exercise"."""
    found = []
    for notebook, module in modules().items():
        contents = vars(importlib.import_module(module))
        found += [f"{notebook}.{k.removeprefix('check_')}" for k in contents if k[:6] == "check_"]
    return sorted(found)


def modules() -> dict[str, str]:
    """The module of each notebook's exercises: `exercises` in the folder of its name."""
    here = Path(__file__).parent
    return {
        path.parent.name: ".".join(("vplib", *path.relative_to(here).with_suffix("").parts))
        for path in sorted(here.glob("*/*/exercises.py"))
    }


def check(name: str, attempt: Callable) -> Verdict:
    """Prints what an attempt gets right or wrong, in a sentence, and returns it; never raises.

    Each exercise module holds, for an exercise `x`, the reference `solve_x` and
    `check_x(attempt)`, which returns None for "not attempted" and otherwise a sentence.

    Args:
        name: "notebook.exercise".
        attempt: the reader's function; as long as it only returns None it is not attempted.
    """
    notebook, _, exercise = str(name).partition(".")
    try:
        module = importlib.import_module(modules()[notebook])
        checker = getattr(module, f"check_{exercise}")
    except (KeyError, AttributeError):
        said = f"there is no exercise {name!r}; known: {', '.join(names())}"
        print(said)
        return Verdict(False, said)
    try:
        said = checker(attempt) or _unanswered(attempt)
    except Exception as error:
        said = f"your function stopped with {type(error).__name__}: {error}"
    print(f"{name}: {said}")
    return Verdict(said.startswith("right: "), said)


def _unanswered(attempt: Callable) -> str:
    """What to say of an attempt that returned None: a stub, or code that returns nothing."""
    does = {step.opname for step in dis.get_instructions(getattr(attempt, "__code__", "None"))}
    if does <= {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}:
        return "not attempted yet"
    return "your function returns None: does it end in a `return` with the answer?"


def judge(value, right, why: str, mistakes: dict, hint: str, tolerance: float = 1e-4) -> str | None:
    """The sentence about an answer: what a check returns.

    Numbers, truth values, tensors and arrays of any device are compared alike, a list or tuple item
    by item. Truth values are no numbers, and NaN is never right.

    Args:
        value: the reader's answer; None, or a list with None in it, is not attempted.
        right: the right answer.
        why: what to say of it, after "right: ".
        mistakes: by what to say, the answer that this mistake gives (of any shape), or a test of
            answers that have the kind and shape of the right one.
        hint: what to say of any other answer.
        tolerance: largest difference of two numbers that count as equal.
    """
    if value is None or isinstance(value, list | tuple) and any(v is None for v in value):
        return None
    same, unlike = _compare(value, right, tolerance)
    if same:
        return f"right: {why}"
    for said, wrong in mistakes.items():
        if not callable(wrong) and _compare(value, wrong, tolerance)[0]:
            return said
    if unlike:
        return f"{unlike}: {hint}"
    value = value if isinstance(right, list | tuple) else _plain(value)
    return next((s for s, test in mistakes.items() if callable(test) and test(value)), hint)


def _compare(value, right, tolerance: float) -> tuple[bool, str]:
    """Whether two answers are equal, and how they differ in kind or shape, "" if they do not."""
    if isinstance(right, list | tuple):
        several = isinstance(value, list | tuple) or getattr(value, "ndim", 0)
        if not several or len(value) != len(right):
            return False, f"return {len(right)} values, not {_described(value)}"
        found = [_compare(v, r, tolerance) for v, r in zip(value, right, strict=True)]
        return all(same for same, _ in found), next((u for _, u in found if u), "")
    value, right = _plain(value), _plain(right)
    if _described(value) != _described(right):
        return False, f"return {_described(right)}, not {_described(value)}"
    return torch.allclose(value.double(), right.double(), rtol=0, atol=tolerance), ""


def _plain(value):
    """A tensor of truth values or doubles; the value itself where it is nothing of the kind."""
    try:
        dtype = torch.as_tensor(value).dtype
        if dtype.is_complex:
            return value
        dtype = dtype if dtype == torch.bool else torch.double
        return torch.as_tensor(value, dtype=dtype).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        return value


def _described(value) -> str:
    """The kind and shape of an answer, in words."""
    value = _plain(value)
    if not isinstance(value, torch.Tensor) or value.is_complex():
        return type(value).__name__
    truth = value.dtype == torch.bool
    if not value.ndim:
        return "True or False" if truth else "a number"
    return f"{'truth values' if truth else 'numbers'} of shape {tuple(value.shape)}"
