"""Prepares notebooks for git: `python tests/notebooks/strip.py NOTEBOOK...`, or `make strip`."""

import csv
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MARKERS = "<!-- notebooks: written by make strip -->", "<!-- end of notebooks -->"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
# What `guard` and its predecessors wrote, and where a picture's address begins.
GUARD = re.compile(r"import sys\n(from pkgutil import iter_modules\n)?\n(if .*\n( {4}.*\n)+)+")
HERO = re.compile(r"(!\[[^]]*\]\()[^)\s]*gallery/")
# A line of `claims.verify()`.
LINE = re.compile(r"(\S.*?) {2,}([^:]+): (.*?)( \(headline\))?( \(no control\))?")


class Verified(NamedTuple):
    """A claim as the last cell of a notebook printed it."""

    outcome: str
    of: str
    text: str
    headline: bool
    no_control: bool


def guard(address: str, extras: Sequence[str] = ()) -> str:
    """The first lines of every setup cell: on Colab, install the library; where it lacks, say so.

    `iter_modules` sees packages, while `find_spec` takes any folder of that name, such as a clone.

    Args:
        address: where the repository is published; empty while it is not, and then a wheel beside
            the notebook is installed.
        extras: what the notebook needs beside vplib's dependencies.
    """
    if address:
        wanted = f"[{','.join(extras)}]" if extras else ""
        what = f'"vplib{wanted} @ git+{address}"'
        advice = "read what pip said above"
    else:  # the shell finds the wheel's name; it would take [he] for a part of it
        needed = (f'"{package}"' for extra in extras for package in packages_of(extra))
        what, advice = " ".join(("./vplib-*.whl", *needed)), "upload vplib-*.whl, run again"
    return f"""import sys
from pkgutil import iter_modules

if "google.colab" in sys.modules and "vplib" not in [m.name for m in iter_modules()]:
    %pip install -q {what}
if "vplib" not in [m.name for m in iter_modules()]:
    raise SystemExit("No vplib here. On Colab: {advice}. Elsewhere: make lab")
"""


def packages_of(extra: str) -> list[str]:
    """What an extra of pyproject.toml brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["optional-dependencies"][extra]


def published_address(root: Path = ROOT) -> str:
    """The repository's address from `[tool.vplib]` in pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())["tool"]["vplib"]["address"]


def with_generated(notebook, address: str, path: str):
    """The notebook with its Colab guard, badge and picture as the address wants them.

    A published notebook takes its picture from there, for on Colab it is alone; until then the
    picture's path is relative to the notebook.

    Args:
        notebook: an nbformat notebook; changed in place.
        address: where the repository is published; empty while it is not.
        path: the notebook's path in the repository.
    """
    extras = notebook.metadata["vplib"]["extras"]
    for cell in notebook.cells:
        if cell.cell_type == "code" and (old := GUARD.match(cell.source)):
            cell.source = guard(address, extras) + cell.source[old.end() :]
            break
    title = notebook.cells[0]
    lines = [line for line in title.source.split("\n") if BADGE not in line]
    where = "" if Path(path).parent.name == "notebooks" else "../"
    if address:
        github = address.removeprefix("https://github.com/").removesuffix(".git")
        link = f"https://colab.research.google.com/github/{github}/blob/main/{path}"
        lines += [f"[![Open in Colab]({BADGE})]({link})"]
        where = f"https://raw.githubusercontent.com/{github}/main/notebooks/"
    title.source = HERO.sub(rf"\1{where}gallery/", "\n".join(lines).rstrip("\n"))
    return notebook


def in_course_order(root: Path = ROOT) -> list[tuple[str, object]]:
    """Name and content of every notebook, as a course takes them: by `metadata.vplib.course`."""
    import nbformat

    paths = (p.relative_to(root / "notebooks") for p in (root / "notebooks").rglob("*.ipynb"))
    names = [p.with_suffix("").as_posix() for p in paths if ".ipynb_checkpoints" not in p.parts]
    found = [(n, nbformat.read(root / f"notebooks/{n}.ipynb", as_version=4)) for n in names]
    return sorted(found, key=lambda pair: (pair[1].metadata["vplib"]["course"], pair[0]))


