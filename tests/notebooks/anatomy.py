"""What a notebook must look like (house style), as a list of what is wrong with it."""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
from papermill.translators import PythonTranslator
from strip import guard, published_address, states, verified

from vplib import exercises

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = (
    "Paper and claim",
    "Threat model",
    "Setup",
    "Parameters",
    "Data",
    "Baseline",
    "Method",
    "Experiment",
    "What stops it",
    "Paper against ours",
    "Explore",
    "Exercises",
    "Going further",
    "References",
)
ABOUT = {"title", "paper", "minutes", "datasets", "core", "course", "extras"}
FORBIDDEN = ("os.chdir", "sys.path", "%autoreload", "import *", ".cuda()", "plt.show()", "try:")
FORBIDDEN += ("# fmt: skip", "lambda _")  # what runs is what the reader reads
MAX_CODE_LINES, MAX_BYTES, MAX_HERO_BYTES = 20, 200_000, 100_000
MAX_PART_ONE_CELLS = 72  # of at most 20 lines, each doing one thing


def all_notebooks(root: Path = ROOT) -> list[Path]:
    """The committed notebooks."""
    found = (root / "notebooks").rglob("*.ipynb")
    return sorted(p for p in found if ".ipynb_checkpoints" not in p.parts)


def name_of(path: Path) -> str:
    """A notebook as papers.csv calls it: folder/name."""
    return path.relative_to(path.parents[1]).with_suffix("").as_posix()


def problems(path: Path, papers: list[dict] | None = None, address: str | None = None) -> list[str]:
    """What is wrong with one notebook, a sentence each; empty if nothing is.

    Args:
        path: the notebook.
        papers: the rows of papers.csv; None skips what agrees with them (the template).
        address: where the repository is published.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (json.JSONDecodeError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        return [f"is no valid notebook: {error}"]
    start_page = path.stem == "00_start_here"
    address = published_address() if address is None else address
    found = _metadata(notebook, path, papers is not None) + _outputs(notebook, start_page)
    found += _setup_and_parameters(notebook, address)
    found += _code(notebook, address)
    if not start_page:
        found += _sections(notebook) + _exercises(notebook) + _claims(notebook, path, papers)
    return found


def paper_problems(papers: list[dict], root: Path = ROOT) -> list[str]:
    """What is wrong with papers.csv as a whole."""
    found, names, derived = [], [row["paper"] for row in papers], states(root)
    found += [f"{n} stands twice" for n in sorted({n for n in names if names.count(n) > 1})]
    for row in papers:
        state, claimed = row["state"], derived.get(row["paper"], "planned")
        if state != claimed:
            found.append(f"{row['paper']} is {state!r}, its claims say {claimed!r}: make strip")
        if state != "planned" and not (root / f"notebooks/{row['notebook']}.ipynb").exists():
            found.append(f"{row['paper']} is {state}, but {row['notebook']} does not exist")
    return found


@dataclass(frozen=True)
class Check:
    """A call of `claims.check`, as it stands in the notebook."""

    of: str
    text: str
    headline: bool
    no_control: str


def checks(notebook) -> list[Check]:
    """The calls of `claims.check`.

    Raises:
        ValueError: a cell is no Python, there is not one `experiment.Claims`, or what a claim is
            called is computed.
    """
    try:
        tree = ast.parse("\n".join(_plain(c.source) for c in _code_cells(notebook)))
    except SyntaxError as error:
        raise ValueError(f"the code cells are no Python: {error.msg}") from error
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = [call for call in calls if ast.unparse(call.func) == "experiment.Claims"]
    if len(made) != 1:
        raise ValueError(f"{len(made)} Claims are made, not one")
    core, found = ast.literal_eval(made[0].args[0]), []
    for call in calls:
        if ast.unparse(call.func) != "claims.check":
            continue
        given = {k.arg: k.value for k in call.keywords}
        try:
            text, of, headline, no_control = map(
                ast.literal_eval,
                (
                    call.args[0],
                    given.get("of", ast.Constant(core)),
                    given.get("headline", ast.Constant(False)),
                    given.get("no_control", ast.Constant("")),
                ),
            )
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{ast.unparse(call)[:80]}...: text, of, headline and no_control must be literals"
            ) from error
        found.append(Check(of, text, headline, no_control))
    return found


def _plain(source):
    """A cell without its magics, so that Python can parse it."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M)


