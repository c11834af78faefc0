"""Checks of the notebooks' exercises: `check("membership_shadow.gap_attack", my_function)`."""

import importlib
from collections.abc import Callable
from pathlib import Path


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


def check(name: str, attempt: Callable) -> None:
    """Prints what an attempt gets right or wrong, in a sentence; never raises.

    Each exercise module holds, for an exercise `x`, the reference `solve_x` and
    `check_x(attempt)`, which returns None for "not attempted" and otherwise a sentence.

    Args:
        name: "notebook.exercise".
        attempt: the reader's function; while it returns None it counts as not attempted.
    """
    notebook, _, exercise = str(name).partition(".")
    try:
        module = importlib.import_module(modules()[notebook])
        checker = getattr(module, f"check_{exercise}")
    except (KeyError, AttributeError):
        print(f"there is no exercise {name!r}; known: {', '.join(names())}")
        return
    try:
        verdict = checker(attempt)
    except Exception as error:
        verdict = f"your function stopped with {type(error).__name__}: {error}"
    print(f"{name}: {verdict or 'not attempted yet'}")
