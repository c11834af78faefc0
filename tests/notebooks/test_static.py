"""Every notebook's anatomy, and that the check of it notices what is broken."""

import copy
import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
import strip
from anatomy import (
    ROOT,
    all_notebooks,
    checks,
    headings,
    name_of,
    paper_problems,
    problems,
)
from strip import read_papers

EXAMPLE = ROOT / "notebooks" / "attacks" / "membership_shadow.ipynb"
TEMPLATE = ROOT / "docs" / "template.ipynb"
# Every claim without a control, and why it can have none: (notebook, paper, claim) -> reason.
NO_CONTROL: dict[tuple[str, str, str], str] = {}


@pytest.mark.parametrize("path", all_notebooks(), ids=lambda p: p.stem)
def test_notebook_has_its_anatomy(path):
    assert problems(path, read_papers()) == []


def test_template_has_the_anatomy_too():
    assert problems(TEMPLATE) == []


def test_papers_csv_is_whole():
    papers = read_papers()
    assert len(papers) == 136
    assert paper_problems(papers) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.append(dict(rows[0])), "stands twice"),
        (lambda rows: rows[0].update(state="done"), "Oh 2016 is 'done', its claims say 'works'"),
        (lambda rows: rows[0].update(state="planned"), "its claims say 'works': make strip"),
        (lambda rows: rows[0].update(state="works", notebook="attacks/none"), "does not exist"),
    ],
)
def test_papers_check_notices(change, message):
    papers = copy.deepcopy(read_papers())
    change(papers)
    assert any(message in p for p in paper_problems(papers))


def test_claims_without_a_control_are_known():
    without = {}
    for path in [*all_notebooks(), TEMPLATE]:
        name = name_of(path)
        if name != "notebooks/00_start_here":
            for claim in checks(nbformat.read(path, as_version=4)):
                if claim.no_control:
                    without[name, claim.of, claim.text] = claim.no_control
    assert without == NO_CONTROL


def _cell(notebook, tag):
    return next(c for c in notebook.cells if tag in c.metadata.get("tags", ()))


def _retag(notebook, tag):
    _cell(notebook, tag).metadata["tags"].remove(tag)


def _edit(notebook, old, new):
    hits = [c for c in notebook.cells if old in c.source]
    assert hits, f"nothing to break: {old!r}"
    for cell in hits:
        cell.source = cell.source.replace(old, new)


def _leave_output(notebook):
    cell = _cell(notebook, "parameters")
    cell.outputs = [nbformat.v4.new_output("stream", text="left in")]


def _lengthen(notebook):
    _cell(notebook, "hero").source = "\n".join(["x = 1"] * 21)


def _say(notebook, line):
    notebook.cells[-1].outputs[0].text = line + "\n"