def headings(notebook) -> list[str]:
    """All Markdown headings, without their number signs."""
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    return [h.strip() for h in re.findall(r"^#+ (.*)$", text, re.M)]


def _tagged(notebook, tag):
    return [c for c in notebook.cells if tag in c.metadata.get("tags", ())]


def _code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def _metadata(notebook, path, committed) -> list[str]:
    found = []
    about = notebook.metadata.get("vplib", {})
    if set(about) != ABOUT:
        found.append(f"metadata.vplib must hold exactly {sorted(ABOUT)}")
    elif not isinstance(about["course"], int):
        found.append("metadata.vplib.course, the place in a course, must be a whole number")
    if path.stat().st_size > MAX_BYTES:
        found.append(f"is {path.stat().st_size} bytes, more than {MAX_BYTES}: strip it")
    hero = path.resolve().parents[1] / "gallery" / f"{path.stem}.png"
    if path.parent.name == "notebooks":
        hero = path.parent / "gallery" / f"{path.stem}.png"
    if f"gallery/{path.stem}.png" not in notebook.cells[0].source:
        found.append("the first cell does not show the hero figure from gallery/")
    elif committed and not (hero.exists() and hero.stat().st_size <= MAX_HERO_BYTES):
        found.append(f"{hero.name} is missing in gallery/ or over {MAX_HERO_BYTES} bytes")
    if not _tagged(notebook, "hero"):
        found.append("no cell is tagged hero")
    return found


def _outputs(notebook, start_page) -> list[str]:
    found = [
        f"cell {c.get('id')} has outputs left in: make strip"
        for c in _code_cells(notebook)
        if c.outputs and "keep_output" not in c.metadata.get("tags", ())
    ]
    if start_page:
        return found
    last = notebook.cells[-1]
    if last.source.strip() != "claims.verify()":
        found.append("the last cell is not claims.verify()")
    if not {"keep_output", "nbval-check-output"} <= set(last.metadata.get("tags", ())):
        found.append("the last cell lacks the tags keep_output and nbval-check-output")
    try:
        outcomes = [claim.outcome for claim in verified(notebook)]
    except ValueError as error:
        return [*found, str(error)]
    if not outcomes or set(outcomes) - {"holds", "not reproduced"}:
        found.append("the last cell's output must be outcomes of claims, none failing: make strip")
    return found


def _setup_and_parameters(notebook, address) -> list[str]:
    found, cells = [], _code_cells(notebook)
    extras = notebook.metadata.get("vplib", {}).get("extras", ())
    if not cells or not cells[0].source.startswith(guard(address, extras)):
        found.append("the setup cell does not start with the Colab guard: make strip")
    tagged = _tagged(notebook, "parameters")
    if len(tagged) != 1:
        return [*found, f"{len(tagged)} cells are tagged parameters, not one"]
    cell = tagged[0]
    values = {}
    for node in ast.parse(cell.source).body:
        try:
            (target,) = node.targets
            values[target.id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError):
            found.append(f"parameters: line {node.lineno} is no NAME = literal")
    # Papermill skips a line with a second "=", even in its comment, and then knows no such name.
    seen = {p.name for p in PythonTranslator.inspect(cell)}
    for name in sorted(set(values) - seen):
        found.append(f"parameters: papermill cannot read {name}: one = a line, comments included")
    wanted = {"SEED": int, "DEVICE": str, "PROFILE": str, "DATASET": str | None}
    for name, kind in wanted.items():
        if name not in values or not isinstance(values[name], kind):
            found.append(f"parameters: {name} is missing or no {kind}")
    if not cell.source.rstrip().endswith("# change here, then Run All"):
        found.append('parameters must end with "# change here, then Run All"')
    following = cells[cells.index(cell) + 1].source
    if "experiment.profile(" not in following or "seed_everything(SEED)" not in following:
        found.append("the cell after the parameters must seed and choose the profile")
    for other in cells:
        for name in values:
            if other is not cell and re.search(rf"^{name} *=[^=]", other.source, re.M):
                found.append(f"cell {other.get('id')} sets the parameter {name} again")
    return found


