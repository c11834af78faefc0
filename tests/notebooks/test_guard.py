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
from nbformat.v4 import new_code_cell, new_notebook
from strip import guard

COLAB = 'import sys\nimport types\n\nsys.modules["google.colab"] = types.ModuleType("colab")'
WHERE = "import ipywidgets, vplib\nprint(vplib.__file__, ipywidgets.__version__)"


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A function that runs cells in an empty folder, which goes on after an error."""
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

    def run(*sources, first=()):
        (packages / "others.pth").write_text("\n".join(map(str, (*first, others))))
        notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
        options = dict(kernel_name="alone", timeout=120, resources={"metadata": {"path": folder}})
        NotebookClient(notebook, allow_errors=True, **options).execute()
        return notebook.cells

    return SimpleNamespace(run=run, folder=folder, packages=packages)


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def stopped(cell):
    """The message that a cell ended with, which no traceback hides."""
    (error,) = (output for output in cell.outputs if output.output_type == "error")
    assert error.ename == "SystemExit" and len(error.traceback) == 2, error.traceback
    return error.evalue


def test_without_vplib_it_says_what_to_do(alone):
    (alone.folder / "vplib" / "vplib").mkdir(parents=True)  # a clone, which Python would import
    setups = [guard(address) + "\nfrom vplib import plots" for address in ("", "file:///nowhere")]
    elsewhere, _, upload, published = alone.run(setups[0], COLAB, *setups)
    said = "No vplib here. On Colab: upload vplib-*.whl, run again. Elsewhere: make lab"
    assert stopped(elsewhere) == stopped(upload) == said
    assert "pip" not in printed(elsewhere), "outside Colab it installs nothing"
    assert "vplib-*.whl" in printed(upload)
    assert "On Colab: read what pip said above." in stopped(published)
    assert "nowhere" in printed(published)


def test_on_colab_it_installs_a_wheel_beside_the_notebook(alone, wheel, oldest_widgets):
    """The whole setup cell of the start page, with an extra, and with Colab's ipywidgets."""
    shutil.copy(wheel, alone.folder)
    version, folder = oldest_widgets
    page = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    setup = next(c.source for c in page.cells if c.cell_type == "code")
    assert setup.startswith(guard(""))
    assert '%pip install -q ./vplib-*.whl "tenseal' in guard("", ["he"])
    setup = guard("", ["he"]) + setup.removeprefix(guard(""))
    published = guard("https://github.com/someone/vplib")
    cells = alone.run(COLAB, setup, WHERE, guard(""), published, first=[folder])
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert printed(cells[2]).split() == [f"{alone.packages}/vplib/__init__.py", version]
    assert not cells[3].outputs and not cells[4].outputs, "where vplib is, it does nothing"


def test_it_is_short():
    for address in ("", "https://github.com/someone/vplib"):
        for extras in ((), ("he",)):
            lines = guard(address, extras).splitlines()
            assert len([line for line in lines if line]) <= 6 and max(map(len, lines)) <= 100
