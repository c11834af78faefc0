"""Sweeps on a real Dask scheduler with two workers: nothing is lost, and nothing is repeated."""

import collections
import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import papermill
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from vplib.runner import report, run
from vplib.runner import sweep as sweeping
from vplib.runner.cli import cli, main

PARAMETERS = 'SEED = 0\nRATE = 0.5\nDATASET = "digits"\nSIZES = [1, 2]\nPLACE = ""'
# Each start of a point adds a line to a file, so that the tests can count them.
BODY = """import os, pathlib, time
from vplib import experiment
with open(pathlib.Path(PLACE, "starts"), "a") as file:
    file.write(f"NAME SEED={SEED} RATE={RATE} {os.getppid()}\\n")
while pathlib.Path(PLACE, f"hold-{SEED}").exists():
    time.sleep(0.05)
experiment.record("accuracy", SEED + RATE)
claims = experiment.Claims("P 2020", data=DATASET, asserted_on=("digits",))
ours = {"sum": SEED + RATE, "rate": RATE}
claims.check("grows", paper="0.5", ours=ours, holds=RATE < 1, control=False)
claims.show()"""


def save(path, body=BODY):
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(body.replace("NAME", path.stem)),
    ]
    nbformat.write(new_notebook(cells=cells), path)
    return str(path)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def starts(place):
    """How often each point started."""
    path = place / "starts"
    lines = path.read_text().splitlines() if path.exists() else []
    return collections.Counter(line.rpartition(" ")[0] for line in lines)


