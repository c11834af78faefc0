"""Seeds, device, profiles, claims, recorded values: in plain Python and inside a kernel."""

import csv
import json
import math
import random
import re
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_client.manager import start_new_kernel

from vplib import experiment, paths, recorded, survey

ROOT = Path(experiment.__file__).parents[1]
QUICK = settings(deadline=None, max_examples=50)
IN_CLONE = paths.repository_root() is not None


# Seeds


def draw():
    return random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_equal_seeds_give_equal_draws(seed):
    experiment.seed_everything(seed)
    first = draw()
    assert draw() != first
    experiment.seed_everything(seed)
    assert draw() == first


def test_different_seeds_differ():
    experiment.seed_everything(0)
    first = draw()
    experiment.seed_everything(1)
    assert all(a != b for a, b in zip(first, draw(), strict=True))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "abc", None, True])
def test_no_seed(seed):
    message = f"seed must be an integer from 0 to 4294967295, not {seed!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        experiment.seed_everything(seed)


# Device


@pytest.mark.parametrize("gpu", [True, False])
def test_device_auto(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert experiment.device("auto") == torch.device("cuda" if gpu else "cpu")


def test_device_cpu():
    assert experiment.device("cpu") == torch.device("cpu")


def test_device_unknown():
    with pytest.raises(ValueError, match=r"DEVICE 'gpu' does not work here \(.+\); use 'auto'"):
        experiment.device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_device_that_is_not_here():
    with pytest.raises(ValueError, match=r"DEVICE 'cuda' does not work here \(.+\); use 'auto'"):
        experiment.device("cuda")


# Profiles


def test_profile():
    profiles = dict(lab=dict(models=16, epochs=5), paper=dict(models=100, epochs=50))
    cfg = experiment.profile("paper", **profiles)
    assert (cfg.models, cfg.epochs) == (100, 50)


def test_unknown_profile_offers_the_nearest():
    with pytest.raises(ValueError, match="unknown profile 'papre'; did you mean 'paper'?"):
        experiment.profile("papre", lab={}, paper={})


def test_unknown_profile_lists_all_where_none_is_near():
    with pytest.raises(ValueError, match="unknown profile 'xyz'; known: lab, paper, rehearsal"):
        experiment.profile("xyz", lab={}, paper={})


def test_a_profile_that_lacks_a_setting():
    with pytest.raises(ValueError, match="profile 'paper' lacks epochs, models"):
        experiment.profile("lab", lab=dict(models=1, epochs=1, lr=1), paper=dict(lr=1))


def test_rehearsal_has_the_shapes_of_the_paper_and_few_of_everything():
    lab = dict(
        dataset="digits",
        network="mlp",
        lr=0.1,
        batch_size=32,
        image_size=8,
        hidden=(32,),
        later_channels=(8, 16),
        noise=(1.0, 8.0),
        train_size=200,
        num_models=16,
        repeats=16,
        few=3,
        one=1,
        sizes=(50, 100, 200),
        num_images=6000,
        clip=True,
        gs=dict(num_steps=100, hidden=(4,)),
    )
    paper = dict(
        dataset="cifar10", network="cnn", lr=0.01, batch_size=64, image_size=32, hidden=(512,),
        later_channels=(64, 128), noise=(1.0, 4.0), train_size=2500, num_models=64, few=9, one=5,
        sizes=(2500, 15000), num_images=None, clip=False, gs=dict(num_steps=9000, hidden=(64,)),
        repeats=2,
    )  # fmt: skip
    assert vars(experiment.profile("rehearsal", lab=lab, paper=paper)) == dict(
        dataset="random:cifar10", network="cnn", lr=0.01, batch_size=64, image_size=32,
        hidden=(512,), later_channels=(64, 128), noise=(1.0, 4.0), train_size=14, num_models=4,
        few=3, one=1, sizes=(8, 10), num_images=78, clip=False, gs=dict(num_steps=10, hidden=(64,)),
        repeats=2,
    )  # fmt: skip


def test_rehearsal_asserts_no_claim(capsys):
    for name, outcome in (("rehearsal", "does not hold on a rehearsal"), ("lab", "FAILS")):
        experiment.profile(name, lab={}, paper={})
        claims = experiment.Claims("Doe 2020", data="digits", asserted_on=("digits",))
        claims.check("it leaks", paper="x", ours=0.5, holds=False, no_control="a test")
        if name == "rehearsal":
            claims.verify()
        else:
            with pytest.raises(AssertionError):
                claims.verify()
        assert capsys.readouterr().out.startswith(outcome)


@QUICK
@given(st.lists(st.text("abc_-", min_size=1), min_size=1, max_size=5))
def test_nearest_knows_what_is_known(known):
    assert experiment.nearest(known[0], known) == f"did you mean {known[0]!r}?"


# Recorded values


@pytest.mark.parametrize(
    "value, text",
    [
        (0.5, "0.5"),
        (3, "3"),
        (True, "True"),
        ("text", "text"),
        (None, "None"),
        (torch.tensor(0.25), "0.25"),
        (torch.tensor([1, 2]), "[1, 2]"),
        (np.float32(0.5), "0.5"),
        (np.array([[1.0, float("nan")]]), "[[1.0, 'nan']]"),
        ((1, "a", [2]), "[1, 'a', [2]]"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_record_prints_outside_a_kernel(capsys, value, text):
    experiment.record("AUC", value)
    assert capsys.readouterr().out == f"AUC: {text}\n"


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@QUICK
@given(st.recursive(leaves, lambda inner: st.lists(inner, max_size=4), max_leaves=10))
def test_what_is_recorded_is_json(value):
    plain = recorded.plain(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


@pytest.mark.parametrize("value", [{"a": 1}, {1}, 1j, object(), [1, {}], b"bytes"])
def test_what_cannot_be_recorded(value):
    kind = type(value[1] if isinstance(value, list) else value).__name__
    message = f"can record numbers, texts and lists of them, not {kind}"
    with pytest.raises(TypeError, match=message):
        experiment.record("x", value)


def test_versions_outside_a_kernel(capsys):
    experiment.versions()
    out = capsys.readouterr().out
    assert f"torch         {version('torch')}\n" in out
    assert re.search(r"^device +\S", out, re.M)


def test_versions_of_what_is_not_installed(capsys, monkeypatch):
    def missing(name):
        raise experiment.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(experiment.importlib.metadata, "version", missing)
    experiment.versions()
    assert "torchvision   not installed" in capsys.readouterr().out


# Papers


@pytest.mark.skipif(not IN_CLONE, reason="needs a clone")
def test_papers_are_the_rows_of_the_table():
    with (ROOT / "notebooks" / "papers.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    papers = survey.papers()
    assert [vars(p) for p in papers] == rows
    assert len(papers) == 136
    assert {p.state for p in papers} <= {"planned", "partly", "works", "not reproduced"}
    assert all(p.paper for p in papers)


def test_papers_of_an_installed_wheel(monkeypatch, tmp_path):
    package = tmp_path / "vplib"
    package.mkdir()
    header = "paper,survey_place,method,notebook,section,elsewhere,state\n"
    row = 'Müller 2020,3.2,"a, b",attacks/x,1,"c, in attacks/y",planned\n'
    (package / "papers.csv").write_text(header + row, encoding="utf-8")
    for module in (paths, survey):
        monkeypatch.setattr(module, "__file__", str(package / "any.py"))
    assert paths.repository_root() is None
    row = ("Müller 2020", "3.2", "a, b", "attacks/x", "1", "c, in attacks/y", "planned")
    assert survey.papers() == [survey.Paper(*row)]


# Front end and progress, outside a kernel


def test_no_front_end_outside_a_kernel():
    assert experiment.has_front_end() is False


def test_no_front_end_without_ipython(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert experiment.has_front_end() is False
    assert recorded.display() is None


def test_progress_hands_every_item_through(capsys):
    assert list(experiment.progress(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert list(experiment.progress(iter("ab"), "counting")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


def test_the_short_calls_of_a_long_cell_show_a_bar(monkeypatch):
    monkeypatch.setattr(experiment._shown, "since", -math.inf)
    calls = [  # of cell, at second, with which delay
        (1, 100.0, 2),
        (1, 100.5, 1.5),
        (1, 101.75, 0.25),
        (1, 102.0, 0),  # two seconds have gone by without a bar
        (1, 102.125, 0.2),  # too soon after the last one
        (1, 103.5, 0),
        (2, 103.75, 2),  # another cell begins anew
        (2, 105.75, 0),
        (None, 106.0, 2),  # a script is one cell
        (None, 1000.0, 0),
    ]
    found = [experiment._delay(cell, now) for cell, now, _ in calls]
    assert found == [delay for *_, delay in calls]


# Inside a kernel


def ask(client, code: str, allow_stdin: bool) -> list[dict]:
    """The outputs of one execution, as a live front end (which can be asked) or without one."""
    messages = []
    reply = client.execute_interactive(
        code, allow_stdin=allow_stdin, output_hook=messages.append, timeout=120
    )
    assert reply["content"]["status"] == "ok", reply["content"]
    return [m["content"] for m in messages if m["msg_type"] in ("stream", "display_data")]


@pytest.fixture(scope="module")
def kernel():
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=120)
    ask(client, "from vplib import experiment", allow_stdin=False)
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("live", [True, False])
def test_has_front_end_in_a_kernel(kernel, live):
    (shown,) = ask(kernel, "print(experiment.has_front_end())", allow_stdin=live)
    assert shown["text"] == f"{live}\n"


def test_a_record_travels_in_the_notebook(kernel):
    code = "experiment.record('AUC', [0.5, float('nan')])"
    (shown,) = ask(kernel, code, allow_stdin=False)
    assert shown["data"] == {
        "text/plain": "AUC: [0.5, 'nan']",
        recorded.MIME: {"record": {"name": "AUC", "value": [0.5, "nan"]}},
    }


def test_versions_travel_in_the_notebook(kernel):
    (shown,) = ask(kernel, "experiment.versions()", allow_stdin=False)
    found = shown["data"][recorded.MIME]["versions"]
    assert found["torch"] == version("torch")
    assert {"python", "vplib", "numpy", "device", "platform"} <= set(found)


def test_progress_is_quiet_in_a_headless_kernel(kernel):
    code = (
        "bar = experiment.progress(range(3), 'counting'); bar.delay = 0\n"
        "print(list(bar), bar.disable)"
    )
    (shown,) = ask(kernel, code, allow_stdin=False)
    assert shown["text"] == "[0, 1, 2] True\n"


COUNT = """
delays = []
for second in {seconds}:
    experiment.time = type("clock", (), dict(monotonic=lambda: second))
    bar = experiment.progress(range(2), "counting")
    delays.append(bar.delay)
    assert list(bar) == [0, 1]
import time
experiment.time = time
print(delays)
"""


def test_no_bar_without_a_description(kernel):
    code = "bars = [experiment.progress(range(3), d) for d in ('counting', '')]; {}"
    outputs = ask(kernel, code.format("print([b.disable for b in bars])"), allow_stdin=True)
    assert [o["text"] for o in outputs if "text" in o] == ["[False, True]\n"]


def test_progress_in_a_live_kernel_counts_the_short_calls_of_a_cell(kernel):
    def count(seconds):
        outputs = ask(kernel, COUNT.format(seconds=seconds), allow_stdin=True)
        bars = [o for o in outputs if "data" in o]
        (printed,) = (o["text"] for o in outputs if "text" in o)
        return len(bars), json.loads(printed)

    assert count([10, 11.5, 12, 12.125, 14]) == (2, [2, 0.5, 0, 0.2, 0])
    assert count([14.5, 15.5]) == (0, [2, 1])  # another cell
