"""The shadow family's attacks: values by hand, oracles, identities, what each attacker receives."""

import inspect
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import logit
from scipy.stats import norm

from vplib import datasets, metrics, models, training
from vplib.attacks.membership_shadow import reference as tailored
from vplib.attacks.membership_shadow import shadow as attack

GROUPS = torch.tensor([[0, 1], [2, 5], [0, 7]])


@pytest.fixture(scope="module")
def game():
    """Eight shadows of 60 records of 5 classes, in for half of them each; three victims."""
    rng = torch.Generator().manual_seed(0)
    inside = torch.zeros(11, 60, dtype=torch.bool)
    inside[:8].scatter_(1, training.half_splits(60, 8), True)
    inside[8:].scatter_(1, training.half_splits(60, 4, seed=1)[:3], True)
    labels = torch.arange(60) % 5
    answers = torch.randn(11, 60, 5, generator=rng)
    answers += 3 * inside[..., None] * torch.eye(5)[labels]
    answers = answers.softmax(-1)
    return SimpleNamespace(
        labels=labels,
        shadow_answers=answers[:8],
        shadow_members=inside[:8],
        answers=answers[8:],
        members=inside[8:],
    )


@pytest.fixture(scope="module")
def attacks(game):
    """Every score as a function of the victims' answers alone; its name begins with the score's."""
    asked = game.shadow_answers, game.labels, game.shadow_members
    judges = attack.train_attack_models(*asked, num_epochs=2)
    grouped = attack.train_attack_models(*asked, GROUPS, num_epochs=2)
    agnostic = attack.train_agnostic_attack(*asked[::2], GROUPS, num_steps=20)

    def own(score, **options):
        return lambda answers: score(
            answers, game.labels, game.shadow_answers, game.shadow_members, **options
        )

    def rmia(answers, **options):  # the last ten records stand for the population
        return tailored.score_rmia(
            answers[..., :50, :],
            game.labels[:50],
            game.shadow_answers[:, :50],
            game.shadow_members[:, :50],
            (answers[..., 50:, :], game.labels[50:], game.shadow_answers[:, 50:]),
            **options,
        )

    return {
        "score_members": lambda answers: attack.score_members(judges, answers, game.labels),
        "score_members, groups": lambda answers: attack.score_members(
            grouped, answers, game.labels
        ),
        "score_agnostic": lambda answers: attack.score_agnostic(agnostic, answers),
        "score_by_correctness": lambda answers: attack.score_by_correctness(answers, game.labels),
        "score_by_loss": lambda answers: attack.score_by_loss(answers, game.labels),
        "score_calibrated": own(tailored.score_calibrated),
        "score_lira": own(tailored.score_lira),
        "score_lira, fixed": own(tailored.score_lira, fixed_variance=True),
        "score_lira, offline": own(tailored.score_lira, online=False),
        "score_rmia": rmia,
        "score_rmia, offline": lambda answers: rmia(answers, online=False),
    }


def test_all_victims_at_once_are_one_after_another(game, attacks):
    for name, score in attacks.items():
        groups = (3,) if name in ("score_members, groups", "score_agnostic") else ()
        num_records = 50 if "rmia" in name else 60
        at_once, one = score(game.answers), score(game.answers[0])
        assert one.shape == (*groups, num_records), name
        assert at_once.shape == (*groups, 3, num_records), name
        for k, answers in enumerate(game.answers):
            assert torch.allclose(at_once[..., k, :], score(answers), atol=1e-6), name
        in_rows = score(game.answers[:2].unflatten(0, (2, 1)))
        assert in_rows.shape == (*groups, 2, 1, num_records), name
        assert torch.allclose(in_rows.squeeze(-2), at_once[..., :2, :], atol=1e-6), name
        assert not torch.allclose(at_once[..., 0, :], at_once[..., 1, :]), name


def test_what_a_passive_attacker_receives(game, attacks):
    """Answers: no model, nothing to ask, and not who was in the victim."""
    everything = vars(attack) | vars(tailored)
    scores = {name: f for name, f in everything.items() if name.startswith("score_")}
    assert set(scores) == {name.split(",")[0] for name in attacks}
    for name, score in scores.items():
        granted = set(inspect.signature(score).parameters)
        assert "answers" in granted, name
        assert not granted & {"predict", "images", "model", "victim", "victims", "members"}, name


