"""`judge`, which words the verdict of every exercise, on answers of every kind."""

import math

import numpy as np
import pytest
import torch

from vplib.exercises import judge

MISTAKES = {"twice as much": lambda value: (value == 2 * RIGHT).all(), "summed": torch.tensor(6.0)}
RIGHT = torch.tensor([1.0, 2.0, 3.0])


def said(value, right=RIGHT, mistakes=MISTAKES, **options):
    return judge(value, right, "so it is", mistakes, "think again", **options)


@pytest.mark.parametrize("value", [None, [None, 1.0], (1.0, None)])
def test_none_is_not_attempted(value):
    assert said(value) is None


@pytest.mark.parametrize(
    ("value", "right"),
    [
        (RIGHT.double() + 5e-5, RIGHT),
        (RIGHT.clone().requires_grad_(), RIGHT),
        (np.array([1, 2, 3]), RIGHT),
        ([1.0, 2, 3], RIGHT),
        ([torch.tensor(1.0), torch.tensor(2), 3], RIGHT),
        (0.3, 0.3),
        (np.float32(0.3), 0.3),
        (torch.tensor(7), 7),
        (66011137**2 // 2, 66011137**2 // 2),
        (True, True),
        (np.True_, torch.tensor(True)),
        (torch.tensor([True, False]), [True, False]),
        ([True, False], torch.tensor([True, False])),
        ((RIGHT, 0.3), (RIGHT, 0.3)),
        ([torch.tensor([1, 2, 3]), torch.tensor(0.3)], (RIGHT, 0.3)),
        (RIGHT, [1, 2, 3]),
        (math.inf, math.inf),
    ],
)
def test_equal_answers_of_any_kind_are_right(value, right):
    assert said(value, right) == "right: so it is"


@pytest.mark.parametrize(
    ("value", "right"),
    [
        (RIGHT + 2e-4, RIGHT),
        (math.nan, 0.3),
        (math.nan, math.nan),
        (torch.tensor([1, math.nan, 3]), torch.tensor([1, math.nan, 3])),
        (66011137**2 // 2 + 1, 66011137**2 // 2),
        (False, True),
        ((RIGHT, 0.4), (RIGHT, 0.3)),
        ([1, 2, 4], [1, 2, 3]),
    ],
)
def test_other_answers_get_the_hint(value, right):
    assert said(value, right, {}) == "think again"


@pytest.mark.parametrize(
    ("value", "right", "complaint"),
    [
        ("text", RIGHT, "return numbers of shape (3,), not str"),
        ({}, 0.3, "return a number, not dict"),
        (1j, 0.3, "return a number, not complex"),
        (RIGHT[:, None], RIGHT, "return numbers of shape (3,), not numbers of shape (3, 1)"),
        ([0.3], 0.3, "return a number, not numbers of shape (1,)"),
        (1, True, "return True or False, not a number"),
        (True, 1, "return a number, not True or False"),
        (RIGHT, RIGHT > 1, "return truth values of shape (3,), not numbers of shape (3,)"),
        (0.3, (RIGHT, 0.3), "return 2 values, not a number"),
        ((RIGHT,), (RIGHT, 0.3), "return 2 values, not tuple"),
        ("ab", (1, 2), "return 2 values, not str"),
        ((RIGHT, "b"), (RIGHT, 0.3), "return a number, not str"),
        ([[1.0, 2.0], [3.0]], RIGHT, "return numbers of shape (3,), not list"),
    ],
)
def test_another_kind_or_shape_is_named(value, right, complaint):
    assert said(value, right, {}) == f"{complaint}: think again"


def test_mistakes_are_named_by_value_or_by_test():
    assert said(2 * RIGHT) == "twice as much"
    assert said(6) == "summed"  # of another shape than the right answer
    assert said(3 * RIGHT) == "think again"
    assert said([2.0, 4.0, 6.0]) == "twice as much"


def test_a_test_sees_only_answers_of_the_right_kind_and_shape():
    def fails(value):
        raise AssertionError("asked about another kind")

    assert said("text", mistakes={"never": fails}).endswith("not str: think again")


def test_the_tolerance_is_absolute():
    assert said(1000.0, 1000.5, {}, tolerance=1) == "right: so it is"
    assert said(1000.0, 1001.5, {}, tolerance=1) == "think again"
