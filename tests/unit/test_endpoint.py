"""The endpoint in this process: exact counts, right refusals, masks that keep the label."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vplib import models
from vplib.victims.endpoint import BudgetSpent, Endpoint, keep_label, rounded, top_k

SHAPE = (1, 4, 4)


def model(images):
    """A victim of three classes without training: which third of the pixels is brightest."""
    thirds = [part.mean(1) for part in images.flatten(1).tensor_split(3, dim=1)]
    return (5 * torch.stack(thirds, -1)).softmax(-1)


def some(n, seed=0):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_probabilities_are_the_models():
    assert torch.equal(Endpoint(model)(some(5)), model(some(5)))


def test_labels_topk_and_rounded():
    images, p = some(20), model(some(20))
    assert torch.equal(Endpoint(model, answers="labels")(images), p.argmax(-1))
    top = Endpoint(model, top_k=1)(images)
    assert ((top > 0).sum(-1) == 1).all() and torch.equal(top.amax(-1), p.amax(-1))
    coarse = Endpoint(model, decimals=1)(images)
    assert torch.allclose(coarse * 10, (coarse * 10).round(), atol=1e-5)
    both = Endpoint(model, top_k=2, decimals=2)(images)
    assert torch.equal(both.argmax(-1), p.argmax(-1)) and ((both > 0).sum(-1) <= 2).all()


def test_repeats_count_and_the_budget_is_exact():
    endpoint = Endpoint(model, budget=10)
    for _ in range(2):
        endpoint(some(4))
    assert endpoint.queries == 8
    with pytest.raises(BudgetSpent, match="8 of 10 queries are spent; 3 more would exceed"):
        endpoint(some(3))
    assert endpoint.queries == 8  # none of the three was answered or counted
    endpoint(some(2))
    assert endpoint.queries == 10
    with pytest.raises(BudgetSpent):
        endpoint(some(1))


def test_the_model_is_not_asked_over_budget():
    asked = []
    endpoint = Endpoint(lambda x: asked.append(len(x)) or model(x), budget=0)
    with pytest.raises(BudgetSpent):
        endpoint(some(1))
    assert asked == []


def test_a_model_that_fails_costs_nothing():
    endpoint = Endpoint(lambda x: 1 / 0, budget=5)
    with pytest.raises(ZeroDivisionError):
        endpoint(some(3))
    assert endpoint.queries == 0


def narrow(images):
    """A network that takes images of SHAPE alone, as torch's layers do."""
    return (images.flatten(1) @ torch.ones(16, 3, dtype=images.dtype)).softmax(-1)


@pytest.mark.parametrize("answered_before", [False, True])
def test_images_of_a_shape_that_the_model_does_not_take_are_refused_and_free(answered_before):
    endpoint = Endpoint(narrow)
    if answered_before:
        endpoint(some(2))
    before = endpoint.queries
    with pytest.raises(ValueError, match=r"cannot answer for float32 images of shape \(3, 4, 4\)"):
        endpoint(torch.rand(2, 3, 4, 4))
    assert endpoint.queries == before


def test_a_failure_on_a_shape_that_was_answered_is_the_models():
    def once(images):
        if endpoint.queries > 2:
            raise ValueError("power cut")
        return model(images)

    endpoint = Endpoint(once)
    endpoint(some(2))
    with pytest.raises(RuntimeError, match="cannot answer") as failed:
        endpoint(some(2))
    assert str(failed.value.__cause__) == "power cut" and endpoint.queries == 2


@pytest.mark.parametrize("answers", ["probabilities", "labels"])
@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_a_victim_of_doubles_answers_right(net, answers):
    torch.manual_seed(0)
    victim = getattr(models, net)(SHAPE, 3).double()
    expected = victim(some(5).double()).softmax(-1)
    endpoint = Endpoint(lambda x: victim(x).softmax(-1), answers=answers)
    right = expected.argmax(-1) if answers == "labels" else expected
    assert torch.equal(endpoint(some(5)), right) and endpoint.queries == 5


