"""The shadow family's attacks: values by hand, identities, what each attacker receives."""

import inspect
import math

import numpy as np
import pytest
import torch

from vplib import datasets, metrics, models, training
from vplib.attacks.membership_shadow import reference as tailored
from vplib.attacks.membership_shadow import shadow as attack


@pytest.fixture(scope="module")
def game():
    """Four shadows of a pool of 60 records, in for half of them each, and one victim's answers."""
    rng = torch.Generator().manual_seed(0)
    members = torch.zeros(4, 60, dtype=torch.bool)
    members.scatter_(1, training.half_splits(60, 4), True)
    labels = torch.arange(60) % 5
    answers = torch.randn(5, 60, 5, generator=rng)
    answers[:4] += 3 * members[..., None] * torch.eye(5)[labels]
    answers = answers.softmax(-1)
    return answers[:4], labels, members, answers[4]


def asking(answer, seen=None):
    def predict(images):
        if seen is not None:
            seen.append(images)
        return answer

    return predict


def test_attack_set_is_every_answer_once(game):
    answers, labels, members, _ = game
    x, classes, inside = attack.attack_set(answers, labels, members)
    assert torch.equal(x[61], answers[1, 1]) and classes[61] == 1
    assert torch.equal(inside.view(4, 60).bool(), members)


def test_an_attack_model_a_class_and_group(game):
    answers, labels, members, victim = game
    groups = torch.tensor([[0, 1], [2, 3], [0, 3]])
    judges = attack.train_attack_models(answers, labels, members, groups, num_epochs=3)
    scores = attack.score_members(judges, asking(victim), torch.zeros(60, 1), labels)
    assert len(judges) == 15 and scores.shape == (3, 60)
    alone = attack.train_attack_models(answers[:2], labels, members[:2], num_epochs=3)
    one = attack.score_members(alone, asking(victim), torch.zeros(60, 1), labels)
    assert one.shape == (60,) and torch.allclose(one, scores[0], atol=1e-4)
    i = 7  # of class 2
    by_hand = alone.model(2)(victim[i : i + 1]).softmax(-1)[0, 1]
    assert one[i] == pytest.approx(by_hand.item(), abs=1e-5)


def test_attack_models_find_who_was_in(game):
    answers, labels, members, _ = game
    judges = attack.train_attack_models(answers[:2], labels, members[:2], num_epochs=60)
    asked = attack.score_members(judges, asking(answers[3]), torch.zeros(60, 1), labels)
    assert metrics.auc(asked, members[3]) > 0.7


def test_a_class_without_records_is_an_error(game):
    answers, _, members, _ = game
    with pytest.raises(ValueError, match=r"no record of class \[4\]"):
        attack.train_attack_models(answers, torch.arange(60) % 4, members)


def test_losses_by_hand():
    answers = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    found = attack.losses(answers, torch.tensor([0, 1]))
    assert found[0] == pytest.approx(math.log(2)) and 80 < found[1] < 90


def test_the_gap_attack_is_the_gap(game):
    answers, labels, members, _ = game
    right = attack.score_by_correctness(asking(answers[0]), torch.zeros(60, 1), labels)
    hit = answers[0].argmax(-1) == labels
    gap = hit[members[0]].double().mean() - hit[~members[0]].double().mean()
    assert metrics.membership_advantage(right, members[0], 0.5) == pytest.approx(
        gap.item(), abs=1e-12
    )


