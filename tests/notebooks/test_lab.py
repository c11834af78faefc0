"""A lab: its files, what it refuses, and hand-ins graded by nbgrader itself."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from anatomy import ROOT, all_notebooks, name_of
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from vplib.runner import lab, report
from vplib.runner.cli import cli

NOTEBOOKS = {name_of(p): p for p in all_notebooks() if p.parent.name != "notebooks"}
REAL = "attacks/membership_shadow"
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


def read(path):
    return nbformat.read(path, as_version=4)


def cell(notebook, id):
    return next(c for c in notebook.cells if c.id == id)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder with the lab of the tiny notebook, as the command makes it."""
    base = tmp_path_factory.mktemp("made")
    ran = CliRunner().invoke(cli, ["lab", str(tiny(base)), "--out", str(base / "lab")])
    assert ran.exit_code == 0, ran.output
    first, *places = ran.output.splitlines()
    assert re.fullmatch(r"tiny: ran with its solutions in \d+ s", first)
    files = ("student/tiny.ipynb", "source/tiny/tiny.ipynb", "slides/tiny.html")
    assert places == [str(base / "lab" / f) for f in (*files, "nbgrader_config.py")]
    return base / "lab"


def test_the_sheet_is_part_one_with_hints_and_without_solutions(made):
    sheet = read(made / "student" / "tiny.ipynb")
    nbformat.validate(sheet)
    text = "\n".join(c.source for c in sheet.cells)
    assert "Two shares, one difference." in text and "A question to answer in words" in text
    for absent in ("Solution", "does not depend", "hits", "part two ran", "One point each"):
        assert absent not in text
    assert cell(sheet, "exercise-advantage").source == STUB.replace(
        "    return None", "    # your code here\n    return None"
    )
    assert "**Time**: 60 minutes for part one, 10 for the question at the end." in text
    assert sheet.cells[-1].source == "claims.verify()" and sheet.cells[-1].metadata == {}
    assert not any(c.get("outputs") for c in sheet.cells)
    assert list(sheet.cells[0].attachments) == ["tiny.png"]
    assert "![Alternative text](attachment:tiny.png)" in sheet.cells[0].source


def test_the_instructors_version_is_solved_and_has_a_rubric_with_the_claims(made):
    solved = read(made / "source" / "tiny" / "tiny.ipynb")
    source = cell(solved, "exercise-advantage").source
    lines = SOLUTION.splitlines()[1:]
    why = "    # A difference of shares does not depend on how many members there are."
    assert "\n".join(["    ### BEGIN SOLUTION", why, *lines, "    ### END SOLUTION"]) in source
    assert cell(solved, "exercise-advantage-test").metadata.nbgrader.points == 2  # medium
    rubric = cell(solved, "lab-answer").source
    assert "One point each" in rubric and "- Core 2017: more leaks: 0.600" in rubric
    assert "Solution" not in "\n".join(c.source for c in solved.cells)


def test_the_slides_show_each_figure_with_its_question_and_what_to_see(made):
    page = (made / "slides" / "tiny.html").read_text("utf-8")
    shown = re.findall(r'<img[^>]*alt="([^"]*)"[^>]*src="(.{22})', page)
    shown += [m[::-1] for m in re.findall(r'<img[^>]*src="(.{22})[^"]*"[^>]*alt="([^"]*)"', page)]
    assert sorted(shown) == [
        ("Alternative text", "data:image/png;base64,"),
        ("figure of: Experiment", "data:image/png;base64,"),
    ]
    assert page.count("<img") == 2
    assert page.index("<h1") < page.index("whether it rises") < page.index("figure of")
    assert page.index("figure of") < page.index("it rises.</p>", page.index("figure of"))
    assert "60 minutes" not in page and "plt.plot" not in page


GRADER = """
import json, sys
from pathlib import Path
import nbformat
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from traitlets.config.loader import PyFileConfigLoader

config = PyFileConfigLoader("nbgrader_config.py", path=".").load_config()
config.CourseDirectory.root = str(Path.cwd())
nbgrader = NbGraderAPI(config=config)

def did(done):
    assert done["success"], done["error"] + done["log"]

def save(notebook, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)

for place in sorted(Path("source").iterdir()):
    did(nbgrader.generate_assignment(place.name))
for student, answers in json.load(sys.stdin).items():
    sheet = nbformat.read("student/tiny.ipynb", 4)
    for cell in sheet.cells:
        cell.source = answers.get(cell.id, cell.source)
    save(sheet, Path("submitted", student, "tiny", "tiny.ipynb"))
    did(nbgrader.autograde("tiny", student))
with Gradebook("sqlite:///gradebook.db") as book:
    for done in book.assignment_submissions("tiny"):
        cells = done.notebooks[0].grades
        grades = {g.name: [g.auto_score, g.max_score, g.needs_manual_grade] for g in cells}
        print("GRADES", json.dumps([done.student_id, grades]))
"""


