"""Runs notebooks over a grid of parameters, on Dask: one point is one notebook with its values."""

import ast
import contextlib
import csv
import hashlib
import importlib.util
import io
import itertools
import json
import logging
import math
import os
import re
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vplib.runner import report, run

WAIT, PAUSE = 600.0, 5.0  # seconds to wait for space on a full disk, and between two looks
MOST = 100_000  # points


@dataclass(frozen=True)
class Point:
    """One notebook with one value for each parameter.

    Args:
        name: of the notebook.
        source: the notebook.
        target: where the executed one goes; its name spells the parameters.
        parameters: by name, in the order of the parameters cell.
        about: what the executed notebook says about its sweep: notebook, source (a hash of its
            code), swept.
    """

    name: str
    source: Path
    target: Path
    parameters: dict
    about: dict

    @property
    def label(self) -> str:
        """The notebook and the parameters, as progress and log call the point."""
        return " ".join([self.name, *(f"{k}={v}" for k, v in self.parameters.items())])

    def signed(self, executed, tries: int = 1) -> str:
        """The executed notebook as text, with what tells a resumed sweep that it is this point."""
        import nbformat

        executed.metadata.vplib["sweep"] = self.about | {"tries": tries}
        executed.metadata.papermill["parameters"] = self.parameters
        return nbformat.writes(executed)

    def done(self) -> bool:
        """Whether the executed notebook is there, and not of a run that stopped.

        Raises:
            ValueError: something else lies at its place.
        """
        if not self.target.exists():
            return False
        notebook = report.read(self.target)
        about = report.swept(notebook)
        if about is None:
            raise ValueError(f"{self.target} was not made by a sweep and stays; choose --out")
        if about["source"] != self.about["source"]:
            raise ValueError(
                f"{self.name} has changed since {self.target} was made, and one study must not mix "
                "two versions; choose another --out, or delete what the old one made"
            )
        return report.outcome(notebook) in ("ran", "claim failed")


def split_values(text: str) -> list[str]:
    """The values of `--grid NAME=a,b,c` as typed; commas inside brackets and quotes do not split.

    Raises:
        ValueError: a value is empty, or stands twice.
    """
    try:
        nodes = ast.parse(f"[{text}]", mode="eval").body.elts
        values = [ast.get_source_segment(f"[{text}]", node) for node in nodes]
    except (SyntaxError, ValueError, AttributeError, MemoryError, RecursionError):  # folder:photos
        values = [value.strip() for value in text.split(",")]
    if not values or not all(values) or text.strip().endswith(","):
        raise ValueError(f"{text!r} has an empty value; expected values with commas, as 1,2,3")
    return values


def plan(
    found: dict[str, Path], grid: tuple[str, ...], given: dict[str, str], out: Path | None
) -> tuple[list[Point], Path]:
    """The points of a sweep, after all that can be checked before one runs; writes nothing.

    Args:
        found: the notebooks, as `run.find` returns them.
        grid: texts "NAME=a,b,c"; the points are all combinations.
        given: parameters that all points share, as typed.
        out: the folder; a new one in runs/ if None.

    Raises:
        ValueError: Dask is missing, the grid is damaged, a notebook does not know a parameter, or
            a value has the wrong type.
    """
    if not importlib.util.find_spec("distributed"):
        raise ValueError('sweeps run on Dask: pip install "vplib[sweep]"')
    if not grid:
        raise ValueError("a sweep needs --grid NAME=a,b,c, for example --grid SEED=0,1,2")
    axes = {}
    for name, equals, values in (text.partition("=") for text in grid):
        if not (name.isidentifier() and equals):
            raise ValueError(f"--grid {name + equals + values!r} is not NAME=a,b,c, as SEED=0,1,2")
        if name in axes or name in given:
            raise ValueError(f"{name} is given twice; name it once, in --grid or in -p")
        axes[name] = split_values(values)
    folder = (out or Path("runs", f"sweep_{datetime.now():%Y-%m-%d_%H-%M-%S}")).absolute()
    report.spare(folder / "report.html", report.PAGE)
    report.spare(folder / "sweep.csv", b",outcome,seconds,tries")
    points = []
    for name, path in found.items():
        notebook = report.read(path)
        fixed, choices = run.check_notebook(name, notebook, given), []
        for axis, texts in axes.items():
            values = [run.check_notebook(name, notebook, {axis: text})[axis] for text in texts]
            if twice := [v for i, v in enumerate(values) if v in values[:i]]:
                raise ValueError(f"--grid {axis} has {twice[0]!r} twice")
            choices.append(values)
        code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        source = hashlib.sha256(json.dumps(code).encode()).hexdigest()
        about = {"notebook": name, "source": source, "swept": list(axes)}
        order = list(report.parameters(notebook))
        if (many := math.prod(map(len, choices))) > MOST:
            raise ValueError(f"{name}: {many:,} points; a sweep takes at most {MOST:,}")
        for values in itertools.product(*choices):
            chosen = fixed | dict(zip(axes, values, strict=True))
            parameters = {k: chosen[k] for k in sorted(chosen, key=order.index)}
            target = folder / name / f"{_file_name(parameters)}.ipynb"
            points.append(Point(name, path, target, parameters, about))
    return points, folder


