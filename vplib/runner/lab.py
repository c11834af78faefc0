"""A lab from a notebook's part one: a sheet for students, its solutions, slides, for nbgrader."""

import ast
import base64
import copy
import hashlib
import importlib.util
import json
import os
import re
import tempfile
import textwrap
import tomllib
from pathlib import Path

from vplib.runner import report
from vplib.runner import run as running

FOLD = re.compile(
    r"\s*<details><summary>Solution</summary>\s*```python\n(.*?)\n```\s*(.*?)\s*</details>", re.S
)
HEAD = re.compile(r"\*\*Exercise (\d+)\*\* \((\d+) minutes, (easy|medium|hard)\)")
LEVELS = "easy", "medium", "hard"  # for one, two and three points
CALL = re.compile(r"exercises\.check\([^()]*\)")
HERO = re.compile(r"(!\[[^]]*\]\()[^)\s]*(gallery/\w+\.png)\)")  # here, or where it is published
SAID = {
    r"[,;] \d+ for part two": ", 10 for the question at the end",
    r"; a\s+(third|fourth)\s+one\s+stands[^.]*": "",
    "Hint and solution unfold": "The hint unfolds",
    r"\s*\[!\[Open in Colab.*": "",
}  # what a sheet says otherwise than its notebook
RETURN = "    return None"  # of a stub
MARK = "<title>vplib lab: "  # by which slides are known for ours
TEXTS = tomllib.loads(Path(__file__).with_name("lab.toml").read_text("utf-8"))


def check(name: str, path: Path, folder: Path) -> tuple:
    """The two sheets, after a check of all that can be known before anything runs.

    Args:
        name: what errors call the notebook.
        path: the notebook.
        folder: where labs go, of one notebook or of several.

    Returns:
        The student's and the instructor's version.

    Raises:
        ValueError: a package is missing, the notebook makes no lab, or somebody's file would be
            overwritten.
    """
    if not importlib.util.find_spec("nbconvert"):
        raise ValueError('slides need nbconvert: pip install "vplib[lab]"')
    notebook = report.read(path)
    running.check_notebook(name, notebook, {})
    made, (student, instructor, deck, _) = sheets(name, path, notebook), _places(path, folder)
    for target in filter(os.path.lexists, (student, instructor)):
        held = report.read(target)
        if held.metadata.vplib.get("lab") != [name, _state(held)]:
            raise ValueError(f"{target} was not made by vplib lab, or was changed since, and stays")
    report.spare(deck, MARK.encode())
    for target in (student, instructor, deck):
        running.make_folder(target.parent)
    return made


def _places(path, folder):
    """Where the student's and the instructor's version, the slides and nbgrader's settings go."""
    source, slides = folder / "source" / path.stem / path.name, folder / "slides" / path.stem
    config = folder / "nbgrader_config.py"
    return folder / "student" / path.name, source, slides.with_suffix(".html"), config


def _state(sheet):
    """A hash of a sheet, by which one that somebody changed is known."""
    kept = [(c.cell_type, c.source, c.metadata.get("nbgrader")) for c in sheet.cells]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def write(name: str, path: Path, folder: Path, student, instructor) -> int:
    """Runs the instructor's version, then writes everything; nothing where a cell fails.

    Args:
        name: what the notebook is called.
        path: the notebook.
        folder: where labs go.
        student: as `check` returns it.
        instructor: the same.

    Returns:
        The exit status: 0, or 1 if the sheet does not run with its solutions.
    """
    import nbformat

    with tempfile.TemporaryDirectory() as beside:
        nbformat.write(instructor, source := Path(beside, path.name))
        ran, _ = running.execute(name, source, Path(beside, "running.ipynb"), {})
    if error := report.failure(ran):
        print(f"{name}: nothing written, {error['where']} stopped: {error['error']}")
        return 1
    claims = [f"- {row['title']}: {row['shown']}" for row in report.claims(ran)]
    answer = next(cell for cell in instructor.cells if cell.id == "lab-answer")
    answer.source += "\n".join(["", *claims])
    *sheets, deck, config = _places(path, folder)
    for sheet, target in zip((student, instructor), sheets, strict=True):
        sheet.metadata.vplib["lab"] = [name, _state(sheet)]
        report.write_beside(target, nbformat.writes(sheet).encode())
    report.write_beside(deck, slides(name, ran).encode())
    if not os.path.lexists(config):
        report.write_beside(config, TEXTS["config"].encode())
    print(f"{name}: ran with its solutions in {ran.metadata.papermill['duration']:.0f} s")
    print(*_places(path, folder), sep="\n")
    return 0


def sheets(name: str, path: Path, notebook) -> tuple:
    """The student's and the instructor's version of part one, marked for nbgrader.

    Args:
        name: what errors call the notebook.
        path: its file; pictures lie beside it.
        notebook: as `report.read` returns it.

    Raises:
        ValueError: part one has no exercise, or one has no solution that fits its stub.
    """
    from nbformat.v4 import new_markdown_cell, new_notebook

    cells = notebook.cells
    for number, cell in enumerate(cells):
        cell.setdefault("id", f"cell-{number}")  # of an old notebook
    ends = [i for i, c in enumerate(cells) if re.search(r"^## References", c.source, re.M)]
    further = [i for i, c in enumerate(cells) if c.source.startswith("## Going further")]
    one, last = cells[: min([*further, *ends, len(cells)])], cells[min([*ends, len(cells)]) :]
    if not any("exercise" in cell.metadata.tags for cell in one):
        raise ValueError(f"{name} has no exercises in part one: there is nothing to hand out")
    if (hero := HERO.search(one[0].source)) and (place := path.parents[1] / hero[2]).is_file():
        png = base64.b64encode(place.read_bytes()).decode()
        one[0].attachments = {place.name: {"image/png": png}}
        one[0].source = HERO.sub(rf"\1attachment:{place.name})", one[0].source)
    one[0].source += f"\n\nThis sheet is part one of `{name}`; other papers stand in its part two."
    one[0].source += _for_home(one)
    for cell in (*one, *last):
        tags = [t for t in cell.metadata.tags if t not in ("keep_output", "nbval-check-output")]
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        for pattern, otherwise in SAID.items() if cell.cell_type == "markdown" else ():
            cell.source = re.sub(pattern, otherwise, cell.source)
    about, made = {k: v for k, v in notebook.metadata.items() if k in ("kernelspec", "vplib")}, []
    for solved in (False, True):
        question = new_markdown_cell(TEXTS["question"], id="lab-question")
        answer = new_markdown_cell(TEXTS["rubric" if solved else "answer"], id="lab-answer")
        _mark(question, locked=True)
        _mark(answer, solution=True, grade=True, points=4)
        parts = [*_exercises(name, copy.deepcopy(one), solved), question, answer, *last]
        made.append(copy.deepcopy(new_notebook(cells=parts, metadata=about)))
    return tuple(made)


