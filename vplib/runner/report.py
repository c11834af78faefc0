"""What an executed notebook says, and one self-contained HTML page on a folder of them."""

import ast
import base64
import io
import json
import re
from pathlib import Path

from vplib.claims import claims_table
from vplib.recorded import MIME

MARKER = "papermill-error-cell-tag"  # cells that papermill puts in front of an error


def read(path: Path) -> dict:
    """A notebook as its JSON, with each source as one text and the metadata read here present.

    Raises:
        ValueError: the file cannot be read, or is no notebook of format 4.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for part in (notebook, *notebook["cells"]):
            part.setdefault("metadata", {}).setdefault("papermill", {})
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            cell["metadata"].setdefault("tags", [])
        notebook["metadata"].setdefault("vplib", {})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable notebook ({error!r})") from None
    return notebook


def write_beside(path: Path, content: bytes) -> None:
    """Writes a file beside its place and renames it, so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(content)
    beside.replace(path)


def literal(expression: str | ast.expr, otherwise):
    """The value of a Python literal, with tuples as lists as in JSON; `otherwise` if it is none."""
    try:
        return json.loads(json.dumps(ast.literal_eval(expression)))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return otherwise


def parameters(notebook: dict) -> dict:
    """The names and defaults in the cell tagged `parameters`; None for what is no literal.

    Raises:
        SyntaxError: that cell is no Python.
    """
    cells = [c["source"] for c in notebook["cells"] if "parameters" in c["metadata"]["tags"]]
    nodes = ast.parse("\n".join(cells), filename="its parameters cell").body
    nodes = [n for n in nodes if isinstance(n, ast.Assign | ast.AnnAssign) and n.value]
    pairs = [(getattr(n, "target", None) or n.targets[0], n.value) for n in nodes]
    return {name.id: literal(value, None) for name, value in pairs if isinstance(name, ast.Name)}


def changed(notebook: dict) -> list[tuple]:
    """The parameters of a run that differ: name, default, value in this run."""
    given, usual = notebook["metadata"]["papermill"].get("parameters", {}), parameters(notebook)
    return [(k, repr(usual.get(k)), repr(v)) for k, v in given.items() if usual.get(k) != v]


