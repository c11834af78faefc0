"""Checks of the notebooks' exercises: `check("membership_shadow.gap_attack", my_function)`."""

import importlib
import pkgutil
from collections.abc import Callable


def names() -> list[str]:
    """The exercises there are, as "notebook.exercise"."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        contents = vars(importlib.import_module(f"{__name__}.{module.name}"))
        found += [
            f"{module.name}.{k.removeprefix('check_')}" for k in contents if k[:6] == "check_"
        ]
    return sorted(found)


def check(name: str, attempt: Callable) -> None:
    """Prints what an attempt gets right or wrong, in a sentence; never raises.

    Each exercise module holds, for an exercise `x`, the reference `solve_x` and
    `check_x(attempt)`, which returns None for "not attempted" and otherwise a sentence.

    Args:
        name: "notebook.exercise".
        attempt: the reader's function; while it returns None it counts as not attempted.
    """
    module, _, exercise = str(name).partition(".")
    try:
        checker = getattr(importlib.import_module(f"{__name__}.{module}"), f"check_{exercise}")
    except (ImportError, AttributeError):
        print(f"there is no exercise {name!r}; known: {', '.join(names())}")
        return
    try:
        verdict = checker(attempt)
    except Exception as error:
        verdict = f"your function stopped with {type(error).__name__}: {error}"
    print(f"{name}: {verdict or 'not attempted yet'}")
