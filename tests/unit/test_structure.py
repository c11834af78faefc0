"""The house as designed: imports run one way, nobody takes another's private names, all is thin.

Each rule is a function of a folder, so that it is tried on the clone and on a copy with a break.
"""

import ast
import csv
import functools
import graphlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import grimp
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[2]
SECTIONS = ("attacks", "defenses", "images", "synthesis")
NAMELESS = {"utils", "util", "helpers", "common", "misc"}  # say nothing of what a module holds
PUBLIC_OF_NAMEDTUPLE = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}

# Lines of code without blank lines and docstrings, a notebook's folder with its exercises.
FOUNDATION, RUNNER, FOLDER = 4198, 1066, 250
# Twice that where a notebook brings cryptography or a rendered set: folder -> which.
TWICE = {"defenses/encrypted_inference": "CKKS"}
# Folders that are older than the budget: they may shrink, never grow.
OLDER = {
    "attacks/extraction_functionality": 414,
    "attacks/inversion_class": 315,
    "attacks/inversion_gradient": 509,
    "attacks/membership_label_only": 301,
    "attacks/membership_shadow": 267,
    "defenses/dp_gan": 494,
    "defenses/dp_sgd": 403,
    "defenses/encrypted_inference": 1241,
    "images/adversarial_cloaking": 278,
}


