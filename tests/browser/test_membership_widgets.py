"""The widgets of attacks/membership_shadow in a real JupyterLab: they move, their figures change.

What runs is a copy of the notebook with three changes, for this test is about widgets and the
whole takes minutes beside a browser: models train for 5 epochs, shadows are few, and the last cell,
which raises when a claim fails, is left out, because claims need not hold for such models. Every
other cell is the committed one. `tests/notebooks` and nbval run the notebook as it is.
"""

import nbformat
import pytest
from lab_page import choose, move_slider, open_and_run, widget
from nbformat.v4 import new_code_cell

NOTEBOOK = "attacks/membership_shadow.ipynb"
QUICK = "attacks/membership_shadow_quick.ipynb"
FEWER = dict(num_shadows=8, sweep_shadows=4, lira_shadows=16, draws=1)


@pytest.fixture
def quick(lab):
    """The shortened copy beside the notebook, in the folder that JupyterLab shows."""
    notebook = nbformat.read(lab.notebooks / NOTEBOOK, as_version=4)
    notebook.cells = [c for c in notebook.cells if "claims.verify()" not in c.source]
    for after, source in {
        "parameters": "NUM_EPOCHS = 5",
        "sizes": f"assert {FEWER}.keys() <= vars(cfg).keys()\nvars(cfg).update({FEWER})",
    }.items():
        (place,) = (i for i, cell in enumerate(notebook.cells) if cell.id == after)
        notebook.cells.insert(place + 1, new_code_cell(source, id=f"quick-{after}"))
    nbformat.write(notebook, lab.notebooks / QUICK)
    yield notebook
    (lab.notebooks / QUICK).unlink()


def test_the_widgets_of_membership_shadow(page, quick):
    expect = pytest.importorskip("playwright.sync_api").expect
    open_and_run(page, QUICK, seconds=480)

    def output(id):
        """The locator of what a cell shows."""
        (place,) = (i for i, cell in enumerate(quick.cells) if cell.id == id)
        return page.locator(".jp-Notebook .jp-Cell").nth(place).locator(".jp-OutputArea-output")

    def readout(description):
        return widget(page, description).locator(".widget-readout")

    def changed(figure, before, state):
        """Waits for a new figure, drawn for this state of the controls; returns its data."""
        expect(figure).to_have_attribute("alt", f"figure for {state}")
        expect(figure).not_to_have_attribute("src", before)
        assert figure.evaluate("image => image.decode().then(() => image.naturalWidth)") > 400
        return figure.get_attribute("src")

    # The threshold of the attack for one victim.
    figure = output("explore").locator("img[src^='data:image/png']")
    expect(figure).to_have_attribute("alt", "figure for victim 0, threshold (probability) 0.5")
    expect(readout("threshold (probability)")).to_have_text("0.50")
    src = figure.get_attribute("src")
    move_slider(page, "threshold (probability)", 3)
    expect(readout("threshold (probability)")).to_have_text("0.56")
    src = changed(figure, src, "victim 0, threshold (probability) 0.56")
    move_slider(page, "victim", 2)
    expect(readout("victim")).to_have_text("2")
    src = changed(figure, src, "victim 2, threshold (probability) 0.56")
    move_slider(page, "threshold (probability)", key="End")  # nobody is flagged: no 0 / 0
    expect(readout("threshold (probability)")).to_have_text("1.00")
    changed(figure, src, "victim 2, threshold (probability) 1.0")

    # Single records, by LiRA.
    rank = "rank (0: most exposed)"
    figure = output("lira-explore").locator("img[src^='data:image/png']")
    expect(figure).to_have_attribute("alt", f"figure for labels clean labels, {rank} 0")
    src = figure.get_attribute("src")
    choose(page, "labels", "20% wrong labels")
    src = changed(figure, src, f"labels 20% wrong labels, {rank} 0")
    move_slider(page, rank, 2)
    expect(readout(rank)).to_have_text("2")
    src = changed(figure, src, f"labels 20% wrong labels, {rank} 2")
    choose(page, "labels", "clean labels")
    src = changed(figure, src, f"labels clean labels, {rank} 2")
    move_slider(page, rank, key="End")
    changed(figure, src, f"labels clean labels, {rank} 399")

    # What cells show beside widgets.
    exercises = [cell.id for cell in quick.cells if "exercise" in cell.metadata.get("tags", ())]
    assert len(exercises) >= 4
    for id in exercises:
        expect(output(id)).to_contain_text("not attempted yet")
    table = output("claims").get_by_role("table")
    expect(table).to_have_count(1)
    expect(table.get_by_role("columnheader")).to_have_text(["Claim", "Paper", "Ours", "Outcome"])
    expect(table).to_contain_text("smaller training sets leak more")
    assert table.get_by_role("row").count() > 3
