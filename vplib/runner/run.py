"""Finds notebooks, checks everything before any of them starts, and runs them with papermill."""

import functools
import importlib.metadata
import json
import logging
import os
import re
import tempfile
import time
from datetime import datetime
from pathlib import Path

from vplib.experiment import nearest
from vplib.paths import repository_root
from vplib.runner import report

GALLERY = 100_000  # bytes of a figure in the gallery


def in_clone() -> dict[str, Path]:
    """The notebooks of the clone by name, which is the path under notebooks/ without ending."""
    if (root := repository_root()) is None:
        return {}
    paths = [path.relative_to(root / "notebooks") for path in root.glob("notebooks/**/*.ipynb")]
    names = {path.with_suffix("").as_posix(): root / "notebooks" / path for path in sorted(paths)}
    return {name: path for name, path in names.items() if "/." not in name}


def about(path: Path) -> dict:
    """What a notebook's metadata says for vplib, read without nbformat: `vplib list` is quick."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["metadata"].get("vplib", {})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {"title": "(unreadable)"}


def find(wanted: tuple[str, ...], core: bool = False) -> dict[str, Path]:
    """The notebooks to run, by name.

    Args:
        wanted: paths, or names of notebooks of the clone.
        core: also every notebook whose metadata says `core`.

    Raises:
        ValueError: a notebook is unknown, two have one name, or there is nothing to run.
    """
    known = in_clone()
    found = {name: path for name, path in known.items() if core and about(path).get("core")}
    for text in wanted:
        path = Path(text).resolve() if Path(text).is_file() else known.get(text)
        if path is None:
            hint = nearest(text, known) if known else "give a path"
            raise ValueError(f"there is no notebook {text!r}; {hint}")
        name = next((name for name in known if known[name] == path), path.stem)
        if found.setdefault(name, path) != path:
            raise ValueError(f"two notebooks are called {name!r}: {found[name]} and {path}")
    if not found:
        raise ValueError("nothing to run: name a notebook (`vplib list` shows them) or use --core")
    return found


def check(found: dict[str, Path], given: dict[str, str], out: Path | None) -> tuple[list, Path]:
    """Checks what can be known before a notebook starts, then makes the folder.

    Args:
        found: the notebooks, as `find` returns them.
        given: parameters as typed; every notebook must know each.
        out: where the executed notebooks go; a new folder in runs/ if None.

    Returns:
        The jobs (name, source, target and parameters of each), and the absolute folder.

    Raises:
        ValueError: something is missing, unknown, damaged, of the wrong type, or not writable.
    """
    folder = (out or Path("runs", f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")).absolute()
    jobs = []
    for name, path in found.items():
        target = folder / f"{name}.ipynb"
        jobs.append((name, path, target, check_notebook(name, report.read(path), given)))
        if target.exists() and not report.read(target).metadata.papermill:
            raise ValueError(f"{target} was not made by a run and stays; choose another --out")
    make_folder(folder)
    return jobs, folder


def make_folder(folder: Path) -> None:
    """Makes the folder of a run.

    Raises:
        ValueError: it cannot be made, or not written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}); choose --out") from None


def check_notebook(name: str, notebook, given: dict[str, str]) -> dict:
    """The parameters of one notebook as values, after a check that it can run here.

    Args:
        name: what errors call the notebook.
        notebook: as `report.read` returns it.
        given: parameters as typed.

    Raises:
        ValueError: a package is missing, or a parameter is unknown or of the wrong type.
    """
    for extra in notebook.metadata.vplib.get("extras") or ():
        if missing := missing_of(extra):
            raise ValueError(f'{name} needs {missing}: pip install "vplib[{extra}]"')
    defaults = report.parameters(notebook)
    for unknown in (key for key in given if key not in defaults):
        hint = nearest(unknown, defaults) if defaults else "it has none"
        raise ValueError(f"{name}: unknown parameter {unknown!r}; {hint}")
    known = re.findall(r"(\w+)=dict\(", "\n".join(cell.source for cell in notebook.cells))
    try:
        values = {key: parse_value(key, text, defaults[key]) for key, text in given.items()}
        profile = values.get("PROFILE", "rehearsal")  # which is derived from the two others
        if known and profile not in (*known, "rehearsal"):  # they are among the known
            raise ValueError(f"unknown profile {profile!r}; {nearest(profile, known)}")
        if dataset := values.get("DATASET"):
            from vplib.datasets import check_name  # and with it torch

            check_name(str(dataset))
            kind, _, place = str(dataset).partition(":")
            if kind == "folder":  # the kernel may run in another one
                values["DATASET"] = f"{kind}:{Path(place).expanduser().resolve()}"
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return values


