"""Claims: what is asked of each, its outcome, and that a false one stops every way to run it."""

import contextlib
import html.parser
import io
import os
import re
import subprocess
import sys
from fractions import Fraction

import nbformat
import numpy as np
import papermill
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook, new_output

from vplib import experiment, metrics, recorded
from vplib.claims import ClaimFailed, claims_table

QUICK = settings(deadline=None, max_examples=50)
GOOD = dict(paper="1", ours=1, holds=True, control=False)


def claims(data="digits", asserted_on=("digits", "mnist5k")):
    return experiment.Claims("Shokri 2017", data=data, asserted_on=asserted_on)


def checked(data="digits", **changes):
    """The outcome of one claim."""
    c = claims(data)
    c.check("a", **GOOD | changes)
    (row,) = c._rows.values()
    return row["outcome"]


def rows_of(c, monkeypatch):
    """The rows that `show` puts into the notebook."""
    payloads = []
    monkeypatch.setattr("vplib.claims.emit", lambda payload, *_, **__: payloads.append(payload))
    c.show()
    return payloads[0]["claims"]


# What a claim must say


@pytest.mark.parametrize(
    ("given", "outcome", "elsewhere"),
    [
        (dict(), "holds", "holds"),
        (dict(holds=False), "FAILS", "does not hold on olivetti"),
        (dict(holds=False, control=True), "FAILS", "does not hold on olivetti"),
        (dict(control=True), "no test", "no test on olivetti"),
        (dict(control=None, no_control="a theorem"), "holds", "holds"),
        (dict(control=None, not_reproduced="small"), "not reproduced", "not reproduced"),
        (dict(control=None, not_reproduced="small", holds=False),) + ("not reproduced",) * 2,
        (dict(control=True, not_reproduced="small"), "not reproduced", "not reproduced"),
    ],
)
def test_outcomes(given, outcome, elsewhere):
    assert checked(**given) == outcome
    assert checked("olivetti", **given) == elsewhere


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(control=None), "'a' has no control: give control="),
        (dict(control=None, no_control=""), "'a' has no control"),
        (dict(no_control="why"), "no_control stands alone"),
        (dict(control=None, no_control="why", not_reproduced="small"), "no_control stands alone"),
    ],
)
def test_each_claim_has_a_control_or_says_why_not(given, message):
    c = claims()
    with pytest.raises(ValueError, match=message):
        c.check("a", **GOOD | given)
    assert not c._rows


def test_one_claim_can_be_left_out_on_other_data_alone():
    assert checked("mnist5k", holds=False) == "FAILS"
    assert checked("mnist5k", holds=False, asserted=False) == "does not hold on mnist5k"
    assert checked("mnist5k", control=True, asserted=False) == "no test on mnist5k"
    assert checked("mnist5k", asserted=False) == "holds"
    with pytest.raises(ValueError, match="must be asserted on digits"):
        checked("digits", asserted=False)
    c = claims(asserted_on=())  # a run with other parameters asserts nothing
    c.check("a", **GOOD | dict(holds=False, asserted=False))
    c.verify()


def test_a_paper_has_one_headline():
    c = claims()
    c.check("a", **GOOD, headline=True)
    c.check("a", **GOOD, headline=True)  # the cell was run again
    c.check("b", **GOOD, headline=True, of="Yeom 2018")
    with pytest.raises(ValueError, match=r"Shokri 2017 has a headline already \('a'\)"):
        c.check("c", **GOOD, headline=True)
    with pytest.raises(ValueError, match=r"Yeom 2018 has a headline already \('b'\)"):
        c.check("a", **GOOD, headline=True, of="Yeom 2018")


def test_a_claim_is_one_line():
    with pytest.raises(ValueError, match="a claim is one line"):
        claims().check("a\nb", **GOOD)


def test_the_datasets_are_a_tuple():
    with pytest.raises(TypeError, match=r'such as \("mnist5k",\)'):
        claims(asserted_on="mnist5k")