def test_scores_by_hand(game):
    answers, labels, members, victim = game
    ask, none, i = asking(victim), torch.zeros(60, 1), 11
    p, inside = victim[i, labels[i]].item(), members[:, i]
    shadow = answers[:, i, labels[i]].double()
    loss = attack.score_by_loss(ask, none, labels)
    assert loss[i] == pytest.approx(math.log(p), abs=1e-5)
    assert attack.score_by_confidence(ask, none)[i] == victim[i].max()

    logs = (-shadow.log()).log()
    threshold = (logs[inside].mean() + logs[~inside].mean()) / 2
    own = tailored.score_calibrated(ask, none, labels, answers, members)
    assert own[i] == pytest.approx(threshold.item() - math.log(-math.log(p)), abs=1e-4)

    phi, mine = (shadow / (1 - shadow)).log(), math.log(p / (1 - p))
    normals = [(phi[m].mean(), phi[m].std(correction=0) + 1e-6) for m in (inside, ~inside)]
    densities = [torch.distributions.Normal(*n).log_prob(torch.tensor(mine)) for n in normals]
    online = tailored.score_lira(ask, none, labels, answers, members)
    assert online[i] == pytest.approx((densities[0] - densities[1]).item(), rel=1e-3)
    offline = tailored.score_lira(ask, none, labels, answers, members, online=False)
    below = torch.distributions.Normal(*normals[1]).cdf(torch.tensor(mine).double())
    assert offline[i] == pytest.approx(below.log().item(), rel=1e-3)


def test_one_variance_for_all_records(game):
    answers, labels, members, victim = game
    phi = tailored.logit_confidence(answers, labels)
    spread = []
    for m in (members, ~members):
        means = (phi * m).sum(0) / m.sum(0)
        spread.append((((phi - means) ** 2)[m].mean()).sqrt() + 1e-6)
    i = 5
    inside = members[:, i]
    mine = tailored.logit_confidence(victim, labels)[i]
    normals = [
        torch.distributions.Normal(phi[m, i].mean(), s)
        for m, s in zip((inside, ~inside), spread, strict=True)
    ]
    found = tailored.score_lira(
        asking(victim), torch.zeros(60, 1), labels, answers, members, fixed_variance=True
    )
    assert found[i] == pytest.approx((normals[0].log_prob(mine) - normals[1].log_prob(mine)).item())


def test_rmia_counts_the_population_it_beats(game):
    answers, labels, members, victim = game
    z, z_labels = torch.rand(7, 5).softmax(-1), torch.arange(7) % 5
    z_answers = torch.rand(4, 7, 5).softmax(-1)

    def ask(images):
        return z if len(images) == 7 else victim

    population = torch.zeros(7, 1), z_labels, z_answers
    asked = tailored.score_rmia(ask, torch.zeros(60, 1), labels, answers, members, population)
    i = 3
    inside, true = members[:, i], answers[:, i, labels[i]]
    ratio = victim[i, labels[i]] / ((true[inside].mean() + true[~inside].mean()) / 2)
    others = z[range(7), z_labels] / z_answers[:, range(7), z_labels].mean(0)
    assert asked[i] == pytest.approx((ratio > others).double().mean().item())
    assert ((asked >= 0) & (asked <= 1)).all()


@pytest.mark.parametrize("score", [tailored.score_calibrated, tailored.score_lira])
def test_a_record_without_a_side_is_an_error(game, score):
    answers, labels, _, victim = game
    with pytest.raises(ValueError, match="half_splits"):
        score(asking(victim), torch.zeros(60, 1), labels, answers, torch.ones(4, 60).bool())


def test_sorted_answers():
    found = attack.sorted_answers(torch.tensor([[0.1, 0.2, 0.6, 0.1]]))
    assert found.tolist() == [pytest.approx([0.6, 0.2, 0.1])]
    with pytest.raises(ValueError, match="fewer than top=3"):
        attack.sorted_answers(torch.ones(1, 2))


def test_the_agnostic_attack_learns_from_each_group_alone(game):
    answers, _, members, victim = game
    groups = torch.tensor([[0], [3]])
    both = attack.train_agnostic_attack(answers, members, groups, num_steps=20)
    scores = attack.score_agnostic(both, asking(victim), torch.zeros(60, 1))
    assert scores.shape == (2, 60)
    other = answers.clone()
    other[1:] = 0.2  # the first attack model never saw these shadows
    again = attack.train_agnostic_attack(other, members, groups, num_steps=20)
    changed = attack.score_agnostic(again, asking(victim), torch.zeros(60, 1))
    assert torch.allclose(changed[0], scores[0], atol=1e-5)
    assert not torch.allclose(changed[1], scores[1], atol=1e-3)