BREAKS = {
    "no parameters tag": (lambda n: _retag(n, "parameters"), "tagged parameters"),
    "no hero tag": (lambda n: _retag(n, "hero"), "tagged hero"),
    "no nbval tag": (lambda n: _retag(n, "nbval-check-output"), "lacks the tags"),
    "no keep_output tag": (lambda n: _retag(n, "keep_output"), "outputs left in"),
    "an exercise fewer tagged": (
        lambda n: [_retag(n, "exercise") for _ in range(2)],
        "tagged exercise",
    ),
    "no threat model": (lambda n: _edit(n, "## Threat model", "## Else"), "'Threat model'"),
    "no references": (lambda n: _edit(n, "## References", "## Else"), "'References'"),
    "sections swapped": (lambda n: _edit(n, "## Explore", "## Setup"), "'Explore'"),
    "no SEED": (lambda n: _edit(n, "SEED = 0\n", ""), "SEED is missing"),
    "no DATASET": (
        lambda n: _edit(n, "DATASET = None", "DATA = None"),
        "DATASET is missing",
    ),
    "a computed parameter": (lambda n: _edit(n, "SEED = 0", "SEED = 1 - 1"), "no NAME = literal"),
    "an = in a parameter's comment": (
        lambda n: _edit(n, "SEED = 0", "SEED = 0  # with SEED=1 another draw"),
        "papermill cannot read SEED",
    ),
    "an output left in": (_leave_output, "outputs left in"),
    "no guard": (lambda n: _edit(n, "google.colab", "colab"), "Colab guard"),
    "a cell of 21 lines": (_lengthen, "has 21 lines, more than 20"),
    "a cell that is not formatted": (
        lambda n: _edit(n, "plots.use_style()", "plots.use_style()  # fmt: skip"),
        "uses # fmt: skip",
    ),
    "a faked black box": (
        lambda n: _edit(n, "plots.use_style()", "f = lambda _, a=a: a"),
        "uses lambda _",
    ),
    "a working folder": (
        lambda n: _edit(n, "plots.use_style()", "os.chdir('..')"),
        "uses os.chdir",
    ),
    "a hidden failure": (lambda n: _edit(n, "plots.use_style()", "try:\n    pass"), "uses try:"),
    "no verify": (lambda n: _edit(n, "claims.verify()", "claims.show()"), "not claims.verify()"),
    "an unknown exercise": (
        lambda n: _edit(n, "membership_shadow.gap_attack", "membership_shadow.none"),
        "no known exercise",
    ),
    "a section that papers.csv names": (
        lambda n: _edit(n, "### Yeom et al. 2018", "### Someone 2018"),
        "no section 'Yeom",
    ),
    "a claim that papers.csv counts": (
        lambda n: _edit(n, 'of="Sablayrolles 2019"', 'of="Someone 2019"'),
        "Sablayrolles 2019 is partly without a claim",
    ),
    "no metadata": (lambda n: n.metadata.pop("vplib"), "metadata.vplib"),
    "no place in the course": (lambda n: n.metadata["vplib"].pop("course"), "hold exactly"),
    "a place that is no number": (lambda n: n.metadata["vplib"].update(course="1"), "whole number"),
    "a failing claim": (lambda n: _say(n, "FAILS           Shokri 2017: x"), "none failing"),
    "a claim that tests nothing": (lambda n: _say(n, "no test         Yu 2021: x"), "none failing"),
    "an output of no claim": (lambda n: _say(n, "done"), "'done' is no line of claims.verify()"),
    "an output of another claim": (
        lambda n: _say(n, "holds           Shokri 2017: x"),
        "the last cell's output is of other claims",
    ),
    "a computed claim": (
        lambda n: _edit(n, 'of="Yeom 2018"', 'of="Yeom" + YEAR'),
        "text, of, headline and no_control must be literals",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_static_check_notices(name, tmp_path):
    change, message = BREAKS[name]
    broken = nbformat.read(EXAMPLE, as_version=4)
    change(broken)
    path = tmp_path / "attacks" / EXAMPLE.name
    path.parent.mkdir()
    nbformat.write(broken, path)
    assert any(message in p for p in problems(path, read_papers())), problems(path, read_papers())


def test_cells_have_20_lines(tmp_path):
    notebook = nbformat.read(TEMPLATE, as_version=4)
    for lines in (20, 21):
        _cell(notebook, "hero").source = "\n".join(["x = 1"] * lines)
        nbformat.write(notebook, tmp_path / "other.ipynb")
        noticed = [p for p in problems(tmp_path / "other.ipynb") if f"has {lines} lines" in p]
        assert len(noticed) == (lines > 20)


def test_static_check_notices_a_row_without_its_section():
    papers = read_papers()
    row = next(r for r in papers if r["paper"] == "Yeom 2018")
    row["section"] = ""
    assert any("no section ''" in p for p in problems(EXAMPLE, papers))


def test_static_check_notices_a_truncated_notebook(tmp_path):
    path = tmp_path / "membership_shadow.ipynb"
    path.write_bytes(EXAMPLE.read_bytes()[:5000])
    assert "no valid notebook" in problems(path)[0]


@pytest.mark.parametrize("command", [("check",), ("format", "--check")])
def test_ruff(command):
    ran = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "vplib", "tests", "notebooks", "docs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_tables_are_current():
    assert strip.notebook_table() in (ROOT / "README.md").read_text()
    assert strip.course_table() in (ROOT / "notebooks" / "README.md").read_text()


def test_the_course_table_has_goals_of_every_notebook():
    rows = [line.split(" | ") for line in strip.course_table().splitlines()[2:-2]]
    assert len(rows) == len(all_notebooks())
    for _, title, minutes, _, goals in rows:
        assert title.endswith(".ipynb)") and int(minutes) > 0 and len(goals) > 40, title
    assert rows[0][1].startswith("[Start here](00_start_here.ipynb)")


def test_the_syllabus_follows_the_course_and_names_every_notebook():
    text = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    places = {name: text.find(f"`{name}`") for name, _ in strip.in_course_order()}
    assert -1 not in places.values(), places
    assert list(places.values()) == sorted(places.values()), places


def test_each_notebook_has_a_place_of_its_own_in_the_course():
    places = [notebook.metadata["vplib"]["course"] for _, notebook in strip.in_course_order()]
    assert len(set(places)) == len(places), places


def test_guard_and_badge_follow_the_address():
    notebook = nbformat.read(EXAMPLE, as_version=4)
    address = "https://github.com/someone/vplib"
    before = notebook.cells[0].source
    assert "](../gallery/membership_shadow.png)" in before
    strip.with_generated(notebook, address, "notebooks/attacks/membership_shadow.ipynb")
    raw = "https://raw.githubusercontent.com/someone/vplib/main/notebooks/gallery/"
    assert f"]({raw}membership_shadow.png)" in notebook.cells[0].source
    setup = next(c for c in notebook.cells if c.cell_type == "code")
    assert f'%pip install -q "vplib @ git+{address}"' in setup.source
    assert "from vplib import" in setup.source
    badge = "colab.research.google.com/github/someone/vplib/blob/main/notebooks/attacks/"
    assert badge in notebook.cells[0].source
    strip.with_generated(notebook, "", "notebooks/attacks/membership_shadow.ipynb")
    assert notebook.cells[0].source == before
    assert setup.source.startswith(strip.guard(""))


@pytest.mark.parametrize("name", ["00_start_here", "attacks/membership_shadow"])
def test_the_guard_of_the_first_release_is_replaced(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    setup = next(c for c in notebook.cells if c.cell_type == "code")
    before, first = setup.source, notebook.cells[0].source
    old = 'import sys\n\nif "google.colab" in sys.modules:\n    print("Upload a zip")\n'
    setup.source = old + before.removeprefix(strip.guard(""))
    assert setup.source != before
    for _ in range(2):
        strip.with_generated(notebook, "", f"notebooks/{name}.ipynb")
        assert (setup.source, notebook.cells[0].source) == (before, first)


def test_the_guard_installs_what_a_notebook_needs():
    address = "https://github.com/someone/vplib"
    assert f'%pip install -q "vplib[he] @ git+{address}"' in strip.guard(address, ["he"])
    assert '%pip install -q ./vplib-*.whl "tenseal>=' in strip.guard("", ["he"])
    assert "%pip install -q ./vplib-*.whl\n" in strip.guard("")


def test_requirements_and_environment_agree_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["lab"] + extras["he"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == wanted
    environment = (ROOT / "environment.yml").read_text()
    assert "-r requirements.txt" in environment and "-e ." in environment


def test_every_notebook_is_linked_from_the_start_page_or_readme():
    readme = (ROOT / "README.md").read_text()
    for path in all_notebooks():
        assert path.relative_to(ROOT).as_posix() in readme


def test_readme_shows_four_heroes():
    readme = (ROOT / "README.md").read_text()
    heroes = re.findall(r"!\[([^]]+)\]\((notebooks/gallery/\w+\.png)\)", readme)
    assert len({path for _, path in heroes}) == 4 and all(len(alt) > 20 for alt, _ in heroes)
    assert all((ROOT / path).exists() for _, path in heroes)


def test_headings_are_read():
    assert "Threat model" in headings(nbformat.read(EXAMPLE, as_version=4))
