"""The notebooks as pages: `make site`, or `python docs/site/build.py [FOLDER] [--out SITE]`."""

import argparse
import base64
import copy
import importlib.util
import os
import posixpath
import re
import shutil
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

from vplib import survey
from vplib.runner import report
from vplib.runner import run as running

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SITE = ROOT / "build" / "site"
PICTURES, THUMB = 2_000_000, 40_000  # bytes: all of a page, and one on the front page
SHOWN = ("text/html", "image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/plain")
CAPTIONS = {"": "First", "attacks": "Attacks on models", "defenses": "Defenses of models"}
CAPTIONS |= {"images": "Attacks on images, and their defenses"}
CAPTIONS |= {"synthesis": "Attacks against defenses"}
MARKS = {"works": "✓", "partly": "◐", "not reproduced": "✗", "planned": "…"}
HERO = re.compile(r"!\[([^]]*)\]\([^)\s]*gallery/(\w+\.png)\)")
NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx-mathjax-offline")
MADE = ".vplib-site"  # marks the folder of a site
BADGE = "colab-badge.svg"


def executed(folder: Path) -> dict:
    """The executed notebooks below a folder by name, in the order of a course.

    Args:
        folder: what `vplib run` left.

    Raises:
        ValueError: there is none of this repository's, or one did not keep its claims.
    """
    found, bad = {}, []
    for name in running.in_clone():
        if (path := folder / f"{name}.ipynb").exists():
            found[name] = report.read(path)
            if (ended := report.outcome(found[name])) != "ran":
                bad.append(f"{name}: {ended}")
            elif not report.figures(found[name]):
                bad.append(f"{name}: not executed")
    if bad:
        raise ValueError(f"a site shows whole runs only; run again: {'; '.join(bad)}")
    if not found:
        raise ValueError(f"there is no executed notebook in {folder}; `vplib run` makes them")
    return dict(sorted(found.items(), key=lambda item: item[1].metadata.vplib.get("course", 0)))


def links(name: str, address: str) -> str:
    """The line below a page's title: the notebook to download, and where it opens."""
    up = "../" * name.count("/")
    found = [f'<a href="{up}download/{name}.ipynb" download>Download this notebook</a>']
    if address:
        github = address.removeprefix("https://github.com/").removesuffix(".git")
        place = f"{github}/blob/main/notebooks/{name}.ipynb"
        colab = f"https://colab.research.google.com/github/{place}"
        found += [f'<a href="{colab}">Open in Colab</a>']
        found += [f'<a href="https://github.com/{place}">Source</a>']
    return f'<p class="vp-links">{" ".join(found)}</p>'


def hero(notebook, limit: int) -> bytes:
    """The figure that stands for a notebook, as a PNG of at most so many bytes."""
    return report.smaller(report.figures(notebook)[0]["png"], limit)


def alone(notebook, picture: bytes):
    """The executed notebook to download: its picture is in it, as Colab and JupyterLab show it."""
    found = copy.deepcopy(notebook)
    data = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    first = found.cells[0]
    first.source = HERO.sub(lambda match: f"![{match[1]}]({data})", first.source)
    return found


def page(notebook, name: str, names, address: str):
    """What Sphinx reads: the executed notebook with small pictures, alternative texts and links.

    Args:
        notebook: as `report.read` returns it.
        name: the notebook's.
        names: of all notebooks that have a page.
        address: where the repository is published; empty while it is not.
    """
    found, up = copy.deepcopy(notebook), "../" * name.count("/")
    title, _, rest = found.cells[0].source.partition("\n")
    rest = "\n".join(line for line in rest.splitlines() if BADGE not in line)
    rest = HERO.sub(rf"![\1]({up}gallery/\2)", rest)
    found.cells[0].source = f"{title}\n\n{links(name, address)}\n{rest}"
    captions = {figure["png"]: figure["caption"] for figure in report.figures(notebook)}
    limit = PICTURES // max(1, len(captions))
    for cell in found.cells:
        if cell.cell_type != "code":
            cell.source = _linked(cell.source, name, names)
            continue
        for output in cell.outputs:
            data = output.get("data", {})
            for mime in [mime for mime in data if mime not in SHOWN]:
                del data[mime]
            if png := data.get("image/png"):
                png = "".join(png.split())
                cell.metadata["mystnb"] = {"image": {"alt": captions[png].replace("\n", " ")}}
                data["image/png"] = base64.b64encode(report.smaller(png, limit)).decode()
            if "text/html" in data:
                data["text/html"] = _linked(data["text/html"], name, names)
        cell.outputs = [o for o in cell.outputs if o.output_type == "stream" or o.get("data")]
    return found


def _linked(text: str, name: str, names) -> str:
    """Markdown or HTML whose links to notebooks lead to pages; to those without one, plain text."""
    folder = posixpath.dirname(name)

    def replaced(match):
        target = posixpath.normpath(posixpath.join(folder, match["path"]))
        if target not in names:
            return match["text"]
        return match[0].replace(".ipynb'", ".html'")  # Sphinx resolves links in Markdown itself

    markdown = r"(?<!!)\[(?P<text>[^]]*)\]\((?P<path>[\w./]+)\.ipynb\)"
    html = r"<a href='(?P<path>[\w./]+)\.ipynb'[^>]*>(?P<text>.*?)</a>"
    return re.sub(html, replaced, re.sub(markdown, replaced, text))


