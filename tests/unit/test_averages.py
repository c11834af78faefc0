"""What a report says of a sweep: averages over the seeds, and the page that shows them."""

import html
import re

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from vplib.runner import averages, report


def claim(value, holds=True, control=False, **changes):
    """A row of the claims as an executed notebook holds it."""
    return {
        "of": "P <1>",
        "claim": "grows",
        "paper": "0.5",
        "ours": {"AUC": value, "floor": [0.5, 0.4, 0.6]},
        "shown": f"AUC: {value}; floor: 0.5 [0.4, 0.6]",
        "outcome": "no test" if holds and control else "holds" if holds else "FAILS",
        "why": "",
        "headline": True,
        "control": control,
        "no_control": "",
    } | changes


def point(seed, rate=0.5, kind="a", swept=("SEED", "RATE"), measured=None):
    auc = seed * rate
    return {
        "parameters": {"SEED": seed, "RATE": rate, "KIND": kind},
        "swept": list(swept),
        "measured": measured
        or {
            "accuracy": 2 * auc,
            "claim: P <1>: grows": "holds",
            "claim: P <1>: grows: AUC": auc,
            "claim: P <1>: grows: floor": 0.5,
        },
    }


def test_points_are_grouped_by_what_is_not_the_seed():
    points = [point(s, r) for s in (0, 1) for r in (0.1, 0.5)]
    assert {k: len(v) for k, v in averages.groups(points).items()} == {"RATE=0.1": 2, "RATE=0.5": 2}
    assert list(averages.groups([point(0, swept=["SEED"])])) == ["all points"]


def test_means_by_hand():
    # standard deviation 1, divided by the root of 3
    assert averages.mean([1, 2, 3]) == "2 ± 0.58"
    assert averages.mean([0.5, 0.5]) == "0.5 ± 0"
    assert averages.mean([2]) == "2"


def test_lists_are_taken_apart_and_texts_left_out():
    points = [point(0, measured={"curve": [1, 2.5, "nan"], "name": "x", "rate": n}) for n in (3, 5)]
    assert averages.numbers(points) == {
        "curve [1]": [1, 1],
        "curve [2]": [2.5, 2.5],
        "rate": [3, 5],
    }


def test_charts_need_a_swept_number_and_every_point():
    assert averages.charts([point(s, swept=["SEED"]) for s in (0, 1)]) == []
    kinds = [point(s, kind=k, swept=["SEED", "KIND"]) for s in (0, 1) for k in "ab"]
    assert averages.charts(kinds) == []
    points = [point(s, r) for s in (0, 1) for r in (0.1, 0.5)]
    captions = [chart["caption"] for chart in averages.charts(points)]
    assert captions == [  # and none of the floor, which is the same everywhere
        "accuracy against RATE: mean of 2 points, two standard errors",
        "claim: P <1>: grows: AUC against RATE: mean of 2 points, two standard errors",
    ]
    assert averages.charts([p | {"measured": {"accuracy": 1}} for p in points]) == []
    lacking = points[:-1] + [points[-1] | {"measured": {"accuracy": 1}}]
    assert len(averages.charts(lacking)) == 1
    assert averages.charts(points[:-1]) == []  # one seed at one place, two at the other


# --- the page -------------------------------------------------------------------------------------


def executed(path, seed, rate, claims=None, **about):
    """A point of a sweep as a worker leaves it, made without a kernel."""
    payloads = [{"record": {"name": "accuracy", "value": 2 * seed * rate}}]
    payloads += [{"claims": list(claims or [claim(seed * rate)])}]
    outputs = [new_output("display_data", {report.MIME: payload}) for payload in payloads]
    source = "SEED = 0\nRATE = 0.5"
    cells = [new_code_cell(source, execution_count=1, metadata={"tags": ["parameters"]})]
    cells += [new_code_cell("x", execution_count=2, outputs=outputs)]
    sweep = {"notebook": "one", "source": "", "swept": ["SEED", "RATE"], "tries": 1} | about
    run = {"parameters": {"SEED": seed, "RATE": rate}, "duration": 2.0 + seed}
    metadata = {"vplib": {"title": "A study", "sweep": sweep}, "papermill": run}
    report.write_beside(
        path, nbformat.writes(new_notebook(cells=cells, metadata=metadata)).encode()
    )


