"""The start page in a real JupyterLab: it runs, its figures are there, its map can be searched."""

import pytest
from lab_page import choose, open_and_run, type_text, widget_view

from vplib import survey

PAPERS = survey.papers()


def counted(**conditions) -> str:
    return survey.counts(survey.find(PAPERS, **conditions))


def test_the_map_follows_its_controls(page):
    expect = pytest.importorskip("playwright.sync_api").expect
    open_and_run(page, "00_start_here.ipynb")
    view = widget_view(page)
    rows, status = view.get_by_role("row"), view.get_by_role("status")

    expect(status).to_have_text(counted())
    expect(rows).to_have_count(len(PAPERS) + 1)
    box = view.get_by_role("region").bounding_box()
    assert 100 < box["height"] < 500, "a long table scrolls in its box"

    choose(page, "Section", "3.2.3 Model extraction")
    expect(status).to_have_text(counted(section="3.2.3"))
    expect(rows).to_have_count(len(survey.find(PAPERS, "3.2.3")) + 1)
    expect(view).to_contain_text("Knockoff Nets")
    expect(view).not_to_contain_text("Shokri 2017")

    type_text(page, "Search", "knockoff NETS")
    expect(status).to_have_text(counted(section="3.2.3", text="knockoff nets"))
    expect(rows).to_have_count(2)
    expect(view).to_contain_text("Orekondy 2019")

    choose(page, "Section", "3.2.1 Membership inference")
    expect(status).to_have_text("0 papers: 0 work, 0 partly, 0 not reproduced, 0 planned")
    expect(view.get_by_role("table")).to_have_count(0)

    type_text(page, "Search", "shokri")
    choose(page, "Section", "all")
    expect(status).to_have_text(counted(text="shokri"))
    expect(view).to_contain_text("Shokri 2017")

    type_text(page, "Search", "")
    choose(page, "State", "planned")
    expect(status).to_have_text(counted(state="planned"))
    expect(view.get_by_role("link")).to_have_count(0)

    choose(page, "State", "works")
    expect(status).to_have_text(counted(state="works"))
    expect(view.get_by_role("link")).to_have_count(len(survey.find(PAPERS, state="works")))
    open_now = page.locator(".jp-OutputArea-executeResult").get_by_role("link")
    expect(open_now).to_have_count(len({p.notebook for p in PAPERS if p.state != "planned"}))

    figures = page.locator(".jp-OutputArea-output.jp-RenderedImage img")
    expect(figures).to_have_count(4)
    hero = page.locator(".jp-MarkdownOutput img")
    expect(hero).to_have_count(1)
    assert hero.evaluate("image => image.naturalWidth") > 400, "the gallery's image is shown"
    assert hero.get_attribute("alt")
