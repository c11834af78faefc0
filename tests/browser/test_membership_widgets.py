"""The widgets of attacks/membership_shadow in a real JupyterLab, with what they show.

What runs is the `quick` copy: the committed cells with less training and without the last one.
"""

import pytest
from lab_page import choose, move_slider, open_and_run, widget

FEWER = dict(num_shadows=8, sweep_models=4, num_references=16, draws=1, attack_steps=100)


def test_the_widgets_of_membership_shadow(page, quick_copy):
    expect = pytest.importorskip("playwright.sync_api").expect
    path, quick = quick_copy("attacks/membership_shadow", dict(NUM_EPOCHS=5), FEWER)
    open_and_run(page, path, seconds=480)

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

    # The share of one victim's records that are flagged.
    figure = output("explore").locator("img[src^='data:image/png']")
    expect(figure).to_have_attribute("alt", "figure for victim 0, flagged (%) 50.0")
    expect(readout("flagged (%)")).to_have_text("50.00")
    src = figure.get_attribute("src")
    move_slider(page, "flagged (%)", 3)
    expect(readout("flagged (%)")).to_have_text("51.50")
    src = changed(figure, src, "victim 0, flagged (%) 51.5")
    move_slider(page, "victim", 2)
    expect(readout("victim")).to_have_text("2")
    src = changed(figure, src, "victim 2, flagged (%) 51.5")
    move_slider(page, "flagged (%)", key="End")  # everybody is flagged: recall 1
    expect(readout("flagged (%)")).to_have_text("100.00")
    changed(figure, src, "victim 2, flagged (%) 100.0")

    # Single records, by LiRA.
    rank = "rank (0: most exposed)"
    figure = output("records-explore").locator("img[src^='data:image/png']")
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
    table = output("claims-penalty").get_by_role("table")
    expect(table).to_have_count(1)
    expect(table.get_by_role("columnheader")).to_have_text(["Claim", "Paper", "Ours", "Outcome"])
    expect(table).to_contain_text("smaller training sets leak more")
    assert table.get_by_role("row").count() > 3