def read_papers(root: Path = ROOT) -> list[dict]:
    """The rows of papers.csv."""
    with (root / "notebooks" / "papers.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def verified(notebook) -> list[Verified]:
    """The claims whose outcomes a notebook was committed with.

    Raises:
        ValueError: a line of the output is none of `claims.verify()`.
    """
    found = []
    printed = "".join(o.get("text", "") for o in notebook.cells[-1].get("outputs", ()))
    for line in printed.splitlines():
        fields = LINE.fullmatch(line)
        if not fields:
            raise ValueError(f"{line!r} is no line of claims.verify(): make strip")
        found.append(Verified(*fields.groups()[:3], *map(bool, fields.groups()[3:])))
    return found


def states(root: Path = ROOT) -> dict[str, str]:
    """The state of each paper that some notebook has a claim of, from the committed outcomes.

    Raises:
        ValueError: a paper has two headlines.
    """
    claims: dict[str, list[Verified]] = {}
    for _, notebook in in_course_order(root):
        for claim in verified(notebook):
            claims.setdefault(claim.of, []).append(claim)
    return {paper: state(of_paper) for paper, of_paper in claims.items()}


def state(claims: Sequence[Verified]) -> str:
    """works, not reproduced, partly or planned: what all claims of one paper make of it."""
    headlines = [claim for claim in claims if claim.headline]
    if len(headlines) > 1:
        texts = "; ".join(claim.text for claim in headlines)
        raise ValueError(f"{headlines[0].of} has {len(headlines)} headlines, not one: {texts}")
    if headlines:
        known = {"holds": "works", "not reproduced": "not reproduced"}
        return known.get(headlines[0].outcome, "planned")
    return "partly" if any(claim.outcome == "holds" for claim in claims) else "planned"


def write_states(root: Path = ROOT) -> None:
    """Writes the state of each row of papers.csv."""
    rows, found = read_papers(root), states(root)
    for row in rows:
        row["state"] = found.get(row["paper"], "planned")
    with (root / "notebooks" / "papers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def notebook_table(root: Path = ROOT) -> str:
    """README's table of notebooks and count of papers, from the notebooks and papers.csv."""
    rows = ["| notebook | what happens | study minutes | data | claims |", "|---|---|---|---|---|"]
    for name, notebook in in_course_order(root):
        about, said = notebook.metadata["vplib"], verified(notebook)
        counts = Counter(claim.outcome for claim in said)
        counts["without control"] = sum(claim.no_control for claim in said)
        kinds = ("holds", "not reproduced", "without control")
        claims = ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind]) or "none"
        link, datasets = f"notebooks/{name}.ipynb", ", ".join(about["datasets"])
        rows.append(
            f"| [{name}]({link}) | {about['title']} | {about['minutes']} | {datasets} | {claims} |"
        )
    papers = read_papers(root)
    by = Counter(row["state"] for row in papers)
    done = f"Of the survey's {len(papers)} papers, {by['works']} work here, {by['partly']} in part"
    rest = f"{by['not reproduced']} did not reproduce, {by['planned']} to come"
    return "\n".join([*rows, "", f"{done}, {rest}."])


def course_table(root: Path = ROOT) -> str:
    """The table of notebooks/README.md: order, minutes and goals, from the notebooks."""
    rows = ["| | notebook | study minutes | core paper | you will learn |", "|---|---|---|---|---|"]
    for number, (name, notebook) in enumerate(in_course_order(root)):
        about, first = notebook.metadata["vplib"], " ".join(notebook.cells[0].source.split())
        found = re.search(r"\*\*You will( learn)?\*\* (.*?)\. \*\*Time", first)
        goals = (found[2] if found else "").replace("|", "\\|")
        paper, title = about["paper"] or "", f"[{about['title']}]({name}.ipynb)"
        rows.append(f"| {number} | {title} | {about['minutes']} | {paper} | {goals} |")
    total = sum(notebook.metadata["vplib"]["minutes"] for _, notebook in in_course_order(root))
    hours = f"{total / 60:.0f} hours in all, part two aside"
    return "\n".join([*rows, "", f"{len(rows) - 2} notebooks, {hours}."])


def write_tables(root: Path = ROOT) -> None:
    """Writes both tables between their markers."""
    for path, table in (("README.md", notebook_table), ("notebooks/README.md", course_table)):
        text = (root / path).read_text(encoding="utf-8")
        before, start, rest = text.partition(MARKERS[0])
        after = rest.partition(MARKERS[1])[2]
        written = f"{before}{start}\n{table(root)}\n{MARKERS[1]}{after}"
        (root / path).write_text(written, encoding="utf-8")


def hero(notebook) -> str:
    """The figure for the gallery, a PNG in base64: the first output of the cell tagged hero."""
    cell = next(c for c in notebook.cells if "hero" in c.metadata.get("tags", ()))
    shown = (o.get("data", {}).get("image/png") for o in cell.outputs)
    return "".join(next(png for png in shown if png).split())


def main(paths: list[str]) -> None:
    """Runs each notebook, keeps hero and the claims' output, and rewrites what follows from them.

    After `--generated`, no notebook runs and its output stays: guard, badge and picture alone.
    """
    import nbformat
    from nbclient import NotebookClient

    from vplib.runner import report
    from vplib.runner.run import GALLERY

    address, run = published_address(), paths[:1] != ["--generated"]
    for path in map(Path, paths if run else paths[1:]):
        print(f"{path}: running" if run else path, flush=True)
        where = path.resolve().relative_to(ROOT).as_posix()
        notebook = with_generated(nbformat.read(path, as_version=4), address, where)
        if run:
            resources = {"metadata": {"path": path.resolve().parent}}
            options = dict(timeout=None, resources=resources, record_timing=False)
            NotebookClient(notebook, **options).execute()
            if path.resolve().parent.parent.name == "notebooks" or path.stem == "00_start_here":
                png = report.smaller(hero(notebook), GALLERY)  # the template has no place there
                report.write_beside(ROOT / "notebooks" / "gallery" / f"{path.stem}.png", png)
            notebook.metadata = {k: notebook.metadata[k] for k in ("kernelspec", "vplib")}
        nbformat.write(notebook, path)
        command = [sys.executable, "-m", "nbstripout", "--keep-id", "--keep-count", str(path)]
        subprocess.run(command, check=True)
    write_states()
    write_tables()


if __name__ == "__main__":
    main(sys.argv[1:])