@pytest.fixture(scope="module")
def graded(made):
    """The grades by nbgrader of a right and a wrong hand-in of the tiny sheet."""
    if not find_spec("nbgrader"):
        if os.environ.get("CI"):
            pytest.fail("CI needs nbgrader: make env", pytrace=False)
        pytest.skip("nbgrader is not installed: make env")
    path = NOTEBOOKS[REAL]
    (made / "source" / path.stem).mkdir()
    student, solved = lab.sheets(REAL, path, report.read(path))
    nbformat.write(student, made / "student" / path.name)
    nbformat.write(solved, made / "source" / path.stem / path.name)
    stub = cell(read(made / "student" / "tiny.ipynb"), "exercise-advantage").source
    body = SOLUTION.partition("\n")[2]
    answers = {
        "right": {"exercise-advantage": stub.replace("    # your code here", body)}
        | {"lab-answer": "The control takes the members away."},
        "wrong": {
            "exercise-advantage": stub.replace("return None", 'print("right: ")\n    return 0.5')
        },
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # of alembic
    told = subprocess.run(
        [sys.executable, "-c", GRADER],
        input=json.dumps(answers),
        cwd=made,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return dict(json.loads(line[7:]) for line in told.stdout.splitlines() if line[:6] == "GRADES")


def test_a_right_and_a_wrong_hand_in_are_graded(graded):
    test = "exercise-advantage-test"
    assert graded["right"] == {test: [2, 2, False], "lab-answer": [None, 4, True]}
    assert graded["wrong"][test] == [0, 2, False]


@pytest.mark.parametrize("name", ["tiny", REAL.rpartition("/")[2]])
def test_the_sheet_is_what_nbgrader_makes_of_the_instructors_version(made, graded, name):
    sheet, release = (
        read(made / path / f"{name}.ipynb") for path in ("student", f"release/{name}")
    )
    assert [c.source for c in sheet.cells] == [c.source for c in release.cells]
    nbformat.validate(sheet)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_makes_a_lab(name):
    path = NOTEBOOKS[name]
    whole, (student, solved) = read(path), lab.sheets(name, path, report.read(path))
    ids = [c.id for c in student.cells]
    assert len(set(ids)) == len(ids)
    exercises = [c for c in student.cells if "exercise" in c.metadata.get("tags", ())]
    assert len(exercises) >= 2
    assert "attachments" in student.cells[0] and "../gallery" not in student.cells[0].source
    text = "\n".join(c.source for c in student.cells)
    assert "Going further" not in text and "<summary>Solution" not in text
    assert "10 for the question at the end" in student.cells[0].source
    assert student.cells[-1].source == "claims.verify()"
    for exercise in exercises:
        assert cell(whole, exercise.id).source.splitlines()[-1] in exercise.source
        compile(cell(solved, exercise.id).source, exercise.id, "exec")


def refused(*arguments):
    ran = CliRunner().invoke(cli, ["lab", *map(str, arguments)])
    assert ran.exit_code == 2 and ran.stdout == "" and ran.stderr.count("\n") == 1, ran.output
    return ran.stderr


@pytest.fixture
def ran_nothing(monkeypatch):
    monkeypatch.setattr(lab.running, "execute", lambda *a, **k: pytest.fail("it ran"))


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(text="**Exercise 1** (5 minutes, easy). Write it."), "no solution of advantage("),
        (dict(text=TEXT.replace("advantage(guesses, members)", "advantage(guesses)")), "folded"),
        (dict(text=TEXT.replace("hits = ", "hits = = ")), "no solution of advantage(guesses, mem"),
        (dict(stub=STUB.replace("exercises.check", "print")), "is folded in before 'exercise-adv"),
        (dict(stub="x = 1"), "no solution of one function"),
        (dict(stub=STUB.replace("return None", "pass")), "no solution of advantage("),
    ],
    ids=["no solution", "other arguments", "no Python", "no check", "no function", "no return"],
)
def test_a_notebook_without_a_fitting_solution(tmp_path, ran_nothing, changes, said):
    line = refused(tiny(tmp_path, **changes), "--out", tmp_path / "lab")
    assert said in line and "tiny: " in line and not (tmp_path / "lab").exists()


def test_a_notebook_without_exercises(tmp_path, ran_nothing):
    path = tiny(tmp_path)
    notebook = read(path)
    cell(notebook, "exercise-advantage").metadata.tags = []
    nbformat.write(notebook, path)
    assert "tiny has no exercises in part one" in refused(path, "--out", tmp_path / "lab")
    cell(notebook, "exercise-advantage").metadata.tags = ["exercise"]
    notebook.cells = notebook.cells[-6:]  # begins with it
    for part in notebook.cells:
        del part["id"]
    notebook.nbformat_minor = 4
    nbformat.write(notebook, path)
    assert "is folded in before 'cell-0'" in refused(path, "--out", tmp_path / "lab")
    assert "has no exercises in part one" in refused("00_start_here", "--out", tmp_path / "lab")
    assert not (tmp_path / "lab").exists()