def test_scores_leave_torch_s_generator_alone(game, attacks):
    before = torch.get_rng_state()
    for score in attacks.values():
        score(game.answers)
    assert torch.equal(torch.get_rng_state(), before)


def test_attack_set_is_every_answer_once(game):
    x, classes, inside = attack.attack_set(game.shadow_answers, game.labels, game.shadow_members)
    assert torch.equal(x[61], game.shadow_answers[1, 1]) and classes[61] == 1
    assert torch.equal(inside.view(8, 60).bool(), game.shadow_members)
    assert len(x) == len(classes) == 480


def test_an_attack_model_a_class_and_group(game):
    judges = attack.train_attack_models(
        game.shadow_answers, game.labels, game.shadow_members, GROUPS, num_epochs=3
    )
    scores = attack.score_members(judges, game.answers, game.labels)
    assert len(judges) == 15 and scores.shape == (3, 3, 60)
    alone = attack.train_attack_models(
        game.shadow_answers[:2], game.labels, game.shadow_members[:2], num_epochs=3
    )
    one = attack.score_members(alone, game.answers, game.labels)
    assert one.shape == (3, 60) and torch.allclose(one, scores[0], atol=1e-4)
    victim, record, of_class, group = 2, 7, 2, 1
    asked = game.answers[victim, record : record + 1]
    by_hand = judges.model(5 * group + of_class)(asked).softmax(-1)[0, 1]
    assert scores[group, victim, record] == pytest.approx(by_hand.item(), abs=1e-5)


def test_an_attack_model_learns_from_its_class_and_group_alone(game):
    labels = torch.tensor([0] * 30 + [1] * 12 + [2] * 9 + [3] * 8 + [4])
    judges = attack.train_attack_models(
        game.shadow_answers, labels, game.shadow_members, GROUPS, num_epochs=1
    )
    for g, group in enumerate(GROUPS.tolist()):
        for c in range(5):
            rows = {60 * k + i for k in group for i in range(60) if labels[i] == c}
            assert set(judges.subsets[5 * g + c].tolist()) == rows


def test_attack_models_find_who_was_in(game):
    judges = attack.train_attack_models(
        game.shadow_answers[:2], game.labels, game.shadow_members[:2], num_epochs=60
    )
    asked = attack.score_members(judges, game.answers, game.labels)
    assert metrics.auc(asked, game.members) > 0.7
    assert abs(metrics.auc(asked, game.members.roll(1, 0)) - 0.5) < 0.15  # of another victim


@pytest.mark.parametrize(("num_classes", "empty"), [(4, r"\[4\]"), (3, r"\[3, 4\]")])
def test_a_class_without_records_is_an_error(game, num_classes, empty):
    labels = torch.arange(60) % num_classes
    with pytest.raises(ValueError, match=f"no record of class {empty}; take a larger pool"):
        attack.train_attack_models(game.shadow_answers, labels, game.shadow_members)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_members_that_are_no_truth_values_are_an_error(game, dtype):
    """Of zeros and ones, indexing takes rows and ~ inverts bits: wrong, and without a sound."""
    members, shadows = game.shadow_members.to(dtype), game.shadow_answers
    victim = game.answers, game.labels, shadows, members
    population = game.answers[:, :5], game.labels[:5], shadows[:, :5]
    calls = [
        lambda: attack.attack_set(shadows, game.labels, members),
        lambda: attack.train_attack_models(shadows, game.labels, members),
        lambda: attack.train_agnostic_attack(shadows, members),
        lambda: attack.threshold_from_shadows(attack.losses(shadows, game.labels), members),
        lambda: tailored.score_calibrated(*victim),
        lambda: tailored.score_lira(*victim),
        lambda: tailored.score_lira(*victim, online=False, fixed_variance=True),
        lambda: tailored.score_rmia(*victim, population),
        lambda: tailored.score_rmia(*victim, population, online=False),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"members must be truth values, not {dtype}"):
            call()
    taking = [
        f
        for name, f in (vars(attack) | vars(tailored)).items()
        if inspect.isfunction(f) and f.__module__ in (attack.__name__, tailored.__name__)
        if not name.startswith("_")
        if {"members", "shadow_members"} & set(inspect.signature(f).parameters)
    ]
    assert len(taking) == 7  # each of them is called above


