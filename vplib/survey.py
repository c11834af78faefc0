"""The survey's taxonomy, and where each surveyed paper stands in it: the map of the collection."""

import csv
import html
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from vplib.experiment import nearest
from vplib.paths import repository_root
from vplib.show.plots import COLORS

_KNOWN = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
GROUPS = _KNOWN["groups"]
SECTIONS = {number: known["title"] for number, known in _KNOWN["sections"].items()}
_PLACES = {known.get("place"): number for number, known in _KNOWN["sections"].items()}
_PLACES |= {f"text {number}": number for number in SECTIONS}
_LOOKS = {
    "works": dict(facecolor=COLORS[2], edgecolor="white"),
    "partly": dict(facecolor=COLORS[5], edgecolor="white", hatch="..."),
    "not reproduced": dict(facecolor=COLORS[4], edgecolor="white", hatch="xxx"),
    "planned": dict(facecolor="#E8EDF2", edgecolor="#C3CDD8", hatch="///"),
}
STATES = tuple(_LOOKS)
# Grays with transparency, and JupyterLab's own colors where it has them: light and dark alike.
_CELL = "text-align:left;vertical-align:top;white-space:normal;line-height:1.4"
_CELL += ";padding:5px 14px 5px 8px;border-bottom:1px solid #8884"
_HEAD = f"{_CELL};position:sticky;top:0;background:var(--jp-layout-color0,Canvas)"
_BOX = "display:inline-block;max-width:100%;max-height:26em;overflow:auto;border:1px solid #8886"
_LINK = "<a href='{0}.ipynb' target='_blank'>{0}</a>"


@dataclass(frozen=True)
class Paper:
    """One row of notebooks/papers.csv: a surveyed paper and where it is reproduced.

    `elsewhere` says which part of it belongs to which other notebook. `state` is written by
    `make strip` from the claims that hold.
    """

    paper: str
    survey_place: str
    method: str
    notebook: str
    section: str
    elsewhere: str
    state: str


def papers() -> list[Paper]:
    """All surveyed papers, in the survey's order, from the clone or from the installed wheel."""
    root = repository_root()
    path = root / "notebooks" / "papers.csv" if root else Path(__file__).parent / "papers.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return [Paper(**row) for row in csv.DictReader(file)]


def sections_of(survey_place: str) -> tuple[str, ...]:
    """The sections of the survey that treat a paper, as numbers in `SECTIONS`.

    Args:
        survey_place: as in papers.csv, for example "Table 5 MInf, Other; Table 8 Other" or
            "text 3.2.3, 4.2.4"; a part without "Table" or "text" continues the one before it.

    Raises:
        ValueError: the survey has no such place.
    """
    found, where = [], ""
    for part in re.split(r"[,;]", survey_place):
        named, row = re.fullmatch(r"(Table \d|text)?\s*(.*)", part.strip()).groups()
        where = named or where
        place = f"{where} {row}".strip()
        if place not in _PLACES:
            raise ValueError(
                f"unknown survey place {survey_place!r} at {part.strip()!r}; expected a table and "
                "its row, as 'Table 5 MInf', or a section, as 'text 3.2.1'"
            )
        found.append(_PLACES[place])
    return tuple(dict.fromkeys(found))


def find(
    papers: Sequence[Paper], section: str = "", state: str = "", text: str = ""
) -> list[Paper]:
    """The papers that fit all of the conditions, in the order given; an empty one fits all.

    Args:
        papers: where to look, usually `papers()`.
        section: a section or a group of the survey: "3.2.1", or "3.2" for all attacks on models.
        state: one of `STATES`.
        text: words that must all stand in the row or in the titles of its sections, in any case.

    Raises:
        ValueError: there is no such section or state.
    """
    for what, value, known in (("section", section, GROUPS | SECTIONS), ("state", state, STATES)):
        if value and value not in known:
            raise ValueError(f"unknown {what} {value!r}; {nearest(value, known)}")

    def fits(paper):
        numbers = sections_of(paper.survey_place)
        words = (paper.paper, paper.method, paper.notebook, paper.section, paper.elsewhere)
        row = " ".join([*words, *(SECTIONS[n] for n in numbers)]).lower()
        inside = not section or any(f"{n}.".startswith(f"{section}.") for n in numbers)
        return inside and state in ("", paper.state) and all(w in row for w in text.lower().split())

    return [paper for paper in papers if fits(paper)]