def test_an_unknown_notebook_and_a_missing_package(tmp_path, ran_nothing, monkeypatch):
    said = refused("attacks/membership_shado", "--out", tmp_path / "lab")
    assert "did you mean 'attacks/membership_shadow'?" in said
    found = lab.importlib.util.find_spec
    monkeypatch.setattr(
        lab.importlib.util, "find_spec", lambda name: None if name == "nbconvert" else found(name)
    )
    said = refused(tiny(tmp_path), "--out", tmp_path / "lab")
    assert 'slides need nbconvert: pip install "vplib[lab]"' in said
    assert not (tmp_path / "lab").exists()


def foreign_student(folder):
    nbformat.write(new_notebook(cells=[new_code_cell("mine = 1")]), folder / "student/tiny.ipynb")


def changed_points(folder):
    path = folder / "source" / "tiny" / "tiny.ipynb"
    notebook = read(path)
    cell(notebook, "exercise-advantage-test").metadata.nbgrader.points = 5
    nbformat.write(notebook, path)


def answered(folder):
    path = folder / "student" / "tiny.ipynb"
    notebook = read(path)
    cell(notebook, "lab-answer").source = "Mine."
    nbformat.write(notebook, path)


def no_notebook(folder):
    (folder / "student" / "tiny.ipynb").write_text("a shopping list")


def foreign_slides(folder):
    (folder / "slides" / "tiny.html").write_text("<title>my talk</title>")


def a_file_for_a_folder(folder):
    (folder / "slides" / "tiny.html").unlink()
    (folder / "slides").rmdir()
    (folder / "slides").write_text("")


@pytest.mark.parametrize(
    "change",
    [foreign_student, changed_points, answered, no_notebook, foreign_slides, a_file_for_a_folder],
)
def test_what_somebody_changed_or_made_stays(tmp_path, ran_nothing, monkeypatch, change):
    path, folder = tiny(tmp_path), tmp_path / "lab"
    without_a_kernel(monkeypatch)
    assert lab.write("tiny", path, folder, *lab.check("tiny", path, folder)) == 0
    lab.check("tiny", path, folder)  # untouched, it may be made again
    change(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert re.search("stays|not a readable notebook|cannot write", refused(path, "--out", folder))
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def without_a_kernel(monkeypatch, failed=None):
    """Lets a sheet pass for executed."""

    def execute(name, source, place, parameters):
        notebook = report.read(source)
        notebook.metadata.papermill["duration"] = 3.0
        if failed:
            lab.running.put_error(notebook, failed)
        return notebook, True

    monkeypatch.setattr(lab.running, "execute", execute)


def test_the_users_settings_of_nbgrader_stay(tmp_path, monkeypatch):
    path, folder = tiny(tmp_path), tmp_path / "lab"
    folder.mkdir()
    (folder / "nbgrader_config.py").write_text("c = get_config()  # mine")
    without_a_kernel(monkeypatch)
    assert CliRunner().invoke(cli, ["lab", str(path), "--out", str(folder)]).exit_code == 0
    assert (folder / "nbgrader_config.py").read_text() == "c = get_config()  # mine"


def test_a_sheet_that_does_not_run_is_not_written(tmp_path, monkeypatch):
    path, folder = tiny(tmp_path), tmp_path / "lab"
    without_a_kernel(monkeypatch, failed=AssertionError("not right"))
    ran = CliRunner().invoke(cli, ["lab", str(path), "--out", str(folder)])
    assert ran.exit_code == 1
    assert "nothing written, cell 3 (In [ ]) stopped: AssertionError: not right" in ran.output
    assert not [p for p in folder.rglob("*") if p.is_file()]


def test_a_published_notebook_has_no_badge_and_its_picture(tmp_path):
    address = "https://raw.githubusercontent.com/someone/vplib/main/notebooks"
    badge = "[![Open in Colab](https://x/colab-badge.svg)](https://colab.research.google.com/x)"
    path = tiny(tmp_path)
    notebook = report.read(path)
    first = notebook.cells[0]
    first.source = first.source.replace("../gallery", f"{address}/gallery") + "\n" + badge
    student, _ = lab.sheets("tiny", path, notebook)
    assert "(attachment:tiny.png)" in student.cells[0].source
    assert "colab" not in student.cells[0].source


def test_teaching_shows_the_command():
    text = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    assert "vplib lab attacks/membership_shadow --out lab" in text
