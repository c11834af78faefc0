"""A script in the name of a notebook, in its parameters, data and outputs is text everywhere."""

import base64
import io
import json

import nbformat
import pytest
from click.testing import CliRunner
from lab_page import choose, open_and_run, type_text
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from vplib.runner import report
from vplib.runner.cli import cli

# As a file's name has it, without a slash; as a text, that also leaves attributes and elements.
NAME = "<script>window.ran=1;<img src=q onerror=window.ran=1>"
EVIL = f"""<script>window.ran = 1</script>'"><img src=q onerror="window.ran = 1"></b>{NAME}"""
SETUP = """import ipywidgets, torch
from matplotlib import pyplot
from IPython.display import HTML
from vplib import datasets, exercises, experiment, survey, training, widgets
from vplib.show import upload
data = datasets.load(DATASET, "all", image_size=8)
print(data, data.classes)
data"""
CLAIMS = """claims = experiment.Claims(TEXT, data=TEXT, asserted_on=())
claims.check(TEXT, paper=TEXT, ours={name: 0.5 for name in data.classes}, holds=True, control=False)
claims.check(TEXT + "2", paper="", ours=1, holds=True, no_control=TEXT, of=TEXT)
claims.check(TEXT + "3", paper="", ours=1, holds=True, not_reproduced=TEXT, headline=True)
claims.show()
experiment.record(data.classes[0], TEXT)
for _ in experiment.progress(range(2), TEXT):
    pass"""
WIDGETS = """def render(name, text):
    figure, ax = pyplot.subplots()
    ax.set(title=name, xlabel=text)
    return figure
names = ipywidgets.Dropdown(options=data.classes, description=TEXT)
widgets.explore(render, name=names, text=ipywidgets.Text(TEXT, description="text"))"""
ERRORS = """def refuse(name):
    raise {"ValueError": ValueError, "KeyError": KeyError}[name](TEXT)
kinds = ipywidgets.Dropdown(options=["ValueError", "KeyError"], description="error")
if experiment.has_front_end():
    widgets.explore(refuse, name=kinds)
upload.upload_photo(lambda photo: (TEXT, b""), image_size=8, name=TEXT)"""
MAP = """known = survey.papers()[0]
places = dict(survey_place=known.survey_place, section=known.section)
papers = [
    survey.Paper(TEXT, method=TEXT, notebook=TEXT, elsewhere=TEXT, state=state, **places)
    for state in survey.STATES
]
survey.draw_map(papers)
words = ipywidgets.Text(description="Search")
find = lambda text: survey.table(survey.find(papers, text=text))
widgets.explore(find, text=words)
HTML(survey.notebooks_table(papers))"""
RUNNING = "Boolean(window.ran || document.querySelector('[onerror], img[src=q]'))"


@pytest.fixture
def notebook():
    """All of it in one notebook, with a title and a caption to match."""
    source = 'TEXT = "none"\nDATASET = "none"'
    cells = [
        new_markdown_cell(f"# `{EVIL}`\n\n![`{NAME}`](../gallery/a.png)"),
        new_code_cell(source, metadata={"tags": ["parameters"]}, id="parameters"),
        new_code_cell(SETUP),
        new_code_cell(CLAIMS),
        new_markdown_cell(f"`{EVIL}` is the caption."),
        new_code_cell(WIDGETS, metadata={"tags": ["hero"]}),
        new_code_cell(ERRORS),
        new_code_cell(MAP),
    ]
    kernel = {"name": "python3", "language": "python", "display_name": NAME}  # or it is asked for
    return new_notebook(cells=cells, metadata={"vplib": {"title": EVIL}, "kernelspec": kernel})


@pytest.fixture
def photos(tmp_path):
    """A folder of pictures, one class of which has a script for a name."""
    for name in (NAME, "cats"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8), 40 * i).save(tmp_path / "photos" / name / f"{NAME}{i}.png")
    return f"folder:{tmp_path / 'photos'}"


def no_script_runs(browser, address, *texts):
    with browser.new_context() as context:
        page = context.new_page()
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        page.goto(address)
        page.wait_for_load_state("networkidle")
        said = page.locator("html").inner_text()
        assert page.evaluate("document.images.length") > 0
        assert not page.evaluate(RUNNING)
        assert page.evaluate("document.scripts.length") == 0
    assert all(text in said for text in texts)