def test_members_of_another_shape_are_an_error(game):
    turned = game.shadow_members.T
    with pytest.raises(ValueError, match=r"\(shadows, records\), \(8, 60\).*not \(60, 8\)"):
        attack.train_attack_models(game.shadow_answers, game.labels, turned)
    with pytest.raises(ValueError, match=r"not \(60, 8\)"):
        attack.train_agnostic_attack(game.shadow_answers, turned)


def test_losses_by_hand():
    answers = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    found = attack.losses(answers, torch.tensor([0, 1, 0]))
    assert found[[0, 2]].tolist() == pytest.approx([math.log(2), math.log(4)])
    assert 80 < found[1] < 87.5


def test_the_gap_attack_is_the_gap(game):
    right = attack.score_by_correctness(game.answers, game.labels)
    for k in range(3):
        hits = {True: [], False: []}  # by membership
        for i in range(60):
            answer = game.answers[k, i].tolist()
            hits[bool(game.members[k, i])].append(answer.index(max(answer)) == game.labels[i])
        train, test = (Fraction(sum(map(int, h)), len(h)) for h in (hits[True], hits[False]))
        assert 0 < train - test < 1
        advantage = metrics.membership_advantage(right[k], game.members[k], 0.5)
        assert advantage == pytest.approx(float(train - test), abs=1e-12)


def test_the_loss_of_the_true_class(game):
    found = attack.score_by_loss(game.answers, game.labels)
    for k, i in ((0, 11), (1, 0), (2, 59)):
        p = game.answers[k, i, game.labels[i]].item()
        assert found[k, i] == pytest.approx(math.log(p), abs=1e-5)


def of_true_class(p):
    """Two-class answers with these probabilities of class 0."""
    p = torch.as_tensor(p, dtype=torch.float64)
    return torch.stack([p, 1 - p], -1).float()


def test_a_threshold_of_the_record_s_own_by_hand():
    """Losses of e^-2, 1 with the record and e, e^3 without: halfway, in the logarithm, 1/2."""
    log_losses = torch.tensor([[-2.0, 0.0], [0.0, 1.0], [1.0, 2.0], [3.0, -1.0]])
    shadow_answers = of_true_class((-log_losses.double().exp()).exp())
    members = torch.tensor([[True, False], [True, True], [False, False], [False, True]])
    victims = of_true_class([[math.exp(-1), math.exp(-math.e)], [1.0, math.exp(-math.exp(-3))]])
    found = tailored.score_calibrated(
        victims, torch.zeros(2, dtype=torch.long), shadow_answers, members
    )
    # the second record: (1, -1) with it, (0, 2) without, so also 1/2; loss 0 counts as 1e-7
    expected = [[0.5 - 0, 0.5 - 1], [0.5 - math.log(1e-7), 0.5 + 3]]
    assert found.tolist() == [pytest.approx(row, abs=1e-4) for row in expected]


def test_confidence_by_hand():
    """Where float32 rounds p to one, the other classes still tell how sure the model is."""
    answers = torch.tensor([[0.75, 0.25, 0.0], [1.0, 1e-20, 1e-20], [0.0, 1.0, 0.0]])
    found = tailored.logit_confidence(answers, torch.zeros(3, dtype=torch.long))
    expected = [math.log(3), -math.log(2e-20), math.log(1e-45)]
    assert found.tolist() == pytest.approx(expected) and found.dtype == torch.float64


def lira_by_records(answers, labels, shadow_answers, members, online, fixed):
    """The oracle: scipy's normal distributions, record by record."""
    members = members.numpy()
    rows = np.arange(len(labels))
    shadow = logit(shadow_answers[:, rows, labels].double().numpy())
    victim = logit(answers[rows, labels].double().numpy())
    scores = []
    for i in rows:
        sides = []
        for chosen in (members, ~members):
            own = [shadow[k, i] for k in range(len(shadow)) if chosen[k, i]]
            everyone = [shadow[k, j] for k in range(len(shadow)) for j in rows if chosen[k, j]]
            spread = np.std(everyone if fixed or len(own) == 1 else own)
            sides.append(dict(loc=np.mean(own), scale=spread))
        inside, outside = sides
        if online:
            scores.append(norm.logpdf(victim[i], **inside) - norm.logpdf(victim[i], **outside))
        else:
            scores.append(norm.logcdf(victim[i], **outside))
    return np.array(scores)