def _code(notebook, address) -> list[str]:
    found, generated = [], guard(address, notebook.metadata.get("vplib", {}).get("extras", ()))
    for before, cell in zip([None, *notebook.cells], notebook.cells, strict=False):
        if cell.cell_type != "code":
            continue
        where, lines = f"cell {cell.get('id')}", cell.source.count("\n") + 1
        if cell.source.startswith(generated):  # which a reader need not read
            lines -= generated.count("\n")
        if lines > MAX_CODE_LINES:
            found.append(f"{where} has {lines} lines, more than {MAX_CODE_LINES}")
        if before is None or before.cell_type != "markdown":
            found.append(f"{where} has no sentence before it")
        found += [f"{where} uses {bad}" for bad in FORBIDDEN if bad in cell.source]
    return found


def _sections(notebook) -> list[str]:
    found, have = [], headings(notebook)
    position = -1
    for section in SECTIONS:
        later = [i for i, h in enumerate(have) if i > position and h.startswith(section)]
        if not later:
            found.append(f"section '{section}' is missing or out of order")
        else:
            position = later[0]
    for i, cell in enumerate(notebook.cells):
        if cell.source.startswith("## Going further") and i > MAX_PART_ONE_CELLS:
            found.append(f"part one has {i} cells, more than {MAX_PART_ONE_CELLS}")
    return found


def _exercises(notebook) -> list[str]:
    cells, known = _tagged(notebook, "exercise"), exercises.names()
    found = [] if 3 <= len(cells) <= 5 else [f"{len(cells)} cells are tagged exercise, not 3 to 5"]
    for cell in cells:
        called = re.findall(r'exercises\.check\("([^"]+)"', cell.source)
        if len(called) != 1 or called[0] not in known:
            found.append(f"cell {cell.get('id')} checks no known exercise")
        if "return None" not in cell.source:
            found.append(f"cell {cell.get('id')}: the stub must return None")
    return found


def _claims(notebook, path, papers) -> list[str]:
    source = "\n".join(c.source for c in _code_cells(notebook))
    found = [] if "claims.show(" in source else ["claims.show() is never called"]
    try:
        said = {(c.of, c.text, c.headline, bool(c.no_control)) for c in checks(notebook)}
        committed = {(c.of, c.text, c.headline, c.no_control) for c in verified(notebook)}
    except ValueError as error:
        return [*found, str(error)]
    differing = sorted(f"{of}: {text}" for of, text, *_ in said ^ committed)
    if differing:
        found.append(f"the last cell's output is of other claims, make strip: {differing}")
    if papers is None:
        return found
    claimed = {of for of, *_ in said}
    ours = [row for row in papers if row["notebook"] == name_of(path)]
    have = headings(notebook)
    for row in ours:
        if row["state"] == "planned":
            if row["paper"] in claimed:
                found.append(f"papers.csv: {row['paper']} has a claim here, but is 'planned'")
            continue
        if row["section"] not in have:
            found.append(f"papers.csv: no section '{row['section']}' for {row['paper']}")
        if row["paper"] not in claimed:
            found.append(f"papers.csv: {row['paper']} is {row['state']} without a claim")
    own = {row["paper"] for row in ours}  # a synthesis has none: it brings others' together
    core = notebook.metadata.get("vplib", {}).get("paper")
    if core not in own and path.parent.name != "synthesis":
        found.append("metadata.vplib.paper is no row of papers.csv for this notebook")
    return found