def test_a_predict_label_is_passed_on_where_labels_are_answered():
    labels = model(some(7)).argmax(-1)
    endpoint = Endpoint(lambda x: model(x).argmax(-1), answers="labels")
    assert torch.equal(endpoint(some(7)), labels) and endpoint.queries == 7


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("probabilities", torch.zeros(4, dtype=torch.int64)),  # labels as probabilities
        ("labels", torch.tensor(1)),  # one number
        ("labels", torch.zeros(3)),  # of other images
        ("labels", torch.zeros(4, 3, 1)),
        ("probabilities", torch.zeros(5, 3)),
    ],
)
def test_a_model_that_answers_something_else_is_refused(answers, said):
    endpoint = Endpoint(lambda x: said, answers=answers)
    with pytest.raises(TypeError, match=r"predict gives \(.*\), not \(N, classes\)"):
        endpoint(some(4))
    assert endpoint.queries == 0


def test_labels_are_whole_numbers():
    endpoint = Endpoint(lambda x: torch.tensor([1.0, 2.0]), answers="labels")
    with pytest.raises(TypeError, match=r"labels must be whole numbers, not torch.float32"):
        endpoint(some(2))
    assert endpoint.queries == 0
    endpoint = Endpoint(lambda x: torch.tensor([1, 2]), answers="labels")
    assert endpoint(some(2)).tolist() == [1, 2]


def test_twenty_callers_at_once_do_not_overdraw():
    endpoint = Endpoint(model, budget=50)

    def ask(i):
        try:
            return len(endpoint(some(3, i)))
        except BudgetSpent:
            return 0

    with ThreadPoolExecutor(20) as pool:
        answered = sum(pool.map(ask, range(40)))
    assert answered == endpoint.queries == 48


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (some(2).numpy(), "not ndarray"),
        (some(2).double(), "must be float32"),
        (some(2)[0], r"\(N, C, H, W\), not"),
        (some(2)[:0], "there is no image"),
        (some(2) * torch.nan, r"must lie in \[0, 1\]"),
        (some(2) + 1, r"must lie in \[0, 1\]"),
    ],
)
def test_wrong_images_are_refused_and_free(images, message):
    endpoint = Endpoint(model)
    with pytest.raises(ValueError, match=message):
        endpoint(images)
    assert endpoint.queries == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(answers="label"), "did you mean 'labels'"),
        (dict(answers="labels", top_k=1), "labels cannot be masked"),
        (dict(top_k=0), "top_k must be 1 or more"),
        (dict(decimals=-1), "decimals must be 0 or more"),
        (dict(budget=-1), "budget must be 0 or more"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Endpoint(model, **settings)


# Masks


def test_masks_by_hand():
    answers = torch.tensor([[0.3, 0.3, 0.4], [0.46, 0.46, 0.08], [0.04, 0.03, 0.93]])
    largest = torch.tensor([[0.0, 0.0, 0.4], [0.46, 0.0, 0.0], [0.0, 0.0, 0.93]])
    assert torch.equal(top_k(answers, 1), largest)
    assert torch.equal(top_k(answers, 9), answers)
    coarse = rounded(answers, 1)
    expected = torch.tensor([[0.3, 0.3, 0.4], [0.5, 0.4, 0.1], [0.0, 0.0, 0.9]])
    torch.testing.assert_close(coarse, expected)  # of the tie, the label alone is at the top
    assert rounded(answers, 0).tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1]]
    kept = keep_label(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.1, 0.8, 0.1]))
    assert kept.argmax() == 1 and kept[1] == 0.5 and 0.4999999 < kept[0] < 0.5
    for mask in (top_k, rounded):
        with pytest.raises(ValueError, match="or more, not -1"):
            mask(answers, -1)


def test_a_victim_that_cannot_be_hashed_is_equal_to_itself_alone():
    held = threading.Lock()

    def locked(images):
        with held:
            return torch.full((len(images), 2), 0.5)

    one, other = Endpoint(locked), Endpoint(locked)
    assert one.id == one.id != other.id
    assert Endpoint(one._predict, answers="labels").id != one.id
