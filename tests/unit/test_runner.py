"""The command line: what it refuses, what it runs, what it keeps and what it reports."""

import base64
import contextlib
import html
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import papermill
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from vplib.claims import claims_table
from vplib.runner import report, run
from vplib.runner.cli import cli, main

MAKEFILE = (report.Path(__file__).parents[2] / "Makefile").read_text()
PARAMETERS = """SEED = 0
PROFILE = "lab"
DATASET = "digits"
RATE: float = 0.5
SIZES = (1, 2)
FAST = False
LIMIT = None
DEVICE = "auto"
IMAGE_SIZE = None
NUM_STEPS = 5
BATCH_SIZES = (4, 8)
TRANSFER = None"""
PROFILES = "cfg = experiment.profile(\n    PROFILE, lab=dict(n=1), paper=dict(n=2)\n)"
CLAIM = """claims = experiment.Claims("Core 2017", data=DATASET, asserted_on=("digits",))
claims.check("more leaks", paper="0.52", ours=SEED + 0.25, holds=RATE < 1,
             control=False, headline=True)
claims.check("never seen", paper="0.9 <b>", ours={"A": 0.1, "B": 2}, holds=True,
             not_reproduced="too small")
claims.show()"""
FIGURE = """import matplotlib.pyplot as plt
plt.figure(figsize=(2, 1)); plt.plot([0, SEED]); plt.show()"""


def code(source, *tags):
    return new_code_cell(source, metadata={"tags": list(tags)})


def save(path, *cells, **about):
    """A small notebook of these cells after the usual first ones, as a file."""
    first = [new_markdown_cell("# Title"), code(PARAMETERS, "parameters"), code(PROFILES)]
    notebook = new_notebook(cells=first + list(cells), metadata={"vplib": about} if about else {})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def noisy_png(side=300):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def executed(path, *outputs, tags=(), **papermill_metadata):
    """A notebook as a run leaves it, with these outputs, made without a kernel."""
    cell = new_code_cell("x = 1", execution_count=1, outputs=list(outputs))
    cell.metadata.tags = list(tags)
    cells = [new_markdown_cell("## Part\n\nA sentence, **bold**. More."), cell]
    times = {"start_time": "2025-01-01T00:00:00", "end_time": "2025-01-01T00:00:03"}
    about = {"papermill": {**times, "duration": 3.0, **papermill_metadata}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=about), path)
    return path


def payload(kind, value):
    return new_output("display_data", {report.MIME: {kind: value}, "text/plain": ""})


def row(claim, outcome="holds", ours=1):
    found = {"of": "P", "claim": claim, "paper": "1", "ours": {"": ours}, "shown": str(ours)}
    found |= {"outcome": outcome, "why": "", "headline": False, "control": False, "no_control": ""}
    return found


