"""The cloaking exercises name the mistakes that readers make."""

import pytest
import torch

from vplib import exercises

SAID = {
    "protection": [
        (lambda s, t, u: ((s != t) & (t < 2)).sum() / (t < 2).sum(), "share of photos"),
        (lambda s, t, u: (s != t).double().mean(), "only the users count"),
        (lambda s, t, u: sum((s[t == k] == k).double().mean() for k in u) / 2, "other way round"),
    ],
    "penalized": [
        (lambda d, e, b, w: d + w * (e / b - 1), "rewarded"),
        (lambda d, e, b, w: d + w * e / b, "not for the whole"),
        (lambda d, e, b, w: d + w * (e - b).clamp(min=0), "as a share of the budget"),
        (lambda d, e, b, w: (d + w * (e / b - 1).clamp(min=0)).detach(), "gradient is lost"),
        (lambda d, e, b, w: (d + w * (e / b - 1).clamp(min=0)).sum(), "one number a photo"),
    ],
    "fit": [
        (lambda measure, b: 0.9, "exceeds its budget"),
        (lambda measure, b: 0.1, "keep all of it"),
        (lambda measure, b: 1.0 if measure(1.0) <= b else 0.3, "would fit too"),
        (lambda measure, b: max(k / 999 for k in range(1000) if measure(k / 999) <= b), "halve"),
    ],
    "estimate": [
        (lambda posted, public: public.mean(0) - posted.mean(0), "sign is wrong"),
        (lambda posted, public: posted.mean(0), "average face"),
        (lambda posted, public: posted - public.mean(0), "one change for all"),
        (lambda posted, public: torch.zeros(1, 4, 4), "subtract the average"),
    ],
}


@pytest.mark.parametrize(
    "name, attempt, said", [(n, a, s) for n, pairs in SAID.items() for a, s in pairs]
)
def test_a_mistake_is_named(name, attempt, said, capsys):
    exercises.check(f"adversarial_cloaking.{name}", attempt)
    assert said in capsys.readouterr().out