HALVES = slice(0, 8)  # of the game's shadows: each record is in 4 and out of 4
ONE_A_SIDE = slice(0, 2)
UNEVEN = [0, 1, 2]  # one in and two out, or two in and one out


@pytest.mark.parametrize("which", [HALVES, ONE_A_SIDE, UNEVEN], ids=["halves", "one", "uneven"])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("online", [True, False])
def test_lira_is_scipy_s_normals(game, which, fixed, online):
    shadows, members = game.shadow_answers[which], game.shadow_members[which]
    held = members.sum(0)
    assert set(held.tolist()) == ({4} if len(members) == 8 else {1, len(members) - 1})
    found = tailored.score_lira(
        game.answers, game.labels, shadows, members, online=online, fixed_variance=fixed
    )
    for k, answers in enumerate(game.answers):
        oracle = lira_by_records(answers, game.labels, shadows, members, online, fixed)
        np.testing.assert_allclose(found[k], oracle, rtol=1e-3, atol=1e-4)


def test_lira_with_one_model_outside_ranks_by_the_deviation_from_it(game):
    """No deviation of the record's own, so that of all: else every score would saturate."""
    shadows, members = game.shadow_answers[:2], game.shadow_members[:2]
    found = tailored.score_lira(game.answers[0], game.labels, shadows, members, online=False)
    assert torch.isfinite(found).all() and len(found.unique()) == 60
    assert -40 < found.min() and found.max() < 0
    rows = range(60)
    outside = [int(members[0, i]) for i in rows]  # the shadow that the record is not in
    one = logit(shadows[outside, rows, game.labels].double().numpy())
    mine = logit(game.answers[0, rows, game.labels].double().numpy())
    assert found.argsort().tolist() == (mine - one).argsort().tolist()


def test_offline_lira_far_from_the_shadows_does_not_saturate(game):
    p = torch.tensor([1e-30, 1e-20, 1 - 1e-6])
    answers = of_true_class(p)
    shadows = of_true_class(torch.tensor([[0.4] * 3, [0.5] * 3, [0.6] * 3]))
    members = torch.tensor([[True] * 3, [False] * 3, [False] * 3])
    labels = torch.zeros(3, dtype=torch.long)
    found = tailored.score_lira(answers, labels, shadows, members, online=False)
    oracle = lira_by_records(answers, labels, shadows, members, False, False)
    np.testing.assert_allclose(found[:2], oracle[:2], rtol=1e-3)
    assert found[0] < found[1] < -1e4 and found[2] == pytest.approx(0, abs=1e-12)


def rmia_by_pairs(p, reference, members, others, other_references):
    """The oracle: each record against each of the population, in fractions."""
    p, reference, others, other_references = (
        np.vectorize(Fraction, otypes=[object])(x.double().numpy())
        for x in (p, reference, others, other_references)
    )
    num_shadows, scores = len(reference), []
    for i in range(len(p)):
        held = [reference[k, i] for k in range(num_shadows) if members[k, i]]
        free = [reference[k, i] for k in range(num_shadows) if not members[k, i]]
        out = sum(free) / len(free)
        marginal = (sum(held) / len(held) + out) / 2
        beaten = 0
        for j in range(len(others)):
            other_marginal = sum(other_references[:, j]) / num_shadows
            beaten += (p[i] / marginal) / (others[j] / other_marginal) > 1
        scores.append(beaten / len(others))
    return scores