@pytest.fixture
def ran_nothing(monkeypatch, tmp_path):
    """Fails the test if a notebook is executed; returns an output folder that must not appear."""
    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **k: pytest.fail("it ran"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "out"
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


def refused(*arguments):
    """The one line that the command says before it ends with status 2."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    return result.stderr


# --- what is refused before anything runs -------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["-p", "SED", "3"], "unknown parameter 'SED'; did you mean 'SEED'?"),
        (["-p", "SEED", "abc"], "SEED must be of type int, like 0; not 'abc'"),
        (["-p", "SEED", "1.5"], "SEED must be of type int, like 0; not 1.5"),
        (["-p", "SEED", "True"], "SEED must be of type int, like 0; not True"),
        (["-p", "FAST", "1"], "FAST must be of type bool, like False; not 1"),
        (["-p", "DATASET", "3"], "DATASET must be of type str, like 'digits'; not 3"),
        (["-p", "SIZES", "1"], "SIZES must be of type list, like [1, 2]; not 1"),
        (["--profile", "labb"], "unknown profile 'labb'; did you mean 'lab'?"),
        (["-p", "PROFILE", "paperr"], "unknown profile 'paperr'; did you mean 'paper'?"),
        (["-p", "DATASET", "digit"], "unknown dataset 'digit'; did you mean 'digits'?"),
        (["-p", "DATASET", "folder:none"], "no such folder"),
        (["-p", "DATASET", "folder:"], "unknown dataset ''"),
        (["-p", "DATASET", ""], "unknown dataset ''"),
        (["-p", "DATASET", "folder:~nosuch/x"], "Could not determine home directory"),
        (["-p", "DATASET", f"folder:{'x' * 300}"], "File name too long"),
        (["-p", "RATE", "1e400"], "RATE must be below 1.8e308, not 1e400"),
        (["-p", "RATE", "nan"], "RATE must be a finite number, not nan"),
        (["-p", "RATE", "-inf"], "RATE must be a finite number, not -inf"),
        (["-p", "LIMIT", "NaN"], "LIMIT must be a finite number, not NaN"),
        (["-p", "SEED", "-1"], "seed must be an integer from 0 to 4294967295, not -1"),
        (["-p", "SEED", "4294967296"], "seed must be an integer from 0 to 4294967295, not 42949"),
        (["-p", "DEVICE", "nosuch"], "DEVICE 'nosuch' does not work here (Expected one of cpu"),
        (["-p", "DEVICE", ""], "DEVICE '' does not work here"),
        (["-p", "IMAGE_SIZE", "0"], "IMAGE_SIZE must be a whole number from 1 on, not 0"),
        (["-p", "IMAGE_SIZE", "-32"], "IMAGE_SIZE must be a whole number from 1 on, not -32"),
        (["-p", "IMAGE_SIZE", "32.5"], "IMAGE_SIZE must be a whole number from 1 on, not 32.5"),
        (["-p", "IMAGE_SIZE", "True"], "IMAGE_SIZE must be a whole number from 1 on, not True"),
        (["-p", "IMAGE_SIZE", "[64, 64]"], "IMAGE_SIZE must be a whole number from 1 on, not [64"),
        (["-p", "IMAGE_SIZE", "big"], "IMAGE_SIZE must be a whole number from 1 on, not 'big'"),
        (["-p", "NUM_STEPS", "0"], "NUM_STEPS must be a whole number from 1 on, not 0"),
        (["-p", "BATCH_SIZES", "4,0"], "BATCH_SIZES must be a whole number from 1 on, not [4, 0]"),
        (["-p", "TRANSFER", "digit"], "unknown dataset 'digit'; did you mean 'digits'?"),
        (["-p", "PROFILE", "nested"], "unknown profile 'nested'; known: lab, paper, rehearsal"),
    ],
)
def test_refuses_parameters(ran_nothing, tmp_path, arguments, said):
    path = save(tmp_path / "tiny.ipynb", code("nested = dict(nested=dict(a=1))"))
    line = refused("run", path, "--out", ran_nothing, *arguments)
    assert f"tiny: {said}" in line or (said in line and "tiny: " in line)
    if arguments[0] == "-p":
        _, name, value = arguments
        other = "FAST=False" if name != "FAST" else "SEED=1"
        swept = ["sweep", path, "--out", ran_nothing, "--grid"]
        assert refused(*swept, other, *arguments) == line
        if value and "," not in value:
            assert refused(*swept, f"{name}={value}") == line


def test_takes_parameters_in_range(tmp_path):
    notebook = report.read(save(tmp_path / "tiny.ipynb"))
    given = {"SEED": "4294967295", "DEVICE": "cuda", "IMAGE_SIZE": "1"}
    given |= {"TRANSFER": "mnist5k", "DATASET": "random:mnist", "LIMIT": "-1"}
    given["NUM_STEPS"] = "7"
    found = run.check_notebook("tiny", notebook, given)
    assert {name: str(value) for name, value in found.items()} == given
    assert run.check_notebook("tiny", notebook, {"BATCH_SIZES": "8,"}) == {"BATCH_SIZES": [8]}


@pytest.mark.parametrize(
    "files, said",
    [
        ([], "photos: no images found; put one folder a class into it"),
        (["1.png"], "photos: no images found; put one folder a class into it"),
        (["cats/1.heic"], "cats: there is no image in this class; add some or remove it"),
        (["train/cat/1.png", "test/cat/1.png"], "test: 'cat' is a folder within a class"),
    ],
)
def test_refuses_a_folder_without_classes(ran_nothing, tmp_path, files, said):
    (photos := tmp_path / "photos").mkdir()
    for name in files:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).touch()
    path = save(tmp_path / "tiny.ipynb")
    line = refused("run", path, "--out", ran_nothing, "-p", "DATASET", f"folder:{photos}")
    assert said in line


def test_every_notebook_must_know_a_parameter(ran_nothing, tmp_path):
    knows, other = save(tmp_path / "knows.ipynb"), tmp_path / "other.ipynb"
    nbformat.write(new_notebook(cells=[code("WIDTH = 1", "parameters")]), other)
    line = refused("run", knows, other, "-p", "SEED", "1", "--out", ran_nothing)
    assert "other: unknown parameter 'SEED'" in line and "WIDTH" in line


@pytest.mark.parametrize("wanted", ["attacks/membership_shado", "membership_shadow"])
def test_offers_the_nearest_notebook(ran_nothing, wanted):
    line = refused("run", wanted, "--out", ran_nothing)
    assert f"no notebook '{wanted}'; did you mean 'attacks/membership_shadow'?" in line


def test_refuses_nothing_to_run(ran_nothing):
    assert "nothing to run" in refused("run", "--out", ran_nothing)


@pytest.mark.parametrize("content", ["{", "[]", '{"cells": 3}', '{"nbformat": 3}', "\xff"])
def test_refuses_a_damaged_notebook(ran_nothing, tmp_path, content):
    (tmp_path / "bad.ipynb").write_text(content, encoding="latin-1")
    line = refused("run", tmp_path / "bad.ipynb", "--out", ran_nothing)
    assert "bad.ipynb is not a readable notebook" in line


def test_refuses_two_notebooks_of_one_name(ran_nothing, tmp_path):
    one, two = save(tmp_path / "a" / "same.ipynb"), save(tmp_path / "b" / "same.ipynb")
    line = refused("run", one, two, "--out", ran_nothing)
    assert "two notebooks are called 'same'" in line


def test_refuses_a_folder_that_cannot_be_written(ran_nothing, tmp_path):
    path = save(tmp_path / "tiny.ipynb")
    (tmp_path / "file").write_text("x")
    line = refused("run", path, "--out", tmp_path / "file" / "inside")
    assert "cannot write to" in line and "inside" in line


def test_never_writes_over_a_source(ran_nothing, tmp_path):
    path = save(tmp_path / "tiny.ipynb")
    before = path.read_bytes()
    assert "is a notebook to run and stays" in refused("run", path, "--out", tmp_path)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "tiny.ipynb").symlink_to(path)
    (tmp_path / "same").mkdir()
    os.link(path, tmp_path / "same" / "tiny.ipynb")
    for folder in ("linked", "same"):
        line = refused("run", path, "--out", tmp_path / folder)
        assert "is a notebook to run and stays" in line
    assert path.read_bytes() == before


@pytest.fixture
def instant(monkeypatch):
    """Papermill without a kernel: every cell gets a count, and the notebook a few lines of time."""

    def execute(source, target, parameters=None, **options):
        notebook = nbformat.read(source, 4)
        for count, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
            cell.execution_count = count
        notebook.metadata["papermill"] = {"end_time": "x", "parameters": parameters or {}}
        nbformat.write(notebook, target)

    monkeypatch.setattr(papermill, "execute_notebook", execute)


def ran(*arguments):
    result = CliRunner().invoke(cli, ["run", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


def test_a_result_is_no_source_to_write_onto(instant, tmp_path, monkeypatch):
    path, out = save(tmp_path / "a.ipynb"), tmp_path / "ex"
    ran(path, "--out", out)
    before = (out / "a.ipynb").read_bytes()
    monkeypatch.chdir(out)
    assert "is a notebook to run and stays" in refused(
        "run", "a.ipynb", "--out", ".", "-p", "SEED", "3"
    )
    assert (out / "a.ipynb").read_bytes() == before


def test_overwrites_the_untouched_result_of_the_same_job_only(instant, tmp_path):
    path, out = save(tmp_path / "a.ipynb"), tmp_path / "out"
    ran(path, "--out", out, "-p", "SEED", "1")
    ran(path, "--out", out, "-p", "SEED", "1")
    held = (out / "a.ipynb").read_bytes()
    job = ["--out", out, "-p", "SEED", "1"]
    assert "was made with other parameters and stays" in refused("run", path, "--out", out)
    other = save(tmp_path / "other" / "a.ipynb")
    assert "was not made by a run of this notebook and stays" in refused("run", other, *job)
    assert (out / "a.ipynb").read_bytes() == held
    notebook = report.read(out / "a.ipynb")
    notebook.cells.append(new_markdown_cell("a student's own notes"))
    nbformat.write(notebook, out / "a.ipynb")
    assert "was changed after its run and stays" in refused("run", path, *job)
    assert "own notes" in (out / "a.ipynb").read_text()
    executed(out / "a.ipynb")  # by papermill alone
    assert "was not made by a run of this notebook" in refused("run", path, *job)
    (out / "a.ipynb").unlink()
    ran(path, *job)


def test_a_page_or_picture_of_others_stays(instant, tmp_path):
    path, mine = save(tmp_path / "cat.ipynb"), tmp_path / "mine"
    mine.mkdir()
    for name in ("report.html", "cat.png", "notes.ipynb"):
        (mine / name).write_text("my work")
    assert "report.html was not made by vplib" in refused("run", path, "--out", mine)
    out = ["--out", tmp_path / "out"]
    assert "cat.png was not made by vplib" in refused("run", path, *out, "--gallery", mine)
    ran(path, *out)
    for name in ("report.html", "cat.png", "notes.ipynb"):
        line = refused("report", tmp_path / "out", "--output", mine / name)
        assert f"{name} was not made by vplib and stays" in line
    refused("report", tmp_path / "out", "--output", path)
    assert "mine was not made" in refused("report", tmp_path / "out", "--output", mine)
    os.mkfifo(mine / "pipe")
    assert "pipe was not made" in refused("report", tmp_path / "out", "--output", mine / "pipe")
    assert {(mine / n).read_text() for n in os.listdir(mine) if n != "pipe"} == {"my work"}
    assert CliRunner().invoke(cli, ["report", str(tmp_path / "out")]).exit_code == 0


def test_make_run_leaves_the_tracked_pictures_and_clean_the_results():
    recipes = dict(re.findall(r"^(\w+):[^\n]*\n((?:\t.*\n)+)", MAKEFILE, re.M))
    assert "gallery" not in recipes["run"] and "gallery" in recipes["strip"]
    assert "runs" not in recipes["clean"]


# --- the earlier result stays, whatever stops a run -----------------------------------------------


@pytest.fixture
def earlier(instant, tmp_path):
    """Two notebooks with results of an earlier run: arguments of the same one, and the folder."""
    paths = [save(tmp_path / f"{name}.ipynb") for name in ("one", "two")]
    arguments = ["run", *map(str, paths), "--out", str(tmp_path / "out")]
    ran(*arguments[1:])
    return arguments, tmp_path / "out"


def test_a_full_disk_leaves_the_earlier_result_and_runs_the_others(earlier, monkeypatch):
    arguments, out = earlier
    before, wrote = (out / "one.ipynb").read_bytes(), report.Path.write_bytes

    def full(self, content):
        wrote(self, content[:10])
        if self.parent == out and b"markdown" in content and not written:
            written.append(self)
            raise OSError(28, "No space left on device")
        wrote(self, content)

    written = []
    monkeypatch.setattr(report.Path, "write_bytes", full)
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1 and written
    assert "one: not kept ([Errno 28] No space left on device); an earlier" in result.stdout
    assert "two: ran" in result.stdout and "1 of 2 notebooks ran" in result.stdout
    assert (out / "one.ipynb").read_bytes() == before
    assert sorted(os.listdir(out)) == [".vplib.lock", "one.ipynb", "report.html", "two.ipynb"]
    monkeypatch.setattr(report.Path, "write_bytes", wrote)
    ran(*arguments[1:])


@pytest.mark.parametrize(
    "stop", [OSError(28, "No space left on device"), RuntimeError("died"), KeyboardInterrupt()]
)
def test_what_stops_papermill_leaves_the_earlier_result(earlier, monkeypatch, stop):
    arguments, out = earlier
    before = (out / "one.ipynb").read_bytes()

    def stopped(source, target, **options):
        report.Path(target).write_text('{"cells": [')
        raise stop

    monkeypatch.setattr(papermill, "execute_notebook", stopped)
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == (130 if isinstance(stop, KeyboardInterrupt) else 1)
    assert type(stop).__name__ in result.stdout
    assert (out / "one.ipynb").read_bytes() == before
    assert not (out / ".running.ipynb").exists()


def test_a_first_run_that_is_stopped_is_kept_with_its_error(instant, tmp_path, monkeypatch):
    def stopped(*arguments, **options):
        raise RuntimeError("Kernel died")

    monkeypatch.setattr(papermill, "execute_notebook", stopped)
    arguments = ["run", str(save(tmp_path / "a.ipynb")), "--out", str(tmp_path / "out")]
    for _ in range(2):  # the same command goes on
        assert CliRunner().invoke(cli, arguments).exit_code == 1
    assert report.outcome(report.read(tmp_path / "out" / "a.ipynb")) == "failed"


def test_an_unreadable_result_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(
        papermill,
        "execute_notebook",
        lambda source, target, **o: report.Path(target).write_text("{"),
    )
    path = save(tmp_path / "a.ipynb")
    result = CliRunner().invoke(cli, ["run", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1 and "a: failed" in result.stdout
    assert "is not a readable notebook" in result.stdout


def test_a_source_that_is_gone_stops_no_other(instant, tmp_path, monkeypatch):
    one, two = save(tmp_path / "one.ipynb"), save(tmp_path / "two.ipynb")
    spared = run.spare_others

    def gone(jobs):
        spared(jobs)
        if "out" in os.listdir(tmp_path):  # the second time, when all is checked
            one.unlink()

    monkeypatch.setattr(run, "spare_others", gone)
    result = CliRunner().invoke(cli, ["run", str(one), str(two), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1 and "one: not kept" in result.stdout
    assert "two: ran" in result.stdout and "report.html" in result.stdout


def test_runs_that_share_a_folder_wait_for_each_other(tmp_path, monkeypatch):
    import filelock

    held, lock = [], run.locked

    def execute(source, target, **options):
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(tmp_path / "out" / ".vplib.lock").acquire(timeout=0)
        held.append(source)
        executed(report.Path(target))

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    path = save(tmp_path / "a.ipynb")
    ran(path, "--out", tmp_path / "out")
    assert len(held) == 1
    with lock(tmp_path / "out"):  # free again
        pass


def test_what_another_run_left_in_between_stays(instant, tmp_path, monkeypatch):
    path, out, lock = save(tmp_path / "a.ipynb"), tmp_path / "out", run.locked

    @contextlib.contextmanager
    def waited(folder):
        monkeypatch.setattr(run, "locked", lock)
        ran(path, "--out", out, "-p", "SEED", "1")
        with lock(folder):
            yield

    monkeypatch.setattr(run, "locked", waited)
    assert "was made with other parameters" in refused("run", path, "--out", out)
    assert report.read(out / "a.ipynb").metadata.papermill["parameters"] == {"SEED": 1}


def test_a_point_of_a_sweep_that_runs_again_is_none(instant, tmp_path):
    path = save(tmp_path / "a.ipynb", sweep={"notebook": "a"})
    ran(path, "--out", tmp_path / "out")
    assert "sweep" not in report.read(tmp_path / "out" / "a.ipynb").metadata.vplib


def test_names_the_missing_extra(ran_nothing, tmp_path, monkeypatch):
    wanted = ["torch>=2.4", "nowhere-lib>=1; extra == 'he'", "click; extra == 'he'"]
    monkeypatch.setattr(run.importlib.metadata, "requires", lambda name: wanted)
    path = save(tmp_path / "needs.ipynb", extras=["he"])
    line = refused("run", path, "--out", ran_nothing)
    assert 'needs needs nowhere-lib: pip install "vplib[he]"' in line
    assert run.missing_of("no_such_extra") == "extra 'no_such_extra'"


def test_an_installed_extra_is_not_missing():
    assert run.missing_of("lab") == ""


def test_says_how_to_get_papermill(ran_nothing, tmp_path, monkeypatch):
    path = save(tmp_path / "tiny.ipynb")
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    assert 'pip install "vplib[lab]"' in refused("run", path, "--out", ran_nothing)


# --- sixty bad calls of each command --------------------------------------------------------------

WORDS = (
    ["", " ", "x", "é", "Ω", "<script>alert(1)</script>", "'", '"', "\\", "-", "=", ",", "a=b"]
    + ["[", "((", "{}{{", "%s", "$HOME", "*", "..", "/", "/dev/null", "/proc/x", "~nosuch/x"]
    + ["folder:", "folder:~nosuch/x", "folder:none", f"folder:{'n' * 300}", "random:", "nan"]
    + ["None", "True", "1.5", "1e400", "-1e400", "1" * 4000, "1" * 5000, "-" * 60_000]
    + ["[" * 5000, "a" * 300, "b/" * 3000, "\n", "\t", "\x1b[2J", "\0", "a\0b", "\udcff", "x\udcff"]
    + ["\u202e", "C:\\x", "https://x.invalid/a.ipynb", "''", "# x", "lambda: 1", "__import__('os')"]
)
NOWHERE = ["/proc/x", "/dev/null/x", "a" * 300, "b/" * 3000, "x\0", "x\udcff", "file", "file/x"]


def bad_calls(command, number=60):
    """Calls of a command that each have one fault at least."""
    draw = random.Random(command)
    word = lambda: draw.choice(WORDS)  # noqa: E731
    if command == "run":
        makers = [
            lambda: ["good.ipynb", "-p", "SEED", word()],
            lambda: ["good.ipynb", "-p", "RATE", word().replace("1.5", "x") + "x"],
            lambda: ["good.ipynb", "-p", "SIZES", word()],
            lambda: ["good.ipynb", "-p", "DATASET", word()],
            lambda: ["good.ipynb", "-p", word(), word()],
            lambda: ["good.ipynb", "--profile", word()],
            lambda: ["good.ipynb", word()],
            lambda: [word()],
            lambda: ["good.ipynb", f"--{word()}x"],
            lambda: ["good.ipynb", "--out", draw.choice(NOWHERE)],
            lambda: ["good.ipynb", "--gallery", draw.choice(NOWHERE)],
            lambda: [draw.choice(["deep", "pipe", "untyped", "untagged", "..", "list"]) + ".ipynb"],
        ]
    elif command == "sweep":
        makers = [
            lambda: ["good.ipynb", "--grid", word()],
            lambda: ["good.ipynb", "--grid", f"SEED={word()}"],
            lambda: ["good.ipynb", "--grid", f"SEED=1,{word()}"],
            lambda: ["good.ipynb", "--grid", f"DATASET=digits,{word()}"],
            lambda: ["good.ipynb", "--grid", f"{word()}=1,2"],
            lambda: ["good.ipynb", "--grid", "SEED=1", "-p", "SIZES", word()],
            lambda: ["good.ipynb", "--grid", "SEED=1", "--workers", word()],
            lambda: ["good.ipynb", "--grid", "SEED=1", "--scheduler", word()],
            lambda: ["good.ipynb", "--grid", "SEED=1", "--out", draw.choice(NOWHERE)],
            lambda: [word(), "--grid", "SEED=1"],
            lambda: [word()],
        ]
    elif command == "report":
        makers = [lambda: [word()], lambda: ["done", "--output", draw.choice(NOWHERE)]]
        makers += [lambda: ["done", word()], lambda: [], lambda: ["done", f"--{word()}x"]]
    else:
        makers = [lambda: [word()], lambda: [f"--{word()}x"], lambda: ["-x", word()]]
    return [[command, *draw.choice(makers)()] for _ in range(number)]


@pytest.mark.parametrize("command", ["list", "run", "sweep", "report", "cache"])
def test_bad_calls_are_one_line_and_run_nothing(command, ran_nothing, tmp_path, monkeypatch):
    from vplib import cache, datasets  # noqa: F401, so that no call waits for torch

    monkeypatch.setenv("VPLIB_CACHE", str(tmp_path / "cache"))
    good = save(tmp_path / "good.ipynb")
    content = json.loads(good.read_text())
    (tmp_path / "deep.ipynb").write_text("[" * 100_000)
    os.mkfifo(tmp_path / "pipe.ipynb")
    content["cells"][1].pop("cell_type")
    (tmp_path / "untyped.ipynb").write_text(json.dumps(content))
    (tmp_path / "untagged.ipynb").write_text('{"cells": [{"metadata": null}], "nbformat": 4}')
    (tmp_path / "...ipynb").write_bytes(good.read_bytes())
    (tmp_path / "list.ipynb").write_text("[1, 2]")
    (tmp_path / "file").write_text("mine")
    executed(tmp_path / "done" / "a.ipynb")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for call in bad_calls(command):
        out, err = io.StringIO(), io.StringIO()
        began = time.process_time()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with pytest.raises(SystemExit) as ended:
                main(call)
        shown = [text[:40] for text in call]
        assert ended.value.code == 2, (shown, out.getvalue(), err.getvalue())
        line = err.getvalue()
        assert out.getvalue() == "" and line.startswith("vplib: "), shown
        assert line.count("\n") == 1 and len(line) < 700, shown
        assert time.process_time() - began < 5, shown
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("key", ["tags", "papermill", "vplib"])
@pytest.mark.parametrize("value", [None, 3, "x", [1], {"extras": 5, "sweep": 1, "title": [2]}])
def test_odd_metadata_is_left_out(instant, tmp_path, key, value):
    path = save(tmp_path / "a.ipynb")
    notebook = json.loads(path.read_text())
    notebook["metadata"][key] = value
    for cell in notebook["cells"]:
        cell["metadata"].setdefault(key, value)
    path.write_text(json.dumps(notebook))
    result = CliRunner().invoke(cli, ["run", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code in (0, 2) and not isinstance(result.exception, Exception), result.output
    assert set(run.about(path)) <= {"title", "extras", "sweep"}


@pytest.mark.parametrize("arguments", [["runn"], ["run", "-p", "SEED"], ["run", "--outt", "x"]])
def test_wrong_usage_is_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("vplib: ") and said.err.count("\n") == 1


def test_no_command_shows_the_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2 and "report" in capsys.readouterr().err


def test_a_full_disk_for_all_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **k: None)
    monkeypatch.setattr(report, "write_beside", full)
    path = save(tmp_path / "tiny.ipynb")
    with pytest.raises(SystemExit) as ended:
        main(["run", str(path), "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert said.err == "" and "tiny: not kept ([Errno 28] No space left on device)" in said.out
    assert said.out.splitlines()[-1].startswith("there is no executed notebook in")


# --- values, parameters, profiles ---------------------------------------------------------------


@pytest.mark.parametrize(
    "text, default, value",
    [
        ("3", 0, 3),
        ("-3", 0, -3),
        ("3", 0.5, 3),
        ("1e-3", 0.5, 0.001),
        ("True", False, True),
        ("auto", "cpu", "auto"),
        ("'3'", "cpu", "3"),
        ("None", None, None),
        ("64", None, 64),
        ("text", None, "text"),
        ("{1, 2}", None, "{1, 2}"),
        ("1,2", (3, 4), [1, 2]),
        ("[1, 2.5]", [0.5], [1, 2.5]),
        ("[]", [1], []),
        ("['a', 1]", [], ["a", 1]),
        ("{'a': 1}", {}, {"a": 1}),
    ],
)
def test_parses_values(text, default, value):
    default = list(default) if isinstance(default, tuple) else default
    parsed = run.parse_value("X", text, default)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    "text, default",
    [
        ("x", 0),
        ("0.5", 0),
        ("False", 0),
        ("0", False),
        ("True", 0.5),
        ("nan", 0.5),
        ("3", "text"),
        ("None", "text"),
        ("3", [1]),
        ("[1]", {}),
        ("((((", 1),
        ("-" * 60_000, 1),
        ("1e400", 0.5),
        ("1e400", None),
        ("1" * 4000, 1),
        ("[1, -1e400]", [1]),
        ("{'a': 1e999}", {}),
    ],
)
def test_refuses_values_of_another_type(text, default):
    with pytest.raises(ValueError, match="^X must be "):
        run.parse_value("X", text, default)


def test_reads_parameters_from_the_tagged_cell_only(tmp_path):
    cells = [code("OTHER = 1"), code("%pip install x"), code("profile = lambda x: x")]
    notebook = report.read(save(tmp_path / "tiny.ipynb", *cells))
    assert report.parameters(notebook) == {
        "SEED": 0,
        "PROFILE": "lab",
        "DATASET": "digits",
        "RATE": 0.5,
        "SIZES": [1, 2],
        "FAST": False,
        "LIMIT": None,
        "DEVICE": "auto",
        "IMAGE_SIZE": None,
        "NUM_STEPS": 5,
        "BATCH_SIZES": [4, 8],
        "TRANSFER": None,
    }
    assert run.check_notebook("tiny", notebook, {"PROFILE": "rehearsal"}) == {
        "PROFILE": "rehearsal"
    }


def test_makes_a_relative_folder_of_images_absolute(tmp_path, monkeypatch):
    (tmp_path / "pictures" / "cats").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "pictures" / "cats" / "1.png")
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "tiny.ipynb")
    jobs, _ = run.check({"tiny": path}, {"DATASET": "folder:pictures"}, tmp_path / "out")
    assert jobs[0][3] == {"DATASET": f"folder:{(tmp_path / 'pictures').resolve()}"}


def test_two_runs_never_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "tiny.ipynb")
    folders = {run.check({"tiny": path}, {}, None)[1] for _ in range(3)}
    assert len(folders) == 3
    assert all(f.parent == tmp_path / "runs" and f.is_dir() for f in folders)


# --- list, cache --------------------------------------------------------------------------------


def clone(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "repository_root", lambda: tmp_path)
    books = tmp_path / "notebooks"
    save(books / "00_start_here.ipynb", title="Start", minutes=5, datasets=[], core=True)
    save(books / "attacks" / "one.ipynb", title="First", minutes=90, datasets=["a", "b"], core=True)
    save(books / "attacks" / "two.ipynb", title="Second", minutes=9, datasets=["a"], core=False)
    save(books / "attacks" / ".ipynb_checkpoints" / "one.ipynb", title="A copy")
    return books


def test_lists_what_is_no_notebook_of_ours_without_a_traceback(tmp_path, monkeypatch):
    books = clone(tmp_path, monkeypatch)
    save(books / ".ipynb_checkpoints" / "a-checkpoint.ipynb", title="A copy", core=True)
    for path in books.rglob("*.ipynb"):
        if ".ipynb_checkpoints" not in path.parts:
            path.unlink()
    os.mkfifo(books / "pipe.ipynb")
    (books / "gone.ipynb").symlink_to(books / "nowhere")
    (books / "a.ipynb").write_text("[" * 100_000)
    for name, about in {"b": None, "c": [1], "d": {"title": 3, "datasets": 4}}.items():
        save(books / f"{name}.ipynb", x=1)
        notebook = json.loads((books / f"{name}.ipynb").read_text())
        notebook["metadata"]["vplib"] = about
        (books / f"{name}.ipynb").write_text(json.dumps(notebook))
    save(books / "e.ipynb", title="Two\nlines", datasets=[1, None])
    result = CliRunner().invoke(cli, ["list"])
    assert result.exit_code == 0, result.exception
    assert [line.split() for line in result.stdout.splitlines()[1:]] == [
        ["a", "(unreadable)"], ["b", "(unreadable)"], ["c", "(unreadable)"], ["d", "3"],
        ["e", "Two", "lines", "1,", "None"],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="nothing to run"):
        run.find((), core=True)


def test_lists_notebooks_as_an_aligned_table(tmp_path, monkeypatch):
    books = clone(tmp_path, monkeypatch)
    (books / "attacks" / "zz.ipynb").write_text("{")
    result = CliRunner().invoke(cli, ["list"])
    assert result.exit_code == 0
    head, start, one, two, bad = result.stdout.splitlines()
    assert start.split() == ["00_start_here", "Start", "5", "core"]
    assert one.split() == ["attacks/one", "First", "90", "core", "a,", "b"]
    assert two.split() == ["attacks/two", "Second", "9", "a"]
    assert "attacks/zz" in bad and "unreadable" in bad
    assert {line.index(t) for line, t in ((head, "TITLE"), (one, "First"), (two, "Second"))} == {
        one.index("First")
    }


def test_list_outside_a_clone(monkeypatch):
    monkeypatch.setattr(run, "repository_root", lambda: None)
    assert "no notebooks here" in refused("list")


def test_core_takes_the_start_page_and_what_says_core(tmp_path, monkeypatch):
    clone(tmp_path, monkeypatch)
    assert list(run.find((), core=True)) == ["00_start_here", "attacks/one"]
    both = run.find(("attacks/two", str(tmp_path / "notebooks/attacks/one.ipynb")), core=True)
    assert list(both) == ["00_start_here", "attacks/one", "attacks/two"]


def test_cache_shows_and_clears_models_only(tmp_path, monkeypatch):
    monkeypatch.setenv("VPLIB_CACHE", str(tmp_path))
    (tmp_path / "models" / "ab").mkdir(parents=True)
    kept, half = f"{'ab' * 32}.safetensors", f".{'ab' * 4}.{'0' * 32}"  # as vplib.cache names them
    (tmp_path / "models" / "ab" / kept).write_bytes(b"0" * 1_400_000)
    (tmp_path / "models" / "ab" / half).write_bytes(b"0" * 100_000)
    mine = [tmp_path / "data.txt", tmp_path / "models" / "my.safetensors"]
    for path in mine:
        path.write_text("stays")
    shown = CliRunner().invoke(cli, ["cache"])
    assert shown.stdout == f"2 files, 1.5 MB of trained models in {tmp_path}\n"
    assert (tmp_path / "models" / "ab" / kept).exists()
    cleared = CliRunner().invoke(cli, ["cache", "--clear"])
    assert cleared.exit_code == 0 and cleared.stdout == "removing " + shown.stdout
    assert not (tmp_path / "models" / "ab").exists()
    assert {path.read_text() for path in mine} == {"stays"}
    assert "0 files" in CliRunner().invoke(cli, ["cache", "--clear"]).stdout


def test_a_cache_that_is_no_place_is_one_line(monkeypatch):
    monkeypatch.setenv("VPLIB_CACHE", "~nosuch/x")
    assert "VPLIB_CACHE=~nosuch/x" in refused("cache")


def test_python_m_vplib_is_the_command():
    command = [sys.executable, "-m", "vplib", "run", "none.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("vplib: there is no notebook 'none")


def test_the_command_starts_without_the_heavy_libraries():
    source = (
        "import sys, vplib.runner.cli; print({'torch', 'papermill', 'nbformat'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


# --- real runs, shared by the tests below ---------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """One good notebook, run as a user would, though another kernel is called python3."""
    folder = tmp_path_factory.mktemp("good {of} mine")  # papermill formats paths
    trap = folder / "jupyter" / "kernels" / "python3"
    trap.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
    (trap / "kernel.json").write_text(json.dumps(spec))
    path = save(
        folder / "fine.ipynb",
        code("import sys\nfrom vplib import experiment"),
        code("experiment.record('interpreter', sys.executable); experiment.record('rate', RATE)"),
        code("1 / 0", "raises-exception"),
        new_markdown_cell("See the [link](x.html) *first*. Then more."),
        code(FIGURE),
        new_markdown_cell("The hero's own sentence."),
        code(FIGURE, "hero"),
        code(CLAIM),
        code("experiment.versions()\nclaims.verify()"),
        title="A fine <one>",
    )
    # profile() needs the import before it
    notebook = nbformat.read(path, 4)
    notebook.cells.insert(2, notebook.cells.pop(3))
    nbformat.write(notebook, path)
    command = [sys.executable, "-c", "from vplib.runner.cli import main; main()", "run", str(path)]
    command += ["-p", "SEED", "7", "-p", "RATE", "0.5", "--gallery", str(folder / "gallery")]
    environment = os.environ | {"JUPYTER_PATH": str(folder / "jupyter")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    return folder, done


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """One run of notebooks: one raises, one has a false claim, one a true control, one dies."""
    folder = tmp_path_factory.mktemp("bad")
    lines = "\n".join(f"step_{i} = {i}" for i in range(5))
    simple = [code("from vplib import experiment")]
    cells = {
        "raises": [code(f"{lines}\nundefined_name"), code("print('never')")],
        "claims": [code('RATE = 2\n__import__("IPython")\n' + CLAIM)],
        "control": [
            code(f"""import IPython
{CLAIM.replace("control=False", "control=True")}""")
        ],
        "killed": [code("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")],
        "quick": [code(FIGURE, "hero")],
    }
    paths = []
    for name, own in cells.items():
        path = folder / f"{name}.ipynb"
        first = [code(PARAMETERS, "parameters")] + (simple if name in ("claims", "control") else [])
        nbformat.write(new_notebook(cells=first + own), path)
        paths.append(str(path))
    out = folder / "out"
    result = CliRunner().invoke(
        cli, ["run", *paths, "--out", str(out), "--gallery", str(folder / "gallery")]
    )
    return folder, result


def test_a_good_notebook_ends_with_0_and_the_report(good):
    folder, done = good
    assert done.returncode == 0, done.stderr
    page = report.Path(done.stdout.splitlines()[-1])
    assert page.is_absolute() and page.name == "report.html" and page.is_file()
    assert page.parent.parent == folder / "runs" and (page.parent / "fine.ipynb").is_file()
    assert "[holds] Core 2017: more leaks (headline) | paper: 0.52 | ours: 7.25" in done.stdout
    assert "[not reproduced] Core 2017: never seen | paper: 0.9 <b> | ours: A: 0.100; B: 2" in (
        done.stdout
    )
    assert re.search(r"  no models trained\n  fine: ran, \d+\.\d s", done.stdout)
    assert done.stderr == ""  # no terminal: no bar, and no kernel's warnings


def test_a_run_says_how_many_models_it_reused(tmp_path, capsys):
    counted = {"torch": "2", "models": "64 reused from the cache, 0 trained"}
    path = executed(tmp_path / "a.ipynb", payload("versions", counted))
    assert run._say("a", report.read(path)) == "ran"
    assert capsys.readouterr().out.startswith("  models: 64 reused from the cache, 0 trained\n")


def test_the_kernel_is_this_interpreter(good):
    folder, _ = good
    (path,) = folder.glob("runs/*/fine.ipynb")
    assert report.values(report.read(path)) == {
        "interpreter": sys.executable,
        "rate": 0.5,
        "claim: Core 2017: more leaks": "holds",
        "claim: Core 2017: more leaks: ours": 7.25,
        "claim: Core 2017: never seen": "not reproduced",
        "claim: Core 2017: never seen: A": 0.1,
        "claim: Core 2017: never seen: B": 2,
    }


def test_an_intended_error_is_no_failure(good):
    folder, _ = good
    (path,) = folder.glob("runs/*/fine.ipynb")
    notebook = report.read(path)
    errors = [o for c in notebook["cells"] for o in c.get("outputs", ()) if "ename" in o]
    assert [error["ename"] for error in errors] == ["ZeroDivisionError"]
    assert report.failure(notebook) is None
    assert not any(report.MARKER in c["metadata"]["tags"] for c in notebook["cells"])
    nbformat.validate(nbformat.read(path, 4))


def test_the_report_says_what_the_notebook_says(good):
    folder, done = good
    page = report.Path(done.stdout.splitlines()[-1]).read_text(encoding="utf-8")
    (path,) = folder.glob("runs/*/fine.ipynb")
    notebook = report.read(path)
    for claim in report.claims(notebook):
        for key in ("of", "claim", "paper", "shown", "outcome", "why"):
            assert html.escape(claim[key]) in page
    assert ">7.25<" in page and "1 holds, 1 not reproduced" in page
    assert f">{notebook['metadata']['papermill']['duration']:.1f}<" in page
    assert "<h2>A fine &lt;one&gt;</h2>" in page
    assert claims_table(report.claims(notebook)) in page
    changed = re.search(r"<caption>Parameters that were given</caption>.*?</table>", page, re.S)[0]
    assert re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", changed)[2:] == ["RATE", "0.5", "SEED", "7"]
    figures = re.findall(r"base64,([^\"]*)\"", page)
    shown = [o["data"]["image/png"] for c in notebook["cells"] for o in c.get("outputs", ())
             if "image/png" in o.get("data", {})]  # fmt: skip
    assert len(figures) == 3 and len(figures[0]) <= len(figures[1])  # the gallery's comes first
    assert figures[1:] == [
        "".join("".join(png).split()) for png in reversed(shown)
    ]  # the hero first
    assert 'class="hero"' in page
    assert "Figure 2 of A fine &lt;one&gt;: See the link first." in page
    assert sys.version.split()[0] in page


def test_the_report_loads_nothing(good):
    _, done = good
    page = report.Path(done.stdout.splitlines()[-1]).read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|iframe|object)|@import|url\(|src=[\"']?(?!data:|\")", page)
    assert all(s.startswith("data:image/png;base64,") for s in re.findall(r'src="([^"]*)"', page))
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    assert page.startswith("<!DOCTYPE html>") and '<html lang="en">' in page
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    assert page.count("<img") == len(re.findall(r"<img[^>]*alt=\"[^\"]+\"", page)) == 3


def test_parameters_that_differ_write_no_gallery(good):
    folder, _ = good
    assert not (folder / "gallery").exists()


def test_a_notebook_that_raises_is_kept_and_the_others_run(bad):
    folder, result = bad
    assert result.exit_code == 1
    kept = report.read(folder / "out" / "raises.ipynb")
    assert report.outcome(kept) == "failed" and report.failure(kept)["name"] == "NameError"
    said = result.stdout
    assert (
        "stopped in cell 2 (In [2]):\n    step_0 = 0\n    step_1 = 1\n    step_2 = 2\n    ..."
        in said
    )
    assert "NameError: name 'undefined_name' is not defined" in said
    assert "\x1b" not in said and "----> 6 undefined_name" in said
    assert "quick: ran" in said and "1 of 5 notebooks ran" in said
    assert report.Path(said.splitlines()[-1]) == folder / "out" / "report.html"
    assert not any("never" in json.dumps(c.get("outputs", ())) for c in kept["cells"])


def test_a_false_claim_fails_the_run_without_verify(bad):
    folder, result = bad
    assert "[FAILS] Core 2017: more leaks (headline) | paper: 0.52 | ours: 0.25" in result.stdout
    assert "claims: claim failed" in result.stdout
    assert report.failure(report.read(folder / "out" / "claims.ipynb")) is None


def test_a_claim_whose_control_holds_too_fails_the_run(bad):
    folder, result = bad
    assert result.exit_code == 1
    assert "[no test] Core 2017: more leaks (headline) | paper: 0.52" in result.stdout
    assert "control: claim failed" in result.stdout
    assert report.failure(report.read(folder / "out" / "control.ipynb")) is None


def test_a_killed_kernel_is_shown_where_it_died(bad):
    folder, result = bad
    assert "killed: failed" in result.stdout and "DeadKernelError: Kernel died" in result.stdout
    kept = report.read(folder / "out" / "killed.ipynb")
    assert report.failure(kept)["source"].startswith("import os, signal")
    nbformat.validate(nbformat.read(folder / "out" / "killed.ipynb", 4))


def test_the_report_shows_every_failure(bad):
    folder, _ = bad
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "Error in cell 2 (In [2])" in page
    assert (
        html.escape("NameError: name 'undefined_name' is not defined").replace("&#x27;", "&#39;")
        in page
    )
    summary = re.search(r"<caption>Summary</caption>.*?</table>", page, re.S)[0]
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", summary)
    found = {cells[i]: cells[i + 1] for i in range(4, len(cells), 4)}
    assert found == {
        "raises": "failed",
        "claims": "claim failed",
        "control": "claim failed",
        "killed": "failed",
        "quick": "ran",
    }


def test_the_gallery_has_the_heroes_of_good_default_runs(bad):
    folder, _ = bad
    assert [path.name for path in (folder / "gallery").iterdir()] == ["quick.png"]
    (png,) = report.figures(report.read(folder / "out" / "quick.ipynb"))
    assert (folder / "gallery" / "quick.png").read_bytes() == base64.b64decode(png["png"])


def test_ctrl_c_ends_the_kernel_and_reports(tmp_path):
    path, marker = tmp_path / "slow.ipynb", tmp_path / "pid"
    source = f"import os, pathlib, time\npathlib.Path({str(marker)!r}).write_text(str(os.getpid()))"
    nbformat.write(
        new_notebook(cells=[code("print('done')"), code(source + "\ntime.sleep(60)")]), path
    )
    command = [sys.executable, "-c", "from vplib.runner.cli import main; main()", "run", str(path)]
    (tmp_path / "temporary").mkdir()
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job of & ignores it
    )
    for _ in range(600):
        if marker.exists() and marker.read_text():
            break
        time.sleep(0.1)
    # A run that is killed at this moment leaves no folder of ours behind.
    assert not list((tmp_path / "temporary").glob("vplib*"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 130, err
    assert err == b""
    page = report.Path(out.decode().splitlines()[-1])
    assert "interrupted" in page.read_text() and b"slow: interrupted" in out
    kept = report.read(page.parent / "slow.ipynb")
    assert kept["cells"][0]["outputs"][0]["text"] == "done\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)


def test_an_interrupted_run_keeps_what_is_done(tmp_path, monkeypatch):
    paths = [save(tmp_path / f"{name}.ipynb") for name in ("one", "two", "three")]

    def execute(source, target, **options):
        if "two" in str(source):
            raise KeyboardInterrupt
        executed(report.Path(target), payload("claims", [row("kept")]))

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    out = tmp_path / "out"
    result = CliRunner().invoke(cli, ["run", *map(str, paths), "--out", str(out)])
    assert result.exit_code == 130
    assert report.claims(report.read(out / "one.ipynb"))[0]["claim"] == "kept"
    assert not (out / "three.ipynb").exists()
    assert result.stdout.splitlines()[-1] == str(out / "report.html")
    assert "kept" in (out / "report.html").read_text()


def test_a_run_passes_parameters_and_shows_cells_on_a_terminal_only(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        papermill, "execute_notebook", lambda *a, **k: seen.update(k) or executed(report.Path(a[1]))
    )
    path = save(tmp_path / "tiny.ipynb")
    arguments = ["run", str(path), "--out", str(tmp_path / "out"), "--profile", "paper"]
    result = CliRunner().invoke(cli, [*arguments, "-p", "SIZES", "4,5"])
    assert result.exit_code == 0, result.output
    assert seen["parameters"] == {"PROFILE": "paper", "SIZES": [4, 5]}
    assert seen["progress_bar"]["disable"] is None  # tqdm: not where stderr is no terminal
    assert (
        seen["iopub_timeout"] > 60
    )  # nbclient: 4 s, too short where thirty kernels share a server


# --- reports and figures of notebooks made by hand ------------------------------------------------


def test_report_leaves_out_damaged_notebooks_with_a_note(tmp_path):
    executed(tmp_path / "deep" / "good.ipynb", payload("claims", [row("stays")]))
    (tmp_path / "broken.ipynb").write_text("{")
    executed(tmp_path / "odd.ipynb", payload("claims", [{"claim": "has no paper"}]))
    result = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert result.exit_code == 0 and result.stdout.strip() == str(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Left out: broken" in page and "Left out: odd" in page
    assert "stays" in page and ">deep/good<" in page


def test_report_refuses_what_has_no_notebook(tmp_path):
    assert "is no folder" in refused("report", tmp_path / "none")
    save(tmp_path / "never_run.ipynb")
    executed(tmp_path / ".ipynb_checkpoints" / "copy.ipynb")
    assert "no executed notebook" in refused("report", tmp_path)
    assert not (tmp_path / "report.html").exists()
    executed(tmp_path / "run.ipynb")
    (tmp_path / "file").write_text("")
    assert "file" in refused("report", tmp_path, "--output", tmp_path / "file" / "x.html")


def test_report_goes_where_it_is_told_and_leaves_no_rest(tmp_path):
    executed(tmp_path / "a.ipynb")
    target = tmp_path / "new" / "page.html"
    result = CliRunner().invoke(cli, ["report", str(tmp_path), "--output", str(target)])
    assert result.stdout.strip() == str(target) and "vplib report" in target.read_text()
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_of_a_claim_shown_twice_the_later_row_counts(tmp_path):
    first = payload("claims", [row("a", ours=1), row("b", "FAILS")])
    later = payload("claims", [row("b", "holds", ours=2)])
    notebook = report.read(executed(tmp_path / "n.ipynb", first, later))
    found = [(r["claim"], r["outcome"], r["shown"]) for r in report.claims(notebook)]
    assert found == [("a", "holds", "1"), ("b", "holds", "2")]
    assert report.outcome(notebook) == "ran"


@pytest.mark.parametrize(
    "said, outcome",
    [("FAILS", "claim failed"), ("no test", "claim failed"), ("no test on mnist", "ran"),
     ("does not hold on mnist", "ran"), ("not reproduced", "ran")],
)  # fmt: skip
def test_outcomes_of_claims(tmp_path, said, outcome):
    notebook = executed(tmp_path / "n.ipynb", payload("claims", [row("a"), row("b", said)]))
    assert report.outcome(report.read(notebook)) == outcome


def test_outcomes_of_stopped_runs(tmp_path):
    error = new_output("error", ename="ClaimFailed", evalue="1 of 2", traceback=["x"])
    assert report.outcome(report.read(executed(tmp_path / "c.ipynb", error))) == "claim failed"
    assert (
        report.outcome(report.read(executed(tmp_path / "k.ipynb", end_time=None))) == "not finished"
    )
    tagged = executed(tmp_path / "t.ipynb", error, tags=["raises-exception"])
    assert report.outcome(report.read(tagged)) == "ran"


def test_a_dead_kernel_under_papermill_alone_has_not_finished(tmp_path):
    path = executed(tmp_path / "a.ipynb", payload("claims", [row("b", "FAILS")]))
    notebook = nbformat.read(path, 4)
    notebook.cells += [code("os.kill(os.getpid(), 9)"), code("never")]
    nbformat.write(notebook, path)  # papermill notes an end_time all the same
    assert report.outcome(report.read(path)) == "not finished"
    page = report.write(tmp_path).read_text()
    assert ">not finished<" in page
    for cell in notebook.cells[-2:]:
        cell.execution_count = 9
    notebook.cells += [code(" \n"), code("left = out", "skip-execution")]
    nbformat.write(notebook, path)
    assert report.outcome(report.read(path)) == "claim failed"


def test_no_time_before_the_start_after_a_clock_jump(tmp_path):
    executed(tmp_path / "a.ipynb", duration=-86_399.5)
    page = report.write(tmp_path).read_text()
    assert ">unknown<" in page and "86399" not in page


def test_a_page_takes_any_name_and_letter(tmp_path):
    path = executed(tmp_path / "a.ipynb", payload("record", {"name": "SURROGATE", "value": 1}))
    content = path.read_text().replace("SURROGATE", "\\ud800")
    path.with_name("Ω \udcff.ipynb").write_text(content)
    page = report.write(tmp_path).read_text("utf-8")
    assert "Ω \\udcff" in page


def test_claims_are_said_on_any_terminal(instant, tmp_path):
    result = ["run", str(save(tmp_path / "Ω.ipynb")), "--out", str(tmp_path / "out")]
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    with contextlib.redirect_stdout(terminal), pytest.raises(SystemExit) as ended:
        main(result)
    terminal.flush()
    assert ended.value.code == 0 and rb"\u03a9: ran" in terminal.buffer.getvalue()


def test_a_user_without_home_or_name_keeps_models_and_runs_notebooks(tmp_path):
    for name in ("site", "tmp", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import pwd\ndef gone(uid): raise KeyError(uid)\npwd.getpwuid = gone"
    )
    save(tmp_path / "work" / "a.ipynb", code("print(1)"))
    notebook = nbformat.read(tmp_path / "work" / "a.ipynb", 4)
    notebook.cells.pop(2)  # profile() without an import
    nbformat.write(notebook, tmp_path / "work" / "a.ipynb")
    source = """from vplib import cache
import torch
made = {"a": torch.ones(2)}
kept = [cache.kept(("x",), lambda: made, made) for _ in range(2)]
print(kept[1]["a"].sum().item(), cache.counts)
from vplib.runner.cli import main
try:
    main(["cache"])
finally:
    main(["run", "a.ipynb", "--out", "out"])
"""
    left_out = ("VPLIB_CACHE", "HOME", "JUPYTER", "XDG", "IPYTHON")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    environment |= {"TMPDIR": str(tmp_path / "tmp")}
    environment["PYTHONPATH"] = f"{tmp_path / 'site'}:{report.Path(run.__file__).parents[2]}"
    command = [sys.executable, "-c", source]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path / "work", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2.0 {'reused': 1, 'trained': 1}\n1 files" in done.stdout and "a: ran" in done.stdout
    assert sorted(os.listdir(tmp_path / "work")) == ["a.ipynb", "out"]


def test_a_read_only_install_for_a_user_whose_home_cannot_be_written(tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    shutil.copytree(
        report.Path(run.__file__).parents[1], site / "vplib", ignore=shutil.ignore_patterns("*.pyc")
    )
    for folder in (work, tmp_path / "tmp"):
        folder.mkdir()
    for path in (*site.rglob("*"), site):  # which root could still write to
        path.chmod(path.stat().st_mode & ~0o222)
    before = {path: path.stat().st_mtime_ns for path in (*site.rglob("*"), site)}
    figure = "import matplotlib.pyplot as plt\nplt.plot([0, 1]);"
    keeps = """import torch, vplib
from vplib import cache
key = cache.fingerprint("x")
had = cache.read(key)
cache.write(key, {"a": torch.ones(2)})
print(vplib.__file__, "had" if had else "had not")"""
    cells = [code(source) for source in (figure, keeps)]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    page = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(page, work / "a.ipynb")
    left_out = ("VPLIB_CACHE", "HOME", "JUPYTER", "XDG", "IPYTHON", "MPL")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    environment |= {"HOME": "/dev/null/home", "TMPDIR": str(tmp_path / "tmp")}
    environment |= {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    runs = (["-m", "vplib", "run", "a.ipynb", "--out", "out"], ["-c", keeps])
    for command, had in zip(runs, ("had not", "had"), strict=True):
        done = subprocess.run(
            [sys.executable, *command], env=environment, cwd=work, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr + done.stdout
        assert done.stderr == ""
        printed = done.stdout
        if "run" in command:
            ran = nbformat.read(work / "out" / "a.ipynb", 4)
            outputs = [output for cell in ran.cells for output in cell.get("outputs", ())]
            assert "image/png" in outputs[0].data
            printed = "".join(o.text for o in outputs if o.output_type == "stream")
            assert "Warning" not in printed
        assert f"{site}/vplib/__init__.py {had}\n" in printed
    assert before == {path: path.stat().st_mtime_ns for path in (*site.rglob("*"), site)}
    assert not (report.Path("/dev/null/home")).exists()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_large_hero_is_made_to_fit_the_gallery(mode):
    file = io.BytesIO()
    Image.open(io.BytesIO(noisy_png(600))).convert(mode).save(file, "PNG")
    assert len(file.getvalue()) > 500_000
    small = report.smaller(base64.b64encode(file.getvalue()).decode(), run.GALLERY)
    assert len(small) <= 100_000
    with Image.open(io.BytesIO(small)) as image:
        assert image.size[0] == image.size[1] > 100


def test_writing_beside_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    target.write_text("old")

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        report.write_beside(target, b"new")
    assert target.read_text() == "old"


def test_what_a_notebook_calls_a_png_is_handed_to_no_other_program(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("something was run"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n" + b"%\n" * 30_000
    with pytest.raises(OSError, match="cannot identify image file"):
        report.smaller(base64.b64encode(eps).decode(), report.THUMB)
