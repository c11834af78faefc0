"""What several tests of notebooks install: the wheel of this repository, and Colab's ipywidgets."""

import os
import subprocess
import sys
import tomllib

import pytest
from anatomy import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
(OLDEST,) = (d.removeprefix("ipywidgets>=") for d in PROJECT["dependencies"] if "ipywidgets" in d)
COMPANIONS = ("widgetsnbextension~=3.6", "jupyterlab-widgets~=1.0", "ipython_genutils~=0.2.0")
PIP = "--quiet --disable-pip-version-check --no-input --retries 1 --timeout 20 --no-deps".split()


def _pip(what, command, *options):
    """Calls pip; where CI runs, a test that cannot run has failed, elsewhere it is skipped."""
    command = [sys.executable, "-m", "pip", command, *PIP, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = done.stderr.strip().splitlines() or ["pip said nothing"]
        if os.environ.get("CI"):
            pytest.fail(f"CI needs it: {what}: {errors[-1]}", pytrace=False)
        pytest.skip(f"{what}: {errors[-1]}")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    _pip("the wheel cannot be built", "wheel", "-w", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def oldest_widgets(tmp_path_factory):
    """A folder with the oldest ipywidgets that pyproject.toml allows: its version, and where."""
    folder = tmp_path_factory.mktemp("oldest")
    what = f"ipywidgets {OLDEST} cannot be installed"
    _pip(what, "install", "--target", folder, f"ipywidgets=={OLDEST}", *COMPANIONS)
    return OLDEST, folder
