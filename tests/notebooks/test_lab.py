"""A lab: its files, what it refuses, and hand-ins graded by nbgrader itself."""

import base64
import csv
import io
import os
import re
import subprocess
import sys

import nbformat
import pytest
from anatomy import ROOT, all_notebooks, name_of
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from vplib.runner import lab, report
from vplib.runner.cli import cli

STUB = """def advantage(guesses, members):
    return None  # a number


verdict = exercises.check("membership_shadow.advantage", advantage)"""
SOLUTION = """def advantage(guesses, members):
    hits = guesses[members].double().mean()
    return hits - guesses[~members].double().mean()"""
TEXT = f"""## Exercises

**Exercise 1** (10 minutes, medium). Yeom's advantage of a set of guesses.

<details><summary>Hint</summary>

Two shares, one difference.

</details>

<details><summary>Solution</summary>

```python
{SOLUTION}
```

A difference of shares
does not depend on how many members there are.

</details>"""
SETUP = """from vplib import exercises, experiment
import matplotlib.pyplot as plt"""
CLAIM = """claims = experiment.Claims("Core 2017", data="digits", asserted_on=("digits",))
claims.check("more leaks", paper="0.52", ours=0.6, holds=True, control=False)
claims.show()"""
FIGURE = "plt.figure(figsize=(2, 1))\nplt.plot([0, 1]);"
PART_TWO = 'raise RuntimeError("part two ran")'


def code(id, source, *tags):
    return new_code_cell(source, id=id, metadata={"tags": list(tags)})


def tiny(folder, text=TEXT, stub=STUB, further=True, title="# Tiny"):
    """A notebook with one exercise, two figures and a part two, beside a gallery with its hero."""
    first = f"""{title}

Who attacks whom.

**Time**: 60 minutes for part one, 40 for part two.

![Alternative text](../gallery/tiny.png)"""
    texts = {
        0: first,
        1: "## Setup",
        3: "## Experiment\n\n**Predict** whether it rises.",
        5: "**What to see**: it rises.\n\n## Paper against ours\n\nA claim:",
        7: text,
        9: "## Going further\n\n### Other 2020",
        11: "## References\n\n- One.",
        12: "The last word:",
    }
    cells = {i: new_markdown_cell(source, id=f"text-{i}") for i, source in texts.items()}
    cells |= {2: code("setup", SETUP), 4: code("figure", FIGURE, "hero"), 6: code("claim", CLAIM)}
    cells |= {8: code("exercise-advantage", stub, "exercise"), 10: code("two", PART_TWO)}
    cells[13] = code("verify", "claims.verify()", "keep_output", "nbval-check-output")
    cells[13].outputs = [nbformat.v4.new_output("stream", text="holds  Other 2020: of part two\n")]
    if not further:
        del cells[9], cells[10]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    about = {"kernelspec": kernel, "vplib": {"title": "Tiny", "extras": []}}
    notebook = new_notebook(cells=[cells[i] for i in sorted(cells)], metadata=about)
    (folder / "attacks").mkdir(parents=True, exist_ok=True)
    (folder / "gallery").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(folder / "gallery" / "tiny.png")
    nbformat.write(notebook, folder / "attacks" / "tiny.ipynb")
    return folder / "attacks" / "tiny.ipynb"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the lab of the tiny notebook, and what the command printed."""
    base = tmp_path_factory.mktemp("made")
    ran = CliRunner().invoke(cli, ["lab", str(tiny(base)), "--out", str(base / "lab")])
    assert ran.exit_code == 0, ran.output
    return base / "lab", ran.output
