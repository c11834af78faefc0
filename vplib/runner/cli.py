"""The `vplib` command: list, run, sweep, report, cache."""

import contextlib
import shutil
import sys
from pathlib import Path

import click

from vplib import __version__
from vplib.runner import report as reporting
from vplib.runner import run as running


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli():
    """Runs the notebooks of the visual privacy companion, and reports on them."""


@cli.command("list")
def list_notebooks():
    """Shows the notebooks: name, title, minutes, core or not, datasets."""
    rows = [("NOTEBOOK", "TITLE", "MINUTES", "CORE", "DATASETS")]
    for name, path in running.in_clone().items():
        try:
            about = reporting.read(path)["metadata"]["vplib"]
        except ValueError:
            about = {"title": "(unreadable)"}
        core = "core" if about.get("core") or name == "00_start_here" else ""
        sets = ", ".join(about.get("datasets") or ())
        rows.append((name, about.get("title", ""), str(about.get("minutes", "")), core, sets))
    if len(rows) == 1:
        _stop("no notebooks here: they are in the repository, not in the installed package")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(map(str.ljust, row, widths)).rstrip())


@cli.command()
@click.argument("notebooks", nargs=-1, metavar="NOTEBOOK...")
@click.option("-p", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter.")
@click.option("--profile", help="The same as -p PROFILE; mostly lab or paper.")
@click.option("--out", type=Path, help="Where to put all that is made [default: runs/TIME].")
@click.option("--core", is_flag=True, help="The start page and the core notebooks.")
@click.option("--gallery", type=Path, help="Write the hero figures to this folder.")
@click.pass_context
def run(ctx, notebooks, given, profile, out, core, gallery):
    """Runs notebooks, given as paths or as `vplib list` names them, and writes a report."""
    values = dict(given) | ({"PROFILE": profile} if profile is not None else {})
    try:
        jobs, folder = running.check(running.find(notebooks, core), values, out)
    except ValueError as error:
        _stop(error)
    ctx.exit(running.run(jobs, folder, gallery))


@cli.command()
@click.argument("notebooks", nargs=-1, metavar="NOTEBOOK...")
@click.option("--grid", multiple=True, metavar="NAME=a,b,c", help="Values of a parameter.")
@click.option("-p", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="For all points.")
@click.option("--profile", help="The same as -p PROFILE; mostly lab or paper.")
@click.option("--out", type=Path, help="The folder of the sweep [default: runs/sweep_TIME].")
@click.option("--core", is_flag=True, help="The start page and the core notebooks.")
@click.option("--scheduler", metavar="ADDRESS", help="A Dask scheduler, as tcp://HOST:8786.")
@click.option("--workers", type=click.IntRange(1), help="Processes here [default: one a core].")
@click.option("--dry-run", is_flag=True, help="Show the points, and run nothing.")
@click.pass_context
def sweep(ctx, notebooks, grid, given, profile, out, core, scheduler, workers, dry_run):
    r"""Runs notebooks with all combinations of the values in --grid, on Dask.

    The same command with the same --out goes on where a stopped sweep ended. It leaves the
    executed notebooks, sweep.csv, sweep.log and a report.

    \b
    vplib sweep attacks/membership_shadow --grid SEED=0,1,2 --grid DATASET=digits,mnist5k
    """
    from vplib.runner import sweep as sweeping

    values = dict(given) | ({"PROFILE": profile} if profile is not None else {})
    try:
        if scheduler and workers:
            raise ValueError("--workers is for a cluster on this machine; --scheduler has its own")
        points, folder = sweeping.plan(running.find(notebooks, core), grid, values, out)
        if dry_run:
            ctx.exit(sweeping.show(points))
        status = sweeping.sweep(points, folder, scheduler, workers)
    except ValueError as error:
        _stop(error)
    ctx.exit(status)


@cli.command()
@click.argument("folder", type=Path, metavar="DIR")
@click.option("--output", type=Path, help="The file to write [default: DIR/report.html].")
def report(folder, output):
    """Writes one HTML page on the executed notebooks in DIR."""
    try:
        click.echo(reporting.write(folder, output))
    except (ValueError, OSError) as error:
        _stop(error)


@cli.command()
@click.option("--clear", is_flag=True, help="Delete the models.")
def cache(clear):
    """Shows where trained models are kept and how much they take."""
    from vplib import cache as models
    from vplib import paths

    sizes = []
    for path in models.files():
        with contextlib.suppress(FileNotFoundError):  # another process renamed or cleared it
            sizes.append(path.stat().st_size)
    what = (
        f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB of trained models in {paths.cache_root()}"
    )
    click.echo(f"removing {what}" if clear else what)
    if clear:
        shutil.rmtree(paths.cache_root() / "models", ignore_errors=True)
        if left := len(models.files()):
            _stop(f"{left} files could not be removed; are they yours to remove?")


def main(args=None) -> None:
    """Runs the command; what goes wrong beforehand is one line and exit status 2."""
    try:
        status = cli.main(args, prog_name="vplib", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        status = error.show() or 2
    except click.ClickException as error:
        status = click.echo(f"vplib: {error.format_message()}", err=True) or 2
    except OSError as error:  # a full disk, while running
        status = click.echo(f"vplib: {error}", err=True) or 1
    except (click.Abort, KeyboardInterrupt):
        status = 130
    sys.exit(status)


def _stop(reason):
    error = click.ClickException(" ".join(str(reason).split()))
    error.exit_code = 2
    raise error
