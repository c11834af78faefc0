"""A notebook alone, in an empty folder, with nothing but the built wheel: as on Colab."""

import email
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile

import nbformat
from anatomy import ROOT
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell
from packaging.requirements import Requirement

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Comes before everything in the kernel: what only an extra brings is not there.
BLOCK = """import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NAMES:
            raise ModuleNotFoundError(f"{name} comes with an extra only", name=name)
sys.meta_path.insert(0, Absent())
"""


def names_of(extra):
    return {re.match(r"[\w-]+", text)[0] for text in EXTRAS[extra]}


def test_the_wheel_holds_what_a_lone_notebook_reads(wheel):
    with zipfile.ZipFile(wheel) as file:
        held = {name: file.getinfo(name).file_size for name in file.namelist()}
        papers = file.read("vplib/papers.csv")
    assert papers == (ROOT / "notebooks" / "papers.csv").read_bytes()
    texts = ("show/drawing_pad.js", "runner/report.html.jinja", "runner/lab.toml")
    assert all(held[f"vplib/{name}"] > 500 for name in texts)
    assert all(name.startswith("vplib") for name in held)
    assert not [name for name in held if name.endswith((".ipynb", ".png"))]


def test_installing_it_pulls_no_jupyterlab(wheel):
    """Follows the wheel's requirements through what is installed here."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        wanted = email.message_from_bytes(file.read(name)).get_all("Requires-Dist")
    assert len(wanted) > 20
    found, left = set(), [Requirement(text) for text in wanted]
    while left:
        requirement = left.pop()
        extras = requirement.extras or {""}
        name = requirement.name.lower().replace("_", "-")
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}) or name in found:
            continue
        found.add(name)
        try:
            needs = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            marker = need.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                need.marker = None
                left.append(need)
    assert {"torch", "numpy", "ipywidgets", "traitlets"} <= found, "it follows more than one step"
    for extra in ("lab", "he", "sweep", "serve", "site"):
        assert not found & names_of(extra), f"the wheel pulls what {extra} brings"


def test_a_lone_notebook_runs_from_the_wheel(wheel, tmp_path, monkeypatch):
    site, alone = tmp_path / "site", tmp_path / "alone"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--target", site, wheel], check=True)
    absent = set().union(*(names_of(extra) for extra in EXTRAS if extra != "test"))
    (site / "sitecustomize.py").write_text(f"NAMES = {absent}\n{BLOCK}")
    alone.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(site))
    page = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    page.cells.append(
        new_code_cell(
            "import vplib.show.drawing_pad\nfrom vplib import paths, survey\n"
            "print(vplib.__file__, len(survey.papers()), paths.repository_root())\n"
            "print('export default' in str(vplib.show.drawing_pad.DrawingPad._esm))"
        )
    )
    page.cells.append(new_code_cell("import papermill", metadata={"tags": ["raises-exception"]}))
    NotebookClient(page, timeout=300, resources={"metadata": {"path": alone}}).execute()
    *_, last, blocked = page.cells
    assert last.outputs[0].text.split("\n")[:2] == [f"{site}/vplib/__init__.py 136 None", "True"]
    assert blocked.outputs[0].ename == "ModuleNotFoundError", "what extras bring is absent"
    figures = [
        o for c in page.cells for o in c.get("outputs", ()) if "image/png" in o.get("data", ())
    ]
    assert len(figures) >= 4
    assert not list(alone.iterdir()), "it leaves nothing behind"
