"""What every notebook starts and ends with: seeds, device, profile, claims, recorded values."""

import csv
import difflib
import html
import importlib.metadata
import math
import platform
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # torch takes seconds, and `vplib list` needs none of it
    import torch

MIME = "application/vnd.vplib+json"  # how values and claims travel inside an executed notebook


def repository_root() -> Path | None:
    """The clone that this vplib is imported from, or None when it was installed from a wheel."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "notebooks").is_dir() and (root / "pyproject.toml").is_file() else None


def nearest(name: str, known) -> str:
    """A hint for an error message: the nearest of the known names, or all of them."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch, so that two runs of a notebook on one machine are equal.

    Args:
        seed: any integer from 0 up to 2^32 - 1.

    Raises:
        ValueError: the seed is no such integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 4294967295, not {seed!r}")
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def device(name: str = "auto") -> "torch.device":
    """The device that experiments run on.

    Args:
        name: "auto" takes a CUDA GPU where there is one and the CPU elsewhere; otherwise a torch
            device name such as "cpu", "cuda" or "mps".

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"DEVICE {name!r} does not work here ({reason}); use 'auto'") from None
    return chosen


def profile(name: str, **profiles: dict) -> SimpleNamespace:
    """The settings of one profile, as attributes.

    Args:
        name: which profile, usually the notebook's `PROFILE`.
        **profiles: one dict of settings a profile; all must name the same settings.

    Raises:
        ValueError: there is no such profile, or one lacks a setting that another has.
    """
    if name not in profiles:
        raise ValueError(f"unknown profile {name!r}; {nearest(name, profiles)}")
    names = set().union(*profiles.values())
    for label, settings in profiles.items():
        if missing := names - set(settings):
            raise ValueError(f"profile {label!r} lacks {', '.join(sorted(missing))}")
    return SimpleNamespace(**profiles[name])


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


def progress(iterable, description: str, total: int | None = None):
    """A tqdm bar that appears after two seconds, and only where someone watches."""
    from tqdm.auto import tqdm

    in_kernel = _display() is not None
    disable = not has_front_end() if in_kernel else None  # None: off where stderr is no terminal
    return tqdm(iterable, desc=description, total=total, delay=2, leave=False, disable=disable)


def concurrently(calls: Mapping[str, Callable], device="cpu", description: str = "") -> dict:
    """What independent calls return, by name, with as many at a time as torch has threads.

    Small tensors gain little from a second thread each; two computations side by side do. Results
    are those of one call after another, which is what a GPU gets, but for what torch itself rounds
    otherwise on fewer threads. An interrupt, like an error, waits for the calls that have begun.

    Args:
        calls: functions without arguments. They must not draw from torch's global generator (build
            models before): who draws first would be left to chance.
        device: where they compute.
        description: names the progress bar; empty for none.

    Raises:
        Exception: what the first call that failed has raised; those not yet begun are dropped.
    """
    import torch

    total = torch.get_num_threads()
    workers = min(total, len(calls)) if torch.device(device).type == "cpu" else 1
    names = progress(calls, description) if description else calls
    if workers < 2:
        return {name: calls[name]() for name in names}
    share = max(1, total // workers)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    try:
        running = {name: pool.submit(call) for name, call in calls.items()}
        return {name: running[name].result() for name in names}
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(total)  # the workers set it for threads to come


def record(name: str, value) -> None:
    """Puts a number or a short text into the executed notebook, where sweeps and reports read it.

    Args:
        name: what the value is, with its unit.
        value: a number, a string or a list of them (a 0-d tensor counts as a number).

    Raises:
        TypeError: the value cannot be written as JSON.
    """
    value = _plain(value)
    _emit({"record": {"name": name, "value": value}}, f"{name}: {value}")


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
    _emit({"versions": found}, "\n".join(f"{k:13} {v}" for k, v in found.items()))


@dataclass(frozen=True)
class Paper:
    """One row of notebooks/papers.csv: a surveyed paper and where it is reproduced."""

    paper: str
    survey_place: str
    method: str
    notebook: str
    section: str
    state: str


def papers() -> list[Paper]:
    """All surveyed papers, in the survey's order, from the clone or from the installed wheel."""
    root = repository_root()
    path = root / "notebooks" / "papers.csv" if root else Path(__file__).parent / "papers.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return [Paper(**row) for row in csv.DictReader(file)]


class ClaimFailed(AssertionError):
    """A claim that should hold on this data did not."""


@dataclass(frozen=True)
class Claim:
    """One thing a paper says, what this run measured, and whether the two agree."""

    of: str
    text: str
    paper: str
    ours: str
    holds: bool
    not_reproduced: str | None


