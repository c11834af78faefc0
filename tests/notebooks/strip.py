"""Prepares notebooks for git: `python tests/notebooks/strip.py NOTEBOOK...`, or `make strip`."""

import csv
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARKERS = "<!-- notebooks: written by make strip -->", "<!-- end of notebooks -->"
# The order of docs/teaching.md. A notebook that is not named here comes last.
COURSE = (
    "00_start_here",
    "attacks/membership_shadow",
    "attacks/membership_label_only",
    "attacks/inversion_gradient",
    "attacks/inversion_class",
    "attacks/extraction_functionality",
    "defenses/dp_sgd",
    "defenses/dp_gan",
    "defenses/encrypted_inference",
    "images/adversarial_cloaking",
)


def guard(address: str, extras: Sequence[str] = ()) -> str:
    """The first lines of every setup cell: on Colab, install the library.

    Args:
        address: where the repository is published; empty while it is not.
        extras: what the notebook needs beside vplib's dependencies.
    """
    wanted = f"[{','.join(extras)}]" if extras else ""
    zipped = f"'./vplib.zip{wanted}'" if extras else "./vplib.zip"
    install = (
        f'    %pip install -q "vplib{wanted} @ git+{address}"'
        if address
        else f'    print("Upload a zip of this repository, then run: %pip install -q {zipped}")'
    )
    return f'import sys\n\nif "google.colab" in sys.modules:\n{install}\n'


def published_address(root: Path = ROOT) -> str:
    """The repository's address from `[tool.vplib]` in pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())["tool"]["vplib"]["address"]


def with_generated(notebook, address: str, path: str):
    """The notebook with its Colab guard and badge as the address wants them.

    Args:
        notebook: an nbformat notebook; changed in place.
        address: where the repository is published; empty while it is not.
        path: the notebook's path in the repository.
    """
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    extras = notebook.metadata["vplib"]["extras"]
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.startswith("import sys\n\nif "):
            rest = re.split(r"\n(?=\S)", cell.source, maxsplit=2)[2:]
            cell.source = guard(address, extras) + "".join("\n" + part for part in rest)
            break
    title = notebook.cells[0]
    lines = [line for line in title.source.split("\n") if badge not in line]
    if address:
        github = address.removeprefix("https://github.com/").removesuffix(".git")
        link = f"https://colab.research.google.com/github/{github}/blob/main/{path}"
        lines += [f"[![Open in Colab]({badge})]({link})"]
    title.source = "\n".join(lines).rstrip("\n")
    return notebook


def in_course_order(root: Path = ROOT) -> list[tuple[str, object]]:
    """Name and content of every notebook, as a course takes them."""
    import nbformat

    paths = (p.relative_to(root / "notebooks") for p in (root / "notebooks").rglob("*.ipynb"))
    names = [p.with_suffix("").as_posix() for p in paths if ".ipynb_checkpoints" not in p.parts]
    places = {name: place for place, name in enumerate(COURSE)}
    names.sort(key=lambda name: (places.get(name, len(COURSE)), name))
    return [(n, nbformat.read(root / f"notebooks/{n}.ipynb", as_version=4)) for n in names]


def notebook_table(root: Path = ROOT) -> str:
    """README's table of notebooks and count of papers, from the notebooks and papers.csv."""
    rows = ["| notebook | what happens | minutes | data | claims |", "|---|---|---|---|---|"]
    for name, notebook in in_course_order(root):
        about = notebook.metadata["vplib"]
        said = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", ()))
        counts = {k: len(re.findall(f"^{k} ", said, re.M)) for k in ("holds", "not reproduced")}
        claims = ", ".join(f"{n} {k}" for k, n in counts.items() if n) or "none"
        link, datasets = f"notebooks/{name}.ipynb", ", ".join(about["datasets"])
        rows.append(
            f"| [{name}]({link}) | {about['title']} | {about['minutes']} | {datasets} | {claims} |"
        )
    with (root / "notebooks" / "papers.csv").open(newline="", encoding="utf-8") as file:
        states = [row["state"] for row in csv.DictReader(file)]
    done = f"Of the survey's {len(states)} papers, {states.count('works')} work here"
    rest = f"{states.count('not reproduced')} did not reproduce, {states.count('planned')} to come"
    return "\n".join([*rows, "", f"{done}, {rest}."])


def course_table(root: Path = ROOT) -> str:
    """The table of notebooks/README.md: order, minutes and goals, from the notebooks."""
    rows = ["| | notebook | minutes | core paper | you will learn |", "|---|---|---|---|---|"]
    for number, (name, notebook) in enumerate(in_course_order(root)):
        about, first = notebook.metadata["vplib"], " ".join(notebook.cells[0].source.split())
        found = re.search(r"\*\*You will( learn)?\*\* (.*?)\. \*\*Time", first)
        goals = (found[2] if found else "").replace("|", "\\|")
        paper, title = about["paper"] or "", f"[{about['title']}]({name}.ipynb)"
        rows.append(f"| {number} | {title} | {about['minutes']} | {paper} | {goals} |")
    total = sum(notebook.metadata["vplib"]["minutes"] for _, notebook in in_course_order(root))
    return "\n".join([*rows, "", f"{len(rows) - 2} notebooks, {total / 60:.0f} hours in all."])


def write_tables(root: Path = ROOT) -> None:
    """Writes both tables between their markers."""
    for path, table in (("README.md", notebook_table), ("notebooks/README.md", course_table)):
        text = (root / path).read_text(encoding="utf-8")
        before, start, rest = text.partition(MARKERS[0])
        after = rest.partition(MARKERS[1])[2]
        written = f"{before}{start}\n{table(root)}\n{MARKERS[1]}{after}"
        (root / path).write_text(written, encoding="utf-8")


def main(paths: list[str]) -> None:
    """Runs each notebook, keeps the claims' output alone, and rewrites what is generated."""
    import nbformat
    from nbclient import NotebookClient

    address = published_address()
    for path in map(Path, paths):
        print(f"{path}: running", flush=True)
        where = path.resolve().relative_to(ROOT).as_posix()
        notebook = with_generated(nbformat.read(path, as_version=4), address, where)
        resources = {"metadata": {"path": path.resolve().parent}}
        client = NotebookClient(notebook, timeout=None, resources=resources, record_timing=False)
        client.execute()
        notebook.metadata = {k: notebook.metadata[k] for k in ("kernelspec", "vplib")}
        nbformat.write(notebook, path)
        command = [sys.executable, "-m", "nbstripout", "--keep-id", "--keep-count", str(path)]
        subprocess.run(command, check=True)
    write_tables()


if __name__ == "__main__":
    main(sys.argv[1:])
