"""Finds notebooks, checks everything before any of them starts, and runs them with papermill."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import tempfile
import time
from datetime import datetime
from pathlib import Path

from vplib import experiment
from vplib.experiment import nearest
from vplib.paths import repository_root
from vplib.runner import report

GALLERY = 100_000  # bytes of a figure in the gallery
COUNT = re.compile(r"NUM_\w+|\w+_(SIZES?|STEPS|EPOCHS)")  # parameters from 1 on
# What a run notes about itself, and why it does not write where another one is noted.
NOTES = {
    "source": "was not made by a run of this notebook",
    "parameters": "was made with other parameters",
    "cells": "was changed after its run",
}


def in_clone() -> dict[str, Path]:
    """The notebooks of the clone by name, which is the path under notebooks/ without ending."""
    if (root := repository_root()) is None:
        return {}
    paths = [path.relative_to(root / "notebooks") for path in root.glob("notebooks/**/*.ipynb")]
    names = {path.with_suffix("").as_posix(): root / "notebooks" / path for path in sorted(paths)}
    return {n: path for n, path in names.items() if "/." not in f"/{n}" and path.is_file()}


def about(path: Path) -> dict:
    """What a notebook's metadata says for vplib, read without nbformat: `vplib list` is quick."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["metadata"].get("vplib", {}))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {"title": "(unreadable)"}


def find(wanted: tuple[str, ...], core: bool = False) -> dict[str, Path]:
    """The notebooks to run, by name.

    Args:
        wanted: paths, or names of notebooks of the clone.
        core: also every notebook whose metadata says `core`.

    Raises:
        ValueError: a notebook is unknown or hidden, two have one name, or there is nothing to run.
    """
    known = in_clone()
    found = {name: path for name, path in known.items() if core and about(path).get("core")}
    for text in wanted:
        path = Path(text).resolve() if os.path.isfile(text) else known.get(text)
        if path is None:
            hint = nearest(text, known) if known else "give a path"
            raise ValueError(f"there is no notebook {text!r}; {hint}")
        name = next((name for name in known if known[name] == path), path.stem)
        if name.startswith("."):  # "...ipynb" would be written above the folder
            raise ValueError(f"{text!r} begins with a point; rename it, or copy it to another name")
        if found.setdefault(name, path) != path:
            raise ValueError(f"two notebooks are called {name!r}: {found[name]} and {path}")
    if not found:
        raise ValueError("nothing to run: name a notebook (`vplib list` shows them) or use --core")
    return found