def emitted(notebook: dict, kind: str) -> list:
    """What `vplib.experiment` put into the outputs: the payloads of one kind, in order."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    payloads = [output.get("data", {}).get(MIME, {}) for output in outputs]
    return [payload[kind] for payload in payloads if kind in payload]


def claims(notebook: dict) -> list[dict]:
    """The rows of all tables of claims; of a claim shown twice, the later row."""
    rows = [row for table in emitted(notebook, "claims") for row in table]
    return list({(row["of"], row["claim"]): row for row in rows}.values())


def failure(notebook: dict) -> dict | None:
    """The first error that was not intended.

    Returns:
        where (the cell counted from 1, without what papermill puts in, and its `In [n]`), source,
        name, error (`Name: message`) and trace (the lines before it); or None.
    """
    put_in = {MARKER, "injected-parameters"}
    cells = [cell for cell in notebook["cells"] if not put_in & set(cell["metadata"]["tags"])]
    for number, cell in enumerate(cells, 1):
        stopped = cell["metadata"]["papermill"].get("exception")
        if "raises-exception" in cell["metadata"]["tags"] and not stopped:
            continue
        for output in (o for o in cell.get("outputs", ()) if o["output_type"] == "error"):
            found = {
                "where": f"cell {number} (In [{cell.get('execution_count') or ' '}])",
                "source": cell["source"],
                "name": output["ename"],
                "error": f"{output['ename']}: {output['evalue']}",
                "trace": "\n".join(output["traceback"][:-1]),
            }
            return {key: re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", found[key]) for key in found}
    return None


def outcome(notebook: dict) -> str:
    """The outcome of a run: ran, claim failed, failed, interrupted or not finished."""
    known = {"ClaimFailed": "claim failed", "KeyboardInterrupt": "interrupted"}
    if error := failure(notebook):
        return known.get(error["name"], "failed")
    if any(row["outcome"] == "FAILS" for row in claims(notebook)):
        return "claim failed"
    return "ran" if notebook["metadata"]["papermill"].get("end_time", True) else "not finished"


def swept(notebook: dict) -> dict | None:
    """What a point of a sweep says about it: notebook, source, swept, tries; else None."""
    return notebook["metadata"]["vplib"].get("sweep")


def records(notebook: dict) -> dict:
    """The recorded values by name; of a name recorded twice, the later value."""
    return {found["name"]: found["value"] for found in emitted(notebook, "record")}


def row(notebook: dict) -> dict:
    """One point of a sweep as a row of its table; lists as JSON, each claim as its outcome."""
    about, papermill = swept(notebook), notebook["metadata"]["papermill"]
    seconds, error = papermill.get("duration"), failure(notebook)
    fixed = {
        "notebook": about["notebook"],
        **papermill.get("parameters", {}),
        "outcome": outcome(notebook),
        "seconds": round(seconds or 0, 1),
        "tries": about["tries"],
        "error": error["error"].splitlines()[0] if error else "",
    }
    values = {f"record: {k}" if k in fixed else k: v for k, v in records(notebook).items()}
    said = {f"claim: {row['of']}: {row['claim']}": row["outcome"] for row in claims(notebook)}
    cells = fixed | values | said
    return {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in cells.items()}


def figures(notebook: dict) -> list[dict]:
    """The PNG figures, the hero first: png (base64), hero, and the sentence before as caption."""
    found, caption = [], ""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown" and MARKER not in cell["metadata"]["tags"]:
            lines = [s for s in cell["source"].splitlines() if re.match(r"[^#|$!\s]", s)]
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)|[*`]", r"\1", " ".join(lines))
            caption = re.split(r"(?<=[.!?])\s", plain)[0] or cell["source"].strip("# \n")
        for output in cell.get("outputs", ()):
            if png := "".join(output.get("data", {}).get("image/png", "")):
                hero = "hero" in cell["metadata"]["tags"] and not any(f["hero"] for f in found)
                found.append({"png": "".join(png.split()), "hero": hero, "caption": caption})
    return sorted(found, key=lambda figure: not figure["hero"])


def thumbnail(png: str) -> str:
    """A small copy of a PNG, base64 both; the same if it is small or cannot be read."""
    from PIL import Image

    try:
        image, file = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA"), io.BytesIO()
        image.thumbnail((560, 360))
        image.quantize(128).save(file, "PNG", optimize=True)
    except (OSError, ValueError):
        return png
    return min(base64.b64encode(file.getvalue()).decode(), png, key=len)


def brief(name: str, notebook: dict) -> dict:
    """All that the report shows of an executed notebook; of a sweep's point, one figure."""
    about, papermill = swept(notebook), notebook["metadata"]["papermill"]
    pictures = figures(notebook)
    source = "".join(cell["source"] for cell in notebook["cells"][:1])
    described = re.search(r"!\[([^]]+)\]\([^)]*gallery/", source)
    if pictures and pictures[0]["hero"] and described:
        pictures[0]["alt"] = described[1]
    given = papermill.get("parameters", {})
    return {
        "name": name,
        "title": notebook["metadata"]["vplib"].get("title") or name,
        "study": about["notebook"] if about else None,
        "swept": about["swept"] if about else [],
        "tries": about["tries"] if about else 1,
        "parameters": given,
        "label": " ".join(f"{k}={v}" for k, v in given.items()),
        "started": (papermill.get("start_time") or "")[:19].replace("T", " "),
        "seconds": papermill.get("duration"),
        "outcome": outcome(notebook),
        "error": failure(notebook),
        "claims": claims(notebook),
        "changed": changed(notebook),
        "records": records(notebook),
        "versions": (emitted(notebook, "versions") or [{}])[-1],
        "figures": pictures[:1] if about else pictures,
        "thumb": thumbnail(pictures[0]["png"]) if pictures else None,
    }


def write(folder: Path, output: Path | None = None) -> Path:
    """Writes the report on all executed notebooks below a folder, and returns its absolute path.

    Args:
        folder: where `vplib run`, `vplib sweep` or papermill left notebooks.
        output: the file to write; `report.html` in the folder by default.

    Raises:
        ValueError: there is no such folder, or no executed notebook in it.
    """
    import jinja2

    from vplib.runner import bands

    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; `vplib run` says where it leaves its notebooks")
    text = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True).from_string(text)
    page.globals |= {"claims_table": claims_table, "bands": bands}
    books, studies, notes = [], {}, []
    paths = [p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    for path in sorted(paths):
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            notebook = read(path)
            if not (notebook["metadata"]["papermill"] or MIME in json.dumps(notebook)):
                continue
            book = brief(name, notebook)
            page.render(books=[book])  # alone, to see whether it can be shown
            if book["study"]:
                points = studies.setdefault((book["study"], *book["swept"]), [])
                if points and points[0]["figures"]:
                    book["figures"] = book["thumb"] = (
                        None  # a thousand points, and one of each picture
                    )
                points.append(book)
            else:
                books.append(book)
        except Exception as error:  # whatever damage it has, the others are shown
            notes.append(f"{name}: {error}")
    if not books and not studies and not notes:
        raise ValueError(f"there is no executed notebook in {folder}; `vplib run` makes them")
    books.sort(key=lambda book: book["started"])
    output = (output or folder / "report.html").absolute()
    shown = page.render(books=books, studies=list(studies.values()), notes=notes)
    write_beside(output, shown.encode())
    return output
