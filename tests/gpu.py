"""Runs the notebooks on a GPU, for whoever has one, and prints a Markdown table of how it went.

First every notebook in `lab`, then their `paper` profiles, all before the minutes are over: each
run may take an equal share of what is left, and what one does not use goes to those after it.

    make gpu MINUTES=8
    python tests/gpu.py --minutes 8 notebooks/attacks/membership_shadow.ipynb ...
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nbformat

MIME = "application/vnd.vplib+json"  # as in vplib.recorded
ABOUT = """import json
import torch
print("GPU", json.dumps([torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()]))"""


def run(notebooks: list[Path], minutes: float, folder: Path) -> list[dict]:
    """The rows of the table: one for each notebook and profile that began.

    Args:
        notebooks: their paths.
        minutes: for all of them.
        folder: where the executed notebooks go.
    """
    jobs = [(path, profile) for profile in ("lab", "paper") for path in notebooks]
    end, rows = time.monotonic() + 60 * minutes, []
    for number, (path, profile) in enumerate(jobs):
        share = (end - time.monotonic()) / (len(jobs) - number)
        if share < 1:
            break
        rows.append(_run_one(path, profile, share, folder))
        print(f"{_line(rows[-1])}", flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """The rows in Markdown."""
    names = ("notebook", "profile", "GPU", "seconds", "peak GPU memory", "claims")
    return "\n".join(
        [_line({n: n for n in names}), _line({n: "---" for n in names}), *map(_line, rows)]
    )


def _line(row: dict) -> str:
    return f"| {' | '.join(row.values())} |"


def _run_one(path: Path, profile: str, seconds: float, folder: Path) -> dict:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(-1, nbformat.v4.new_code_cell(ABOUT))  # the last cell may raise
    source, target = (folder / f"{path.stem}.{profile}{end}.ipynb" for end in (".source", ""))
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, source)
    target.unlink(missing_ok=True)
    command = [sys.executable, "-m", "papermill", source, target, "-p", "DEVICE", "cuda"]
    command += ["-p", "PROFILE", profile, "--no-progress-bar", "--kernel", "python3"]
    began, stopped = time.monotonic(), ""
    try:
        subprocess.run(
            command, timeout=seconds, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:  # its kernel ends with it
        stopped = f"stopped after {seconds:.0f} s"
    took = time.monotonic() - began
    source.unlink()
    outputs = _outputs(target) if target.exists() else []
    gpu, memory = "unknown", "unknown"
    for output in outputs:
        if output.get("text", "").startswith("GPU ["):
            gpu, peak = json.loads(output["text"].removeprefix("GPU "))
            memory = f"{peak / 2**30:.2f} GiB"
    return {
        "notebook": path.stem, "profile": profile, "GPU": gpu, "seconds": f"{took:.0f}",
        "peak GPU memory": memory, "claims": stopped or _claims(outputs),
    }  # fmt: skip


def _outputs(target: Path) -> list[dict]:
    cells = nbformat.read(target, as_version=4).cells
    return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]


def _claims(outputs: list[dict]) -> str:
    """How many claims have which outcome, and the error that ended the run, if one did."""
    rows = [row for o in outputs for row in o.get("data", {}).get(MIME, {}).get("claims", ())]
    found = Counter({(row["of"], row["claim"]): row["outcome"] for row in rows}.values())
    errors = [f"{o['ename']}: {o['evalue'].splitlines()[0]}" for o in outputs if "ename" in o]
    counts = [f"{count} {outcome}" for outcome, count in sorted(found.items())]
    return ", ".join(counts + errors) or ("none" if outputs else "did not start")


def main() -> None:
    """What `make gpu` calls."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs", "gpu"))
    given = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("make gpu: torch finds no CUDA GPU here; `make test` pretends one")
    print("\n" + table(run(sorted(given.notebooks), given.minutes, given.out)))


if __name__ == "__main__":
    main()