def table(out):
    with (out / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def wait_for(condition, seconds=200):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


class Cluster:
    """A scheduler on loopback and its workers, all processes of their own."""

    def __init__(self, folder):
        self.file, self.log = folder / "scheduler.json", (folder / "log").open("w")
        self.workers, self.env = (
            [],
            os.environ
            | {
                "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
                "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0",
                "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            },
        )
        options = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
        self.scheduler = self.start("scheduler", *options, "--scheduler-file", str(self.file))
        wait_for(lambda: self.file.exists() and self.file.read_text().strip().endswith("}"))
        self.address = json.loads(self.file.read_text())["address"]

    def start(self, command, *arguments):
        command = [sys.executable, "-m", "dask", command, *arguments]
        return subprocess.Popen(command, env=self.env, stdout=self.log, stderr=self.log)

    def add_worker(self):
        options = ["--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        self.workers.append(self.start("worker", self.address, *options))

    def close(self):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def threads():
    """The address of a scheduler and a worker inside this process, which sees what is patched."""
    import distributed

    options = {"processes": False, "n_workers": 1, "threads_per_worker": 1}
    with distributed.LocalCluster(**options, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    cluster.add_worker()
    cluster.add_worker()
    yield cluster
    cluster.close()


def command(*arguments):
    code = "from vplib.runner.cli import main; main()"
    return [sys.executable, "-c", code, "sweep", *map(str, arguments)]


def begin(*arguments):
    """A sweep in a process of its own, which Ctrl-C can stop."""
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job of & ignores it
    )


# --- on the scheduler -----------------------------------------------------------------------------


def test_thirty_points_and_a_worker_killed_in_the_middle_of_one(place, cluster):
    books = [save(place / f"{name}.ipynb") for name in ("one", "two")]
    (place / "hold-3").touch()  # points with this seed wait until it is gone
    grid = ["--grid", "SEED=0,1,2,3,4", "--grid", "RATE=0.1,0.5,0.7"]
    sweep = begin(*books, *grid, "-p", "PLACE", place, "--out", "out", "--scheduler",
                  cluster.address)  # fmt: skip
    pids = [worker.pid for worker in cluster.workers]
    held = re.compile(rf"(\w+ SEED=3 RATE=\S+) ({'|'.join(map(str, pids))})$", re.M)
    wait_for(lambda: (place / "starts").exists() and held.search((place / "starts").read_text()))
    point, pid = held.search((place / "starts").read_text()).groups()
    os.kill(int(pid), signal.SIGKILL)
    cluster.add_worker()
    (place / "hold-3").unlink()
    out, err = sweep.communicate(timeout=400)
    assert sweep.returncode == 0, out + err

    found = starts(place)
    assert len(found) == 30 and found.pop(point) == 2, "the lost point ran again"
    assert set(found.values()) == {1}, "no other did"
    rows = table(place / "out")
    assert len(rows) == 30 and {row["outcome"] for row in rows} == {"ran"}
    assert all(float(r["accuracy"]) == int(r["SEED"]) + float(r["RATE"]) for r in rows)
    (again,) = [row for row in rows if row["tries"] != "1"]
    assert again["tries"] == "2"
    assert point == f"{again['notebook']} SEED={again['SEED']} RATE={again['RATE']}"
    assert re.search(r"SEED=3.*started 2 times: a worker was lost", out)
    assert "[30 of 30]" in out and re.search(r"dashboard: http://127.0.0.1:\d+/status", out)
    assert "about 0 min left" in out and err == ""
    assert out.splitlines()[-1] == str(place / "out" / "report.html")
    log = (place / "out" / "sweep.log").read_text()
    assert all(line in log for line in out.splitlines()[:-2])
    (kept,) = (place / "out" / "two").glob("SEED=4,RATE=0.7,*.ipynb")
    nbformat.validate(nbformat.read(kept, 4))
    assert report.read(kept)["metadata"]["papermill"]["parameters"]["RATE"] == 0.7


def test_a_stopped_sweep_goes_on_where_it_ended(place, cluster):
    book, out = save(place / "one.ipynb"), place / "out"
    arguments = [book, "--grid", "SEED=1,2,3,4,5", "-p", "PLACE", place, "--out", out]
    arguments += ["--scheduler", cluster.address]
    (place / "hold-5").touch()
    sweep = begin(*arguments)
    wait_for(lambda: len(list(out.glob("one/*.ipynb"))) == 4 and len(starts(place)) == 5)
    sweep.send_signal(signal.SIGINT)
    said, err = sweep.communicate(timeout=400)
    assert sweep.returncode == 130 and err == "", err
    assert f"stopped; the same command with --out {out} goes on from here" in said
    assert [row["SEED"] for row in table(out)] == list("1234")
    (place / "hold-5").unlink()
    before = {path: path.read_bytes() for path in out.glob("one/*.ipynb")}

    result = CliRunner().invoke(cli, ["sweep", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert "5 points, 4 done already, 1 left" in result.output
    assert all(path.read_bytes() == content for path, content in before.items())
    assert [row["SEED"] for row in table(out)] == list("12345")
    count = starts(place)
    assert [count[f"one SEED={seed} RATE=0.5"] for seed in (1, 2, 3, 4)] == [1] * 4
    assert not list(out.rglob(".*.part"))


def test_two_sweeps_in_one_folder_run_each_point_once(place, cluster):
    book = save(place / "one.ipynb")
    shared = [book, "-p", "PLACE", place, "--out", "out", "--scheduler", cluster.address]
    (place / "hold-1").touch()
    first = begin(*shared, "--grid", "SEED=1,2")
    wait_for(lambda: starts(place))
    second = begin(*shared, "--grid", "SEED=2,3")
    assert "waiting until it ends" in second.stdout.readline()
    (place / "hold-1").unlink()
    for sweep in (first, second):
        out, err = sweep.communicate(timeout=400)
        assert sweep.returncode == 0, out + err
    assert "2 points, 1 done already, 1 left" in out
    assert starts(place) == {f"one SEED={seed} RATE=0.5": 1 for seed in (1, 2, 3)}
    assert [row["SEED"] for row in table(place / "out")] == ["1", "2", "3"]


def test_a_full_disk_is_waited_for(place, threads, monkeypatch):
    book, wrote, full = save(place / "one.ipynb"), report.write_beside, [True] * 4

    def write(path, content):
        if path.suffix == ".ipynb" and full and full.pop():
            raise OSError(28, "No space left on device")
        wrote(path, content)

    monkeypatch.setattr(report, "write_beside", write)
    monkeypatch.setattr(sweeping, "PAUSE", 0.01)
    arguments = ["sweep", book, "--grid", "SEED=1,2", "-p", "PLACE", str(place), "--out", "out"]
    result = CliRunner().invoke(cli, [*arguments, "--scheduler", threads])
    assert result.exit_code == 0, result.output
    assert result.output.count("No space left on device. The sweep goes on by itself") == 1
    assert starts(place) == {f"one SEED={seed} RATE=0.5": 1 for seed in (1, 2)}
    assert len(table(place / "out")) == 2 and not list(place.rglob(".*.part"))


def test_a_disk_that_stays_full_stops_the_sweep(place, threads, monkeypatch, capsys):
    wrote = report.write_beside

    def write(path, content):
        if path.name.startswith("SEED=2"):
            raise OSError(28, "No space left on device")
        wrote(path, content)

    monkeypatch.setattr(report, "write_beside", write)
    monkeypatch.setattr(sweeping, "WAIT", -1)
    book = save(place / "one.ipynb")
    arguments = ["sweep", book, "--grid", "SEED=1,2", "-p", "PLACE", str(place), "--out", "out"]
    arguments += ["--scheduler", threads]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert capsys.readouterr().err == "vplib: [Errno 28] No space left on device\n"
    monkeypatch.undo()
    os.chdir(place)
    done = len(list(place.glob("out/one/*.ipynb")))
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0 and f"2 points, {done} done already" in result.output
    assert len(table(place / "out")) == 2


def test_a_worker_elsewhere_writes_nothing_and_sends_the_notebook(place, threads, monkeypatch):
    ran, execute, places = sweeping.run_point, run.execute, []

    def noted(name, source, place, *others, **options):
        places.append(place)
        return execute(name, source, place, *others, **options)

    def elsewhere(source, point, inode):
        text = ran(source, point, inode + 1)  # a folder of that name, but another one
        assert not point.target.exists()
        return text

    monkeypatch.setattr(sweeping, "run_point", elsewhere)
    monkeypatch.setattr(run, "execute", noted)
    arguments = ["sweep", save(place / "one.ipynb"), "--grid", "SEED=1", "-p", "PLACE", str(place)]
    result = CliRunner().invoke(cli, [*arguments, "--out", "out", "--scheduler", threads])
    assert result.exit_code == 0, result.output
    assert [row["accuracy"] for row in table(place / "out")] == ["1.5"]
    # Where Dask clears up after a killed worker.
    assert [p.parts[-4] for p in places] == ["dask-scratch-space"]


def test_a_point_is_not_repeated_when_its_worker_is_lost_after_it(place):
    (point,) = planned(place, "SEED=1")
    finished(point)
    inode = (place / "out").stat().st_ino
    assert sweeping.run_point(b"", point, inode) == point.target.read_text()
    with pytest.raises(ValueError, match="No worker found"):  # it would run, on a worker
        sweeping.run_point(b"", point, inode + 1)


def test_a_claim_or_a_cell_that_fails_is_kept_and_only_the_cell_runs_again(place, cluster):
    book = save(place / "one.ipynb", f'{BODY}\nassert RATE != 2, "line one\\nline two"')
    arguments = ["sweep", book, "--grid", "RATE=0.5,1,2", "-p", "PLACE", str(place)]
    arguments += ["--out", "out", "--scheduler", cluster.address]
    for again in (False, True):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 1
        rows = {float(row["RATE"]): row for row in table(place / "out")}
        outcomes = {rate: row["outcome"] for rate, row in rows.items()}
        assert outcomes == {0.5: "ran", 1: "claim failed", 2: "failed"}
        assert rows[2]["error"] == "AssertionError: line one"
        assert rows[1]["claim: P 2020: grows"] == "FAILS"
        assert (
            rows[1]["claim: P 2020: grows: sum"] == "1" and "claim: P 2020: grows: rate" in rows[1]
        )
        assert f"{2 if again else 0} done already" in result.output
    assert sorted(starts(place).values()) == [1, 1, 2]


# --- on a cluster of its own ----------------------------------------------------------------------


def test_a_point_that_always_kills_its_worker_is_reported(place):
    body = f"{BODY}\nimport signal\nif SEED: os.kill(os.getppid(), signal.SIGKILL); time.sleep(9)"
    sweep = begin(save(place / "one.ipynb", body), "--grid", "SEED=0,1", "-p", "PLACE", place,
                  "--out", "out", "--workers", "1")  # fmt: skip
    out, err = sweep.communicate(timeout=400)
    assert sweep.returncode == 1 and "Traceback" not in err, err
    good, lost = table(place / "out")
    assert (good["outcome"], good["tries"]) == ("ran", "1")
    assert (lost["outcome"], lost["tries"]) == ("failed", "2")
    assert lost["error"].startswith("KilledWorker: Attempted to run task")
    assert "KilledWorker" in (place / "out" / "report.html").read_text()
    assert starts(place) == {"one SEED=0 RATE=0.5": 1, "one SEED=1 RATE=0.5": 2}


# --- what is refused before anything runs ---------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "a sweep needs --grid NAME=a,b,c, for example --grid SEED=0,1,2"),
        (["--grid", "SEED"], "--grid 'SEED' is not NAME=a,b,c"),
        (["--grid", "=1,2"], "is not NAME=a,b,c"),
        (["--grid", "SEED="], "'' has an empty value"),
        (["--grid", "SEED=1,,2"], "'1,,2' has an empty value"),
        (["--grid", "SEED=1,2, "], "'1,2, ' has an empty value"),
        (["--grid", "SED=1,2"], "one: unknown parameter 'SED'; did you mean 'SEED'?"),
        (["--grid", "SEED=1,two"], "SEED must be of type int, like 0; not 'two'"),
        (["--grid", "SEED=1,2,1"], "--grid SEED has 1 twice"),
        (["--grid", "RATE=1,1.0"], "--grid RATE has 1.0 twice"),
        (["--grid", "SEED=1", "--grid", "SEED=2"], "SEED is given twice"),
        (["--grid", "SEED=1", "-p", "SEED", "2"], "SEED is given twice"),
        (["--grid", "SEED=1", "-p", "RAT", "2"], "did you mean 'RATE'?"),
        (["--grid", "SEED=1", "--scheduler", "x:1", "--workers", "2"], "--workers is for a"),
        (["--grid", "SEED=1", "--scheduler", ""], "--scheduler '' is no address, as tcp://HOST"),
        (["--grid", "SEED=1", "--scheduler", "tcp://["], "--scheduler 'tcp://[' is no address"),
        (["--grid", f"SEED={'-' * 60_000}1"], "SEED must be of type int, like 0; not '---"),
        (["--grid", f"RATE={'1' * 4000}"], "RATE must be below 1.8e308, not 111"),
        (["--grid", f"SEED={'1' * 5000}"], "SEED must be of type int, like 0; not '111"),
        (["--grid", "RATE=0.1,1e400"], "RATE must be below 1.8e308, not 1e400"),
        (["--grid", "SIZES=[1],[-1e400]"], "SIZES must be below 1.8e308, not [-1e400]"),
        (
            ["--grid", f"SEED={','.join(map(str, range(1000)))}"]
            + ["--grid", f"RATE={','.join(map(str, range(101)))}"],
            "one: 101,000 points; a sweep takes at most 100,000",
        ),
        (["--grid", "SEED=1", "-p", "RATE", "1", "-p", "RATE", "2"], "a parameter is given twice"),
        (["--grid", "DATASET=folder:~nosuch/x"], "one: Could not determine home directory"),
    ],
)
def test_refuses(place, arguments, said):
    book = save(place / "one.ipynb")
    result = CliRunner().invoke(cli, ["sweep", book, "--out", "out", *arguments])
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert result.stderr.count("\n") == 1 and not (place / "out").exists()


def test_refuses_an_unknown_notebook(place):
    result = CliRunner().invoke(cli, ["sweep", "attacks/membership_shado", "--grid", "SEED=1"])
    assert result.exit_code == 2
    assert "did you mean 'attacks/membership_shadow'?" in result.stderr


def test_every_notebook_must_know_the_grid(place):
    other = place / "other.ipynb"
    cell = new_code_cell("WIDTH = 1", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), other)
    book = save(place / "one.ipynb")
    result = CliRunner().invoke(cli, ["sweep", book, str(other), "--grid", "SEED=1"])
    assert result.exit_code == 2 and "other: unknown parameter 'SEED'" in result.stderr


def test_says_how_to_get_dask(place, monkeypatch):
    monkeypatch.setattr(sweeping.importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(cli, ["sweep", save(place / "one.ipynb"), "--grid", "SEED=1"])
    assert result.exit_code == 2 and 'pip install "vplib[sweep]"' in result.stderr


def test_no_scheduler_at_the_address(place, monkeypatch):
    import distributed

    def absent(address, timeout):
        raise OSError("Timed out")

    monkeypatch.setattr(distributed, "Client", absent)
    arguments = ["sweep", save(place / "one.ipynb"), "--grid", "SEED=1", "--out", "out"]
    result = CliRunner().invoke(cli, [*arguments, "--scheduler", "tcp://127.0.0.1:1"])
    assert result.exit_code == 2
    assert "no Dask scheduler answers at 'tcp://127.0.0.1:1' (Timed out); start one" in (
        result.stderr
    )


@pytest.mark.parametrize(
    "text, values",
    [
        ("1,2", ["1", "2"]),
        ("1, 1e-3", ["1", "1e-3"]),
        ("[1, 2],[3]", ["[1, 2]", "[3]"]),
        ("(1,2),(3,4)", ["(1,2)", "(3,4)"]),
        ("digits,mnist5k", ["digits", "mnist5k"]),
        ("folder:a b,digits", ["folder:a b", "digits"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("None", ["None"]),
        ("é,b", ["é", "b"]),
    ],
)
def test_splits_values(text, values):
    assert sweeping.split_values(text) == values


# --- points, without running any ------------------------------------------------------------------


def planned(place, *grid, given=None):
    found = run.find((save(place / "one.ipynb"),))
    return sweeping.plan(found, grid, given or {}, place / "out")[0]


def test_the_order_of_the_grid_changes_no_point(place):
    one = planned(place, "SEED=0,1", "RATE=0.1,0.5")
    other = planned(place, "RATE=0.5,0.1", "SEED=1,0")
    assert {p.target: p.parameters for p in one} == {p.target: p.parameters for p in other}
    assert [p.target.name for p in one][:2] == ["SEED=0,RATE=0.1.ipynb", "SEED=0,RATE=0.5.ipynb"]


def test_points_that_differ_have_files_of_their_own(place):
    long = f"PLACE={'x' * 200}a,{'x' * 200}b,a/b,a:b,a_b,{'写真' * 60}"
    names = [p.target.name for p in planned(place, long, "SIZES=[1],[2, 3]")]
    assert len(set(names)) == 12 and max(len(name.encode()) for name in names) < 120
    assert not any(set(name) & set(' /:[]"') for name in names)
    fixed = planned(place, "SEED=1", given={"RATE": "0.9"})
    assert fixed[0].target.name == "SEED=1,RATE=0.9.ipynb"


def finished(point, **about):
    """Puts an executed notebook at a point's place, made without a kernel."""
    notebook = report.read(point.source)
    notebook["metadata"]["papermill"] |= {"parameters": point.parameters, "duration": 2.0}
    notebook["metadata"]["vplib"]["sweep"] = point.about | {"tries": 1} | about
    for cell in notebook.cells[1:]:
        cell.execution_count = 1
    report.write_beside(point.target, nbformat.writes(notebook).encode())


def test_dry_run_shows_the_points_and_writes_nothing(place, monkeypatch):
    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **k: pytest.fail("it ran"))
    arguments = ["sweep", save(place / "one.ipynb"), "--grid", "SEED=1,2", "--out", "out"]
    result = CliRunner().invoke(cli, [*arguments, "--dry-run"])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "one SEED=1: to run",
        "one SEED=2: to run",
        "2 points, 0 done, 2 to run; nothing ran",
    ]
    assert not (place / "out").exists()
    finished(planned(place, "SEED=1")[0])
    result = CliRunner().invoke(cli, [*arguments, "--dry-run"])
    assert "one SEED=1: done" in result.stdout and "1 done, 1 to run" in result.stdout


def test_never_mixes_two_versions_of_a_notebook(place):
    (point,) = planned(place, "SEED=1")
    finished(point, source="of another version")
    arguments = ["sweep", str(point.source), "--grid", "SEED=1", "--out", "out"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2 and "one has changed since" in result.stderr


def test_running_a_notebook_changes_no_version(place):
    (point,) = planned(place, "SEED=1")
    finished(point)
    notebook = nbformat.read(point.source, 4)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="ran in between")]
    nbformat.write(notebook, point.source)
    (again,) = sweeping.plan({"one": point.source}, ("SEED=1",), {}, place / "out")[0]
    assert again.done()


def test_a_damaged_point_says_what_to_do(place):
    (point,) = planned(place, "SEED=1")
    report.write_beside(point.target, b"{")
    with pytest.raises(ValueError, match="not a readable notebook.*; repair or delete it"):
        point.done()


def test_never_writes_over_what_no_sweep_made(place):
    (point,) = planned(place, "SEED=1")
    point.target.parent.mkdir(parents=True)
    save(point.target)
    result = CliRunner().invoke(
        cli, ["sweep", str(point.source), "--grid", "SEED=1", "--out", "out"]
    )
    assert result.exit_code == 2 and "was not made by a sweep and stays" in result.stderr


def test_never_writes_over_a_table_or_page_that_no_sweep_made(place):
    arguments = ["sweep", save(place / "one.ipynb"), "--grid", "SEED=1", "--out", "."]
    for name in ("sweep.csv", "report.html"):
        (place / name).write_text("name,outcome\nmine,1\n")
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 2 and f"{name} was not made by vplib and stays" in result.stderr
        assert (place / name).read_text() == "name,outcome\nmine,1\n"
        (place / name).unlink()
    sweeping.write_table(place, {place / "a": {"notebook": "a", "SEED": 0, "outcome": "ran",
                                               "seconds": 1, "tries": 1}})  # fmt: skip
    assert sweeping.plan({"one": place / "one.ipynb"}, ("SEED=1",), {}, place)[0]


def test_a_checkpoint_is_no_second_point(place):
    (point,) = planned(place, "SEED=1")
    finished(point)
    copy = point.target.parent / ".ipynb_checkpoints" / "SEED=1-checkpoint.ipynb"
    report.write_beside(copy, point.target.read_bytes())
    assert list(sweeping.done_in(place / "out")) == [point.target]


def test_a_point_whose_kernel_died_under_papermill_is_not_done(place):
    (point,) = planned(place, "SEED=1")
    finished(point)
    assert point.done()
    notebook = report.read(point.target)
    notebook.cells[-1].execution_count = None
    report.write_beside(point.target, nbformat.writes(notebook).encode())
    assert not point.done()


def test_the_log_takes_any_letter(place, monkeypatch):
    monkeypatch.setattr("builtins.print", lambda *arguments, **options: None)
    sweeping.say(place, "Ω \udcff")
    assert "Ω \\udcff" in (place / "sweep.log").read_text(encoding="utf-8")


def test_a_recorded_value_called_like_a_column_keeps_its_own(place):
    (point,) = planned(place, "SEED=1")
    finished(point)
    notebook = report.read(point.target)
    records = [{"name": "seconds", "value": 7}, {"name": "curve", "value": [1, 2]}]
    data = [nbformat.v4.new_output("display_data", {report.MIME: {"record": r}}) for r in records]
    notebook["cells"][-1]["outputs"] = data
    row = report.row(notebook)
    assert row["seconds"] == 2.0 and row["record: seconds"] == 7 and row["curve"] == "[1, 2]"


def test_a_table_of_two_notebooks_has_the_columns_of_both(place):
    rows = {
        place / "a": {"notebook": "a", "SEED": 0, "claim: x": "holds", "rate": 1},
        place / "b": {"notebook": "b", "WIDTH": 2, "claim: y": "holds", "gap": 'a,"b"'},
    }
    sweeping.write_table(place, rows)
    lines = (place / "sweep.csv").read_text().splitlines()
    assert lines == [
        "notebook,SEED,rate,WIDTH,gap,claim: x,claim: y",
        "a,0,1,,,holds,",
        'b,,,2,"a,""b""",,holds',
    ]


def test_a_log_on_a_full_disk_does_not_stop_a_sweep(place, capsys):
    (place / "sweep.log").mkdir()
    with contextlib.suppress(SystemExit):
        sweeping.say(place, "a line")
    assert capsys.readouterr().out == "a line\n"
