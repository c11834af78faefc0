"""The oldest ipywidgets that pyproject.toml allows, which is Colab's, laid over this environment.

It is installed with its companions into a folder of its own, which comes first on the path of the
kernels started here; all else is what the other tests use. No browser is needed: the test speaks
the widgets' protocol to a kernel, as JupyterLab does.
"""

import base64
import os
import re
import subprocess
import sys

import nbformat
import papermill
import pytest
from anatomy import ROOT
from jupyter_client.manager import run_kernel


@pytest.fixture(scope="module")
def environment(oldest_widgets):
    """The variables of a process that finds the oldest ipywidgets first."""
    path = os.pathsep.join(filter(None, [str(oldest_widgets[1]), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def test_the_bound_is_the_version_of_colab(oldest_widgets):
    assert oldest_widgets[0] == "7.7.1"


def test_the_library_imports(environment, oldest_widgets):
    code = "import ipywidgets, vplib.show.widgets; print(ipywidgets.__version__)"
    printed = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert printed.strip() == oldest_widgets[0]


def test_the_start_page_runs_headless(environment, oldest_widgets, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    page, out = ROOT / "notebooks" / "00_start_here.ipynb", tmp_path / "out.ipynb"
    papermill.execute_notebook(page, out, progress_bar=False)
    cells = [c for c in nbformat.read(out, as_version=4).cells if c.cell_type == "code"]
    shown = {c.id: [o.get("data", {}) for o in c.outputs] for c in cells}
    assert f"'ipywidgets': '{oldest_widgets[0]}'" in str(shown["versions"])
    pictures = [
        data["image/png"] for all_ in shown.values() for data in all_ if "image/png" in data
    ]
    assert len(pictures) >= 4
    assert all(base64.b64decode(p).startswith(b"\x89PNG\r\n") for p in pictures)
    explored = [c.id for c in cells if "widgets.explore(" in c.source]
    assert explored
    for id in explored:
        assert any({"image/png", "text/html"} & data.keys() for data in shown[id]), id
        assert not any("widget-view" in mime for data in shown[id] for mime in data), id


FIGURE = """
import ipywidgets
import matplotlib.pyplot as plt
from vplib import widgets

def render(attack, models):
    figure, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, models], "o" if attack == "LiRA" else "-")
    return figure

widgets.explore(
    render,
    attack=ipywidgets.Dropdown(options=["loss", "LiRA"], description="attack"),
    models=ipywidgets.IntSlider(2, 1, 9, description="models"),
)
"""


def test_a_front_end_moves_the_figure(environment):
    with run_kernel(env=environment) as kernel:
        request = dict(code=FIGURE, silent=False, store_history=False, allow_stdin=True)
        answers = ask(kernel, "execute_request", request | dict(user_expressions={}))
        assert not [a["content"] for a in answers if a["msg_type"] in ("error", "stream")]
        assert any("widget-view" in mime for a in answers for mime in a["content"].get("data", ()))
        states = {
            a["content"]["comm_id"]: a["content"]["data"]["state"]
            for a in answers
            if a["msg_type"] == "comm_open"
        }
        models = {state["_model_name"]: id for id, state in states.items()}
        assert {"DropdownModel", "IntSliderModel", "HTMLModel", "VBoxModel"} <= models.keys()
        for control, name, value in (("IntSliderModel", "value", 7), ("DropdownModel", "index", 1)):
            data = dict(method="update", state={name: value}, buffer_paths=[])
            answers += ask(kernel, "comm_msg", dict(comm_id=models[control], data=data))
    updates = [a["content"] for a in answers if a["msg_type"] == "comm_msg"]
    views = [
        update["data"]["state"]["value"]
        for update in updates
        if update["comm_id"] == models["HTMLModel"] and "value" in update["data"].get("state", ())
    ]
    described = [re.findall(r'alt="figure for attack ([^"]*)"', view) for view in views]
    assert described == [["loss, models 2"], ["loss, models 7"], ["LiRA, models 7"]], views
    figures = {re.search(r'src="data:image/png;base64,([^"]+)"', view)[1] for view in views}
    assert len(figures) == 3


def ask(kernel, kind: str, content: dict) -> list[dict]:
    """Sends the kernel a message; what it publishes in answer until it is idle again."""
    message = kernel.session.msg(kind, content)
    kernel.shell_channel.send(message)
    answers = []
    while True:
        answer = kernel.get_iopub_msg(timeout=60)
        if answer["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            continue
        if answer["msg_type"] == "status" and answer["content"]["execution_state"] == "idle":
            return answers
        answers.append(answer)