def _for_home(cells):
    """Which exercises do not fit into 90 minutes with the rest, as a sentence; "" if all do."""
    reading = re.search(r"(\d+) minutes for part one", cells[0].source)
    left, home = 80 - int(reading[1]) if reading else 10**6, []  # ten are the question's
    for number, minutes, _ in HEAD.findall("\n".join(cell.source for cell in cells)):
        if int(minutes) <= left:
            left -= int(minutes)
        else:
            home.append(f"{number} ({minutes} minutes)")
    return (
        f" In a class of 90 minutes, this is for home: exercise {', '.join(home)}." if home else ""
    )


def _exercises(name, cells, solved):
    """Part one with each exercise marked, solved or not, and followed by its test."""
    from nbformat.v4 import new_code_cell

    found = []
    for cell in cells:
        found.append(cell)
        if "exercise" not in cell.metadata.get("tags", ()):
            continue
        text, stub = found[-2:][0], _function(cell.source)
        fold, head = FOLD.search(text.source), HEAD.search(text.source)
        call, solution = CALL.search(cell.source), fold and _function(fold[1])
        wanted = _signature(stub) if stub else "one function"
        if not (call and solution and wanted == _signature(solution) and RETURN in cell.source):
            raise ValueError(f"{name}: no solution of {wanted} is folded in before {cell.id!r}")
        points = 1 + LEVELS.index(head[3]) if head else 1
        inside = [f"    {TEXTS['stub']}"]
        if solved:
            why = textwrap.wrap(" ".join(fold[2].split()), 88)
            lines = fold[1].splitlines()[solution.body[0].lineno - 1 : solution.end_lineno]
            inside = [*(f"    # {line}" for line in why), *lines]
            inside = ["    ### BEGIN SOLUTION", *inside, "    ### END SOLUTION"]
        text.source = FOLD.sub("", text.source)
        cell.source = cell.source.replace(RETURN, "\n".join([*inside, RETURN]), 1)
        _mark(cell, solution=True)
        test = [f"# {points} of the points, if the check above says: right"]
        if solved:
            test += ["### BEGIN HIDDEN TESTS", f"assert {call[0]}", "### END HIDDEN TESTS"]
        found.append(new_code_cell("\n".join(test), id=f"{cell.id[:59]}-test"))
        _mark(found[-1], locked=True, grade=True, points=points)
    return found


def _function(source):
    """The one function that a stub or a solution defines; else None."""
    try:
        found = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
    except SyntaxError:
        return None
    return found[0] if len(found) == 1 else None


def _signature(function):
    return f"{function.name}({ast.unparse(function.args)})"


def _mark(cell, **kinds):
    """Says in a cell's metadata what it is to nbgrader."""
    known = {"schema_version": 3, "task": False, "grade_id": cell.id}
    known |= {"solution": False, "grade": False, "locked": False} | kinds
    cell.metadata |= {"nbgrader": known, "deletable": False}
    if known["locked"]:
        cell.metadata["editable"] = False


def slides(name: str, notebook) -> str:
    """A page of slides: the title, and each figure with its question and what to see in it.

    Args:
        name: the page's title.
        notebook: an executed sheet, as `report.read` returns it.
    """
    from nbconvert import SlidesExporter
    from nbformat.v4 import new_markdown_cell, new_notebook

    first, heading, found = notebook.cells[0], "", []

    def add(source, png=None, kind="slide"):
        found.append(new_markdown_cell(source, metadata={"slideshow": {"slide_type": kind}}))
        found[-1].attachments = {"figure.png": {"image/png": png}} if png else {}

    title = [p for p in first.source.split("\n\n") if not p.startswith(("**", "This sheet"))]
    add("\n\n".join([*title, TEXTS["style"]]))
    found[0].attachments = first.get("attachments", {})
    for cell in notebook.cells[1:]:
        for part in cell.source.split("\n\n") if cell.cell_type == "markdown" else ():
            if part.startswith("##"):
                heading = part.lstrip("# ").splitlines()[0]
            elif "**Predict" in part and not part.startswith("**What to see"):
                add(f"## {heading}\n\n{part}")
            elif part.startswith("**What to see"):
                add(part, kind="-")  # below the figure
        shown = (output.get("data", {}).get("image/png") for output in cell.get("outputs", ()))
        for png in filter(None, shown):
            add(f"## {heading}\n\n![figure of: {heading}](attachment:figure.png)", png)
    named = {"metadata": {"name": f"vplib lab: {name}"}}
    page = new_notebook(cells=found)
    return SlidesExporter(reveal_scroll=True).from_notebook_node(page, resources=named)[0]
