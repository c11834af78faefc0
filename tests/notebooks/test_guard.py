"""The Colab guard, run alone in an empty folder by a Python without vplib, with Colab faked.

That Python is an environment of its own, which takes all packages but vplib from this one. `%pip`
installs into it.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from anatomy import ROOT
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook
from strip import guard

UPLOAD = "No vplib here. On Colab: upload vplib-*.whl, run again. Elsewhere: make lab"
WHERE = "import ipywidgets, vplib\nprint(vplib.__file__, ipywidgets.__version__)"


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A function that runs sources in an empty folder, and gives their outputs and the error."""
    home, others, folder = (tmp_path / name for name in ("python", "others", "alone"))
    folder.mkdir()
    others.mkdir()
    for path in map(Path, sys.path[::-1]):
        for found in path.iterdir() if path.name.endswith("-packages") else ():
            if not re.search(r"vplib|\.pth$", found.name):
                (others / found.name).unlink(missing_ok=True)
                (others / found.name).symlink_to(found)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    argv = [str(home / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = tmp_path / "kernels" / "alone" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": argv, "display_name": "alone", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # all that the wheel needs is there
    monkeypatch.setenv("PIP_NO_DEPS", "1")  # old ipywidgets want a notebook server, as Colab has
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def run(*sources, colab=True, first=()):
        if colab:
            (packages / "google" / "colab").mkdir(parents=True, exist_ok=True)
            (packages / "google" / "colab" / "__init__.py").touch()
            (packages / "colab.pth").write_text("import google.colab\n")
        (packages / "others.pth").write_text("\n".join(map(str, (*first, others))))
        cells = [new_code_cell(source) for source in sources]
        notebook, raised = new_notebook(cells=cells), None
        options = dict(kernel_name="alone", timeout=120, resources={"metadata": {"path": folder}})
        try:
            NotebookClient(notebook, **options).execute()
        except CellExecutionError as error:
            raised = error
        outputs = [output for cell in cells for output in cell.outputs]
        return "".join(o.get("text", "") for o in outputs), raised

    return SimpleNamespace(run=run, folder=folder, packages=packages)


def test_without_vplib_it_says_what_to_do(alone):
    (alone.folder / "vplib" / "vplib").mkdir(parents=True)  # a clone, which Python would import
    printed, raised = alone.run(guard("") + "\nimport vplib", colab=False)
    assert (raised.ename, raised.evalue) == ("SystemExit", UPLOAD)
    assert "Traceback" not in raised.traceback and "ModuleNotFound" not in raised.traceback
    assert "pip" not in printed, "outside Colab it installs nothing"


@pytest.mark.parametrize(
    ("address", "advice"), [("", "upload vplib"), ("file:///nowhere", "read what pip said above")]
)
def test_on_colab_it_says_what_pip_lacked(alone, address, advice):
    printed, raised = alone.run(guard(address) + "\nimport vplib")
    assert raised.ename == "SystemExit" and f"On Colab: {advice}" in raised.evalue
    assert "Traceback" not in raised.traceback
    assert ("nowhere" if address else "vplib-*.whl") in printed


def test_on_colab_it_installs_a_wheel_beside_the_notebook(alone, wheel, oldest_widgets):
    """The whole setup cell of the start page, with an extra, and with Colab's ipywidgets."""
    shutil.copy(wheel, alone.folder)
    version, folder = oldest_widgets
    page = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    setup = next(c.source for c in page.cells if c.cell_type == "code")
    assert setup.startswith(guard(""))
    assert '%pip install -q ./vplib-*.whl "tenseal' in guard("", ["he"])
    setup = guard("", ["he"]) + setup.removeprefix(guard(""))
    printed, raised = alone.run(setup, WHERE, first=[folder])
    assert raised is None
    assert printed.split()[-2:] == [f"{alone.packages}/vplib/__init__.py", version]


def test_where_vplib_is_it_does_nothing(alone):
    printed, raised = alone.run(guard(""), guard("file:///nowhere"), WHERE, first=[ROOT])
    assert raised is None
    assert printed.split()[:-1] == [f"{ROOT}/vplib/__init__.py"], "and no word more"


def test_it_is_short():
    for address in ("", "https://github.com/someone/vplib"):
        for extras in ((), ("he",)):
            lines = guard(address, extras).splitlines()
            assert len([line for line in lines if line]) <= 6 and max(map(len, lines)) <= 100
