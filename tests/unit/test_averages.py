"""What a report says of a sweep: bands over the seeds, and the page that shows them."""

import html
import json
import re

import pytest

from vplib.runner import bands, report


@pytest.mark.parametrize(
    "texts, together",
    [
        (["0.61 to 0.83"], "0.61 to 0.83"),
        (["0.60", "0.70", "0.62"], "0.62 (0.60 to 0.70)"),
        (["0.60", "0.70"], "0.65 (0.60 to 0.70)"),
        (["5 of 20", "7 of 20", "9 of 20"], "7 (5 to 9) of 20"),
        (["-0.5 dB", "0.5 dB", "-1.5 dB"], "-0.5 (-1.5 to 0.5) dB"),
        (["9", "10", "100"], "10 (9 to 100)"),
        (["1e-5", "3e-5"], "2e-05 (1e-5 to 3e-5)"),
        (["top5: 1", "top5: 3"], "top5: 2 (1 to 3)"),
        (["1.0-2.0", "1.0-4.0"], "1.0-3.0 (2.0 to 4.0)"),
        (["none", "0.5"], "none | 0.5"),
        (["same words", "same words"], "same words"),
    ],
)
def test_bands_of_texts(texts, together):
    assert bands.band(texts) == together


def point(seed, rate=0.5, kind="a", swept=("SEED", "RATE"), value=None, holds=True, **changes):
    value = seed * rate if value is None else value
    outcome = "holds" if holds else "FAILS"
    claim = {"of": "P <1>", "claim": "grows", "paper": "0.5", "ours": f"{seed * rate:.2f}"}
    return {
        "parameters": {"SEED": seed, "RATE": rate, "KIND": kind},
        "swept": list(swept),
        "claims": [claim | {"outcome": outcome, "why": ""}],
        "records": {"accuracy": value},
    } | changes


def test_points_are_grouped_by_what_is_not_the_seed():
    points = [point(s, r) for s in (0, 1) for r in (0.1, 0.5)]
    assert {k: len(v) for k, v in bands.groups(points).items()} == {"RATE=0.1": 2, "RATE=0.5": 2}
    assert list(bands.groups([point(0, swept=["SEED"])])) == ["all points"]


def test_claims_of_a_group():
    points = [point(s, 1.0, holds=s < 2) for s in (1, 2, 3)]
    assert bands.claim_rows(points) == [
        (
            "P <1>: grows",
            "RATE=1.0",
            "0.5",
            "2.00 (1.00 to 3.00)",
            "FAILS in 2 of 3, holds in 1 of 3",
        )
    ]


def test_recorded_values_by_hand():
    points = [point(s, 1.0) for s in (1, 2, 3)]
    # standard deviation 1, divided by the root of 3
    row = ("accuracy", "RATE=1.0", "3", "2", "0.58", "1 to 3")
    assert bands.value_rows(points) == [row]
    assert bands.value_rows([point(2, 1.0)])[0][4] == "one point only"


def test_lists_are_taken_apart_and_texts_left_out():
    points = [point(0, records={"curve": [1, 2.5, "nan"], "name": "x"})]
    assert bands.values(points) == {
        "curve [1]": {"RATE=0.5": [1]},
        "curve [2]": {"RATE=0.5": [2.5]},
    }


def test_charts_need_a_swept_number_and_every_point():
    assert bands.charts([point(s, swept=["SEED"]) for s in (0, 1)]) == []
    kinds = [point(s, kind=k, swept=["SEED", "KIND"]) for s in (0, 1) for k in "ab"]
    assert bands.charts(kinds) == []
    points = [point(s, r) for s in (0, 1) for r in (0.1, 0.5)]
    (chart,) = bands.charts(points)
    assert chart["caption"] == "accuracy against RATE: mean of 2 points and two standard errors"
    assert bands.charts([p | {"records": {"accuracy": 1}} for p in points]) == []
    assert bands.charts(points[:-1]) == []


# --- the page -------------------------------------------------------------------------------------


def executed(path, seed, rate, **about):
    """A point of a sweep as a worker leaves it, made without a kernel."""
    source = "SEED = 0\nRATE = 0.5"
    cells = [{"cell_type": "code", "source": source, "metadata": {"tags": ["parameters"]}}]
    claims = [point(seed, rate)["claims"][0]]
    payloads = [{"record": {"name": "accuracy", "value": seed * rate}}, {"claims": claims}]
    outputs = [{"output_type": "display_data", "data": {report.MIME: p}} for p in payloads]
    cells.append({"cell_type": "code", "source": "x", "metadata": {}, "outputs": outputs})
    sweep = {"notebook": "one", "source": "", "swept": ["SEED", "RATE"], "tries": 1} | about
    run = {"parameters": {"SEED": seed, "RATE": rate}, "duration": 2.0 + seed}
    metadata = {"vplib": {"title": "A study", "sweep": sweep}, "papermill": run}
    report.write_beside(path, json.dumps({"cells": cells, "metadata": metadata}).encode())


def test_the_page_of_a_sweep(tmp_path):
    for seed in (0, 1, 2):
        for rate in (0.1, 0.5):
            tries = 2 if (seed, rate) == (2, 0.5) else 1
            executed(tmp_path / "one" / f"{seed},{rate}.ipynb", seed, rate, tries=tries)
    page = report.write(tmp_path).read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    text = " ".join(text.split())
    assert "one, 6 points over SEED, RATE: 6 ran. 2.0 to 4.0 s a point, 18 s in all." in text
    assert "P <1>: grows RATE=0.1 0.5 0.10 (0.00 to 0.20) holds in 3 of 3" in text
    assert "P <1>: grows RATE=0.5 0.5 0.50 (0.00 to 1.00) holds in 3 of 3" in text
    assert "accuracy RATE=0.5 3 0.5 0.29 0 to 1" in text
    assert "SEED=2 RATE=0.5 ran 2 4.0" in text
    assert page.count('src="data:image/png;base64,') == 1 and "against RATE" in text


def test_the_hero_takes_its_description_from_the_notebook(tmp_path):
    hero = {"output_type": "display_data", "data": {"image/png": "aGVybw=="}}
    first = "# Title\n\n![Bars, in four groups](../gallery/one.png)"
    cells = [
        {"cell_type": "markdown", "source": first},
        {"cell_type": "code", "source": "x", "metadata": {"tags": ["hero"]}, "outputs": [hero]},
    ]
    notebook = {"cells": cells, "metadata": {"papermill": {"duration": 1}}}
    report.write_beside(tmp_path / "one.ipynb", json.dumps(notebook).encode())
    page = report.write(tmp_path).read_text()
    assert 'alt="Bars, in four groups"' in page and page.count("aGVybw==") == 2
