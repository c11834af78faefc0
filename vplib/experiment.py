"""What every notebook starts and ends with: seeds, device, profile, claims, recorded values."""

import difflib
import importlib.metadata
import math
import platform
import random
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from vplib import claims, threads
from vplib.claims import Claims as Claims  # for notebooks, as `record`
from vplib.recorded import display, emit
from vplib.recorded import record as record

if TYPE_CHECKING:  # torch takes seconds, and `vplib list` needs none of it
    import torch


def nearest(name: str, known) -> str:
    """A hint for an error message: the nearest of the known names, or all of them."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch, so that two runs of a notebook on one machine are equal.

    From then on the process computes on one core: with more, results would depend on how many.

    Args:
        seed: any integer from 0 up to 2^32 - 1.

    Raises:
        ValueError: the seed is no such integer.
    """
    check_seed(seed)
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    threads.stay_on_one()


def check_seed(seed: int) -> None:
    """Refuses what `seed_everything` does not take, with a ValueError."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 4294967295, not {seed!r}")


def device(name: str = "auto", there: bool = True) -> "torch.device":
    """The device that experiments run on.

    Args:
        name: "auto" takes a CUDA GPU where there is one and the CPU elsewhere; otherwise a torch
            device name such as "cpu", "cuda" or "mps".
        there: whether this machine must have it.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        if there:
            torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"DEVICE {name!r} does not work here ({reason}); use 'auto'") from None
    return chosen


PROFILES = ("lab", "paper", "rehearsal")
SHAPES = ("image_size", "batch_size", "channels", "hidden", "code")  # ends of names: no counts


def profile(name: str, *, lab: dict, paper: dict) -> SimpleNamespace:
    """The settings of one profile, as attributes.

    The third profile, "rehearsal", shows on any machine that every line of the paper's run works.
    It takes what shapes an experiment from `paper` (texts, fractions, networks, whatever has a
    name that ends in one of `SHAPES`) and how much of it from `lab`: whole numbers, and tuples of
    them cut to the first two, of each the root, rounded to an even number from 4 on: 200 records
    become 14, and 8 models 4, or as many as `paper` has, if these are fewer (3 repeats, where `lab`
    has 5). What is larger never gets smaller, and nothing is written thrice. The
    paper's `dataset`, where it names one, becomes random images of its shape, and no claim is
    asserted.

    Args:
        name: which profile, usually the notebook's `PROFILE`.
        lab: the settings for two CPU cores.
        paper: the settings of the paper, by the same names.

    Raises:
        ValueError: there is no such profile, or one lacks a setting that the other has.
    """
    check_profile(name)
    profiles = {"lab": lab, "paper": paper}
    for label, settings in profiles.items():
        if missing := {*lab, *paper} - set(settings):
            raise ValueError(f"profile {label!r} lacks {', '.join(sorted(missing))}")
    claims.rehearsing = name == "rehearsal"
    return SimpleNamespace(**(profiles.get(name) or _rehearsal(lab, paper)))


def check_profile(name: str) -> None:
    """Refuses what is no profile, with a ValueError that offers the nearest."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; {nearest(name, PROFILES)}")


def _rehearsal(lab: dict, paper: dict) -> dict:
    found = {}
    for key, value in lab.items():
        several = isinstance(value, list | tuple)
        counts = [type(v) is int for v in (value if several else [value])]
        if isinstance(value, dict):
            found[key] = _rehearsal(value, paper[key])
        elif key.endswith(SHAPES) or not all(counts):
            found[key] = f"random:{paper[key]}" if key == "dataset" else paper[key]
        else:
            found[key] = tuple(map(_root, value[:2])) if several else _root(value, paper[key])
    return found


def _root(count: int, most: int | None = None) -> int:
    return min(count, most or count, max(4, 2 * round(count**0.5 / 2)))


def has_front_end() -> bool:
    """Whether someone watches this kernel live (JupyterLab, Colab), so that widgets can move.

    A front end that can be asked a question (`input()`) says so with each execution request;
    papermill, nbval and nbconvert say that they cannot.
    """
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(getattr(kernel, "_allow_stdin", True))


def progress(iterable, description: str):
    """A tqdm bar, where someone watches, once this call or the cell's calls have taken two seconds.

    So a cell of many short calls shows a bar as well; one that follows the last one within 0.2
    seconds shows only after as long, for a thousand bars a second would cost more than the work.
    Without a description there is no bar.
    """
    from tqdm.auto import tqdm

    off = None if display() is None else not has_front_end()  # None: where stderr is no terminal
    delay = _delay(_running_cell(), time.monotonic())
    settings = dict(delay=delay, leave=False, disable=not description or off)
    return tqdm(iterable, desc=description, **settings)


# When the cell's first bar was asked for, and when its last one was shown.
_shown = SimpleNamespace(cell=None, since=-math.inf, last=-math.inf)


def _delay(cell: int | None, now: float) -> float:
    """After how many seconds a bar appears that is asked for now."""
    if cell != _shown.cell or _shown.since == -math.inf:
        _shown.cell, _shown.since, _shown.last = cell, now, -math.inf
    if now < _shown.since + 2:
        return _shown.since + 2 - now
    if now < _shown.last + 0.2:
        return 0.2
    _shown.last = now
    return 0


def _running_cell() -> int | None:
    """The number of the running cell; None outside of IPython, where a process is one cell."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "execution_count", None)


def versions() -> None:
    """Prints what this ran on, for whoever compares two runs."""
    import torch

    from vplib import cache

    names = ("vplib", "torch", "torchvision", "scikit-learn", "numpy", "matplotlib", "ipywidgets")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    found["platform"] = platform.platform()
    if any(cache.counts.values()):
        found["models"] = "{reused} reused from the cache, {trained} trained".format(**cache.counts)
    emit({"versions": found}, "\n".join(f"{k:13} {v}" for k, v in found.items()))