def front_page(notebooks: dict, address: str) -> str:
    """The front page in Markdown: the notebooks, and the map of the survey as lists."""
    import jinja2
    from docutils.nodes import make_id

    papers, names = survey.papers(), list(notebooks)

    def link(paper):
        there = paper.state != "planned" and paper.notebook in names
        return f"{paper.notebook}.html#{make_id(paper.section)}" if there else ""

    groups = []
    for group, title in survey.GROUPS.items():
        sections = []
        for number in (n for n in survey.SECTIONS if n.startswith(group)):
            held = survey.find(papers, number)
            about = {"number": number, "title": survey.SECTIONS[number]}
            by = Counter(paper.state for paper in held)
            counts = ", ".join(f"{state} {by[state]}" for state in survey.STATES if by[state])
            about |= {"counts": f"{len(held)} paper{'s' * (len(held) != 1)}: {counts}"}
            about |= {"papers": [(paper, link(paper)) for paper in held]}
            sections.append(about)
        groups.append({"number": group, "title": title, "sections": sections})
    pages = []
    for name, notebook in notebooks.items():
        about, claims = notebook.metadata.vplib, report.claims(notebook)
        holds = sum(claim["outcome"] == "holds" for claim in claims)
        said = f"{about['minutes']} minutes of study"
        said += f", {holds} of {len(claims)} claims hold" if claims else ""
        alt = HERO.search(notebook.cells[0].source)[1]
        pages.append({"name": name, "title": about["title"], "said": said, "alt": alt})
        pages[-1]["thumb"] = f"thumbs/{Path(name).name}.png"
    by = {folder: [n for n in names if n.rpartition("/")[0] == folder] for folder in CAPTIONS}
    text = (HERE / "index.md.jinja").read_text(encoding="utf-8")
    return jinja2.Template(text, trim_blocks=False).render(
        papers=papers,
        counts=survey.counts(papers),
        groups=groups,
        pages=pages,
        marks=MARKS,
        contents=[(CAPTIONS[folder], held) for folder, held in by.items() if held],
        address=address,
    )


def write_sources(notebooks: dict, source: Path, extra: Path, address: str) -> None:
    """Writes what Sphinx reads, and beside it what it copies as it is.

    Args:
        notebooks: as `executed` returns them.
        source: a new folder.
        extra: a new folder.
        address: where the repository is published; empty while it is not.
    """
    import matplotlib.pyplot as plt
    import nbformat

    for name, notebook in notebooks.items():
        picture, file = hero(notebook, running.GALLERY), f"{Path(name).name}.png"
        report.write_beside(source / "gallery" / file, picture)
        report.write_beside(extra / "thumbs" / file, hero(notebook, THUMB))
        for folder, made in (
            (extra / "download", alone(notebook, picture)),
            (source, page(notebook, name, notebooks, address)),
        ):
            report.write_beside(folder / f"{name}.ipynb", nbformat.writes(made).encode())
    (source / "index.md").write_text(front_page(notebooks, address), encoding="utf-8")
    figure = survey.draw_map(survey.papers()).figure
    figure.savefig(source / "map.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def check(out: Path) -> None:
    """What can be known before notebooks run.

    Raises:
        ValueError: something is not installed, or `out` holds what is no site.
    """
    lacking = [name for name in NEEDED if not importlib.util.find_spec(name)]
    if lacking:
        raise ValueError(f'the site needs {", ".join(lacking)}: pip install "vplib[site]"')
    if out.exists() and any(out.iterdir()) and not (out / MADE).exists():
        raise ValueError(f"{out} is no site of ours and stays; choose another --out")


def build(folder: Path, out: Path, address: str) -> Path:
    """Builds the site of the executed notebooks in a folder, and returns its front page.

    Args:
        folder: what `vplib run` left.
        out: where the site goes; what is there is replaced if it is an earlier site.
        address: where the repository is published; empty while it is not.

    Raises:
        ValueError: a notebook is no whole run, `out` is something else, or Sphinx warned.
    """
    check(out)
    from sphinx.cmd.build import build_main

    notebooks, made = executed(folder), out / MADE
    shutil.rmtree(out, ignore_errors=True)
    made.parent.mkdir(parents=True)
    made.touch()
    with tempfile.TemporaryDirectory() as beside:
        source, extra, trees = (Path(beside, part) for part in ("source", "extra", "doctrees"))
        write_sources(notebooks, source, extra, address)
        options = ["-b", "html", "-q", "-W", "--keep-going", "-c", HERE, "-d", trees]
        options += ["-D", f"html_extra_path={extra}", source, out]
        if build_main([str(option) for option in options]):
            raise ValueError("Sphinx warned of what stands above; mend it and build again")
    (out / ".nojekyll").touch()  # GitHub Pages shall keep the folders that begin with _
    return out / "index.html"


def main(args: list[str] | None = None) -> int:
    """Runs all notebooks if no folder of executed ones is given, then builds the site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="what vplib run left; else all run")
    parser.add_argument("--out", type=Path, default=SITE)
    given = parser.parse_args(args)
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["vplib"]["address"]
    try:
        check(given.out)
        if (folder := given.folder) is None:
            names = running.find(tuple(running.in_clone()))
            jobs, folder = running.check(names, {}, None)
            os.environ.pop("MPLBACKEND", None)  # "agg" would leave notebooks without figures
            running.run(jobs, folder)
        print(build(folder.resolve(), given.out.resolve(), address))
    except ValueError as error:
        print(f"site: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