def parse_value(name: str, text: str, default):
    """The value of a parameter: a literal of the default's type, else the text as it is.

    The default None takes anything, a float also an int; a tuple in the text becomes a list.

    Raises:
        ValueError: the value has another type.
    """
    value, wanted = report.literal(text, otherwise=text), type(default)
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

    Args:
        jobs: what `check` returned.
        folder: where the report goes.
        gallery: where to write the hero figures of runs without given parameters.

    Returns:
        The exit status: 0 if every notebook ran and no claim failed, 130 after Ctrl-C, else 1.
    """
    import nbformat

    ends, began = [], time.monotonic()
    for number, (name, source, target, parameters) in enumerate(jobs, 1):
        print(f"{name} ({number} of {len(jobs)}) is running", flush=True)
        notebook = execute(name, source, target, parameters)
        report.write_beside(target, nbformat.writes(notebook).encode())
        ends.append(_say(name, notebook))
        if ends[-1] == "interrupted":
            break
        shown = gallery and ends[-1] == "ran" and not parameters
        for hero in [f for f in report.figures(notebook) if f["hero"]] if shown else ():
            png = report.smaller(hero["png"], GALLERY)
            report.write_beside(gallery / f"{source.stem}.png", png)
    good, seconds = ends.count("ran"), time.monotonic() - began
    print(f"{good} of {len(jobs)} notebooks ran and kept their claims, {seconds:.0f} s")
    print(report.write(folder), flush=True)
    return 130 if "interrupted" in ends else int(good < len(jobs))


@functools.cache
def _use_this_python():
    """Makes "python3" the name of this interpreter's kernel, for as long as this process lives."""
    from ipykernel.kernelspec import write_kernel_spec

    kept = tempfile.TemporaryDirectory(prefix="vplib-kernel-", ignore_cleanup_errors=True)
    write_kernel_spec(Path(kept.name, "kernels/python3"), extra_arguments=["--log-level=CRITICAL"])
    paths = (kept.name, os.environ.get("JUPYTER_PATH"))
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, paths))
    return kept  # in the cache above; it is deleted when this process ends


def execute(name: str, source: Path, target: Path, parameters: dict, quiet: bool = False):
    """Runs one notebook; an error that no cell shows is put where it happened.

    Args:
        name: what the progress bar says, on a terminal.
        source: the notebook.
        target: where papermill writes while it runs; an earlier one is replaced.
        parameters: values for its parameters cell.
        quiet: no progress bar, even on a terminal.

    Returns:
        The executed notebook, as `report.read` returns it.
    """
    import papermill

    _use_this_python()
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it logs is printed below
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # of an earlier run
    error = None
    paths = [re.sub(r"([{}])", r"\1\1", str(path)) for path in (source, target)]  # it formats them
    bar = {"desc": f"  {name}", "leave": False, "disable": quiet or None}  # on a terminal
    options = {"kernel_name": "python3", "language": "python", "progress_bar": bar}
    try:
        papermill.execute_notebook(*paths, parameters=parameters or None, **options)
    except papermill.PapermillExecutionError:
        pass  # the notebook shows it
    except (Exception, KeyboardInterrupt) as caught:  # a kernel killed for its memory, Ctrl-C
        error = caught
    try:
        notebook = report.read(target)
    except ValueError:  # it never started, or was cut short while it was written
        notebook = report.read(source)
    if error:
        put_error(notebook, error)
    elif not report.failure(notebook):  # papermill marks intended errors as well
        notebook.cells = [c for c in notebook.cells if report.MARKER not in c.metadata.tags]
    return notebook


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