def test_a_run_and_its_report(browser, notebook, photos, tmp_path):
    path = tmp_path / f"{NAME}.ipynb"
    nbformat.write(notebook, path)
    out = tmp_path / f"{NAME}out"
    given = ["-p", "TEXT", EVIL, "-p", "DATASET", photos]
    result = CliRunner().invoke(cli, ["run", str(path), "--out", str(out), *given])
    assert result.exit_code == 0, result.output
    ran = report.read(out / path.name)
    assert report.outcome(ran) == "ran" and len(report.claims(ran)) == 3
    no_script_runs(browser, (out / "report.html").as_uri(), EVIL, f"{NAME}, started")


def test_a_report_on_a_sweep_an_error_and_a_damaged_notebook(browser, notebook, tmp_path):
    row = {k: EVIL for k in ("of", "claim", "paper", "shown", "outcome", "why", "no_control")}
    row |= {"ours": {EVIL: 0.5}, "headline": True, "control": None}
    payloads = [{"claims": [row]}, {"record": {"name": EVIL, "value": EVIL}}]
    payloads += [{"record": {"name": f"{EVIL}2", "value": 2}}, {"versions": {EVIL: EVIL}}]
    outputs = [new_output("display_data", {report.MIME: payload}) for payload in payloads]
    Image.new("L", (8, 8)).save(picture := io.BytesIO(), "PNG")
    png = base64.b64encode(picture.getvalue()).decode()
    outputs.append(new_output("display_data", {"image/png": png}))
    error = new_output("error", ename=EVIL, evalue=EVIL, traceback=[EVIL, EVIL])
    for i in range(5):
        cell = new_code_cell(EVIL, outputs=outputs + [error] * (i == 3), execution_count=1)
        notebook.cells = [notebook.cells[0], cell]
        given = {EVIL: EVIL, "SEED": i}
        notebook.metadata.papermill = {"parameters": given, "start_time": EVIL, "duration": 1.0}
        about = {"notebook": EVIL, "source": EVIL, "swept": [EVIL, "SEED"], "tries": 1}
        if i < 4:
            notebook.metadata.vplib.sweep = about
        else:
            del notebook.metadata.vplib["sweep"]
        nbformat.write(notebook, tmp_path / f"{NAME}{i}.ipynb")
    (tmp_path / f"{NAME}damaged.ipynb").write_text(json.dumps({EVIL: EVIL}))
    no_script_runs(browser, report.write(tmp_path).as_uri(), EVIL, f"Left out: {NAME}damaged")


def test_widgets_and_the_map_in_jupyterlab(page, lab, notebook, photos):
    expect = pytest.importorskip("playwright.sync_api").expect
    injected = new_code_cell(f"TEXT, DATASET = {EVIL!r}, {photos!r}")
    notebook.cells.insert(2, injected)
    path = lab.notebooks / f"{NAME}.ipynb"
    nbformat.write(notebook, path)
    try:
        open_and_run(page, path.name)
        figure = page.locator("img[alt^='figure for']")
        expect(figure).to_have_attribute("alt", f"figure for {EVIL} {NAME}, text {EVIL}")
        choose(page, EVIL, "cats")
        expect(figure).to_have_attribute("alt", f"figure for {EVIL} cats, text {EVIL}")
        choose(page, EVIL, NAME)
        type_text(page, "text", NAME)
        expect(figure).to_have_attribute("alt", f"figure for {EVIL} {NAME}, text {NAME}")
        for kind in ("KeyError", "ValueError"):
            choose(page, "error", kind)
            expect(page.locator(".widget-html-content pre").first).to_contain_text("<script>")
        type_text(page, "Search", "<script>window.ran")
        expect(page.get_by_role("status").first).to_contain_text("4 papers")
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="choose a photo").click()
        file = dict(name=f"{NAME}.png", mimeType="image/png", buffer=b"no picture")
        chooser.value.set_files(file)
        expect(page.locator(".widget-html-content pre").last).to_contain_text("onerror")
        assert page.locator("table.claims").count() == 1
        assert not page.evaluate(RUNNING)
    finally:
        path.unlink()
