"""What several tests of notebooks install: the wheel of this repository, and Colab's ipywidgets."""

import os
import subprocess
import sys
import tomllib

import pytest
from anatomy import ROOT
from filelock import FileLock

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
(OLDEST,) = (d.removeprefix("ipywidgets>=") for d in PROJECT["dependencies"] if "ipywidgets" in d)
COMPANIONS = ("widgetsnbextension~=3.6", "jupyterlab-widgets~=1.0", "ipython_genutils~=0.2.0")
PIP = "--quiet --disable-pip-version-check --no-input --retries 1 --timeout 20 --no-deps".split()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of this repository."""
    (path,) = _made(tmp_path_factory, "wheel", "wheel", "-w", ROOT).glob("*.whl")
    return path


@pytest.fixture(scope="session")
def oldest_widgets(tmp_path_factory):
    """The version of the oldest ipywidgets that pyproject.toml allows, and a folder with it."""
    wanted = (f"ipywidgets=={OLDEST}", *COMPANIONS)
    return OLDEST, _made(tmp_path_factory, "oldest", "install", "--target", *wanted)


def _made(tmp_path_factory, name, command, option, *wanted):
    """The folder that pip fills, once for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            pip = [sys.executable, "-m", "pip", command, *PIP, option, f"{folder}.part", *wanted]
            done = subprocess.run(pip, capture_output=True, text=True)
            if done.returncode:
                errors = done.stderr.strip().splitlines() or ["pip said nothing"]
                reason = f"pip cannot {command} {wanted[0]}: {errors[-1]}"
                if os.environ.get("CI"):
                    pytest.fail(f"CI needs it: {reason}", pytrace=False)
                pytest.skip(reason)
            os.rename(f"{folder}.part", folder)
    return folder