def test_the_threshold_is_the_best_on_the_shadows(game):
    answers, labels, members, _ = game
    scores = -attack.losses(answers, labels)
    cut = attack.threshold_from_shadows(scores, members)
    best = metrics.membership_advantage(scores, members, cut)
    others = [metrics.membership_advantage(scores, members, c) for c in scores.flatten()]
    assert best >= max(others) - 1e-12


def test_what_a_black_box_attacker_receives(game):
    """Every score takes `predict` and asks it once, for the records and nothing else."""
    answers, labels, members, victim = game
    images = torch.rand(60, 1, 2, 2)
    judges = attack.train_attack_models(answers, labels, members, num_epochs=1)
    agnostic = attack.train_agnostic_attack(answers, members, num_steps=2)
    calls = {
        attack.score_members: lambda ask: attack.score_members(judges, ask, images, labels),
        attack.score_agnostic: lambda ask: attack.score_agnostic(agnostic, ask, images),
        attack.score_by_confidence: lambda ask: attack.score_by_confidence(ask, images),
    }
    for score in (attack.score_by_correctness, attack.score_by_loss):
        calls[score] = lambda ask, score=score: score(ask, images, labels)
    for score in (tailored.score_calibrated, tailored.score_lira):
        calls[score] = lambda ask, score=score: score(ask, images, labels, answers, members)
    scores = {v for k, v in (vars(attack) | vars(tailored)).items() if k.startswith("score_")}
    assert scores - {tailored.score_rmia} == set(calls)
    for score, call in calls.items():
        seen = []
        call(asking(victim, seen))
        assert len(seen) == 1 and seen[0] is images, score
        assert "predict" in inspect.signature(score).parameters


def test_label_noise_alone_reveals_no_membership():
    """Noise is drawn for the pool, before the split: a wrong label is as often in as out."""
    data = datasets.load("digits", "all")
    noisy = data.with_label_noise(0.2, seed=1).split(victim=400, shadow=400, seed=1)
    clean = data.split(victim=400, shadow=400, seed=1)
    lookup = {image.numpy().tobytes(): int(y) for image, y in zip(data.images, data.labels)}  # noqa: B905
    truth = torch.tensor([lookup[image.numpy().tobytes()] for image in noisy.victim.images])
    wrong = (truth != noisy.victim.labels).double()
    assert 0.1 < wrong.mean() < 0.3
    members = torch.zeros(64, 400, dtype=torch.bool)
    members.scatter_(1, training.half_splits(400, 64, 5), True)
    rates = [metrics.auc(wrong, m) for m in members]
    assert np.mean(rates) == pytest.approx(0.5, abs=1e-9)  # complementary halves
    assert np.std(rates) < 0.05
    assert len(clean.victim) == len(noisy.victim)


def test_a_shadow_attack_on_small_victims():
    """The whole path on a victim that has learned its records by heart."""
    data = datasets.load("digits", "all").with_label_noise(0.5, seed=0)
    pools = data.split(victim=100, shadow=100, seed=0)

    def train(pool, seed):
        return training.fit_many(
            lambda: models.mlp((1, 8, 8), 10, (64,)),
            pool.images,
            pool.labels,
            training.half_splits(100, 8, seed),
            num_epochs=60,
            seed=seed,
        )

    victims, shadows = train(pools.victim, 0), train(pools.shadow, 1)
    judges = attack.train_attack_models(
        shadows.probabilities(pools.shadow.images), pools.shadow.labels, shadows.membership(100)
    )
    scores = [
        attack.score_members(judges, victims.predict(k), pools.victim.images, pools.victim.labels)
        for k in range(8)
    ]
    assert metrics.auc(torch.stack(scores), victims.membership(100)) > 0.8
