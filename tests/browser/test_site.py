"""The site of two executed notebooks in a real browser, from the front page to what a search finds.

The notebooks are the committed ones with outputs of every kind put in, so no kernel runs.
"""

import base64
import functools
import http.server
import importlib.util
import io
import re
import threading

import nbformat
import pytest
from nbformat.v4 import new_output
from PIL import Image

from vplib import paths, survey
from vplib.claims import claims_table
from vplib.runner import report

ROOT = paths.repository_root()
ADDRESS = "https://github.com/someone/vplib"
SHADOW = "attacks/membership_shadow"
WIDE, PHONE = {"width": 1400, "height": 1000}, {"width": 390, "height": 844}
MIB = 2**20
# What the theme calls of Sphinx that is to go some day.
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")


def load_builder():
    """docs/site/build.py as a module; no package holds it."""
    spec = importlib.util.spec_from_file_location("site_build", ROOT / "docs" / "site" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(side):
    """A PNG that does not compress: three bytes a pixel."""
    file = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(file, "PNG", compress_level=0)
    return base64.b64encode(file.getvalue()).decode()


def claim(text, **others):
    row = {"of": "Shokri 2017", "claim": text, "paper": "0.9", "why": "", "ours": {"AUC": 0.75}}
    row |= {"shown": "AUC: 0.750", "outcome": "holds", "headline": False}
    return row | {"control": False, "no_control": ""} | others


def executed(name, folder, outputs):
    """A committed notebook as if it had run, with these outputs in its hero cell."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    notebook.metadata["papermill"] = {"end_time": "2026-01-01T00:00:00"}
    for number, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        cell.execution_count = number + 1
    hero = next(c for c in notebook.cells if "hero" in c.metadata.get("tags", ()))
    hero.outputs = outputs
    report.write_beside(folder / f"{name}.ipynb", nbformat.writes(notebook).encode())


def shown(html, **others):
    return new_output("display_data", {"text/html": html, "text/plain": "plain", **others})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    rows = [claim("a claim of ours", headline=True), claim("another", outcome="not reproduced")]
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "0" * 32}}
    small, big = (
        new_output("display_data", {"image/png": noise(side), "text/plain": "<Figure>"})
        for side in (200, 900)
    )
    shadow = [big, shown(claims_table(rows), **{report.MIME: {"claims": rows}})]
    shadow += [new_output("display_data", {**widget, "text/plain": "VBox()"})]
    shadow += [new_output("stream", name="stdout", text="printed by the run\n")]
    executed(SHADOW, folder, shadow)
    executed("00_start_here", folder, [small, shown(survey.notebooks_table(survey.papers()))])
    return folder


@pytest.fixture(scope="module")
def site(runs, tmp_path_factory):
    """The folder of the site, and where it is served."""
    pytest.importorskip("myst_nb", reason="pip install 'vplib[site]'; `make env` does")
    folder = load_builder().build(runs, tmp_path_factory.mktemp("site"), ADDRESS).parent

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def opened(request, browser, site):
    """The front page, and what the browser asks for from then on."""
    view = getattr(request, "param", WIDE)
    with browser.new_context(viewport=view, base_url=site[1]) as context:
        context.set_default_timeout(20_000)
        page, asked = context.new_page(), []
        page.on("response", lambda response: asked.append((response.url, response.status)))
        page.on("requestfailed", lambda request: asked.append((request.url, 0)))
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        page.goto("/index.html")
        yield page, asked


def whole(page):
    """Every image is there and described, and the page is as wide as the screen."""
    page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    page.wait_for_function("[...document.images].every(i => i.complete)")
    broken = "[...document.images].filter(i => !i.naturalWidth || !i.alt).map(i => i.src)"
    assert page.evaluate(broken) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_walk_from_the_front_page_to_a_notebook_to_a_search(opened, site):
    expect = pytest.importorskip("playwright.sync_api").expect
    page, asked = opened
    article = page.locator("article")
    whole(page)
    expect(article).to_contain_text(survey.counts(survey.papers()))
    expect(article.locator("details")).to_have_count(len(survey.SECTIONS))

    section = article.locator("details").filter(has_text="3.2.1 Membership inference")
    section.locator("summary").click()
    held = survey.find(survey.papers(), "3.2.1")
    expect(section.locator("tbody tr")).to_have_count(len(held))
    section.locator("tr").filter(has_text="Yeom 2018").get_by_role("link").click()
    page.wait_for_url(f"**/{SHADOW}.html#yeom-et-al-2018-one-threshold-on-the-loss")
    assert page.evaluate("document.querySelector(decodeURI(location.hash)).tagName") == "SECTION"

    page.goto("/index.html")
    article.locator(".vp-card").filter(has_text="Membership inference").click()
    expect(article.locator("h1")).to_contain_text("Was your picture in the training set?")
    expect(article.locator("table.claims")).to_contain_text("control: does not hold")
    expect(article).to_contain_text("printed by the run")
    expect(article.locator("mjx-container").first).to_be_attached()
    expect(article.locator("mjx-container mjx-merror")).to_have_count(0)
    whole(page)

    links = article.locator(".vp-links")
    colab = links.get_by_role("link", name="Open in Colab").get_attribute("href")
    place = f"someone/vplib/blob/main/notebooks/{SHADOW}.ipynb"
    assert colab == f"https://colab.research.google.com/github/{place}"
    with page.expect_download() as download:
        links.get_by_role("link", name="Download this notebook").click()
    first = nbformat.read(download.value.path(), as_version=4).cells[0].source
    assert "](data:image/png;base64,iVBOR" in first, "its picture is in it"

    page.goto("/search.html?q=LiRA")
    found = page.locator("ul.search a").filter(has_text="Was your picture")
    expect(found.first).to_be_visible()
    assert asked and not [a for a in asked if not a[0].startswith(site[1]) or a[1] >= 400], asked


@pytest.mark.parametrize("opened", [PHONE], indirect=True, ids=["phone"])
def test_pages_fit_a_phone(opened):
    page, _ = opened
    for name in ("index", "00_start_here", SHADOW):
        page.goto(f"/{name}.html")
        whole(page)
    colab = page.locator("article .vp-links").get_by_role("link", name="Open in Colab")
    colab.click(trial=True)
    place = colab.bounding_box()
    assert 0 <= place["x"] and place["x"] + place["width"] <= PHONE["width"]


def test_links_between_notebooks_lead_to_pages(opened, site):
    page, _ = opened
    page.goto("/00_start_here.html")
    hrefs = page.locator("article a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert f"{SHADOW}.html" in hrefs
    assert not [
        h for h in hrefs if h.endswith(".ipynb") and not h.startswith(("download/", "http"))
    ]
    assert page.locator("article").get_by_text("defenses/dp_sgd").count(), "without a page, text"


def test_pages_are_small_and_name_nothing_elsewhere(site):
    folder, _ = site
    loads = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](?:https?:)?//[^>]*>")
    for name in ("index", "search", "00_start_here", SHADOW):
        text = (folder / f"{name}.html").read_text()
        assert not loads.findall(text)
        assert "requirejs" not in text and "widget-view" not in text
        pictures = set(re.findall(r"_images/([\w.-]+)", text))
        sizes = [(folder / "_images" / picture).stat().st_size for picture in pictures]
        assert len(text) + sum(sizes) < 3 * MIB, name
        assert name != SHADOW or max(sizes) > MIB / 4, "no smaller than they need be"
    assert (folder / ".nojekyll").exists() and not (folder / ".sources").exists()


def test_the_workflow_publishes_what_make_site_builds():
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "site.yml").read_text())
    steps = workflow["jobs"]["build"]["steps"]
    assert any(step.get("run") == "make site" for step in steps)
    (path,) = (step["with"]["path"] for step in steps if "upload-pages" in step.get("uses", ""))
    assert ROOT / path == load_builder().SITE


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (None, r"00_start_here: not executed"),
        ("ValueError", r"run again: 00_start_here: failed"),
        ("ClaimFailed", r"run again: 00_start_here: claim failed"),
    ],
)
def test_it_shows_whole_runs_only(error, message, tmp_path):
    failed = [new_output("error", ename=error, evalue="x", traceback=[])] if error else []
    executed("00_start_here", tmp_path, failed)
    with pytest.raises(ValueError, match=message):
        load_builder().executed(tmp_path)


def test_without_a_folder_it_runs_every_notebook(tmp_path, monkeypatch):
    builder, ran = load_builder(), []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builder.running, "run", lambda jobs, folder: ran.append((jobs, folder)))
    monkeypatch.setattr(builder, "build", lambda folder, out, address: ran.append(folder) or out)
    assert builder.main(["--out", str(tmp_path / "site")]) == 0
    (jobs, folder), built = ran
    assert [name for name, *_ in jobs] == list(builder.running.in_clone())
    assert built == folder and folder.is_relative_to(tmp_path / "runs")


def test_what_it_cannot_build_is_said(tmp_path, runs, capsys, monkeypatch):
    builder = load_builder()
    main = builder.main
    assert main([str(tmp_path)]) == 2
    assert "there is no executed notebook in" in capsys.readouterr().err
    (tmp_path / "thesis.txt").touch()
    assert main([str(runs), "--out", str(tmp_path)]) == 2
    assert "is no site of ours and stays; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()
    monkeypatch.setattr(builder, "NEEDED", ("sphinx_of_tomorrow",))
    assert main([str(runs), "--out", str(tmp_path)]) == 2
    wanted = 'the site needs sphinx_of_tomorrow: pip install "vplib[site]"'
    assert wanted in capsys.readouterr().err