def lint(folder: Path) -> str:
    """What import-linter says of the contracts in a folder's pyproject.toml, "" if all hold."""
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert command, "import-linter is not installed beside this Python: make env"
    # It puts the working folder first on its path, so that a copy's vplib is read.
    run = subprocess.run(
        [command, "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    return run.stdout + run.stderr if run.returncode else ""


def circle(graph: grimp.ImportGraph) -> list[str]:
    """Modules that import one another, the first repeated at the end; empty if there are none.

    An import inside a function counts: it only hides the circle from Python.
    """
    imported = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    try:
        graphlib.TopologicalSorter(imported).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]  # importer before imported
    return []


def private_names(tree: ast.AST, own: str = "") -> list[str]:
    """The private names of other vplib modules that code uses, as "line N: name".

    Args:
        tree: a module's or a cell's.
        own: the module's dotted name; what it imports from itself by a relative import.
    """
    named, found = {}, []  # what a name was imported as
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            package = own.split(".")[: -node.level] if node.level else []
            source = ".".join([*package, *filter(None, [node.module])])
            imported = {a.asname or a.name: f"{source}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            imported = {a.asname or a.name.partition(".")[0]: a.name for a in node.names}
        else:
            continue
        named |= imported
        for full in imported.values():
            if full.startswith("vplib.") and any(map(_private, full.split("."))):
                found.append(f"line {node.lineno}: {full}")
    for node in nodes:
        if isinstance(node, ast.Attribute) and _private(node.attr):
            first = re.match(r"\w+", ast.unparse(node.value))
            if first and named.get(first[0], "").partition(".")[0] == "vplib":
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def _private(name):
    return name[:1] == "_" and name[:2] != "__" and name not in PUBLIC_OF_NAMEDTUPLE


def private_uses(root: Path) -> list[str]:
    """Where vplib, the notebooks and the template use private names that are not their own."""
    found = []
    for path in sorted((root / "vplib").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        own = ".".join(parts)  # of a package: NAME.__init__, so that level 1 is the package
        found += [f"{own}, {use}" for use in private_names(ast.parse(path.read_text("utf-8")), own)]
    plain = TransformerManager().transform_cell  # magics as Python
    for path in [*_notebooks(root), *(root / "docs").glob("*.ipynb")]:
        for number, cell in enumerate(json.loads(path.read_text("utf-8"))["cells"]):
            if cell["cell_type"] == "code":
                uses = private_names(ast.parse(plain("".join(cell["source"]))))
                found += [f"{path.stem}, cell {number}, {use}" for use in uses]
    return found


def _notebooks(root):
    found = (root / "notebooks").rglob("*.ipynb")
    return sorted(p for p in found if ".ipynb_checkpoints" not in p.parts)


@functools.cache
def lines_of_code(source: str) -> int:
    """The lines of a module that are neither blank nor part of a docstring."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                first, last = node.body[0].lineno, node.body[0].end_lineno
                lines[first - 1 : last] = [""] * (last - first + 1)
    return sum(bool(line.strip()) for line in lines)


def sizes(root: Path) -> Counter:
    """The lines of code of the foundation, of the runner and of each notebook's folder."""
    found = Counter()
    for path in (root / "vplib").rglob("*.py"):
        parts = path.relative_to(root / "vplib").parts
        room = "foundation"
        if parts[0] == "runner":
            room = "runner"
        elif parts[0] in SECTIONS and len(parts) > 2:
            room = "/".join(parts[:2])
        found[room] += lines_of_code(path.read_text("utf-8"))
    return found


def budget(room: str) -> int:
    """The lines that a room may have."""
    if room in ("foundation", "runner"):
        return FOUNDATION if room == "foundation" else RUNNER
    return OLDER.get(room, 2 * FOLDER if room in TWICE else FOLDER)


def overrun(found: Counter) -> str:
    """A table of all rooms with the overruns marked; empty if there is none."""
    if all(lines <= budget(room) for room, lines in found.items()):
        return ""
    rows = [
        f"{room:36} {lines:5} of {budget(room):5}{'  OVER' if lines > budget(room) else ''}"
        for room, lines in sorted(found.items())
    ]
    return "\n".join(["", "lines of code without blank lines and docstrings:", *rows])


def misplaced(root: Path) -> list[str]:
    """What stands in vplib under a name or in a form that the design does not know."""
    names = {p.relative_to(root / "notebooks").with_suffix("").as_posix() for p in _notebooks(root)}
    with open(root / "notebooks" / "papers.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):  # planned ones too
            names |= {row["notebook"], *re.findall(r"\w+/\w+", row["elsewhere"])}
    found = []
    for path in sorted((root / "vplib").rglob("*.py")):
        inside = path.relative_to(root / "vplib")
        if path.stem in NAMELESS or path.parent.name in NAMELESS:
            found.append(f"{inside}: name it for what it holds")
        if inside.parts[0] in SECTIONS and len(inside.parts) == 2 and path.stem != "__init__":
            found.append(f"{inside}: belongs in the folder of its notebook")
    for folder in sorted({p.parent for p in (root / "vplib").rglob("*.py")}):
        inside, top = folder.relative_to(root / "vplib").as_posix(), folder / "__init__.py"
        if inside.split("/")[0] in SECTIONS and "/" in inside and inside not in names:
            found.append(f"{inside}: no notebook has this name, nor is one planned in papers.csv")
        if not top.is_file() or not ast.get_docstring(ast.parse(top.read_text("utf-8"))):
            found.append(f"{inside}: has no __init__.py with a docstring")
    return found


def test_contracts_of_import_linter_hold():
    said = lint(ROOT)
    assert not said, said


def test_no_import_circle():
    found = circle(grimp.build_graph("vplib", cache_dir=None))
    assert not found, " -> ".join(found)


def test_nobody_takes_private_names():
    assert private_uses(ROOT) == []


def test_line_budgets_hold():
    table = overrun(sizes(ROOT))
    assert not table, table


def test_exceptions_to_the_budget_are_needed():
    found = sizes(ROOT)
    assert set(OLDER) | set(TWICE) <= set(found)
    for room, lines in OLDER.items():
        assert lines > (2 * FOLDER if room in TWICE else FOLDER), f"{room} needs no exception"


def test_folders_and_modules_are_named_as_designed():
    assert misplaced(ROOT) == []


@pytest.fixture
def copy(tmp_path):
    """A copy of what the rules read, and a way to write a module into it."""
    shutil.copytree(ROOT / "vplib", tmp_path / "vplib", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "papers.csv", tmp_path / "notebooks")

    def write(name: str, source: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source, "utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("module", "source", "broken", "arrow"),
    [
        (
            "vplib/attacks/membership_shadow/stray.py",
            "from vplib.defenses.dp_sgd import audit",
            "imports run one way BROKEN",
            "vplib.attacks.membership_shadow.stray -> vplib.defenses.dp_sgd.audit",
        ),
        (
            "vplib/attacks/membership_shadow/stray.py",
            "def f():\n    import vplib.attacks.inversion_class.search",
            "no notebook's folder imports another's BROKEN",
            "vplib.attacks.membership_shadow.stray -> vplib.attacks.inversion_class.search",
        ),
        (
            "vplib/show/stray.py",
            "from vplib.attacks import membership_shadow",
            "imports run one way BROKEN",
            "vplib.show.stray -> vplib.attacks.membership_shadow",
        ),
        (
            "vplib/attacks/membership_shadow/stray.py",
            "from vplib.runner import run",
            "imports run one way BROKEN",
            "vplib.attacks.membership_shadow.stray -> vplib.runner.run",
        ),
        (
            "vplib/paths.py",
            "import vplib.cache",
            "imports run one way BROKEN",
            "vplib.paths -> vplib.cache",
        ),
        (
            "vplib/stray.py",
            "",
            "imports run one way BROKEN",
            "- vplib.stray",
        ),
    ],
    ids=["across sections", "across folders", "upwards", "runner", "in the foundation", "no line"],
)
def test_import_linter_notices(copy, module, source, broken, arrow):
    said = lint(copy(module, source))
    assert broken in said
    assert arrow in " ".join(said.split())


@pytest.mark.parametrize(
    "modules",
    [
        {"one": "from house import two", "two": "def f():\n    from house.one import g"},
        {"__init__": "from house.one import f", "one": "import house"},
        {"one": "import house.two", "two": "from house import three", "three": "from . import one"},
    ],
    ids=["lazy", "through __init__", "of three"],
)
def test_a_circle_is_noticed(tmp_path, monkeypatch, modules):
    (tmp_path / "house").mkdir()
    for name, source in ({"__init__": ""} | modules).items():
        (tmp_path / "house" / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    graph = grimp.build_graph("house", cache_dir=None)
    found = circle(graph)
    assert found[0] == found[-1] and len(found) == len(set(found)) + 1 > 2
    for importer, imported in zip(found, found[1:], strict=False):
        assert imported in graph.find_modules_directly_imported_by(importer)
    graph.remove_import(importer=found[0], imported=found[1])
    assert circle(graph) == []


@pytest.mark.parametrize(
    "source",
    [
        "from vplib.nets.training import _steps",
        "from vplib.nets.training import _steps as steps",
        "from vplib.nets import _inner",
        "from vplib.nets._inner import fit",
        "def f():\n    from vplib.nets import training\n    return training._steps(3)",
        "import vplib.nets.training\nvplib.nets.training._steps(3)",
        "import vplib.nets.training as t\nt._steps.cache_clear()",
        "from vplib.nets.training import Ensemble\nEnsemble._of(3)",
        "from vplib.nets.training import fit\nfit(3)[0]._state",
        "from ...nets.training import _steps",
        "from ..membership_shadow import shadow\nshadow._order(3)",
    ],
)
def test_private_import_is_noticed(source):
    (found,) = private_names(ast.parse(source), "vplib.attacks.inversion_class.search")
    assert re.match(r"line \d: .*\b_(steps|inner|of|state|order)\b", found)


@pytest.mark.parametrize(
    "source",
    [
        "from vplib.nets.training import fit\nfit(3)._replace(a=1)",
        "from vplib import __version__",
        "import vplib\nvplib.__version__",
        "import torch\ntorch._foreach_add_([], 1)",
        "def _own():\n    return _own.self._x",
        "from dataclasses import _MISSING_TYPE",
    ],
)
def test_public_and_own_names_are_free(source):
    assert private_names(ast.parse(source), "vplib.attacks.inversion_class.search") == []


def test_private_names_are_noticed_in_module_and_notebook(tmp_path):
    (tmp_path / "vplib" / "nets").mkdir(parents=True)
    (tmp_path / "vplib" / "nets" / "__init__.py").write_text("from .training import _steps\n")
    cells = ["%pip install x\nfrom vplib import paths", "from vplib import paths\npaths._root()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    (tmp_path / "notebooks" / "attacks").mkdir(parents=True)
    nbformat.write(notebook, tmp_path / "notebooks" / "attacks" / "stray.ipynb")
    assert private_uses(tmp_path) == [
        "vplib.nets.__init__, line 1: vplib.nets.training._steps",
        "stray, cell 1, line 2: paths._root",
    ]


def test_lines_of_code_by_hand():
    source = '''"""A module.

It has three lines.
"""

import math  # 1

X = """text
is code"""  # 2, 3


class A:  # 4
    """One."""

    # a comment is a line (5)
    def f(self):  # 6
        """Two
        lines."""
        return math.pi  # 7
'''
    assert lines_of_code(source) == 7
    assert lines_of_code("") == 0


def test_a_budget_overrun_is_noticed(copy):
    root = copy("vplib/attacks/updates_leak/one.py", '"""One."""\n' + "x = 1\n" * 200)
    copy("vplib/attacks/updates_leak/exercises.py", "\n" + "y = 2\n\n" * 50)
    assert sizes(root)["attacks/updates_leak"] == 250
    assert "attacks/updates_leak                   250 of   250  OVER" not in overrun(sizes(root))
    copy("vplib/attacks/updates_leak/two.py", "z = 3\n")
    assert "attacks/updates_leak                   251 of   250  OVER" in overrun(sizes(root))
    before = sizes(root)
    copy("vplib/runner/stray.py", "x = 1\n" * (RUNNER + 1))
    copy("vplib/show/stray.py", "x = 1\n" * 3501)
    after = sizes(root)
    assert after["runner"] == before["runner"] + RUNNER + 1
    assert after["foundation"] == before["foundation"] + 3501
    table = overrun(after)
    assert re.search(rf"^runner .* of +{RUNNER}  OVER$", table, re.MULTILINE)
    assert re.search(rf"^foundation .* of +{FOUNDATION}  OVER$", table, re.MULTILINE)


def test_a_misplaced_module_is_noticed(copy):
    before = misplaced(copy("vplib/defenses/pate/__init__.py", '"""PATE."""\n'))  # planned
    assert not any("pate" in m for m in before)
    copy("vplib/attacks/stealing/__init__.py", '"""Stealing."""\n')
    copy("vplib/attacks/updates_leak/one.py", "")
    copy("vplib/images/stray.py", "")
    root = copy("vplib/nets/utils.py", "")
    assert sorted(set(misplaced(root)) - set(before)) == [
        "attacks/stealing: no notebook has this name, nor is one planned in papers.csv",
        "attacks/updates_leak: has no __init__.py with a docstring",
        "images/stray.py: belongs in the folder of its notebook",
        "nets/utils.py: name it for what it holds",
    ]
