"""The report in a real browser: no request, wide and narrow screens, true numbers."""

import base64
import io

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from vplib.runner import report

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# The lowest contrast of any text with what is behind it (WCAG 2.2, relative luminance).
CONTRAST = """() => {
    const channels = color => (color.match(/[\\d.]+/g) ?? []).map(Number);
    const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            const color = channels(getComputedStyle(e).backgroundColor);
            if (color.length === 3 || color[3] > 0) return color;
        }
        return dark ? [18, 18, 18] : [255, 255, 255];
    };
    const texts = [...document.querySelectorAll("body *")].filter(e =>
        [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
    return Math.min(...texts.map(e => {
        const pair = [channels(getComputedStyle(e).color), behind(e)].map(luminance);
        return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    }));
}"""


def png(side):
    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side // 2)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def executed(path, seed=0, sweep=None, error=None, outcome="holds"):
    """An executed notebook, made without a kernel."""
    claim = {"of": "Paper 2020", "claim": "a long claim " * 6, "paper": "0.9", "why": ""}
    claim |= {"ours": {"AUC": 0.5 + seed / 8, "floor": [0.5, 0.4, 0.6]}, "outcome": outcome}
    claim |= {"shown": f"AUC: {0.5 + seed / 8:.3f}; floor: 0.50 [0.40, 0.60]"}
    claim |= {"headline": True, "control": False, "no_control": ""}
    payloads = [{"claims": [claim]}, {"record": {"name": "accuracy", "value": seed / 8}}]
    payloads += [{"versions": {"python": "3.11", "platform": "Linux-" + "x" * 60}}]
    outputs = [new_output("display_data", {report.MIME: payload}) for payload in payloads]
    outputs += [new_output("display_data", {"image/png": png(900)})]
    if error:
        traceback = ["one", "two"]
        outputs += [new_output("error", ename="ValueError", evalue=error * 40, traceback=traceback)]
    cells = [
        new_markdown_cell("# A title\n\n![What is seen](../gallery/a.png)"),
        new_code_cell("SEED = 0\nRATE = 0.5", metadata={"tags": ["parameters"]}),
        new_code_cell("x", metadata={"tags": ["hero"]}, outputs=outputs),
    ]
    for count, cell in enumerate(cells[1:], 1):
        cell.execution_count = count
    run = {"parameters": {"SEED": seed, "RATE": seed % 2 / 2}, "duration": 2.5 + seed}
    about = {"title": f"Notebook {path.stem}"} | ({"sweep": sweep} if sweep else {})
    notebook = new_notebook(cells=cells, metadata={"vplib": about, "papermill": run})
    report.write_beside(path, nbformat.writes(notebook).encode())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    executed(folder / "attacks" / "first.ipynb", seed=3)
    executed(folder / "failing.ipynb", error="averyveryverylongword", outcome="FAILS")
    about = {"notebook": "study", "source": "", "swept": ["SEED", "RATE"], "tries": 1}
    for seed in range(6):
        executed(folder / "study" / f"{seed}.ipynb", seed, about)
    return folder, report.write(folder)


@pytest.fixture(params=["wide", "narrow", "dark"])
def opened(request, browser, written):
    """The page, and the addresses that it asked for."""
    view = NARROW if request.param == "narrow" else WIDE
    scheme = "dark" if request.param == "dark" else "light"
    with browser.new_context(viewport=view, color_scheme=scheme) as context:
        page, asked = context.new_page(), []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        page.goto(written[1].as_uri())
        yield page, [url for url in asked if not url.startswith("data:")]


def test_it_loads_nothing_and_fits_the_screen(opened, written):
    page, asked = opened
    assert asked == [written[1].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(CONTRAST) >= 4.5
    broken = "[...document.images].filter(i => !i.naturalWidth || !i.alt || i.width > innerWidth)"
    assert page.evaluate(f"{broken}.length") == 0


def test_headings_links_and_tables_can_be_used(opened):
    page, _ = opened
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    page.get_by_role("link", name="Notebook 0").click()
    assert page.locator("section:target h2").inner_text() == "Notebook 0"
    assert page.locator("section:target img[alt='What is seen']").count() == 1
    boxes = page.locator(".scroll")
    assert all(box.get_attribute("aria-label") for box in boxes.all())
    boxes.first.focus()
    assert page.evaluate("document.activeElement.className") == "scroll"
    page.get_by_text("All points").click()
    assert (
        page.get_by_role("cell", name="RATE=0.5 SEED=5")
        .or_(page.get_by_role("rowheader", name="RATE=0.5 SEED=5"))
        .is_visible()
    )


def test_its_numbers_are_those_of_the_notebooks(opened, written):
    page, _ = opened
    folder, _ = written
    text = page.locator("main").inner_text()
    for name in ("attacks/first", "failing"):
        notebook = report.read(folder / f"{name}.ipynb")
        (claim,) = report.claims(notebook)
        assert claim["shown"] in text and "★ headline" in text
        row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=name))
        cells = row.first.get_by_role("cell").all_inner_texts()
        assert cells[0] == report.outcome(notebook)
        assert cells[2] == f"{notebook['metadata']['papermill']['duration']:.1f}"
    # seeds 0, 2, 4 have RATE 0, and seeds 1, 3, 5 have 0.5
    # each a standard deviation of 0.25 over three seeds
    assert "AUC: 0.75 ± 0.14; floor: 0.5 ± 0" in text and "0.5 to 1" in text
    assert "AUC: 0.875 ± 0.14; floor: 0.5 ± 0" in text and "0.625 to 1.125" in text
    assert "ValueError: averyveryverylongword" in text