def test_rmia_counts_the_pairs_that_it_wins():
    """In eighths, so that a third of the pairs tie exactly: a tie is not beaten."""
    rng = torch.Generator().manual_seed(0)
    p, others = (torch.randint(1, 9, (3, n), generator=rng) / 8 for n in (40, 16))
    reference, other_references = (
        torch.tensor([2, 4, 8])[torch.randint(3, (1, n), generator=rng)].expand(4, n) / 8
        for n in (40, 16)
    )
    reference = reference.clone()
    reference[:, ::2] = torch.tensor([[1], [3], [5], [7]]) / 8  # and some that differ
    members = torch.zeros(4, 40, dtype=torch.bool)
    members.scatter_(1, training.half_splits(40, 4), True)
    zeros = torch.zeros(40, dtype=torch.long)
    population = of_true_class(others), zeros[:16], of_true_class(other_references)
    asked = zeros, of_true_class(reference), members
    found = tailored.score_rmia(of_true_class(p), *asked, population)
    for k in range(3):
        oracle = rmia_by_pairs(p[k], reference, members, others[k], other_references)
        assert found[k].tolist() == oracle
        assert len(set(oracle)) > 3
    fewer = of_true_class(others * (1 - 1e-6)), *population[1:]
    more = tailored.score_rmia(of_true_class(p), *asked, fewer)  # had ties counted, it would be
    assert (more >= found).all() and (more > found).any()


def test_rmia_by_hand():
    """Ratios: record 0.5 / 0.5 = 1; population 0.5, 1, 1, 2: one is beaten, two tie."""
    label = torch.zeros(1, dtype=torch.long)
    shadows, members = of_true_class([[0.75], [0.25]]), torch.tensor([[True], [False]])
    population = (
        of_true_class([0.25, 0.3, 0.7, 0.5]),
        torch.zeros(4, dtype=torch.long),
        of_true_class([[0.5, 0.3, 0.7, 0.25]] * 2),
    )
    asked = of_true_class([0.5]), label, shadows, members, population
    assert tailored.score_rmia(*asked).tolist() == [0.25]
    # offline the marginal is (1.3 * 0.25 + 0.7) / 2, the ratio 0.976
    assert tailored.score_rmia(*asked, online=False).tolist() == [0.25]
    # and of a record at 0.75 it is 1.46, which beats three
    surer = of_true_class([0.75]), *asked[1:]
    assert tailored.score_rmia(*surer, online=False).tolist() == [0.75]


def test_rmia_knows_a_tie_whatever_the_probabilities():
    """Each ratio is one half exactly, of records and population: no pair is won."""
    p, labels = torch.arange(1, 33) / 64, torch.zeros(32, dtype=torch.long)
    shadows = of_true_class((2 * p).expand(2, 32))
    members = torch.tensor([[True] * 32, [False] * 32])
    population = of_true_class(p), labels, shadows
    found = tailored.score_rmia(of_true_class(p), labels, shadows, members, population)
    assert found.tolist() == [0] * 32


def test_a_record_without_a_side_is_an_error(game):
    def scores(members, **options):
        given = game.answers, game.labels, game.shadow_answers, members
        population = game.answers[:, :5], game.labels[:5], game.shadow_answers[:, :5]
        yield lambda: tailored.score_lira(*given, **options)
        yield lambda: tailored.score_rmia(*given, population, **options)
        if not options:
            yield lambda: tailored.score_calibrated(*given)

    always, never = game.shadow_members.clone(), game.shadow_members.clone()
    always[:, 7], never[:, 7] = True, False
    for calls in (scores(always), scores(never), scores(always, online=False)):
        for call in calls:
            with pytest.raises(ValueError, match="half_splits"):
                call()
    for call in scores(never, online=False):  # needs no shadow with the record
        assert torch.isfinite(call()).all()


def test_sorted_answers():
    found = attack.sorted_answers(torch.tensor([[0.1, 0.2, 0.6, 0.1], [0.0, 1.0, 0.0, 0.0]]))
    logarithms = [math.log(0.6), math.log(0.2), math.log(0.1)]
    assert found.tolist() == [pytest.approx(logarithms), pytest.approx([0, -10, -10])]
    assert attack.sorted_answers(torch.full((2, 5, 2), 0.5)).shape == (2, 5, 2)


def test_the_agnostic_attack_looks_at_sorted_answers(game):
    judges = attack.train_agnostic_attack(
        game.shadow_answers, game.shadow_members, GROUPS, num_steps=20
    )
    scores = attack.score_agnostic(judges, game.answers)
    assert scores.shape == (3, 3, 60)
    turned = attack.score_agnostic(judges, game.answers[..., torch.tensor([3, 0, 4, 1, 2])])
    assert torch.allclose(turned, scores, atol=1e-6)  # whichever class it is
    largest = sorted(game.answers[2, 7].tolist(), reverse=True)[:3]
    asked = torch.tensor([[math.log(p) for p in largest]])
    by_hand = judges.model(1)(asked).softmax(-1)[0, 1]
    assert scores[1, 2, 7] == pytest.approx(by_hand.item(), abs=1e-5)


