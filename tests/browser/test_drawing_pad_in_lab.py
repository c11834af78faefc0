"""The drawing pad in a real JupyterLab: what is drawn arrives, and what is made of it is shown."""

import nbformat
import pytest
from lab_page import open_and_run, widget_view
from nbformat.v4 import new_code_cell, new_notebook

PAGE = "drawing_pad.ipynb"
SOURCE = """
import torch
from vplib.show import drawing_pad

def work(image):
    assert image.shape == (1, 1, 28, 28)
    rows = image[0, 0].sum(1)
    upright = image[0, 0].sum(0).max() > rows.max()
    return f"<p>{'upright' if upright else 'lying'}, {int((rows > 0).sum())} rows</p>"

pad = drawing_pad.draw(work, torch.zeros(1, 28, 28), action="ask");
"""


@pytest.fixture
def notebook(lab):
    made = new_notebook(cells=[new_code_cell(SOURCE)])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(made, lab.notebooks / PAGE)
    yield
    (lab.notebooks / PAGE).unlink()


def test_a_drawing_reaches_the_kernel_and_its_answer_is_shown(page, notebook):
    expect = pytest.importorskip("playwright.sync_api").expect
    open_and_run(page, PAGE)
    canvas = page.get_by_role("img", name="drawing pad")
    expect(canvas).to_be_visible()
    ask = page.get_by_role("button", name="ask", exact=True)

    hint = page.get_by_text("draw a digit here")
    expect(hint).to_be_visible()
    assert "data:image/svg+xml" in canvas.evaluate("pad => pad.style.cursor")  # the pen's outline
    ask.click()  # the hint is no part of the drawing
    expect(widget_view(page)).to_contain_text("nothing is drawn yet")

    def stroke(*points):
        box = canvas.bounding_box()
        for i, (x, y) in enumerate(points):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if i == 0:
                page.mouse.down()
        page.mouse.up()

    stroke((0.5, 0.2), (0.5, 0.5), (0.5, 0.8))
    expect(hint).to_be_hidden()
    ask.click()
    expect(widget_view(page)).to_contain_text("upright")
    page.get_by_role("button", name="clear", exact=True).click()
    expect(hint).to_be_visible()
    stroke((0.2, 0.4), (0.8, 0.4))
    ask.click()
    expect(widget_view(page)).to_contain_text("lying")
    assert "lying, " in widget_view(page).inner_text()