class Claims:
    """The claims of a notebook: each a check that can fail, on numbers computed in this run."""

    def __init__(self, of: str, *, data: str, asserted_on: tuple[str, ...]):
        """Starts an empty list of claims.

        Args:
            of: the core paper, as its row in papers.csv is called.
            data: the dataset of this run.
            asserted_on: the datasets on which a claim that does not hold fails the run.

        Raises:
            TypeError: `asserted_on` is one text, in which "mnist" would be part of "mnist5k".
        """
        if isinstance(asserted_on, str):
            raise TypeError(f'asserted_on must be a tuple of names, such as ("{asserted_on}",)')
        self.of = of
        self.data = data
        self.asserted = data in asserted_on
        self._claims: dict[tuple[str, str], Claim] = {}

    def check(
        self,
        text: str,
        *,
        paper: str,
        ours: str,
        holds: bool,
        not_reproduced: str | None = None,
        of: str | None = None,
    ) -> None:
        """Notes whether one claim holds; nothing is raised before `verify`.

        Args:
            text: the claim, in a few words and without numbers of this run.
            paper: what the paper reports, with its numbers; "reported" if nobody checked them.
            ours: what this run measured.
            holds: the check. NaN never holds.
            not_reproduced: for a claim known not to show here, why; it then fails nothing.
            of: the paper, where it is not the core paper.

        Raises:
            TypeError: `holds` is no truth value.
        """
        if hasattr(holds, "item") and not holds.shape:  # of numpy or torch
            holds = holds.item()
        if not isinstance(holds, bool):
            raise TypeError(f"holds must be True or False, not {holds!r}")
        claim = Claim(of or self.of, text, paper, str(ours), holds, not_reproduced)
        self._claims[claim.of, claim.text] = claim

    def outcome(self, claim: Claim) -> str:
        """The outcome in words: holds, not reproduced, does not hold on DATA, or FAILS."""
        if claim.holds:
            return "holds"
        if claim.not_reproduced:
            return "not reproduced"
        return "FAILS" if self.asserted else f"does not hold on {self.data}"

    def show(self, of: str | None = None) -> None:
        """Shows the table of claims, paper against ours; never raises.

        Args:
            of: only the claims of this paper.
        """
        chosen = [c for c in self._claims.values() if of in (None, c.of)]
        rows = [
            {
                "of": c.of,
                "claim": c.text,
                "paper": c.paper,
                "ours": c.ours,
                "outcome": self.outcome(c),
                "why": c.not_reproduced or "",
            }
            for c in chosen
        ]
        text = "\n".join(
            f"[{r['outcome']}] {r['of']}: {r['claim']}\n"
            f"    paper: {r['paper']}\n    ours:  {r['ours']}"
            + (f"\n    why:   {r['why']}" if r["outcome"] == "not reproduced" else "")
            for r in rows
        )
        _emit({"claims": rows}, text or "no claims yet", html=claims_table(rows))

    def verify(self) -> None:
        """One line a claim, without numbers; the last cell of a notebook.

        Raises:
            ClaimFailed: at the end, if a claim fails on data it is asserted on, or if there is
                no claim at all.
        """
        for claim in self._claims.values():
            print(f"{self.outcome(claim):14}  {claim.of}: {claim.text}")
        failed = [c for c in self._claims.values() if self.outcome(c) == "FAILS"]
        if not self._claims:
            raise ClaimFailed("this notebook checked no claim")
        if failed:
            listed = "; ".join(f"{c.text} (ours: {c.ours}; paper: {c.paper})" for c in failed)
            raise ClaimFailed(f"{len(failed)} of {len(self._claims)} claims failed: {listed}")


def claims_table(rows: list[dict]) -> str:
    """The claims as an HTML table.

    Args:
        rows: of, claim, paper, ours, outcome and why of each claim.
    """
    marks = {"holds": "✓", "not reproduced": "○", "FAILS": "✗"}
    align = "style='text-align:left'"
    head = "".join(
        f"<th scope='col' {align}>{h}</th>" for h in ("Claim", "Paper", "Ours", "Outcome")
    )
    body = ""
    for r in rows:
        why = f"<br><small>{html.escape(r['why'])}</small>" if r["outcome"] != "holds" else ""
        cells = (f"<b>{html.escape(r['of'])}</b>: {html.escape(r['claim'])}",) + tuple(
            html.escape(str(r[k])) for k in ("paper", "ours")
        )
        outcome = f"{marks.get(r['outcome'], '–')} {html.escape(r['outcome'])}{why}"
        body += "<tr>" + "".join(
            f"<td style='text-align:left;white-space:normal'>{c}</td>" for c in (*cells, outcome)
        )
        body += "</tr>"
    return f"<table class='claims'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _plain(value):
    if hasattr(value, "tolist"):  # of numpy or torch
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN and no infinity
    if not isinstance(value, bool | int | float | str | None):
        raise TypeError(f"can record numbers, texts and lists of them, not {type(value).__name__}")
    return value


def _display():
    """IPython's display inside a kernel, else None."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return None
    return display if getattr(get_ipython(), "kernel", None) is not None else None


def _emit(payload: dict, text: str, html: str | None = None) -> None:
    """Shows text (and HTML) to the reader and the payload to whoever parses the notebook."""
    display = _display()
    if display is None:
        print(text)
        return
    bundle = {"text/plain": text, MIME: payload} | ({"text/html": html} if html else {})
    display(bundle, raw=True)