def counts(papers: Sequence[Paper]) -> str:
    """How many papers work, as "9 papers: 4 work, 2 partly, 1 not reproduced, 2 planned"."""
    by, many = Counter(paper.state for paper in papers), "s" * (len(papers) != 1)
    works = f"{by['works']} work{'s' * (by['works'] == 1)}"
    others = ", ".join(f"{by[state]} {state}" for state in STATES[1:])
    return f"{len(papers)} paper{many}: {works}, {others}"


def table(papers: Sequence[Paper]) -> str:
    """The papers as an HTML table that scrolls, below a line that counts them."""
    rows = []
    for paper in papers:
        where = "<br>".join(f"{n} {SECTIONS[n]}" for n in sections_of(paper.survey_place))
        name, method, notebook, elsewhere, state = map(
            html.escape,
            (paper.paper, paper.method, paper.notebook, paper.elsewhere, paper.state),
        )
        linked = notebook if state == "planned" else _LINK.format(notebook)
        linked += f"<br><small>{elsewhere}</small>" if elsewhere else ""
        rows.append((name, method, where, linked, state))
    columns = ("Paper", "Method", "Section of the survey", "Notebook", "State")
    return _html(counts(papers), columns, rows)


def notebooks_table(papers: Sequence[Paper]) -> str:
    """The notebooks that already show at least one of the papers, as an HTML table."""
    rows = []
    for name in dict.fromkeys(paper.notebook for paper in papers if paper.state != "planned"):
        held = [paper for paper in papers if paper.notebook == name]
        done = ", ".join(paper.paper for paper in held if paper.state != "planned")
        rows.append((_LINK.format(html.escape(name)), html.escape(done), counts(held)))
    planned = len({paper.notebook for paper in papers}) - len(rows)
    title = f"{len(rows)} notebook{'s' * (len(rows) != 1)} to open now, {planned} planned"
    return _html(title, ("Notebook", "Papers that it shows", "Of all its"), rows)


def draw_map(papers: Sequence[Paper], ax: Axes | None = None) -> Axes:
    """The whole survey as bars: one a section, its papers counted by state.

    Args:
        papers: all rows of papers.csv; one that stands in two sections counts in both.
        ax: where to draw; a new figure by default.

    Returns:
        The Axes.
    """
    ax = ax or plt.subplots(figsize=(8.6, 6.2))[1]
    y, places = 0.0, []
    for group, title in GROUPS.items():
        ax.text(0, y, title, transform=ax.get_yaxis_transform(), weight="bold", va="center")
        inside = [number for number in SECTIONS if number.startswith(group)]
        places += [y + i for i in range(1, len(inside) + 1)]
        y += len(inside) + 1.5
    left = np.zeros(len(SECTIONS))
    for state, look in _LOOKS.items():
        sizes = np.array([len(find(papers, number, state)) for number in SECTIONS])
        bars = ax.barh(places, sizes, left=left, height=0.74, label=state, **look)
        texts = [size or "" for size in sizes]
        box = dict(facecolor="white", edgecolor="none", pad=1.2, alpha=0.9)
        ax.bar_label(bars, texts, label_type="center", fontsize=8, bbox=box)
        left += sizes
    ax.set_yticks(places, [f"{number}  {title}" for number, title in SECTIONS.items()])
    ax.set(ylim=(y - 0.8, -0.7), xlabel="papers in this section of the survey")
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="center right", title=f"{len(papers)} papers")
    return ax


def _html(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A count and a table of cells that are HTML already, in a box that the keyboard scrolls."""
    head = "".join(f"<th scope='col' style='{_HEAD}'>{column}</th>" for column in columns)
    body = ""
    for first, *others in rows:
        cells = "".join(f"<td style='{_CELL}'>{cell}</td>" for cell in others)
        body += f"<tr><th scope='row' style='{_CELL}'>{first}</th>{cells}</tr>"
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    found = f"<table style='margin:0;border-spacing:0'>{inside}</table>"
    box = f"<div role='region' aria-label='{title}' tabindex='0' style='{_BOX}'>{found}</div>"
    return f"<p role='status'><b>{title}</b></p>" + (box if rows else "")
