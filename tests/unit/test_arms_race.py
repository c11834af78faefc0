"""The table of attacks and defenses: by hand, against a loop, and each wrong answer by name."""

import math

import pytest
import torch
from exercise_cases import assert_judges
from hypothesis import given
from hypothesis import strategies as st

from vplib.attacks import membership_shadow
from vplib.defenses import extraction_defenses, output_perturbation
from vplib.synthesis import arms_race
from vplib.synthesis.arms_race import exercises

NAN = math.nan


def test_share_left_by_hand():
    attack = torch.tensor([0.7, 0.6, 0.5, 0.4, 0.8, NAN])
    found = arms_race.share_left(attack, 0.7, 0.5)
    assert torch.allclose(found[:5], torch.tensor([1, 0.5, 0, 0, 1.5]).double(), atol=1e-6)
    assert found[5].isnan()


def test_nothing_can_be_left_of_an_attack_that_fails():
    undefended = torch.tensor([[0.7], [0.5], [0.4]])
    found = arms_race.share_left(torch.full((3, 2), 0.6), undefended, 0.5)
    assert torch.allclose(found[0], torch.tensor([0.5]).double(), atol=1e-6)
    assert found[1:].isnan().all()


cells = st.lists(
    st.lists(st.sampled_from([NAN, 0.4, 0.5, 0.6, 0.7]), min_size=3, max_size=3),
    min_size=1,
    max_size=4,
)


@given(cells)
def test_worst_case_and_choice_against_a_loop(table):
    worst = []
    for column in zip(*table, strict=True):
        numbers = [risk for risk in column if not math.isnan(risk)]
        worst.append(max(numbers) if numbers else NAN)
    found = arms_race.worst_case(torch.tensor(table))
    assert torch.equal(found.nan_to_num(-1), torch.tensor(worst).nan_to_num(-1))
    accuracies = [0.9, 0.8, 0.2]
    for least in (0.0, 0.5, 0.85):
        allowed = [d for d in range(3) if accuracies[d] >= least and not math.isnan(worst[d])]
        if not allowed:
            with pytest.raises(ValueError, match="no defense has an accuracy of"):
                arms_race.best_column(torch.tensor(table), torch.tensor(accuracies), least)
            continue
        best = arms_race.best_column(torch.tensor(table), torch.tensor(accuracies), least)
        assert best == min(allowed, key=lambda d: worst[d])


@pytest.mark.parametrize("risks", [torch.rand(3), torch.rand(0, 2), torch.rand(2, 0)])
def test_a_table_that_is_none_is_refused(risks):
    with pytest.raises(ValueError, match="risks must be"):
        arms_race.worst_case(risks)


def test_one_accuracy_a_defense():
    with pytest.raises(ValueError, match="3 defenses need as many accuracies"):
        arms_race.best_column(torch.rand(2, 3), torch.rand(2), 0.5)


def test_an_accuracy_that_nobody_has():
    with pytest.raises(ValueError, match="no defense has an accuracy of 0.95; the best has"):
        arms_race.best_column(torch.rand(2, 3), torch.tensor([0.9, 0.8, 0.7]), 0.95)


def test_masks_of_the_table_leave_labels_and_the_gap_attack_bit_for_bit():
    draws = torch.Generator().manual_seed(0)
    answers = (4 * torch.randn(200, 10, generator=draws)).softmax(-1)
    proxy = torch.randn(200, 10, generator=draws).softmax(-1)
    labels = torch.randint(10, (200,), generator=draws)
    guard = output_perturbation.MemGuard(lambda p: 3 * p.amax(-1).log() + 0.5, 1.0, num_steps=20)
    masked = {
        "rounding": output_perturbation.rounded(answers, 1),
        "MemGuard": guard(answers),
        "MAD": extraction_defenses.mad(answers, proxy, 0.75, True),
    }
    gap = membership_shadow.score_by_correctness(answers, labels)
    for name, said in masked.items():
        assert torch.equal(said.argmax(-1), answers.argmax(-1)), name
        assert torch.equal(membership_shadow.score_by_correctness(said, labels), gap), name


def by_mean(risks, accuracies, least):
    return risks.nanmean(0).masked_fill(accuracies < least, torch.inf).argmin().item()


def by_minimum(risks, accuracies, least):
    least_risk = risks.nan_to_num(nan=1.0).amin(0)
    return least_risk.masked_fill(accuracies < least, torch.inf).argmin().item()


def with_nan(risks, accuracies, least):
    return risks.amax(0).masked_fill(accuracies < least, torch.inf).argmin().item()


def without_accuracy(risks, accuracies, least):
    return risks.nan_to_num(nan=0.0).amax(0).argmin().item()


def test_the_choice_is_judged():
    attempts = [
        (by_mean, "the best on average"),
        (by_minimum, "the smallest single number"),
        (with_nan, "a NaN is no risk and no protection"),
        (without_accuracy, "not accurate enough"),
        (lambda *given: 0, "per column the largest risk"),
    ]
    assert_judges(exercises, "choose", attempts)


def test_the_share_left_is_judged():
    right = exercises.solve_left
    attempts = [
        (lambda a, u, f: (a - f) / (u - f), "clamp at 0"),
        (lambda a, u, f: a / u, "take the floor from both"),
        (lambda a, u, f: 1 - right(a, u, f), "return what it left"),
        (lambda a, u, f: right(a, u, f).clamp(max=1), "do not cut at 1"),
        (lambda a, u, f: a * 0, "the lead over the floor"),
    ]
    assert_judges(exercises, "left", attempts)


def kept(unaware, aware, by):
    first, second = unaware[:, None] - unaware, aware[:, None] - aware
    return ((first < -by) & (second < -by)).sum().item()


def test_the_reversals_are_judged():
    right = exercises.solve_reversals
    attempts = [
        (lambda u, a, by: 2 * right(u, a, by), "each pair once"),
        (lambda u, a, by: right(u, a, 0.0), "both differences must exceed"),
        (kept, "keep their order"),
        (lambda u, a, by: 17, "compare all pairs"),
    ]
    assert_judges(exercises, "reversals", attempts)