def test_the_agnostic_attack_learns_from_each_group_alone(game):
    groups = torch.tensor([[0], [3]])
    members = game.shadow_members
    both = attack.train_agnostic_attack(game.shadow_answers, members, groups, num_steps=20)
    scores = attack.score_agnostic(both, game.answers[0])
    assert scores.shape == (2, 60)
    other = game.shadow_answers.clone()
    other[1:] = 0.2  # the first attack model never saw these shadows
    again = attack.train_agnostic_attack(other, members, groups, num_steps=20)
    changed = attack.score_agnostic(again, game.answers[0])
    assert torch.allclose(changed[0], scores[0], atol=1e-5)
    assert not torch.allclose(changed[1], scores[1], atol=1e-3)


def advantages(scores, members):
    """The advantage at every threshold that makes a difference, and at one that all exceed."""
    scores, members = scores.flatten().tolist(), members.flatten().tolist()
    for cut in [-math.inf, *scores]:
        inside = [s > cut for s, m in zip(scores, members, strict=True) if m]
        outside = [s > cut for s, m in zip(scores, members, strict=True) if not m]
        yield Fraction(sum(inside), len(inside)) - Fraction(sum(outside), len(outside))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(8))
def test_the_threshold_is_the_best_on_the_shadows(dtype, seed):
    rng = torch.Generator().manual_seed(seed)
    levels = (3, 12, 10**6)[seed % 3]  # many ties, some, none
    members = torch.rand(3, 15, generator=rng) < 0.4
    drawn = torch.randint(levels, (3, 15), generator=rng) + members * levels // (3 + seed)
    scores = (drawn - levels / 2).to(dtype) / 7
    cut = attack.threshold_from_shadows(scores, members)
    best = max(advantages(scores, members))
    assert metrics.membership_advantage(scores, members, cut) == pytest.approx(
        float(best), abs=1e-12
    )


def test_the_threshold_on_losses(game):
    scores = -attack.losses(game.shadow_answers, game.labels)
    cut = attack.threshold_from_shadows(scores, game.shadow_members)
    best = max(advantages(scores, game.shadow_members))
    found = metrics.membership_advantage(scores, game.shadow_members, cut)
    assert found == pytest.approx(float(best), abs=1e-12) and best > 0.5


@pytest.mark.parametrize("number", [np.float32, np.float64])
@pytest.mark.parametrize("start", [-3.0, 0.0, 0.1, 1e30])
def test_the_threshold_between_neighboring_numbers(number, start):
    below = number(start)
    scores = torch.from_numpy(np.array([below, np.nextafter(below, number(np.inf))]))
    members = torch.tensor([False, True])
    cut = attack.threshold_from_shadows(scores, members)
    assert metrics.membership_advantage(scores, members, cut) == 1
    assert metrics.membership_advantage(scores, ~members, cut) == -1
    worst = attack.threshold_from_shadows(scores, ~members)  # no threshold beats guessing
    assert metrics.membership_advantage(scores, ~members, worst) == 0


@pytest.mark.parametrize(
    ("scores", "members", "message"),
    [
        ([0.1, 0.2], [True, True], "at least one member and one nonmember"),
        ([0.1, 0.2], [False, False], "at least one member and one nonmember"),
        ([0.1, math.nan], [True, False], "1 scores are NaN"),
        ([0.1, 0.2], [1, 0], "truth values, not torch.int64"),
        ([0.1, 0.2, 0.3], [True, False], r"scores \(3,\) but members \(2,\)"),
        ([[0.1, 0.2]], [True, False], r"scores \(1, 2\) but members \(2,\)"),
    ],
)
def test_what_has_no_threshold_is_an_error(scores, members, message):
    with pytest.raises(ValueError, match=message):
        attack.threshold_from_shadows(torch.tensor(scores), torch.tensor(members))


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
    scores = attack.score_members(
        judges, victims.probabilities(pools.victim.images), pools.victim.labels
    )
    assert metrics.auc(scores, victims.membership(100)) > 0.8