@pytest.mark.parametrize("name", ["holds", "control"])
@pytest.mark.parametrize(
    "value", [1, 0.7, "yes", float("nan"), torch.tensor(1.0), torch.tensor([True, True]), [True]]
)
def test_no_truth_value(name, value):
    c = claims()
    with pytest.raises(TypeError, match=f"{name} must be True or False, not "):
        c.check("a", **GOOD | {name: value})
    assert not c._rows


@pytest.mark.parametrize("kind", [bool, np.bool_, torch.tensor, np.array])
def test_truth_values_of_any_make(kind):
    assert checked(holds=kind(True), control=kind(False)) == "holds"
    assert checked(holds=kind(True), control=kind(True)) == "no test"


@pytest.mark.parametrize("nan", [float("nan"), torch.tensor(float("nan")), np.float64("nan")])
def test_nan_never_holds(nan):
    assert checked(ours=nan, holds=nan > 0.5) == "FAILS"
    assert checked(ours=nan, holds=nan < 0.5) == "FAILS"


@pytest.mark.parametrize(
    ("ours", "kind"),
    [
        ("0.61 to 0.87", "str"),
        ([0.61, 0.87], "list"),
        ((0.6, 0.5, 0.7), "tuple"),
        (torch.tensor([0.5, 0.6]), "Tensor"),
        (torch.tensor([]), "Tensor"),
        (np.ones(1), "ndarray"),
        (True, "bool"),
        (1j, "complex"),
        (Fraction(1, 2), "Fraction"),
        (None, "NoneType"),
        ({}, "dict"),
        ({"AUC": "0.61"}, "str"),
        ({"AUC": [0.61]}, "list"),
        ({"AUC": {"low": 0.61}}, "dict"),
    ],
)
def test_ours_is_numbers(ours, kind):
    c = claims()
    message = f"not a {kind}; give the numbers alone, as ours="
    with pytest.raises(TypeError, match=message):
        c.check("a", **GOOD | {"ours": ours})
    assert not c._rows


# How it is shown


