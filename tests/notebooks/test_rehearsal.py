"""Every notebook's rehearsal on a pretended GPU, and what such a GPU finds."""

import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from anatomy import ROOT, all_notebooks

from vplib.recorded import MIME

sys.path.insert(0, str(Path(__file__).parents[1]))
import gpu  # noqa: E402
import virtual_gpu  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def kernels_with_a_gpu(tmp_path_factory):
    folder = virtual_gpu.ipython_folder(tmp_path_factory.mktemp("ipython"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(folder))
        yield


def _payloads(notebook, key):
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    found = [o.get("data", {}).get(MIME, {}).get(key) for o in outputs]
    return [payload for payload in found if payload]


@pytest.mark.parametrize(
    "path", [*all_notebooks(), ROOT / "docs" / "template.ipynb"], ids=lambda p: p.stem
)
def test_rehearsal(path, tmp_path):
    parameters = {"PROFILE": "rehearsal", "SEED": 3}
    done = papermill.execute_notebook(
        path, tmp_path / path.name, parameters, progress_bar=False, iopub_timeout=60
    )
    assert _payloads(done, "versions")[-1]["device"] == "virtual GPU"
    hero = next(cell for cell in done.cells if "hero" in cell.metadata.get("tags", ()))
    assert any("image/png" in output.get("data", {}) for output in hero.outputs)
    outcomes = {row["outcome"] for rows in _payloads(done, "claims") for row in rows}
    assert not outcomes & {"FAILS", "no test"}


def _small_notebook(path, *cells):
    parameters = nbformat.v4.new_code_cell(
        'DEVICE = "auto"\nPROFILE = "lab"', metadata={"tags": ["parameters"]}
    )
    setup = """import torch
from vplib import experiment
device = experiment.device(DEVICE)
size = experiment.profile(PROFILE, lab=dict(n=4), paper=dict(n=64)).n
x = torch.arange(float(size), device=device)
claims = experiment.Claims("Doe 2020", data="digits", asserted_on=("digits",))"""
    code = [nbformat.v4.new_code_cell(source) for source in (setup, *cells, "claims.verify()")]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, *code], metadata=kernel), path)
    return path


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("x.cpu()[torch.arange(2, device=device)]", "indices should be either on cpu"),
        ("x.numpy()", "can't convert cuda:0 device type tensor to numpy"),
        ("x.normal_(generator=torch.Generator())", "Expected a 'cuda' device type for generator"),
        ("x + torch.arange(4.0)", "Expected all tensors to be on the same device"),
    ],
)
def test_a_stop_names_its_cell(line, error, tmp_path):
    path = _small_notebook(tmp_path / "small.ipynb", "fine = x + 1", line)
    with pytest.raises(papermill.PapermillExecutionError) as stopped:
        papermill.execute_notebook(path, tmp_path / "out.ipynb", progress_bar=False)
    assert error in stopped.value.evalue
    assert (stopped.value.source, stopped.value.exec_count) == (line, 4)


def test_make_gpu_ends_in_a_table(tmp_path):
    claim = """claims.check("it grows", paper="more", ours=1.0, holds={}, no_control="a test")
claims.show()"""
    good = _small_notebook(tmp_path / "good.ipynb", claim.format("len(x) >= 4"))
    bad = _small_notebook(tmp_path / "bad.ipynb", claim.format("len(x) == 4"))
    rows = gpu.run([good, bad], 60, tmp_path / "out")
    names = [(row["notebook"], row["profile"], row["GPU"], row["peak GPU memory"]) for row in rows]
    runs = [(name, profile) for profile in ("lab", "paper") for name in ("good", "bad")]
    assert names == [(*run, "virtual GPU", "0.00 GiB") for run in runs]
    *kept, broken = [row["claims"] for row in rows]
    assert kept == ["1 holds"] * 3 and broken.startswith("1 FAILS, ClaimFailed: 1 of 1 claims")
    assert gpu.table(rows).splitlines()[3].startswith("| bad | lab | virtual GPU |")
    (cut, *_) = gpu.run([good], 4 / 60, tmp_path / "out")
    assert cut["claims"] == "stopped after 2 s"
