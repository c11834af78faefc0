"""A real JupyterLab and a real browser: how the tests start them, run a notebook, move a widget."""

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SETTINGS = {
    # Cells out of sight stay in the page; by default JupyterLab takes them out.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "docmanager-extension/plugin": {"autosave": False},
}
# The notebook that is open: its path, kernel and cells, as plain values. JSON only.
STATE = """() => {
    const panel = window.jupyterapp?.shell?.currentWidget;
    const session = panel?.sessionContext;
    const cells = panel?.content?.widgets ?? [];
    return {
        path: panel?.context?.path ?? "",
        ready: Boolean(session?.isReady && panel?.context?.isReady),
        kernel: session?.session?.kernel?.status ?? "none",
        finished: window.vplibFinished ?? false,
        cells: cells.filter(cell => cell.model?.type === "code").map(cell => ({
            id: cell.model.id,
            count: cell.model.executionCount,
            empty: !cell.model.sharedModel.getSource().trim(),
            tags: cell.model.getMetadata("tags") ?? [],
            errors: cell.model.outputs.toJSON()
                .filter(output => output.output_type === "error")
                .map(output => [output.ename + ": " + output.evalue, ...output.traceback]),
        })),
    };
}"""


@dataclasses.dataclass(frozen=True)
class Lab:
    """A running JupyterLab."""

    url: str
    token: str
    notebooks: Path


def find_chromium() -> str | None:
    """The browser of this machine; none is ever downloaded."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


@contextlib.contextmanager
def running_lab(notebooks: Path, folder: Path, seconds: float = 90):
    """JupyterLab on a copy of some notebooks, with settings of its own, until the block ends.

    Args:
        notebooks: what it shows; a copy, so that the repository stays as it is.
        folder: an empty folder for that copy, the settings and the log.
        seconds: how long it may take to answer.
    """
    copied = folder / "notebooks"
    shutil.copytree(notebooks, copied, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    env = dict(os.environ)
    env.pop("MPLBACKEND", None)  # a test run's "agg" would leave notebooks without figures
    for name in ("CONFIG", "DATA", "RUNTIME"):
        env[f"JUPYTER_{name}_DIR"] = str(folder / name.lower())
    env |= {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
        "OMP_NUM_THREADS": env.get("OMP_NUM_THREADS", "1"),  # the browser wants a core too
    }
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lab = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(16), copied)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={copied}"]
    command += [f"--IdentityProvider.token={lab.token}", "--LabApp.expose_app_in_browser=True"]
    command += ["--LabApp.extension_manager=readonly"]
    log = folder / "jupyter.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + seconds
        while not _answers(lab):
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield lab
    finally:
        server.terminate()  # it ends its kernels, then itself
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def open_and_run(page, path: str, seconds: float = 240) -> None:
    """Opens a notebook, runs all its cells and waits until they have run.

    Args:
        page: a page whose context is logged in.
        path: the notebook, from the folder that JupyterLab shows.
        seconds: how long the run may take.

    Raises:
        AssertionError: a cell ended with an error (its text is shown) or did not run in time.
    """
    # A workspace of its own: the default one would open the last test's notebook again.
    page.goto(f"/lab/workspaces/{secrets.token_hex(4)}/tree/{urllib.parse.quote(path)}")
    _wait(
        page,
        lambda s: s["path"] == path and s["ready"] and s["cells"] and s["kernel"] == "idle",
        60,
        f"{path} did not open",
    )
    # In braces: without them the page would hand the command's promise to Python and wait here.
    page.evaluate(
        "() => { window.vplibFinished = false;"
        " jupyterapp.commands.execute('notebook:run-all-cells')"
        ".finally(() => { window.vplibFinished = true; }); }"
    )
    state = _wait(
        page, lambda s: s["finished"] and s["kernel"] == "idle", seconds, f"{path} did not finish"
    )
    for cell in state["cells"]:
        if "raises-exception" not in cell["tags"]:
            assert not cell["errors"], f"{path}, cell {cell['id']}:\n" + "\n".join(
                cell["errors"][0]
            )
    left = [cell["id"] for cell in state["cells"] if cell["count"] is None and not cell["empty"]]
    assert not left, f"{path}: these cells did not run: {', '.join(left)}"


def widget_view(page, index: int = 0):
    """The locator of what the index-th `widgets.explore` of the notebook shows."""
    return page.locator(".jp-OutputArea-output .widget-html-content").nth(index)


def widget_image_src(page, index: int = 0) -> str:
    """The data URL of the figure that the index-th `widgets.explore` shows now."""
    return widget_view(page, index).locator("img[src^='data:image/png']").get_attribute("src")


def widget(page, description: str):
    """The locator of the control with this description."""
    label = page.locator(".widget-label").get_by_text(description, exact=True)
    return page.locator(".jp-OutputArea-output .widget-inline-hbox").filter(has=label)


def choose(page, description: str, option: str) -> None:
    """Picks an option of a dropdown by its text."""
    widget(page, description).locator("select").select_option(label=option)


def type_text(page, description: str, text: str) -> None:
    """Replaces what stands in a text field, key by key."""
    field = widget(page, description).locator("input[type=text]")
    field.fill("")
    field.press_sequentially(text, delay=20)


def move_slider(page, description: str, presses: int = 1, key: str = "ArrowRight") -> None:
    """Moves a slider with the keyboard, as many steps as the key is pressed."""
    handle = widget(page, description).locator(".noUi-handle")
    handle.focus()
    for _ in range(presses):
        handle.press(key)


def _answers(lab: Lab) -> bool:
    request = urllib.request.Request(
        f"{lab.url}/api/status", headers={"Authorization": f"token {lab.token}"}
    )
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(request, timeout=5).status == 200
    return False


def _wait(page, done, seconds: float, what: str) -> dict:
    until = time.monotonic() + seconds
    while True:
        state = page.evaluate(STATE)
        if done(state):
            return state
        short = {key: value for key, value in state.items() if key != "cells"}
        assert time.monotonic() < until, f"{what} within {seconds:.0f} s: {short}"
        page.wait_for_timeout(200)