def _file_name(parameters: dict) -> str:
    """The parameters as a file name; where letters are left out, a hash tells points apart."""
    text = ",".join(f"{name}={value}" for name, value in parameters.items())
    safe = re.sub(r"[^\w=,.+-]", "_", text, flags=re.ASCII)[:100]  # so many bytes, too
    mark = hashlib.sha256(json.dumps(parameters).encode()).hexdigest()[:8]
    return text if safe == text else f"{safe}-{mark}"


def run_point(source: bytes, point: Point, inode: int) -> str:
    """Runs one point on whichever machine Dask chooses.

    A worker that sees the sweep's folder puts the notebook there itself: should the worker be lost
    a moment later, the point need not run again.

    Args:
        source: what the notebook's file holds; the worker need not have it.
        point: what to run, and where the executed notebook goes.
        inode: of the sweep's folder, by which a worker knows it from another of that name.

    Returns:
        The executed notebook as JSON, with its error if it failed.
    """
    from distributed import get_worker

    folder = point.target.parents[point.name.count("/") + 1]
    seen = folder.is_dir() and folder.stat().st_ino == inode
    if seen and point.done():  # the worker was lost after it
        return point.target.read_text(encoding="utf-8")
    get_worker().log_event("vplib", get_worker().get_current_task())
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a nanny sets it: one point, one core
    # Dask removes what a killed worker left in its folder.
    own = {"prefix": "vplib-point-", "dir": get_worker().local_directory}
    with tempfile.TemporaryDirectory(**own) as place:
        path, target = Path(place, "source.ipynb"), Path(place, "out.ipynb")
        path.write_bytes(source)
        executed, _ = run.execute(point.name, path, target, point.parameters, quiet=True)
        text = point.signed(executed)
    with contextlib.suppress(OSError):  # a full disk: whoever asked waits until there is space
        if seen:
            report.write_beside(point.target, text.encode())
    return text


def done_in(folder: Path) -> dict[Path, dict]:
    """The rows of the points that a folder holds already, by their file."""
    notebooks = {path: report.read(path) for path in report.notebooks(folder)}
    return {path: report.row(book) for path, book in notebooks.items() if report.swept(book)}


def say(folder: Path, text: str) -> None:
    """Prints a line, and adds it to sweep.log."""
    print(text, flush=True)
    kind = {"encoding": "utf-8", "errors": "backslashreplace"}
    with contextlib.suppress(OSError), (folder / "sweep.log").open("a", **kind) as log:
        log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")


def write(folder: Path, path: Path, text: str) -> None:
    """Writes a file whole; on a full disk it waits, for what is computed must not be lost.

    Raises:
        OSError: there is still no space after `WAIT` seconds.
    """
    for look in itertools.count():
        try:
            return report.write_beside(path, text.encode())
        except OSError as error:
            if look * PAUSE > WAIT:
                raise
            if not look:
                why = f"{path}: {error.strerror}. The sweep goes on by itself once there is space"
                say(folder, f"cannot write {why}; it waits {WAIT / 60:.0f} minutes")
            time.sleep(PAUSE)


def write_table(folder: Path, rows: dict[Path, dict]) -> None:
    """Writes sweep.csv: one row a point, a column for whatever any of them has."""
    columns = dict.fromkeys(name for path in sorted(rows) for name in rows[path])
    columns = sorted(columns, key=lambda name: name.startswith("claim: "))  # they come last
    table = csv.DictWriter(text := io.StringIO(newline=""), columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows[path] for path in sorted(rows))
    write(folder, folder / "sweep.csv", text.getvalue())


