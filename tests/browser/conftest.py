"""Fixtures of the browser tests: a running JupyterLab, and a page of Debian's Chromium in it."""

import os

import nbformat
import pytest
from lab_page import CHROMIUM_ARGS, CHROMIUM_NAMES, find_chromium, running_lab
from nbformat.v4 import new_code_cell

from vplib import paths


def _missing(reason: str):
    """Where CI runs, a test that cannot run has failed; elsewhere it is skipped with the reason."""
    if os.environ.get("CI"):
        pytest.fail(f"CI needs the browser tests: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser():
    """Chromium, as installed on this machine."""
    chromium = find_chromium()
    if chromium is None:
        _missing(f"no {' or '.join(CHROMIUM_NAMES)} in PATH; on Debian: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright is not installed; pip install playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    """JupyterLab on a copy of this repository's notebooks."""
    notebooks = paths.repository_root() / "notebooks"
    with running_lab(notebooks, tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def page(browser, lab):
    """A fresh page that is logged in to JupyterLab."""
    with browser.new_context(base_url=lab.url, viewport={"width": 1400, "height": 1000}) as context:
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.goto(f"/api/status?token={lab.token}")  # leaves the login cookie
        yield page


@pytest.fixture
def quick_copy(lab):
    """Makes a shortened copy of a notebook beside it, in the folder that JupyterLab shows.

    Three changes, for these tests are about widgets and the whole takes minutes beside a browser:
    other parameters, smaller sizes of the profile, and the last cell, which raises when a claim
    fails, is left out. Every other cell is the committed one.
    """
    made = []

    def copy(name: str, parameters: dict, sizes: dict):
        notebook = nbformat.read(lab.notebooks / f"{name}.ipynb", as_version=4)
        notebook.cells = [c for c in notebook.cells if "claims.verify()" not in c.source]
        for after, source in {
            "parameters": "\n".join(f"{key} = {value!r}" for key, value in parameters.items()),
            "sizes": f"assert {sizes}.keys() <= vars(cfg).keys()\nvars(cfg).update({sizes})",
        }.items():
            (place,) = (i for i, cell in enumerate(notebook.cells) if cell.id == after)
            notebook.cells.insert(place + 1, new_code_cell(source, id=f"quick-{after}"))
        made.append(f"{name}_quick.ipynb")
        nbformat.write(notebook, lab.notebooks / made[-1])
        return made[-1], notebook

    yield copy
    for path in made:
        (lab.notebooks / path).unlink()
