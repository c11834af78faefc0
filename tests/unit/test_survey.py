"""The map of the survey: every paper has its place, and what is shown is counted honestly."""

import csv
import dataclasses
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from vplib import paths, plots, survey

PAPERS = survey.papers()


def paper(**changes):
    row = survey.Paper(
        "Doe 2020", "Table 5 MInf", "A <b>bold</b> attack", "attacks/doe", "", "", "planned"
    )
    return dataclasses.replace(row, **changes)


def test_papers_csv_lists_each_surveyed_paper_once():
    path = paths.repository_root() / "notebooks" / "papers.csv"
    text = path.read_bytes().decode("utf-8")
    assert "\r" not in text and text.endswith("\n")
    header, *rows = csv.reader(text.splitlines())
    assert header == [f.name for f in dataclasses.fields(survey.Paper)]
    assert all(len(row) == len(header) for row in rows)
    assert len(PAPERS) == len(rows) == 136
    assert len({p.paper for p in PAPERS}) == 136


def test_each_paper_has_its_section_notebook_and_state():
    for p in PAPERS:
        assert p.state in survey.STATES, p
        assert p.method, p
        found = survey.sections_of(p.survey_place)
        assert found and set(found) <= set(survey.SECTIONS), p
        folder, name = p.notebook.split("/")
        assert name.isidentifier(), p
        assert folder in ("attacks", "defenses", "images"), p
        if p.state != "planned":
            assert p.section, f"{p.paper} is not planned any more: name its section"


def test_what_is_elsewhere_says_what_and_where():
    held = [p for p in PAPERS if p.elsewhere]
    assert {p.paper for p in held} >= {"Shokri 2017", "Salem 2019", "Melis 2019", "Nasr 2019"}
    for p in held:
        found = re.fullmatch(r"\w.*, in ((attacks|defenses|images|synthesis)/\w+)", p.elsewhere)
        assert found and found[1] != p.notebook, p


def test_each_section_of_the_survey_holds_a_paper():
    assert all(survey.find(PAPERS, section=number) for number in survey.SECTIONS)


@pytest.mark.parametrize(
    ("place", "sections"),
    [
        ("Table 5 MInf", ("3.2.1",)),
        ("Table 5 MInf, MInv", ("3.2.1", "3.2.2")),
        ("Table 5 MInf, Other; Table 8 Other", ("3.2.1", "3.2.4", "4.2.4")),
        ("Table 5 MInf, Table 8 Other", ("3.2.1", "4.2.4")),
        ("Table 6", ("4.1.1",)),
        ("Table 7 GAN", ("4.1.2",)),
        ("text 3.2.3, 4.2.4", ("3.2.3", "4.2.4")),
        ("text 3.1", ("3.1",)),
        ("Table 5 MInf, MInf", ("3.2.1",)),
    ],
)
def test_places_of_the_survey(place, sections):
    assert survey.sections_of(place) == sections


@pytest.mark.parametrize(
    "place", ["", "Table 9", "Table 5", "Table 5 GAN", "text 3.3", "text", "MInf", "Table 6 MInf"]
)
def test_unknown_place_is_refused(place):
    with pytest.raises(ValueError, match="unknown survey place"):
        survey.sections_of(place)


def test_find_by_section_and_group():
    membership = survey.find(PAPERS, section="3.2.1")
    models = survey.find(PAPERS, section="3.2")
    assert "Shokri 2017" in {p.paper for p in membership}
    assert set(membership) < set(models) < set(PAPERS)
    assert survey.find(PAPERS) == PAPERS
    assert all("3.1" in survey.sections_of(p.survey_place) for p in survey.find(PAPERS, "3.1"))


def test_find_by_state_and_text():
    rows = [paper(), paper(paper="Roe 2021", state="works"), paper(notebook="images/roe")]
    assert survey.find(rows, state="works") == rows[1:2]
    assert survey.find(rows, text="ROE") == rows[1:]
    assert survey.find(rows, text="roe 2021") == rows[1:2]
    assert survey.find(rows, text="2021  roe") == rows[1:2], "words count in any order"
    assert survey.find(rows, text="membership images/roe") == rows[2:], (
        "titles of sections count too"
    )
    assert survey.find([paper(elsewhere="masks, in defenses/x"), *rows], text="masks")[1:] == []
    assert survey.find(rows, section="3.2.1", state="works", text="bold") == rows[1:2]
    assert survey.find(rows, section="4.2") == []


def test_find_refuses_what_does_not_exist():
    with pytest.raises(ValueError, match="did you mean 'works'"):
        survey.find(PAPERS, state="work")
    with pytest.raises(ValueError, match="unknown section '3.3'"):
        survey.find(PAPERS, section="3.3")


