"""The `vplib` command: list, run, sweep, report, lab, cache."""

import contextlib
import functools
import os
import re
import sys
from pathlib import Path

import click

from vplib import __version__, paths
from vplib.runner import report as reporting
from vplib.runner import run as running

OURS = re.compile(r"[0-9a-f]{64}\.safetensors|\.[0-9a-f]{8}\.[0-9a-f]{32}")  # in the cache


class _Readable(click.Group):
    """Refuses what no file, notebook and terminal can hold alike."""

    def parse_args(self, ctx, args):
        with _refusing():
            for text in (*args, os.getcwd()):
                if "\0" in text or text != text.encode(errors="ignore").decode():
                    raise ValueError(f"{text!r} is no text in UTF-8 without null bytes")
        return super().parse_args(ctx, args)


@contextlib.contextmanager
def _refusing():
    """What goes wrong before anything runs is one line and exit status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        _stop(error)


@click.group(cls=_Readable, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli():
    """Runs the notebooks of the visual privacy companion, and reports on them."""


def _what_to_run(command):
    """The options that `run` and `sweep` share; the command gets the notebooks and parameters."""

    @functools.wraps(command)
    def checked(notebooks, core, given, profile, **others):
        given += () if profile is None else (("PROFILE", profile),)
        with _refusing():
            if len(given) > len(dict(given)):
                raise ValueError("a parameter is given twice, by -p or --profile; give it once")
            found = running.find(notebooks, core)
        try:
            status = command(found, dict(given), **others)
        except ValueError as error:
            _stop(error)
        click.get_current_context().exit(status)

    many = {"nargs": 2, "multiple": True, "metavar": "NAME VALUE"}
    for add in (
        click.option("--core", is_flag=True, help="The start page and the core notebooks."),
        click.option("--out", type=Path, help="The folder of all that is made [default: runs/...]"),
        click.option("--profile", help="The same as -p PROFILE; mostly lab or paper."),
        click.option("-p", "given", help="A parameter of every notebook.", **many),
        click.argument("notebooks", nargs=-1, metavar="NOTEBOOK..."),
    ):
        checked = add(checked)
    return checked


@cli.command("list")
def list_notebooks():
    """Shows the notebooks: name, title, minutes, core or not, datasets."""
    rows = [("NOTEBOOK", "TITLE", "MINUTES", "CORE", "DATASETS")]
    for name, path in running.in_clone().items():
        about = running.about(path)
        title, minutes = (" ".join(str(about.get(k, "")).split()) for k in ("title", "minutes"))
        sets = about.get("datasets")
        sets = ", ".join(map(str, sets)) if isinstance(sets, list) else ""
        rows.append((name, title, minutes, "core" if about.get("core") else "", sets))
    if len(rows) == 1:
        _stop("no notebooks here: they are in the repository, not in the installed package")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(map(str.ljust, row, widths)).rstrip())


@cli.command()
@_what_to_run
@click.option("--gallery", type=Path, help="Write the hero figures to this folder.")
def run(found, given, out, gallery):
    """Runs notebooks, given as paths or as `vplib list` names them, and writes a report."""
    with _refusing():
        jobs, folder = running.check(found, given, out, gallery)
    return running.run(jobs, folder, gallery)


@cli.command()
@_what_to_run
@click.option("--grid", multiple=True, metavar="NAME=a,b,c", help="Values of a parameter.")
@click.option("--scheduler", metavar="ADDRESS", help="A Dask scheduler, as tcp://HOST:8786.")
@click.option("--workers", type=click.IntRange(1), help="Processes here [default: one a core].")
@click.option("--dry-run", is_flag=True, help="Show the points, and run nothing.")
def sweep(found, given, out, grid, scheduler, workers, dry_run):
    """Runs notebooks with all combinations of the values in --grid, on Dask.

    The same command with the same --out goes on where a stopped sweep ended. It leaves the
    executed notebooks, sweep.csv, sweep.log and a report.

    Example: vplib sweep attacks/membership_shadow --grid SEED=0,1,2 --grid DATASET=digits,mnist5k
    """
    from vplib.runner import sweep as sweeping

    address = r"(\w+://)?[^/\s]+:\d+|inproc://\S+"
    if scheduler is not None and not re.fullmatch(address, scheduler):
        raise ValueError(f"--scheduler {scheduler!r} is no address, as tcp://HOST:8786")
    if scheduler and workers:
        raise ValueError("--workers is for a cluster on this machine; --scheduler has its own")
    with _refusing():
        points, folder = sweeping.plan(found, grid, given, out)
    return sweeping.show(points) if dry_run else sweeping.sweep(points, folder, scheduler, workers)


@cli.command()
@click.argument("folder", type=Path, metavar="DIR")
@click.option("--output", type=Path, help="The file to write [default: DIR/report.html].")
def report(folder, output):
    """Writes one HTML page on the executed notebooks in DIR."""
    with _refusing():
        click.echo(reporting.write(folder, output))


@cli.command()
@click.argument("notebook")
@click.option("--out", type=Path, default=Path("lab"), help="Where it goes [default: lab].")
def lab(notebook, out):
    """Makes a lab of NOTEBOOK's part one: student's sheet, solutions and slides, for nbgrader."""
    from vplib.runner import lab as labs

    with _refusing():
        ((name, path),) = running.find((notebook,)).items()
        sheets = labs.check(name, path, out.absolute())
    click.get_current_context().exit(labs.write(name, path, out.absolute(), *sheets))


@cli.command()
@click.option("--clear", is_flag=True, help="Delete the models.")
def cache(clear):
    """Shows where trained models are kept and how much they take."""
    from vplib import cache as models

    with _refusing():
        root, held = paths.cache_root(), [p for p in models.files() if OURS.fullmatch(p.name)]
        size = sum(path.stat().st_size for path in held if path.exists())
        what = f"{len(held)} files, {size / 1e6:.1f} MB of trained models in {root}"
        click.echo(f"removing {what}" if clear else what)
        left = 0
        for path in held if clear else ():  # and nothing that somebody else keeps beside them
            try:
                path.unlink(missing_ok=True)
            except OSError:
                left += 1
        for folder in (*(root / "models").glob("*/"), root / "models") if clear else ():
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        if left:
            raise ValueError(f"{left} files could not be removed; are they yours to remove?")


def main(args=None) -> None:
    """Runs the command; what goes wrong beforehand is one line and exit status 2."""
    for stream in (sys.stdout, sys.stderr):  # a terminal need not have a claim's Greek letters
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if home := paths.lent_home():  # where Jupyter keeps its kernels' keys
        os.environ["HOME"] = str(home)
        with contextlib.suppress(OSError):
            home.mkdir(mode=0o700, exist_ok=True)
    try:
        status = cli.main(args, prog_name="vplib", standalone_mode=False)
    except click.ClickException as error:
        status = click.echo(f"vplib: {_line(error.format_message())}", err=True) or 2
    except OSError as error:  # a full disk, while running
        status = click.echo(f"vplib: {error}", err=True) or 1
    except (click.Abort, KeyboardInterrupt):
        status = 130
    sys.exit(status)


def _stop(reason):
    error = click.ClickException(_line(reason))
    error.exit_code = 2
    raise error


def _line(text):
    """A text in one line, of a long one its beginning and its end."""
    line = " ".join(str(text).split())
    return line if len(line) <= 600 else f"{line[:300]} ... {line[-300:]}"
