"""Exercises of attacks/membership_shadow: each mistake is named."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from vplib.attacks.membership_shadow import exercises as ex
from vplib.attacks.membership_shadow.shadow import attack_set


def judged_by_all(shadow_answers, shadow_labels, shadow_members, answers, labels):
    examples, _, inside = attack_set(shadow_answers, shadow_labels, shadow_members)
    return LogisticRegression().fit(examples, inside).predict_proba(answers)[:, 1]


def of_true_class(shadow_answers, shadow_labels, shadow_members, answers, labels):
    return answers.gather(1, labels[:, None]).squeeze(1)


def by_trees(shadow_answers, shadow_labels, shadow_members, answers, labels):
    examples, classes, inside = attack_set(shadow_answers, shadow_labels, shadow_members)
    tree = DecisionTreeClassifier(min_samples_leaf=10, random_state=0)
    scores = torch.zeros(len(labels))
    for c in range(answers.shape[1]):
        tree.fit(examples[classes == c], inside[classes == c])
        scores[labels == c] = torch.tensor(tree.predict_proba(answers[labels == c])[:, 1]).float()
    return scores


def other_column(*given):
    return 1 - ex.solve_shadow_attack(*given)


def decisions(*given):
    return (ex.solve_shadow_attack(*given) > 0.5).double()


@pytest.mark.parametrize(
    ("check", "attempt", "said"),
    [
        (ex.check_gap_attack, lambda p, x, y: p(x) != y, "the wrong way round"),
        (ex.check_gap_attack, lambda p, x, y: p(x), "truth values of shape"),
        (ex.check_advantage, lambda g, m: (g == m).double().mean(), "that is the accuracy"),
        (ex.check_advantage, lambda g, m: g[m].double().mean() - (g & ~m).sum() / m.sum(),
         "the number of nonmembers"),
        (ex.check_advantage, lambda g, m: -ex.solve_advantage(g, m), "the sign is wrong"),
        (ex.check_shadow_attack, judged_by_all, "on its class alone"),
        (ex.check_shadow_attack, of_true_class, "learn it from the shadows"),
        (ex.check_shadow_attack, other_column, "take the other column"),
        (ex.check_shadow_attack, decisions, "return probabilities"),
        (ex.check_shadow_attack, lambda *given: torch.rand(40, 2), "numbers of shape (40,)"),
        (ex.check_shadow_attack, lambda *given: torch.arange(40) / 40, "for each class: fit"),
        (ex.check_likelihood_ratio, lambda c, i, o: -ex.solve_likelihood_ratio(c, i, o),
         "upside down"),
        (ex.check_likelihood_ratio, lambda c, i, o: (c - o.mean()) ** 2 - (c - i.mean()) ** 2,
         "a spread of its own"),
    ],
)  # fmt: skip
def test_mistakes_are_named(check, attempt, said):
    assert said in check(attempt)


def test_any_attack_model_will_do():
    assert ex.check_shadow_attack(by_trees).startswith("right: ")