def test_counts_are_honest():
    states = ("planned", "works", "works", "not reproduced", "partly")
    rows = [paper(state=state) for state in states]
    assert survey.counts(rows) == "5 papers: 2 work, 1 partly, 1 not reproduced, 1 planned"
    assert survey.counts(rows[1:2]) == "1 paper: 1 works, 0 partly, 0 not reproduced, 0 planned"
    assert survey.counts([]) == "0 papers: 0 work, 0 partly, 0 not reproduced, 0 planned"


def test_table_is_escaped_and_accessible():
    shown = survey.table([paper(paper="<script>x</script>", notebook="attacks/a&b")])
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert "<b>bold" not in shown and "A &lt;b&gt;bold" in shown
    assert "attacks/a&amp;b" in shown
    assert "scope='col'" in shown and "scope='row'" in shown
    assert "1 paper: 0 work, 0 partly, 0 not reproduced, 1 planned" in shown
    assert "overflow:auto" in shown and "max-height" in shown
    elsewhere = survey.table([paper(elsewhere="masks & noise, in defenses/x")])
    assert (
        "<small>masks &amp; noise, in defenses/x</small>" in elsewhere and "href" not in elsewhere
    )
    assert "<small>" not in shown
    assert "<table" not in survey.table([]) and "0 papers" in survey.table([])


def test_only_what_runs_is_linked():
    link = "href='attacks/doe.ipynb'"
    assert link not in survey.table([paper()])
    assert link in survey.table([paper(state="works")])
    assert link in survey.table([paper(state="partly")])
    assert link in survey.table([paper(state="not reproduced")])
    assert "href" not in survey.notebooks_table([paper()])


def test_notebooks_table_counts_what_is_left():
    rows = [paper(state="works"), paper(paper="Roe 2021"), paper(notebook="images/roe")]
    shown = survey.notebooks_table(rows)
    assert "1 notebook to open now, 1 planned" in shown
    assert "2 papers: 1 works, 0 partly, 0 not reproduced, 1 planned" in shown
    assert "Doe 2020" in shown and "Roe 2021" not in shown


def test_map_draws_every_count():
    states = dict(zip(("Doe 2020", "Roe 2021", "Poe 2022", "Moe 2023"), survey.STATES, strict=True))
    ax = survey.draw_map([paper(paper=name, state=state) for name, state in states.items()])
    try:
        row = list(survey.SECTIONS).index("3.2.1")
        widths = [bars.patches[row].get_width() for bars in ax.containers]
        assert widths == [1, 1, 1, 1]
        assert sum(bar.get_width() for bars in ax.containers for bar in bars.patches) == 4
        assert [t.get_text() for t in ax.texts].count("1") == 4
        assert [t.get_text() for t in ax.get_legend().get_texts()] == list(survey.STATES)
        looks = {
            (bars.patches[row].get_hatch(), bars.patches[row].get_facecolor())
            for bars in ax.containers
        }
        assert len({hatch for hatch, _ in looks}) == len(looks) == 4, "told apart without color"
        assert ax.get_xlabel() and len(ax.get_yticks()) == len(survey.SECTIONS)
    finally:
        plt.close(ax.figure)


def test_map_counts_a_paper_in_each_of_its_sections():
    ax = survey.draw_map(PAPERS)
    drawn = sum(bar.get_width() for bars in ax.containers for bar in bars.patches)
    plt.close(ax.figure)
    assert drawn == sum(len(survey.sections_of(p.survey_place)) for p in PAPERS)


def lengths(picture, colors):
    """Of each bar in a picture of the map, from the top, how many pixels of each color it has."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    near = [(abs(pixels - np.multiply(color, 255)).max(-1) < 11).sum(1) for color in colors]
    counts = np.stack(near, axis=1)  # of each row of pixels
    edges = np.flatnonzero(np.diff(counts.sum(1) > 10, prepend=False, append=False))
    return [np.median(counts[a:b], axis=0) for a, b in edges.reshape(-1, 2) if b - a > 12]


def drawn(papers):
    with plt.rc_context():
        plots.use_style()
        ax = survey.draw_map(papers)
        ax.figure.savefig(file := io.BytesIO(), dpi=100, bbox_inches="tight")
        plt.close(ax.figure)
    colors = [to_rgb(bars.patches[0].get_facecolor()) for bars in ax.containers]
    return lengths(Image.open(file), colors), colors


def test_the_start_page_in_the_gallery_counts_as_papers_csv_does():
    def equal(one, other):
        return len(one) == len(other) and np.allclose(one, other, atol=10)  # a paper has 23

    today, colors = drawn(PAPERS)
    first = next(i for i, p in enumerate(PAPERS) if p.state == "planned")
    changed = dataclasses.replace(PAPERS[first], state="works")
    assert not equal(today, drawn([*PAPERS[:first], changed, *PAPERS[first + 1 :]])[0])
    shown = paths.repository_root() / "notebooks" / "gallery" / "00_start_here.png"
    with Image.open(shown) as picture:
        command = "vplib run 00_start_here --gallery notebooks/gallery"
        assert equal(today, lengths(picture, colors)), f"counts of another day: {command}"
