"""What a sweep costs beside its notebooks: 100 trivial points on two workers.

A point is a kernel of its own, so most of this is starting Python a hundred times.
"""

import os
import tempfile
import time
from pathlib import Path

import nbformat
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_notebook

from vplib.runner.cli import cli

POINTS, GOAL = 100, 3.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trivial.ipynb")
        cells = [
            new_code_cell("SEED = 0", metadata={"tags": ["parameters"]}),
            new_code_cell("from vplib import experiment\nexperiment.record('seed', SEED)"),
        ]
        nbformat.write(new_notebook(cells=cells), path)
        grid = "SEED=" + ",".join(map(str, range(POINTS)))
        arguments = ["sweep", str(path), "--grid", grid, "--out", f"{folder}/out", "--workers", "2"]
        began, cpu = time.monotonic(), os.times()
        result = CliRunner().invoke(cli, arguments)
        seconds, done = time.monotonic() - began, os.times()
        assert result.exit_code == 0, result.output
        assert len(Path(folder, "out", "sweep.csv").read_text().splitlines()) == POINTS + 1
    used = sum(done[:4]) - sum(cpu[:4])
    print(
        f"sweep: {POINTS} trivial points on two workers, {seconds / POINTS:.2f} s a point "
        f"(goal: under {GOAL:.0f} s), {used / POINTS:.2f} s of CPU"
    )


if __name__ == "__main__":
    main()
