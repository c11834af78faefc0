"""Every notebook end to end with papermill, with a seed that is not the default."""

import nbformat
import papermill
import pytest
from anatomy import ROOT, all_notebooks

from vplib.recorded import MIME

NOTEBOOKS = [*all_notebooks(), ROOT / "docs" / "template.ipynb"]


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda p: p.stem)
def executed(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / request.param.name
    papermill.execute_notebook(
        request.param, out, {"SEED": 3}, progress_bar=False, iopub_timeout=60
    )
    return nbformat.read(out, as_version=4)


def _outputs(notebook):
    return [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]


def test_no_cell_fails_and_figures_are_there(executed):
    outputs = _outputs(executed)
    assert not [o for o in outputs if o.output_type == "error"]
    hero = next(c for c in executed.cells if "hero" in c.metadata.get("tags", ()))
    assert any("image/png" in o.get("data", {}) for o in hero.outputs)


def test_claims_hold(executed):
    rows = [
        r for o in _outputs(executed) for r in o.get("data", {}).get(MIME, {}).get("claims", ())
    ]
    if executed.metadata["vplib"]["paper"]:
        assert rows, "the notebook shows no claim"
    assert all(row["outcome"] in ("holds", "not reproduced") for row in rows), rows


def test_widgets_are_drawn_without_a_front_end(executed):
    for cell in executed.cells:
        if cell.cell_type == "code" and "widgets.explore(" in cell.source:
            shown = {k for o in cell.outputs for k in o.get("data", {})}
            assert shown & {"image/png", "text/html"}, cell.source
            assert "application/vnd.jupyter.widget-view+json" not in shown


def test_nothing_warns(executed):
    warned = [o.text for o in _outputs(executed) if o.get("name") == "stderr"]
    assert not warned, warned