@pytest.mark.parametrize(
    ("ours", "shown"),
    [
        (3, "3"),
        (1797, "1,797"),
        (torch.tensor(12), "12"),
        (0.5, "0.500"),
        (1.0, "1.00"),
        (0.0, "0.00"),
        (0.64951, "0.650"),
        (np.float32(12.345), "12.3"),
        (99.96, "100"),
        (123.4, "123"),
        (58999.7, "59,000"),
        (-0.00012345, "-0.000123"),
        (2e-9, "2.00e-09"),
        (1e20, "1.00e+20"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (metrics.Estimate(0.7311, 0.7009, 0.7522), "0.73 [0.70, 0.75]"),
        (metrics.Estimate(0.7311, 0.7289, 0.7334), "0.731 [0.729, 0.733]"),
        (metrics.Estimate(0.05, 0.01, 0.2), "0.05 [0.01, 0.20]"),
        (metrics.Estimate(1.0, 0.96, 1.0), "1.00 [0.96, 1.00]"),
        (metrics.Estimate(12.31, 11.82, 12.94), "12.3 [11.8, 12.9]"),
        (metrics.Estimate(80.3, 70.1, 90.2), "80 [70, 90]"),
        (metrics.Estimate(5000.0, 4900.0, 5100.0), "5,000 [4,900, 5,100]"),
        (metrics.Estimate(0.0, 0.0, 0.0), "0 [0, 0]"),
        (metrics.Estimate(0.5, float("nan"), float("inf")), "0.50 [nan, inf]"),
        ({"AUC, 2 classes": 0.61, "10 classes": 0.87}, "AUC, 2 classes: 0.610; 10 classes: 0.870"),
        ({"AUC": metrics.Estimate(0.7, 0.6, 0.8), "n": 40}, "AUC: 0.70 [0.60, 0.80]; n: 40"),
    ],
)
def test_how_numbers_are_shown(ours, shown):
    c = claims()
    c.check("a", **GOOD | {"ours": ours})
    assert [row["shown"] for row in c._rows.values()] == [shown]


def test_the_row_of_a_claim(monkeypatch):
    c = claims()
    c.check("a", **GOOD, headline=True)
    estimate = metrics.Estimate(torch.tensor(0.5), 0.25, float("inf"))
    ours = {"AUC": estimate, "n": np.int64(3), "gap": float("nan")}
    c.check("b", paper="2", ours=ours, holds=False, no_control="none", of="Yeom 2018")
    c.check("c", **GOOD | dict(control=None, not_reproduced="small"))
    rows = rows_of(c, monkeypatch)
    first = dict(of="Shokri 2017", claim="a", paper="1", ours={"": 1}, shown="1")
    first |= dict(outcome="holds", why="", headline=True, control=False, no_control="")
    second = dict(of="Yeom 2018", claim="b", paper="2", outcome="FAILS", why="", headline=False)
    second |= dict(ours={"AUC": [0.5, 0.25, "inf"], "n": 3, "gap": "nan"}, control=None)
    second |= dict(shown="AUC: 0.50 [0.25, inf]; n: 3; gap: nan", no_control="none")
    third = first | dict(claim="c", outcome="not reproduced", why="small", headline=False)
    assert rows == [first, second, third | dict(control=None)]


def test_a_claim_checked_again_replaces_the_first():
    c = claims()
    c.check("a", **GOOD | dict(holds=False))
    c.check("a", **GOOD | dict(ours=2))
    c.check("a", **GOOD | dict(ours=3), of="another paper")
    found = [(row["of"], row["shown"]) for row in c._rows.values()]
    assert found == [("Shokri 2017", "2"), ("another paper", "3")]
    c.verify()


def test_show_prints_paper_against_ours_and_never_raises(capsys):
    c = claims()
    c.show()
    assert capsys.readouterr().out == "no claims yet\n"
    c.check("a", paper="above 3", ours=2, holds=False, control=False, headline=True)
    c.check("b", **GOOD | dict(control=None, not_reproduced="too <small>"), of="Yeom")
    c.check("c", **GOOD | dict(control=None, no_control="a theorem"))
    c.check("d", **GOOD | dict(control=True))
    c.show()
    assert capsys.readouterr().out.splitlines() == [
        "[FAILS] Shokri 2017: a (headline)",
        "    paper: above 3",
        "    ours:  2",
        "    control: does not hold",
        "[not reproduced] Yeom: b",
        "    paper: 1",
        "    ours:  1",
        "    why: too <small>",
        "[holds] Shokri 2017: c",
        "    paper: 1",
        "    ours:  1",
        "    no control: a theorem",
        "[no test] Shokri 2017: d",
        "    paper: 1",
        "    ours:  1",
        "    control: holds too",
    ]
    c.show(of="Yeom")
    assert "Shokri" not in capsys.readouterr().out
    c.show(of="nobody")
    assert capsys.readouterr().out == "no claims yet\n"


class Cells(html.parser.HTMLParser):
    """The texts of an HTML table's cells, and all its tags."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.cells = set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        self.cells[-1] += data


ROW = dict(of="x", claim="y", paper="1", shown="2", outcome="holds", why="", headline=False)
ROW |= dict(control=None, no_control="")


@QUICK
@given(*[st.text(alphabet="<>&'\"abé/ =", min_size=1, max_size=12) for _ in range(6)])
def test_the_table_escapes_whatever_it_is_given(of, claim, paper, shown, why, no_control):
    row = dict(of=of, claim=claim, paper=paper, shown=shown, why=why, no_control=no_control)
    found = Cells(claims_table([ROW | row]))
    assert found.tags == {"table", "thead", "tbody", "tr", "th", "td", "b", "br", "small"}
    outcome = f"✓ holdswhy: {why}no control: {no_control}"
    assert found.cells[4:] == [f"{of}: {claim}", paper, shown, outcome]


def test_the_table_marks_each_outcome_with_its_control_and_the_headline():
    rows = [
        dict(control=False, headline=True),
        dict(outcome="not reproduced", why="small"),
        dict(outcome="FAILS", control=False),
        dict(outcome="no test", control=True),
        dict(outcome="does not hold on olivetti", control=False),
        dict(outcome="no test on olivetti", control=True),
        dict(no_control="a theorem"),
    ]
    cells = Cells(claims_table([ROW | row for row in rows])).cells
    assert cells[:4] == ["Claim", "Paper", "Ours", "Outcome"]
    assert cells[4::4] == ["x: y★ headline"] + ["x: y"] * 6
    assert cells[7::4] == [
        "✓ holdscontrol: does not hold",
        "○ not reproducedwhy: small",
        "✗ FAILScontrol: does not hold",
        "✗ no testcontrol: holds too",
        "– does not hold on olivetticontrol: does not hold",
        "– no test on olivetticontrol: holds too",
        "✓ holdsno control: a theorem",
    ]


# verify


def test_verify_passes_with_claims_that_hold_or_are_known_not_to(capsys):
    c = claims()
    c.check("more classes leak more", **GOOD, headline=True)
    c.check("recall is near 1", **GOOD | dict(ours=0.4321, not_reproduced="small"))
    c.check("noise", **GOOD | dict(control=None, no_control="theorem"), of="Yeom 2018")
    c.check("b", **GOOD | dict(control=None, no_control="theorem"), of="Yu 2018", headline=True)
    c.verify()
    assert capsys.readouterr().out.splitlines() == [
        "holds           Shokri 2017: more classes leak more (headline)",
        "not reproduced  Shokri 2017: recall is near 1",
        "holds           Yeom 2018: noise (no control)",
        "holds           Yu 2018: b (headline) (no control)",
    ]


def test_verify_fails_after_it_has_listed_every_claim(capsys):
    c = claims()
    c.check("first", paper="above 3", ours=2.5, holds=False, control=False)
    c.check("second", paper="2", ours={"AUC": 7}, holds=True, control=True)
    c.check("third", **GOOD)
    message = "2 of 3 claims failed: first (ours: 2.50; paper: above 3); second (no test, its "
    message += "control held as well; ours: AUC: 7; paper: 2)"
    with pytest.raises(ClaimFailed, match=re.escape(message)):
        c.verify()
    assert capsys.readouterr().out.splitlines() == [
        "FAILS           Shokri 2017: first",
        "no test         Shokri 2017: second",
        "holds           Shokri 2017: third",
    ]


def test_other_data_fail_nothing(capsys):
    c = claims(data="olivetti")
    c.check("more leaks", **GOOD | dict(holds=False))
    c.check("less leaks", **GOOD | dict(control=True))
    c.verify()
    assert capsys.readouterr().out.splitlines() == [
        "does not hold on olivetti  Shokri 2017: more leaks",
        "no test on olivetti  Shokri 2017: less leaks",
    ]


def test_verify_without_a_claim():
    with pytest.raises(ClaimFailed, match="this notebook checked no claim"):
        claims().verify()


@QUICK
@given(ours=st.floats(), other=st.floats())
def test_verify_prints_the_same_whatever_was_measured(ours, other):
    printed = []
    for value in (ours, other):
        c = claims()
        c.check("it leaks", **GOOD | dict(ours=value))
        c.check(
            "it still leaks",
            paper="0.9",
            ours={"a": value, "b": metrics.Estimate(value, value, value)},
            holds=value > 0.5,
            control=value < 0.5,
            not_reproduced=f"{value}",
        )
        with contextlib.redirect_stdout(io.StringIO()) as out:
            c.verify()
        printed.append(out.getvalue())
    assert printed[0] == printed[1]


# In an executed notebook


def claims_notebook(holds: bool, control: bool, printed: str) -> nbformat.NotebookNode:
    """A notebook that ends as all do, with the output of its last cell as committed."""
    tags = ["keep_output", "nbval-check-output"]
    last = new_code_cell("claims.verify()", metadata={"tags": tags}, execution_count=2)
    last.outputs = [new_output("stream", name="stdout", text=printed)]
    setup = (
        "import random\n"
        "from vplib import experiment\n"
        "claims = experiment.Claims('Shokri', data='digits', asserted_on=('digits',))\n"
        f"claims.check('it leaks', paper='0.9', ours={{'AUC': random.random()}}, holds={holds}, "
        f"control={control})\n"
        "claims.show()"
    )
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new_code_cell(setup, execution_count=1), last]
    return new_notebook(cells=cells, metadata={"kernelspec": kernelspec})


def claims_in(notebook):
    """The rows of its only table of claims, and the table itself as shown."""
    data = [o["data"] for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    ((rows, shown),) = [(d[recorded.MIME]["claims"], d) for d in data if recorded.MIME in d]
    return rows, shown


@pytest.mark.parametrize(
    ("holds", "control", "outcome", "why"),
    [(False, False, "FAILS", ""), (True, True, "no test", "no test, its control held as well; ")],
)
def test_a_false_claim_and_one_that_tests_nothing_stop_papermill(
    tmp_path, holds, control, outcome, why
):
    nbformat.write(claims_notebook(holds, control, ""), tmp_path / "a.ipynb")
    message = re.escape(f"1 of 1 claims failed: it leaks ({why}ours: AUC: ")
    with pytest.raises(papermill.PapermillExecutionError, match=message):
        papermill.execute_notebook(tmp_path / "a.ipynb", tmp_path / "out.ipynb", progress_bar=False)
    rows, shown = claims_in(nbformat.read(tmp_path / "out.ipynb", as_version=4))
    assert [(row["outcome"], row["control"]) for row in rows] == [(outcome, control)]
    assert shown["text/html"] == claims_table(rows)
    assert shown["text/plain"].startswith(f"[{outcome}] Shokri: it leaks\n")


def test_a_claim_whose_control_holds_stops_an_executed_notebook():
    notebook = claims_notebook(True, True, "")
    with pytest.raises(CellExecutionError, match="no test, its control held as well"):
        NotebookClient(notebook, timeout=120).execute()
    assert notebook.cells[1].outputs[0].text == "no test         Shokri: it leaks\n"


def test_nbval_fails_a_false_a_changed_and_an_untested_claim(tmp_path):
    printed = {o: f"{o:14}  Shokri: it leaks\n" for o in ("holds", "FAILS", "no test")}
    notebook = claims_notebook(True, False, printed["holds"])
    notebook.cells.append(claims_notebook(True, False, printed["FAILS"]).cells[1])  # another one
    notebook.cells += claims_notebook(False, False, printed["FAILS"]).cells
    notebook.cells += claims_notebook(True, True, printed["no test"]).cells
    nbformat.write(notebook, tmp_path / "a.ipynb")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "-p", "no:cacheprovider", "-rA", "-vv"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    out = re.sub(r"\x1b\[[0-9;]*m", "", run.stdout)
    assert re.findall(r"^(PASSED|FAILED) a\.ipynb::Cell (\d)", out, re.M) == [
        *(("PASSED", cell) for cell in "0135"),
        *(("FAILED", cell) for cell in "246"),
    ], run.stdout
    assert run.returncode == 1
    assert "ClaimFailed: 1 of 1 claims failed: it leaks (ours" in out
    assert "ClaimFailed: 1 of 1 claims failed: it leaks (no test, its control held as well" in out