def test_the_page_of_a_sweep(tmp_path):
    for seed in (0, 1, 2):
        for rate in (0.1, 0.5):
            tries = 2 if (seed, rate) == (2, 0.5) else 1
            executed(tmp_path / "one" / f"{seed},{rate}.ipynb", seed, rate, tries=tries)
    page = report.write(tmp_path).read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    text = " ".join(text.split())
    assert "one, 6 points over SEED, RATE: 6 ran. 2.0 to 4.0 s a point, 18 s in all." in text
    last = "holds in 0 of 3 3 holds"
    assert f"P <1>: grows (headline) RATE=0.1 0.5 AUC: 0.1 ± 0.058; floor: 0.5 ± 0 {last}" in text
    assert f"P <1>: grows (headline) RATE=0.5 0.5 AUC: 0.5 ± 0.29; floor: 0.5 ± 0 {last}" in text
    assert "accuracy RATE=0.5 3 1 ± 0.58 0 to 2" in text
    assert "RATE=0.5 SEED=2 ran 2 4.0" in text
    assert page.count('src="data:image/png;base64,') == 2 and "against RATE" in text


def test_the_hero_takes_its_description_from_the_notebook(tmp_path):
    first = "# Title\n\n![Bars, in four groups](../gallery/one.png)"
    hero = new_output("display_data", {"image/png": "aGVybw=="})
    cells = [
        new_markdown_cell(first),
        new_code_cell("x", metadata={"tags": ["hero"]}, outputs=[hero]),
    ]
    notebook = new_notebook(cells=cells, metadata={"papermill": {"duration": 1}})
    nbformat.write(notebook, tmp_path / "one.ipynb")
    page = report.write(tmp_path).read_text()
    assert 'alt="Bars, in four groups"' in page and page.count("aGVybw==") == 2


def test_the_claims_of_a_sweep(tmp_path):
    for seed in (1, 2, 3):
        said = claim(seed, holds=seed < 3, control=seed == 2), claim("nan", claim="other")
        said[1].update(headline=False, control=None, no_control="why not")
        executed(tmp_path / f"{seed}.ipynb", seed, 1.0, claims=said)
    page = html.unescape(re.sub(r"<[^>]+>", "|", report.write(tmp_path).read_text("utf-8")))
    rows = [[cell for cell in line.split("|") if cell.strip()] for line in page.splitlines()]
    rows = [cell for row in rows for cell in row]
    first, other = rows.index("P <1>: grows (headline)"), rows.index("P <1>: other")
    assert rows[first + 1 : first + 6] == [
        "RATE=1.0", "0.5", "AUC: 2 ± 0.58; floor: 0.5 ± 0", "holds in 1 of 3",
        "1 FAILS, 1 holds, 1 no test",
    ]  # fmt: skip
    # nan is no number to average
    assert rows[other + 1 : other + 6] == [
        "RATE=1.0", "0.5", "floor: 0.5 ± 0", "none: why not", "3 holds",
    ]  # fmt: skip
    at = rows.index("claim: P <1>: grows: AUC")
    assert rows[at + 1 : at + 5] == ["RATE=1.0", "3", "2 ± 0.58", "1 to 3"]


def test_numbers_beyond_a_float_are_none_to_average(tmp_path):
    for seed in (0, 1):
        executed(tmp_path / f"{seed}.ipynb", seed, 10**400, claims=[claim(10**400)])
    page = report.write(tmp_path).read_text("utf-8")
    assert "2 points" in page and "Left out" not in page