def show(points: list[Point]) -> int:
    """Prints what a sweep would do, and does nothing. Returns the exit status."""
    done = [point.done() for point in points]
    for point, is_done in zip(points, done, strict=True):
        print(f"{point.label}: {'done' if is_done else 'to run'}")
    print(f"{len(done)} points, {sum(done)} done, {done.count(False)} to run; nothing ran")
    return 0


def sweep(
    points: list[Point], folder: Path, address: str | None = None, workers: int | None = None
) -> int:
    """Runs the points that are not done yet; the last line is the path of the report.

    Args:
        points: what `plan` returned.
        folder: what it returned as well.
        address: of a Dask scheduler; a cluster on this machine if None.
        workers: how many processes that one has; one a core if None.

    Returns:
        The exit status: 0 if every point ran and no claim failed, 130 after Ctrl-C, else 1.

    Raises:
        ValueError: the folder cannot be written, holds something else, or no scheduler answers.
    """
    run.make_folder(folder)
    with run.locked(folder):
        rows, began, interrupted = done_in(folder), time.monotonic(), False
        todo = [point for point in points if not point.done()]
        done = len(points) - len(todo)
        say(folder, f"{len(points)} points, {done} done already, {len(todo)} left")
        try:
            if todo:
                _compute(folder, rows, todo, address, workers)
        except KeyboardInterrupt:
            interrupted = True
            say(folder, f"stopped; the same command with --out {folder} goes on from here")
        good = [rows.get(point.target, {}).get("outcome") for point in points].count("ran")
        seconds = time.monotonic() - began
        if rows:
            write_table(folder, rows)
        say(folder, f"{good} of {len(points)} points ran and kept their claims, {seconds:.0f} s")
        print(*[folder / "sweep.csv", report.write(folder)] if rows else [folder], sep="\n")
    return 130 if interrupted else int(good < len(points))


def _compute(folder, rows, todo, address, workers):
    """Submits the points to Dask and keeps each as it comes back."""
    import dask
    import distributed

    # Of a cluster that is made here: the point of a lost worker starts twice at most, and points
    # wait at the scheduler, never behind a long one.
    rules = {"allowed-failures": 1, "worker-saturation": 1.0}
    rules = {f"distributed.scheduler.{name}": value for name, value in rules.items()}
    unique, futures = os.urandom(8).hex(), {}
    with dask.config.set(rules), _client(address, workers, len(todo)) as client:
        say(folder, f"Dask's dashboard: {client.dashboard_link}")
        for i, p in enumerate(todo):  # keys of one prefix: Dask queues what is alike
            source, key = p.source.read_bytes(), f"point-{i}-{unique}"
            futures[client.submit(run_point, source, p, folder.stat().st_ino, key=key)] = p
        came, began = distributed.as_completed(futures), time.monotonic()
        for number, future in enumerate(came, 1):
            tries = [key for _, key in client.get_events("vplib")].count(future.key)
            done = _keep(folder, rows, futures.pop(future), future, tries)
            left = (time.monotonic() - began) / number * (len(todo) - number)
            say(folder, f"[{number} of {len(todo)}] {done}; about {left / 60:.0f} min left")


def _keep(folder, rows, point, future, tries):
    """Writes a point that came back, and returns what the log says of it."""
    import nbformat

    if error := future.exception():  # of Dask: what a notebook raises stands in the notebook
        notebook = report.read(point.source)
        run.put_error(notebook, error)
    else:
        notebook = nbformat.reads(future.result(), 4)
    write(folder, point.target, point.signed(notebook, tries))
    rows[point.target] = row = report.row(notebook)
    write_table(folder, rows)
    what = ": ".join(filter(None, (point.label, row["outcome"], row["error"])))
    lost = f", started {tries} times: a worker was lost" if tries > 1 else ""
    return f"{what}{lost}, {row['seconds']} s"


def _client(address, workers, points):
    """A client of the scheduler at an address, or of a new cluster of its own."""
    import dask.system
    import distributed

    if not address:
        return distributed.Client(
            n_workers=min(workers or dask.system.CPU_COUNT, points),
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,  # a point's memory is its kernel's, which Dask does not see
            silence_logs=logging.CRITICAL,
        )
    try:
        return distributed.Client(address, timeout="4s")
    except Exception as error:  # whatever Dask says of an address that is none
        raise ValueError(
            f"no Dask scheduler answers at {address!r} ({error}); start one with `dask scheduler` "
            "and give the address it prints, as tcp://HOST:8786"
        ) from None