def check(
    found: dict[str, Path], given: dict[str, str], out: Path | None, gallery: Path | None = None
) -> tuple[list, Path]:
    """Checks what can be known before a notebook starts, then makes the folders.

    Args:
        found: the notebooks, as `find` returns them.
        given: parameters as typed; every notebook must know each.
        out: where the executed notebooks go; a new folder in runs/ if None.
        gallery: where hero figures go; in the clone's own, earlier ones are replaced.

    Returns:
        The jobs (name, source, target and parameters of each), and the absolute folder.

    Raises:
        ValueError: something is missing, unknown, damaged, of the wrong type, not writable, or
            would be overwritten.
    """
    folder = (out or Path("runs", f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")).absolute()
    jobs = []
    for name, path in found.items():
        target = folder / f"{name}.ipynb"
        jobs.append((name, path, target, check_notebook(name, report.read(path), given)))
        if target.exists() and any(map(target.samefile, found.values())):
            raise ValueError(f"{target} is a notebook to run and stays; choose another --out")
    spare_others(jobs)
    report.spare(folder / "report.html", report.PAGE)
    if gallery and not given:
        ours = repository_root()
        if not ours or gallery.resolve() != ours / "notebooks" / "gallery":
            for png in (gallery / f"{path.stem}.png" for path in found.values()):
                report.spare(png)
        make_folder(gallery, "--gallery")
    make_folder(folder)
    return jobs, folder


def spare_others(jobs: list) -> None:
    """Refuses jobs that would overwrite anything but the untouched result of the same job.

    Raises:
        ValueError: a target holds something else.
    """
    for _, source, target, parameters in jobs:
        if os.path.lexists(target):
            notebook = report.read(target)
            held, job = notebook.metadata.vplib.get("run"), notes(notebook, source, parameters)
            for note, why in NOTES.items():
                if not isinstance(held, dict) or held.get(note) != job[note]:
                    raise ValueError(f"{target} {why} and stays; choose another --out")


def notes(notebook, source: Path, parameters: dict) -> dict:
    """What a run notes in the executed notebook, to know it again."""
    cells = json.dumps([cell.source for cell in notebook.cells])
    mark = hashlib.sha256(cells.encode()).hexdigest()
    return {"source": str(source), "parameters": parameters, "cells": mark}


def make_folder(folder: Path, option: str = "--out") -> None:
    """Makes a folder that a run writes to.

    Raises:
        ValueError: it cannot be made, or not written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        why = f"{error.strerror}; choose another {option}"
        raise ValueError(f"cannot write to {folder} ({why})") from None


@contextlib.contextmanager
def locked(folder: Path):
    """One run or sweep works in a folder at a time; another one waits, and says so."""
    import filelock

    lock = filelock.FileLock(folder / ".vplib.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"another one works in {folder}; waiting until it ends (Ctrl-C stops)", flush=True)
        lock.acquire()
    except (NotImplementedError, OSError):
        pass  # a file system without locks
    try:
        yield
    finally:
        lock.release()


def check_notebook(name: str, notebook, given: dict[str, str]) -> dict:
    """The parameters of one notebook as values, after a check that it can run here.

    Args:
        name: what errors call the notebook.
        notebook: as `report.read` returns it.
        given: parameters as typed.

    Raises:
        ValueError: a package is missing, or a parameter is unknown, of the wrong type, or out of
            range where its value alone tells.
    """
    extras = notebook.metadata.vplib.get("extras")
    for extra in map(str, extras if isinstance(extras, list) else ()):
        if missing := missing_of(extra):
            raise ValueError(f'{name} needs {missing}: pip install "vplib[{extra}]"')
    defaults = report.parameters(notebook)
    for unknown in (key for key in given if key not in defaults):
        hint = nearest(unknown, defaults) if defaults else "it has none"
        raise ValueError(f"{name}: unknown parameter {unknown!r}; {hint}")
    profiles = any("experiment.profile(" in cell.source for cell in notebook.cells)
    try:
        values = {key: parse_value(key, text, defaults[key]) for key, text in given.items()}
        for key, value in values.items():
            if value == defaults[key]:
                continue
            if key == "SEED":
                experiment.check_seed(value)
            elif key == "DEVICE":
                experiment.device(value, there=False)
            elif key == "PROFILE" and profiles:
                experiment.check_profile(value)
            elif key in ("DATASET", "TRANSFER") and value is not None:
                from vplib.datasets import check_name  # and with it torch

                check_name(str(value).removesuffix("folder:"))  # which would be any folder
                kind, _, place = str(value).partition(":")
                if kind == "folder":  # the kernel may run in another one
                    values[key] = f"{kind}:{Path(place).expanduser().resolve()}"
            elif COUNT.fullmatch(key) and value is not None:
                numbers = value if isinstance(defaults[key], list) else [value]
                if not all(type(number) is int and number > 0 for number in numbers):
                    raise ValueError(f"{key} must be a whole number from 1 on, not {value!r}")
    except (ValueError, OSError, RuntimeError) as error:  # folder:~nosuch, a name too long
        raise ValueError(f"{name}: {error}") from None
    return values


def parse_value(name: str, text: str, default):
    """The value of a parameter: a literal of the default's type, else the text as it is.

    The default None takes anything, a float also an int; a tuple in the text becomes a list.

    Raises:
        ValueError: the value has another type, or a number is NaN or too large for a float.
    """
    value, wanted = report.literal(text, otherwise=text), type(default)
    if wanted is not str and text.strip("+- ").lower() in ("nan", "inf", "infinity"):
        raise ValueError(f"{name} must be a finite number, not {text}")
    try:
        json.dumps(json.loads(json.dumps(value), parse_int=float), allow_nan=False)
    except ValueError:
        raise ValueError(f"{name} must be below 1.8e308, not {text}") from None
    if default is not None and type(value) not in ((int, float) if wanted is float else (wanted,)):
        raise ValueError(
            f"{name} must be of type {wanted.__name__}, like {default!r}; not {value!r}"
        )
    return value


def missing_of(extra: str) -> str:
    """What is not installed of an extra, as one text."""
    of_extra = re.compile(rf"([\w.-]+).*extra == ['\"]{re.escape(extra)}['\"]")
    matches = map(of_extra.match, importlib.metadata.requires("vplib") or ())
    names = [match[1] for match in matches if match]
    gone = [name for name in names if not any(importlib.metadata.distributions(name=name))]
    return ", ".join(gone) if names else f"extra {extra!r}"


def run(jobs: list, folder: Path, gallery: Path | None = None) -> int:
    """Runs the notebooks one after another, then writes the report, whose path comes last.

    An earlier result stays until the new one is whole: whatever stops papermill, replaces none.

    Args:
        jobs: what `check` returned.
        folder: where the report goes.
        gallery: where to write the hero figures of runs without given parameters.

    Returns:
        The exit status: 0 if every notebook ran and no claim failed, 130 after Ctrl-C, else 1.

    Raises:
        ValueError: another run was waited for, and left something else at a target.
    """
    ends, began = [], time.monotonic()
    with locked(folder):
        spare_others(jobs)
        for number, job in enumerate(jobs, 1):
            print(f"{job[0]} ({number} of {len(jobs)}) is running", flush=True)
            try:
                ends.append(_run_one(*job, gallery))
            except (OSError, ValueError) as error:  # a full disk; a source that is gone by now
                ends.append("not kept")
                print(f"  {job[0]}: not kept ({error}); an earlier result stays", flush=True)
            if ends[-1] == "interrupted":
                break
        good, seconds = ends.count("ran"), time.monotonic() - began
        print(f"{good} of {len(jobs)} notebooks ran and kept their claims, {seconds:.0f} s")
        try:
            print(report.write(folder), flush=True)
        except ValueError as error:  # nothing was kept
            print(error, flush=True)
    return 130 if "interrupted" in ends else int(good < len(jobs))


def _run_one(name, source, target, parameters, gallery):
    """Runs one notebook, keeps what is to be kept, and returns the outcome."""
    import nbformat

    beside = target.with_name(".running.ipynb")  # the folder is locked
    notebook, whole = execute(name, source, beside, parameters)
    notebook.metadata.vplib.pop("sweep", None)  # of a source that a sweep made
    notebook.metadata.vplib["run"] = notes(notebook, source, parameters)
    try:
        if whole or not target.exists():
            report.write_beside(target, nbformat.writes(notebook).encode())
    finally:
        ended = _say(name, notebook)
    shown = gallery and ended == "ran" and not parameters
    for hero in [f for f in report.figures(notebook) if f["hero"]] if shown else ():
        png = report.smaller(hero["png"], GALLERY)
        report.write_beside(gallery / f"{source.stem}.png", png)
    return ended


@functools.cache
def _own_kernel():
    """The manager of a kernel that is this interpreter, whatever is called python3 elsewhere."""
    import traitlets
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager

    class OwnKernel(AsyncKernelManager):
        @traitlets.default("kernel_spec_manager")
        def _only_the_native_one(self):
            return KernelSpecManager(parent=self, kernel_dirs=[])

    return OwnKernel


def execute(name: str, source: Path, place: Path, parameters: dict, quiet: bool = False):
    """Runs one notebook; an error that no cell shows is put where it happened.

    Args:
        name: what the progress bar says, on a terminal.
        source: the notebook.
        place: where papermill writes while it runs; nothing is left there.
        parameters: values for its parameters cell.
        quiet: no progress bar, even on a terminal.

    Returns:
        The executed notebook, as `report.read` returns it, and whether papermill was not stopped:
        by Ctrl-C, a full disk, or a kernel that died.

    Raises:
        ValueError: the source cannot be read any more.
    """
    import papermill

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it logs is printed below
    error, began = None, time.monotonic()
    patience = {"start_timeout": 300, "iopub_timeout": 120}  # seconds; thirty kernels on one server
    paths = [re.sub(r"([{}])", r"\1\1", str(path)) for path in (source, place)]  # it formats them
    bar = {"desc": f"  {name}", "leave": False, "disable": quiet or None}  # on a terminal
    options = {"kernel_name": "python3", "language": "python", "progress_bar": bar}
    options |= {"kernel_manager_class": _own_kernel(), "extra_arguments": ["--log-level=CRITICAL"]}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)  # of a run that was killed
        papermill.execute_notebook(*paths, parameters=parameters or None, **options, **patience)
    except papermill.PapermillExecutionError:
        pass  # the notebook shows it
    except (Exception, KeyboardInterrupt) as caught:  # a kernel killed for its memory, Ctrl-C
        error = caught
    try:
        notebook = report.read(place)
    except ValueError as unreadable:  # it never started, or was cut short while it was written
        notebook, error = report.read(source), error or unreadable
    with contextlib.suppress(OSError):
        place.unlink()
    if error:
        put_error(notebook, error)
    elif not report.failure(notebook):  # papermill marks intended errors as well
        notebook.cells = [c for c in notebook.cells if report.MARKER not in c.metadata.tags]
    seconds = time.monotonic() - began  # papermill's change with the clock
    notebook.metadata.papermill |= {"parameters": parameters, "duration": seconds}
    return notebook, error is None


def put_error(notebook, error: BaseException) -> None:
    """Shows an error in the cell that was running, or in the first one if none was."""
    from nbformat.v4 import new_output

    name, text = type(error).__name__, " ".join(str(error).split())
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    begun = [cell for cell in code if cell.metadata.papermill.get("start_time")]
    for cell in begun[-1:] or code[:1]:
        cell.outputs.append(new_output("error", ename=name, evalue=text, traceback=[]))
        cell.metadata.papermill["exception"] = True


def _say(name, notebook):
    """Prints claims, error and time, and returns the outcome."""
    for row in report.claims(notebook):
        mark = " (headline)" * row["headline"] + " (no control)" * bool(row["no_control"])
        print(f"  [{row['outcome']}] {row['title']}{mark}", end="")
        print(f" | paper: {row['paper']} | ours: {row['shown']}")
    if failed := report.failure(notebook):
        lines, trace = failed["source"].splitlines(), failed["trace"].splitlines()
        lines = lines[:3] + ["..."] * (len(lines) > 3) + trace[-5:]
        print(f"  stopped in {failed['where']}:", *lines, sep="\n    ")
        print(f"  {failed['error']}")
    for found in report.emitted(notebook, "versions")[-1:]:
        print(f"  models: {found['models']}" if "models" in found else "  no models trained")
    ended, seconds = report.outcome(notebook), notebook.metadata.papermill.get("duration")
    print(f"  {name}: {ended}, {seconds or 0:.1f} s", flush=True)
    return ended
