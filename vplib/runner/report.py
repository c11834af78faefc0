"""What an executed notebook says, and one self-contained HTML page on a folder of them."""

import ast
import base64
import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import uuid
from pathlib import Path

from vplib.claims import claims_table
from vplib.recorded import MIME

MARKER = "papermill-error-cell-tag"  # cells that papermill puts in front of an error
THUMB = 40_000  # bytes of a figure in the report's gallery
PAGE = b"<title>vplib report</title>"  # by which a page is known for ours


def read(path: Path):
    """A notebook as nbformat reads it, with the metadata that is read here present, of its type.

    Raises:
        ValueError: the file cannot be read, or is no valid notebook; or papermill is missing.
    """
    if not all(importlib.util.find_spec(name) for name in ("nbformat", "papermill", "ipykernel")):
        raise ValueError('notebooks need papermill: pip install "vplib[lab]"')
    import nbformat

    try:
        if not path.is_file():  # a pipe would be waited for
            raise OSError("no file")
        notebook = nbformat.convert(nbformat.reader.reads(path.read_text("utf-8")), 4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat does not say which errors damage raises
        why = f"{type(error).__name__}: {str(error)[:200]}; repair or delete it"
        raise ValueError(f"{path} is not a readable notebook ({why})") from None
    wanted = [(part, "papermill", dict) for part in (notebook, *notebook.cells)]
    wanted += [(cell, "tags", list) for cell in notebook.cells] + [(notebook, "vplib", dict)]
    for part, key, kind in wanted:
        if not isinstance(part.metadata.get(key), kind):
            part.metadata[key] = kind()
    return notebook


def notebooks(folder: Path) -> list[Path]:
    """The notebooks below a folder, without hidden ones, such as Jupyter's checkpoints."""
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*.ipynb")))
    return [folder / path for path in found if not any(p.startswith(".") for p in path.parts)]


def write_beside(path: Path, content: bytes) -> None:
    """Writes a file beside its place and renames it, so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def spare(path: Path, mark: bytes = b"") -> None:
    """Refuses to write where something lies that vplib did not make.

    Args:
        path: where a file is to be written.
        mark: what stands near the beginning of a file of ours; without one, none is.

    Raises:
        ValueError: there is something without the mark, or no regular file.
    """
    if mark and path.is_file():
        with path.open("rb") as file:
            if mark in file.read(10_000):
                return
    if os.path.lexists(path):
        raise ValueError(f"{path} was not made by vplib and stays; choose another place")


def literal(expression: str, otherwise):
    """The value of a Python literal, with tuples as lists as in JSON; `otherwise` if it is none."""
    try:
        return json.loads(json.dumps(ast.literal_eval(expression)))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return otherwise


def parameters(notebook) -> dict:
    """The names and defaults that papermill finds in the cell tagged `parameters`.

    None is for what is no literal. Papermill leaves out a line with a second `=`, in a comment too.
    """
    tagged = (cell for cell in notebook.cells if "parameters" in cell.metadata.tags)
    return dict(_defaults(tuple(cell.source for cell in tagged if cell.cell_type == "code")))


@functools.cache  # of a long grid, each value asks
def _defaults(sources):
    import nbformat
    import papermill

    about = {"tags": ["parameters"]}
    cells = [nbformat.v4.new_code_cell(source, metadata=about) for source in sources]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}  # always
    alone = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    found = papermill.inspect_notebook(alone)
    return {name: literal(about["default"], None) for name, about in found.items()}


def emitted(notebook, kind: str) -> list:
    """What `vplib.recorded` put into the outputs: the payloads of one kind, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    payloads = [output.get("data", {}).get(MIME) for output in outputs]
    return [payload[kind] for payload in payloads if isinstance(payload, dict) and kind in payload]


def claims(notebook) -> list[dict]:
    """The rows of all tables of claims, each with its title; of one shown twice, the later."""
    rows = [row for table in emitted(notebook, "claims") for row in table]
    titled = [row | {"title": f"{row['of']}: {row['claim']}"} for row in rows]
    return list({row["title"]: row for row in titled}.values())


def values(notebook) -> dict:
    """What a run measured, by column of a sweep's table.

    Recorded values (of a name recorded twice, the later one), each claim's outcome, and its
    numbers; of an interval, the value in it.
    """
    found = {record["name"]: record["value"] for record in emitted(notebook, "record")}
    for claim in claims(notebook):
        found[f"claim: {claim['title']}"] = claim["outcome"]
        for name, value in claim["ours"].items():
            single = value[0] if isinstance(value, list) else value
            found[f"claim: {claim['title']}: {name or 'ours'}"] = single
    return found


def failure(notebook) -> dict | None:
    """The first error that was not intended.

    Returns:
        where (the cell counted from 1, without what papermill puts in, and its `In [n]`), source,
        name, error (`Name: message`) and trace (the lines before it); or None.
    """
    put_in = {MARKER, "injected-parameters"}
    cells = [cell for cell in notebook.cells if not put_in & set(cell.metadata.tags)]
    for number, cell in enumerate(cells, 1):
        stopped = cell.metadata.papermill.get("exception")
        intended = "raises-exception" in cell.metadata.tags and not stopped
        for output in () if intended else cell.get("outputs", ()):
            if output.output_type == "error":
                found = {
                    "where": f"cell {number} (In [{cell.execution_count or ' '}])",
                    "source": cell.source,
                    "name": output.ename,
                    "error": f"{output.ename}: {output.evalue}",
                    "trace": "\n".join(output.traceback[:-1]),
                }
                return {k: re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", v) for k, v in found.items()}
    return None


def outcome(notebook) -> str:
    """The outcome of a run: ran, claim failed, failed, interrupted or not finished."""
    known = {"ClaimFailed": "claim failed", "KeyboardInterrupt": "interrupted"}
    if error := failure(notebook):
        return known.get(error["name"], "failed")
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    asked = (cell for cell in code if "skip-execution" not in cell.metadata.tags)
    # Papermill says that it came to the end, too, where a kernel died.
    if not all(cell.execution_count for cell in asked):
        return "not finished"
    if any(row["outcome"] in ("FAILS", "no test") for row in claims(notebook)):
        return "claim failed"
    return "ran" if notebook.metadata.papermill.get("end_time", True) else "not finished"


def swept(notebook) -> dict | None:
    """What a point of a sweep says about it: notebook, source, swept, tries; else None."""
    about = notebook.metadata.vplib.get("sweep")
    parts = {"notebook": str, "source": str, "swept": list, "tries": int}
    whole = isinstance(about, dict) and all(isinstance(about.get(k), v) for k, v in parts.items())
    return about if whole else None


def figures(notebook) -> list[dict]:
    """The PNG figures, the hero first: png (base64), hero, and the sentence before as caption."""
    found, caption = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and MARKER not in cell.metadata.tags:
            lines = [s for s in cell.source.splitlines() if re.match(r"[^#|$!\s]", s)]
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)|[*`]", r"\1", " ".join(lines))
            caption = re.split(r"(?<=[.!?])\s", plain)[0] or cell.source.strip("# \n")
        for output in cell.get("outputs", ()):
            if png := output.get("data", {}).get("image/png"):
                hero = "hero" in cell.metadata.tags and not any(f["hero"] for f in found)
                found.append({"png": "".join(png.split()), "hero": hero, "caption": caption})
    return sorted(found, key=lambda figure: not figure["hero"])


def smaller(png: str, limit: int) -> bytes:
    """A PNG of at most so many bytes: of a larger one, a copy in fewer colors, then smaller ones.

    Args:
        png: base64.
        limit: bytes.
    """
    from PIL import Image

    content, scale = base64.b64decode(png), 1.0
    if len(content) > limit:
        whole = Image.open(io.BytesIO(content), formats=["PNG"]).convert("RGBA")
        whole = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    while len(content) > limit:
        image = whole.resize([max(1, round(side * scale)) for side in whole.size]).quantize(256)
        image.save(file := io.BytesIO(), "PNG", optimize=True)
        content, scale = file.getvalue(), scale * 6 / 7
    return content


def brief(name: str, notebook, illustrated: bool) -> dict:
    """All that the report shows of an executed notebook; of a sweep's point, one figure at most."""
    about, papermill = swept(notebook), notebook.metadata.papermill
    pictures = figures(notebook)[: 1 if about else None] if illustrated else []
    described = re.search(r"!\[([^]]+)\]\([^)]*gallery/", notebook.cells[0].source)
    if pictures and pictures[0]["hero"] and described:
        pictures[0]["alt"] = described[1]
    thumb = [base64.b64encode(smaller(p["png"], THUMB)).decode() for p in pictures[:1]]
    return (about or {"swept": [], "tries": 1}) | {
        "name": name,
        "title": notebook.metadata.vplib.get("title") or name,
        "parameters": papermill.get("parameters", {}),
        "started": (papermill.get("start_time") or "")[:19].replace("T", " "),
        "seconds": round(max(0, papermill.get("duration") or 0), 1),  # the clock may have jumped
        "outcome": outcome(notebook),
        "error": failure(notebook),
        "claims": claims(notebook),
        "measured": values(notebook),
        "versions": (emitted(notebook, "versions") or [{}])[-1],
        "figures": pictures,
        "thumb": "".join(thumb),
    }


def row(notebook) -> dict:
    """One point of a sweep as a row of its table; lists as JSON."""
    point = brief("", notebook, illustrated=False)
    cells = {"notebook": point["notebook"], **point["parameters"]}
    cells |= {name: point[name] for name in ("outcome", "seconds", "tries")}
    cells["error"] = point["error"]["error"].splitlines()[0] if point["error"] else ""
    cells |= {f"record: {k}" if k in cells else k: v for k, v in point["measured"].items()}
    return {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in cells.items()}


def write(folder: Path, output: Path | None = None) -> Path:
    """Writes the report on all executed notebooks below a folder, and returns its absolute path.

    Args:
        folder: where `vplib run`, `vplib sweep` or papermill left notebooks.
        output: the file to write; `report.html` in the folder by default.

    Raises:
        ValueError: there is no such folder, no executed notebook in it, or at the page's place
            lies something else.
    """
    import jinja2

    from vplib.runner import averages

    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; `vplib run` says where it leaves its notebooks")
    output = (output or folder / "report.html").absolute()
    spare(output, PAGE)
    text = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True).from_string(text)
    page.globals |= {"claims_table": claims_table, "averages": averages}
    books, studies, notes = [], {}, []
    for path in notebooks(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            notebook = read(path)
            if not (notebook.metadata.papermill or MIME in json.dumps(notebook)):
                continue
            study = (about := swept(notebook)) and (about["notebook"], *about["swept"])
            # Of a thousand points, the first has the pictures.
            book = brief(name, notebook, illustrated=not study or study not in studies)
            alone = ([], {study: [book]}) if study else ([book], {})
            page.render(books=alone[0], studies=alone[1])  # to see whether it can be shown
            (studies.setdefault(study, []) if study else books).append(book)
        except Exception as error:  # whatever damage it has, the others are shown
            notes.append(f"{name}: {error}")
    if not books and not studies and not notes:
        raise ValueError(f"there is no executed notebook in {folder}; `vplib run` makes them")
    books.sort(key=lambda book: book["started"])
    text = page.render(books=books, studies=studies, notes=notes)
    write_beside(output, text.encode(errors="backslashreplace"))  # names that are no UTF-8
    return output
