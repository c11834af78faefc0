"""States in papers.csv and README's counts follow the outcomes in the committed notebooks."""

import nbformat
import pytest
from anatomy import checks, paper_problems
from nbformat.v4 import new_code_cell, new_notebook, new_output
from strip import (
    Verified,
    in_course_order,
    notebook_table,
    read_papers,
    state,
    states,
    verified,
    write_states,
)

ROWS = """paper,survey_place,method,notebook,section,elsewhere,state
Doe 2020,3.2.1,"one, two",attacks/doe,x,,planned
Roe 2021,3.2.1,m,attacks/doe,x,"masks, in defenses/x",works
Poe 2022,3.2.1,m,attacks/doe,x,,not reproduced
Moe 2023,3.2.1,m,attacks/doe,x,,works
Nobody 2024,3.2.1,m,attacks/other,,,partly
"""


def committed(printed, course):
    """A notebook with the output of its last cell."""
    last = new_code_cell("claims.verify()")
    last.outputs = [new_output("stream", name="stdout", text=printed)] if printed else []
    about = dict(title="T", paper="Doe 2020", minutes=5, datasets=["digits"], course=course)
    return new_notebook(cells=[last], metadata={"vplib": about})


@pytest.fixture
def root(tmp_path):
    """A repository of two notebooks and five papers."""
    (tmp_path / "notebooks/attacks").mkdir(parents=True)
    (tmp_path / "notebooks/papers.csv").write_text(ROWS)
    printed = (
        "holds           Doe 2020: it leaks: always (headline)\n"
        "not reproduced  Doe 2020: and more\n"
        "not reproduced  Roe 2021: a (headline) (no control)\n"
        "holds           Roe 2021: b\n"
        "holds           Poe 2022: c (no control)\n"
        "holds           Carlini 2022: not in the survey (headline)\n"
    )
    nbformat.write(committed(printed, 20), tmp_path / "notebooks/attacks/doe.ipynb")
    printed = "not reproduced  Moe 2023: no headline\nnot reproduced  Poe 2022: e\n"
    nbformat.write(committed(printed, 10), tmp_path / "notebooks/attacks/early.ipynb")
    return tmp_path


def test_lines_of_verify_are_read():
    found = verified(committed("holds           A 2020: x: y (headline) (no control)\n", 0))
    assert found == [Verified("holds", "A 2020", "x: y", True, True)]
    found = verified(committed("does not hold on my data  A 2020: x (y)\n", 0))
    assert found == [Verified("does not hold on my data", "A 2020", "x (y)", False, False)]
    assert verified(committed("", 0)) == []
    with pytest.raises(ValueError, match=r"'done' is no line of claims.verify\(\): make strip"):
        verified(committed("holds           A 2020: x\ndone\n", 0))


def test_states_come_from_headlines(root):
    assert states(root) == {
        "Doe 2020": "works",
        "Roe 2021": "not reproduced",
        "Poe 2022": "partly",
        "Moe 2023": "planned",
        "Carlini 2022": "works",
    }


@pytest.mark.parametrize("outcome", ["FAILS", "no test", "does not hold on olivetti"])
def test_a_headline_that_fails_is_no_state(outcome):
    failing = Verified(outcome, "A 2020", "x", True, False)
    holding = Verified("holds", "A 2020", "y", False, False)
    assert state([failing, holding]) == "planned"


def test_a_paper_has_one_headline_over_all_notebooks(root):
    path = root / "notebooks/attacks/early.ipynb"
    nbformat.write(committed("holds           Doe 2020: another (headline)\n", 10), path)
    with pytest.raises(ValueError, match="Doe 2020 has 2 headlines, not one: another; it leaks"):
        states(root)


def test_states_are_written_and_a_stale_one_is_noticed(root):
    stale = paper_problems(read_papers(root), root)
    assert stale[:2] == [
        "Doe 2020 is 'planned', its claims say 'works': make strip",
        "Roe 2021 is 'works', its claims say 'not reproduced': make strip",
    ]
    write_states(root)
    path = root / "notebooks/papers.csv"
    written = [line.rpartition(",")[2] for line in path.read_text().splitlines()]
    assert written == ["state", "works", "not reproduced", "partly", "planned", "planned"]
    before = [line.rpartition(",")[0] for line in ROWS.splitlines()]
    assert [line.rpartition(",")[0] for line in path.read_text().splitlines()] == before
    assert paper_problems(read_papers(root), root) == []
    path.write_text(path.read_text().replace(",x,,works", ",x,,partly"))
    problems = paper_problems(read_papers(root), root)
    assert problems == ["Doe 2020 is 'partly', its claims say 'works': make strip"]


def test_the_readme_counts_states_and_claims_without_control(root):
    write_states(root)
    *table, empty, sentence = notebook_table(root).splitlines()
    assert [row.split(" | ")[-1] for row in table[2:]] == [
        "2 not reproduced |",
        "4 holds, 2 not reproduced, 2 without control |",
    ]
    assert sentence == (
        "Of the survey's 5 papers, 1 work here, 1 in part, 1 did not reproduce, 2 to come."
    )


def test_the_course_orders_notebooks(root):
    assert [name for name, _ in in_course_order(root)] == ["attacks/early", "attacks/doe"]


def test_checks_are_read_from_the_code():
    cells = [
        "%matplotlib inline\nclaims = experiment.Claims('A', data=DATASET, asserted_on=DIGITS)",
        "for x in y:\n    !ls\n    claims.check('a', paper='', ours=x, holds=f(')'), control=g)",
        "claims.check('b', paper='', ours=1, holds=h, of='B', headline=True, no_control='c')",
        "exercises.check('d', e)",
    ]
    notebook = new_notebook(cells=[new_code_cell(source) for source in cells])
    found = [(c.of, c.text, c.headline, c.no_control) for c in checks(notebook)]
    assert found == [("B", "b", True, "c"), ("A", "a", False, "")]
    with pytest.raises(ValueError, match="0 Claims are made, not one"):
        checks(new_notebook(cells=[new_code_cell("x = 1")]))
    notebook.cells.append(new_code_cell("claims.check(name, holds=h, control=c)"))
    with pytest.raises(ValueError, match=r"claims.check\(name, .* must be literals"):
        checks(notebook)
    notebook.cells.append(new_code_cell("try:"))
    with pytest.raises(ValueError, match="the code cells are no Python: "):
        checks(notebook)
