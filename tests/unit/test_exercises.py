"""Each exercise: its solution passes, an empty attempt and a broken one are told so."""

import functools
import importlib
import re
import sys
import types

import pytest

from vplib import exercises

NAMES = exercises.names()


def parts(name: str):
    """The check and the reference solution of an exercise."""
    module, exercise = name.split(".")
    module = importlib.import_module(exercises.modules()[module])
    return getattr(module, f"check_{exercise}"), getattr(module, f"solve_{exercise}", None)


def verdict(name, attempt, capsys) -> str:
    """What a reader is told, in one line."""
    exercises.check(name, attempt)
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.startswith(f"{name}: ")
    assert printed.out.count("\n") == 1
    return printed.out.removeprefix(f"{name}: ").strip()


def nothing(*args, **kwargs):
    """A stub as it stands in the notebook."""


@pytest.mark.parametrize("name", NAMES)
def test_a_solution_is_right(name, capsys):
    _, solution = parts(name)
    assert solution is not None, f"{name} has no reference solution"
    assert verdict(name, solution, capsys).startswith("right")


@pytest.mark.parametrize("name", NAMES)
def test_a_stub_is_not_attempted_yet(name, capsys):
    assert verdict(name, nothing, capsys) == "not attempted yet"


@pytest.mark.parametrize("name", NAMES)
def test_an_attempt_that_raises_is_told_its_error(name, capsys):
    def broken(*args, **kwargs):
        raise KeyError("no such key")

    said = verdict(name, broken, capsys)
    assert said == "your function stopped with KeyError: 'no such key'"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "answer", [0.123, "text", [], {}, object()], ids=lambda a: type(a).__name__
)
def test_a_wrong_answer_is_never_right(name, answer, capsys):
    said = verdict(name, lambda *args, **kwargs: answer, capsys)
    assert said and not said.startswith("right") and said != "not attempted yet"


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_do_not_raise(name, capsys):
    said = verdict(name, lambda: 1, capsys)
    assert said.startswith("your function stopped with TypeError")
    said = verdict(name, "no function", capsys)
    assert said.startswith("your function stopped with TypeError")


@pytest.mark.parametrize("name", NAMES)
def test_every_check_and_solution_is_explained(name):
    assert all(part.__doc__ for part in parts(name))


def test_every_solution_has_its_check():
    for module in {name.split(".")[0] for name in NAMES}:
        contents = vars(importlib.import_module(exercises.modules()[module]))
        for known in contents:
            if known.startswith("solve_"):
                assert f"{module}.{known.removeprefix('solve_')}" in NAMES


# Of the machinery, whatever exercises there are


@pytest.fixture
def one_exercise(monkeypatch):
    """An exercise module that is not on disk: ask for 42."""
    module = types.ModuleType("vplib.exercises.of_a_test")
    module.check_answer = lambda attempt: {None: None, 42: "right: it is 42"}.get(
        attempt(), "ask again"
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(exercises, "modules", lambda: {"of_a_test": module.__name__})


@pytest.mark.parametrize(
    "attempt, said",
    [
        (lambda: 42, "right: it is 42"),
        (lambda: 41, "ask again"),
        (lambda: None, "not attempted yet"),
        (lambda: 1 / 0, "your function stopped with ZeroDivisionError: division by zero"),
        (lambda x: 42, "your function stopped with TypeError: "),
        (None, "your function stopped with TypeError: "),
    ],
)
def test_verdicts(one_exercise, attempt, said, capsys):
    assert verdict("of_a_test.answer", attempt, capsys).startswith(said)


def forgot(*args):
    answer = [len(args)]
    answer.append(42)


@pytest.mark.parametrize("attempt", [forgot, lambda: print("of_a_test.answer: right: it is 42")])
def test_a_forgotten_return_is_no_stub(one_exercise, attempt, capsys):
    verdict = exercises.check("of_a_test.answer", attempt)
    assert not verdict and verdict.said.startswith("your function returns None")
    assert verdict.said in capsys.readouterr().out


@pytest.mark.parametrize("attempt", [nothing, functools.partial(nothing), lambda: None])
def test_a_stub_in_any_form_is_not_attempted(one_exercise, attempt):
    assert exercises.check("of_a_test.answer", attempt).said == "not attempted yet"


@pytest.mark.parametrize(("answer", "right"), [(42, True), (41, False), (None, False)])
def test_the_verdict_is_true_for_right_answers_alone(one_exercise, answer, right):
    verdict = exercises.check("of_a_test.answer", lambda: answer)
    assert verdict.right is right and bool(verdict) is right
    assert not exercises.check("of_a_test.unknown", lambda: answer)


def test_a_verdict_is_not_shown_twice(one_exercise):
    from IPython.core.interactiveshell import InteractiveShell

    verdict = exercises.check("of_a_test.answer", lambda: 42)
    assert InteractiveShell().display_formatter.format(verdict) == ({}, {})


def test_an_unknown_exercise_prints_the_known_ones(capsys, monkeypatch):
    monkeypatch.setattr(exercises, "names", lambda: ["a.one", "b.two"])
    for name in ("membership_shadow.no_such", "no_such_notebook.x", "x", "", ".", "a..b"):
        exercises.check(name, nothing)
        out = capsys.readouterr().out
        assert out == f"there is no exercise {name!r}; known: a.one, b.two\n"


def test_names_are_notebook_and_exercise():
    assert exercises.names() == sorted(NAMES)
    assert all(re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_]+", name) for name in NAMES)
