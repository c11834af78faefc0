"""PRADA's detector on hand-made streams, poisons within their constraints, and the monitor."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import norm, shapiro
from sklearn.tree import DecisionTreeClassifier

from vplib import models
from vplib.defenses import extraction_defenses as defense
from vplib.defenses.extraction_defenses import exercises as ex
from vplib.defenses.extraction_defenses import monitor
from vplib.victims import endpoint, http


def points(*values):
    """Queries of one pixel."""
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None]


def by_sign(queries):
    return (queries.flatten(1)[:, 0] < 0).long()


def one_class(queries):
    return torch.zeros(len(queries), dtype=torch.int64)


def watched(queries, label=one_class, delta=0.0):
    watch = defense.Watch(label, delta)
    watch.observe("user", queries)
    return watch.users["user"]


def test_growing_sets_by_hand():
    seen = watched(points(0, 10, 4, 5, 5.4, -1, -3, 5.5, 5.5, 5.0), by_sign)
    # of class 0: 10 from 0; 4 from 0; 5 from 4; 5.4 from 5 is nearer than the threshold and does
    # not enter, so that 5.5 is 0.5 from 5, too, and 5.0 repeats a member
    assert seen.distances == pytest.approx([10, 4, 1, 0.4, 2, 0.5, 0.5, 0])
    entered = [0, 10, 4, 1]
    threshold = np.mean([0, 10, 4]) - np.std([0, 10, 4])
    assert np.mean(entered) - np.std(entered) < threshold  # and a threshold never falls
    assert seen.thresholds == pytest.approx({0: threshold, 1: 0.0})
    assert [float(m[0]) for m in seen.sets[0]] == [0, 10, 4, 5]
    assert seen.set_distances[0] == pytest.approx(entered)
    assert [float(m[0]) for m in seen.sets[1]] == [-1, -3]
    assert (seen.queries, seen.refused, seen.alarm_at, seen.tests) == (10, 0, None, [])


def test_distances_are_euclidean_over_all_pixels():
    queries = torch.zeros(2, 1, 2, 2)
    queries[1, 0, 0] = torch.tensor([3.0, 4.0])
    assert watched(queries).distances == [5.0]


def test_the_first_query_of_a_class_has_no_distance():
    seen = watched(points(1, -1), by_sign)
    assert seen.distances == [] and seen.queries == 2 and len(seen.sets) == 2


def test_equal_queries_have_distance_zero_and_do_not_enter():
    seen = watched(points(*[0.5] * 300), delta=0.99)
    assert seen.distances == [0.0] * 299 and len(seen.sets[0]) == 1
    assert [w for _, w in seen.tests] == [1.0] * len(seen.tests) and seen.alarm_at is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_queries_that_are_not_finite_are_refused_and_leave_no_trace(bad):
    seen = watched(points(0, bad, 1, bad, 3))
    assert (seen.queries, seen.refused, seen.distances) == (3, 2, [1.0, 2.0])
    alone = watched(points(bad))
    assert (alone.queries, alone.refused, alone.distances) == (0, 1, [])


def test_no_queries_change_nothing():
    watch = defense.Watch(one_class, 0.9)
    assert watch.observe("user", torch.zeros(0, 1, 2, 2)) is False
    assert watch.observe("user", torch.rand(3, 1, 4, 4)) is False  # whatever the empty one's shape
    assert watch.users["user"].queries == 3


@pytest.mark.parametrize(
    "queries",
    [[1.0], torch.rand(3, 2, 2), torch.zeros(3, 1, 2, 2, dtype=torch.uint8), None],
)
def test_what_is_no_batch_of_images_is_refused(queries):
    with pytest.raises(ValueError, match=r"floating point \(N, C, H, W\)"):
        defense.Watch(one_class).observe("user", queries)


def test_another_shape_is_refused():
    def particular(queries):
        return (queries.flatten(1) @ torch.ones(16) > 8).long()  # fails on any other shape

    watch = defense.Watch(particular)
    watch.observe("user", torch.rand(2, 1, 4, 4))
    with pytest.raises(ValueError, match="one shape"):
        watch.observe("another", torch.rand(2, 1, 3, 4))
    assert watch.users["user"].queries == 2 and "another" not in watch.users


@pytest.mark.parametrize("delta", [-0.1, 1.1, float("nan")])
def test_delta_must_be_a_w(delta):
    with pytest.raises(ValueError, match="delta must lie in 0..1"):
        defense.Watch(one_class, delta)


def test_normality_against_scipy_after_outliers():
    values = np.random.default_rng(0).normal(5, 1, 200)
    assert defense.normality(values) == pytest.approx(shapiro(values).statistic)
    spoiled = [*values, 500.0]
    assert shapiro(spoiled).statistic < 0.2
    assert defense.normality(spoiled) == pytest.approx(shapiro(values).statistic)
    assert defense.normality([*values, np.nan]) == pytest.approx(defense.normality(values))


def test_normality_needs_more_than_a_hundred():
    values = np.random.default_rng(0).normal(size=101)
    assert np.isnan(defense.normality(values[:100])) and defense.normality(values) > 0.9
    assert np.isnan(defense.normality([]))


def with_distances(distances):
    """Queries of one class whose distances are these: each on an axis of its own, the first at 0.

    The origin is then nearest to each, for two axes are further apart than either from it.
    """
    queries = torch.zeros(len(distances) + 1, 1, 1, len(distances), dtype=torch.float64)
    queries[1:, 0, 0] = torch.tensor(distances, dtype=torch.float64).diag()
    return queries


def test_alarms_of_streams_whose_distances_are_known():
    bell = np.random.default_rng(0).permutation(9 + norm.ppf((np.arange(150) + 0.5) / 150))
    two = np.arange(150) % 2 + 1.0
    for distances, alarm in ((bell, None), ([*bell[:120], 90, 80, *bell[120:]], None), (two, 110)):
        seen = watched(with_distances(distances), delta=0.9)
        assert seen.distances == pytest.approx(list(distances))
        # 101 distances are there after 102 queries: the next test follows the 110th
        assert [n for n, _ in seen.tests] == list(range(110, len(distances) + 2, 10))
        for n, w in seen.tests:
            so_far = np.array(distances[: n - 1])
            inside = so_far[np.abs(stats.zscore(so_far)) <= 3]
            assert len(inside) == sum(so_far < 80) and w == pytest.approx(shapiro(inside).statistic)
        assert seen.alarm_at == alarm


def test_an_alarm_comes_at_a_test_and_stays():
    rng = np.random.default_rng(0)
    made = points(*np.where(np.arange(400) % 2, 0, 1000) + np.arange(400.0) ** 2)
    watch = defense.Watch(one_class, 0.9)
    alarms = [watch.observe("user", part) for part in made.split(50)]
    seen = watch.users["user"]
    assert seen.alarm_at is not None and seen.alarm_at % 10 == 0 and seen.alarm_at > 100
    assert alarms == [at * 50 >= seen.alarm_at for at in range(1, 9)]
    assert all(n % 10 == 0 for n, _ in seen.tests)
    again = [watch.observe("user", points(*rng.random(10)))]
    assert again == [True] and watch.observe("another", made[:50]) is False


def test_parts_are_as_good_as_the_whole():
    queries = torch.rand(250, 1, 4, 4)
    watch = defense.Watch(lambda q: (q.mean((1, 2, 3)) > 0.5).long())
    for part in queries.split(7):
        watch.observe("user", part)
    whole = watched(queries, lambda q: (q.mean((1, 2, 3)) > 0.5).long())
    assert watch.users["user"].distances == whole.distances
    assert watch.users["user"].tests == whole.tests


def test_one_user_split_into_ten_is_never_tested_below_a_hundred():
    queries = torch.rand(900, 1, 4, 4)
    watch = defense.Watch(one_class, 1.0)
    said = [watch.observe(user, queries[user::10]) for user in range(10)]
    assert not any(said) and {s.queries for s in watch.users.values()} == {90}
    assert all(s.tests == [] for s in watch.users.values())
    assert watch.observe("alone", queries) is True  # delta is 1: whoever is tested is accused


def test_ten_users_at_once_are_counted_right():
    streams = torch.rand(10, 230, 1, 4, 4)
    watch = defense.Watch(lambda q: (q.mean((1, 2, 3)) > 0.5).long(), 0.9)
    errors = []

    def ask(user):
        try:
            for part in streams[user].split(23):
                watch.observe(user, part)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(user,)) for user in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(watch.users) == 10
    for user, stream in enumerate(streams):
        alone = watched(stream, lambda q: (q.mean((1, 2, 3)) > 0.5).long())
        assert watch.users[user].queries == 230
        assert watch.users[user].distances == alone.distances
        assert watch.users[user].tests == alone.tests


def test_an_endpoint_with_a_watch_counts_and_refuses_as_before():
    watch = defense.Watch(one_class, 0.9)

    def answer(images):
        watch.observe("user", images)
        return torch.full((len(images), 3), 1 / 3)

    service = endpoint.Endpoint(answer)
    service(torch.rand(5, 1, 4, 4))
    for bad in (torch.full((2, 1, 4, 4), float("nan")), torch.zeros(0, 1, 4, 4)):
        with pytest.raises(ValueError):
            service(bad)
    assert service.queries == watch.users["user"].queries == 5


@pytest.mark.skipif(not http.can_serve(), reason="the extra `serve` is not installed")
def test_ten_users_at_once_over_http_with_queries_that_try_the_service():
    def label(queries):
        return (queries.mean((1, 2, 3)) > 0.5).long()

    watch = defense.Watch(label, 0.5)
    streams = torch.rand(10, 130, 1, 4, 4)
    streams[0] = streams[0, :1]  # one query, again and again
    found = {}

    def ask(user):
        def answer(images):
            watch.observe(user, images)
            return torch.full((len(images), 3), 1 / 3)

        with http.serve(endpoint.Endpoint(answer)) as service:
            client = http.Client(service.url)
            said = [len(client(part)) for part in streams[user].split(50)]
            for bad in (torch.full((2, 1, 4, 4), torch.nan), torch.zeros(0, 1, 4, 4)):
                with pytest.raises(ValueError):
                    client(bad)
            found[user] = sum(said), client.queries

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(ask, range(10)))
    assert found == dict.fromkeys(range(10), (130, 130))
    assert {seen.queries for seen in watch.users.values()} == {130} and len(watch.users) == 10
    assert watch.users[0].distances == [0.0] * 129 and watch.users[0].alarm_at is None
    assert watch.users[7].distances == watched(streams[7], label).distances


def test_delta_from_honest_users():
    assert defense.choose_delta([0.9, 0.94]) == pytest.approx(0.92 - 4 * 0.02 * 2**0.5)
    for bad in ([0.9], [], [0.9, float("nan")]):
        with pytest.raises(ValueError, match="two or more honest users"):
            defense.choose_delta(bad)


def answers_of(draw, classes, rows=4):
    number = st.floats(0, 1, width=32)
    values = draw(st.lists(number, min_size=rows * classes, max_size=rows * classes))
    values = torch.tensor(values).view(rows, classes) + 1e-6
    return values / values.sum(-1, keepdim=True)


@st.composite
def poisonable(draw):
    classes = draw(st.integers(2, 6))
    return answers_of(draw, classes), answers_of(draw, classes)


@settings(max_examples=200, deadline=None)
@given(poisonable(), st.floats(0, 2), st.booleans())
def test_mad_stays_on_the_simplex_and_within_its_budget(pair, budget, keep):
    y, proxy = pair
    found = defense.mad(y, proxy, budget, keep)
    assert found.shape == y.shape and found.isfinite().all()
    assert (found >= -1e-6).all()
    assert found.sum(-1).sub(1).abs().max() < 1e-5
    assert (found - y).abs().sum(-1).max() <= budget + 1e-5
    if keep:
        assert torch.equal(found.argmax(-1), y.argmax(-1))


def gradient(weights, inputs, answer):
    """The gradient by which a network of one layer would learn from one answer."""
    weights = weights.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(weights @ inputs, answer)
    return torch.autograd.grad(loss, weights)[0].flatten()


def by_brute_force(y, weights, inputs, budget, keep):
    """MAD of one answer: each corner tried, each gradient taken; and how far it turns it."""
    label, best, largest = int(y.argmax()), y, -1.0
    for size in range(1, len(y) + 1) if keep else (1,):
        for chosen in itertools.combinations(range(len(y)), size):
            if keep and label not in chosen:
                continue
            corner = torch.zeros_like(y)
            corner[list(chosen)] = 1 / size
            u, v = gradient(weights, inputs, corner), gradient(weights, inputs, y)
            turned = (u / u.norm() - v / v.norm()).square().sum().item()
            if turned > largest + 1e-6:
                best, largest = corner, turned
    return y + min(1.0, budget / float((best - y).abs().sum())) * (best - y)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("classes", [3, 5])  # of two, all gradients are parallel, and corners tie
def test_mad_against_brute_force(classes, keep):
    generator = torch.Generator().manual_seed(classes)
    for budget in (0.2, 0.6, 1.0, 2.0):
        weights = torch.randn(classes, 4, generator=generator, dtype=torch.float64)
        inputs = torch.randn(12, 4, generator=generator, dtype=torch.float64)
        ys = (2 * torch.randn(12, classes, generator=generator, dtype=torch.float64)).softmax(-1)
        found = defense.mad(ys, (inputs @ weights.T).softmax(-1), budget, keep)
        pairs = zip(ys, [weights] * 12, inputs, strict=True)
        oracle = (by_brute_force(*one, budget, keep) for one in pairs)
        assert torch.allclose(found, torch.stack(list(oracle)), atol=1e-6)


def test_mad_of_no_budget_and_of_all():
    y, proxy = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.2, 0.5, 0.3]])
    assert torch.equal(defense.mad(y, proxy, 0.0), y)
    assert sorted(defense.mad(y, proxy, 2.0)[0].tolist()) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3) / 3, torch.ones(2, 3) / 3, 2.1), "lies in 0..2"),
        ((torch.ones(2, 3) / 3, torch.ones(2, 3) / 3, float("nan")), "lies in 0..2"),
        ((torch.ones(2, 3) / 3, torch.ones(2, 4) / 4, 1.0), r"not \(N, classes\) each"),
        ((torch.ones(3) / 3, torch.ones(3) / 3, 1.0), r"not \(N, classes\) each"),
        ((torch.ones(2, 13) / 13, torch.ones(2, 13) / 13, 1.0, True), "too many subsets"),
    ],
)
def test_mad_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        defense.mad(*arguments)


def sure_answers(rows=500, classes=10, scale=4.0):
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(rows, classes, generator=generator)).softmax(-1)


@pytest.mark.parametrize("budget", [0.25, 0.5, 1.0, 1.4])
def test_mad_is_undone_by_its_budget(budget):
    y, proxy = sure_answers(), sure_answers(scale=0.2)
    found = defense.mad(y, proxy, budget)
    assert (found - y).abs().sum(-1).mean() > 0.9 * budget
    back = (defense.undo_mad(found, budget) - y).abs().sum(-1)
    assert (back < 1e-4).float().mean() > 0.9
    assert torch.allclose(defense.undo_mad(found, budget).sum(-1), torch.ones(len(y)))


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0, 60.0])
def test_masks_that_keep_the_label_keep_it_bit_for_bit(scale):
    y = sure_answers(scale=scale)
    proxy = sure_answers(scale=0.3).flip(0)
    masked = [defense.reverse_sigmoid(y, beta, 0.2) for beta in (0.0, 0.5, 0.9, 1.5)]
    masked += [defense.mad(y, proxy, budget, keep=True) for budget in (0.3, 1.0, 2.0)]
    masked += [defense.equal_noise(y, masked[1])]
    for found in masked:
        assert torch.equal(found.argmax(-1), y.argmax(-1))
        assert found.isfinite().all() and (found >= 0).all()
        assert found.sum(-1).sub(1).abs().max() < 1e-4


def test_reverse_sigmoid_by_hand_and_its_range():
    y = torch.tensor([0.9, 0.07, 0.03], dtype=torch.float64)
    moved = [p - 0.9 * (1 / (1 + (p / (1 - p)) ** -0.2) - 0.5) for p in y.tolist()]
    right = torch.tensor(moved, dtype=torch.float64) / sum(moved)
    assert torch.allclose(defense.reverse_sigmoid(y, 0.9, 0.2), right)
    tiny = torch.tensor([0.99, 0.009, 0.001])
    found = defense.reverse_sigmoid(tiny, 0.9, 0.2)
    assert found[2] > found[1]  # the less likely class stands above the other
    for beta, gamma in ((-0.1, 0.2), (0.9, 0.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="beta must be 0 or more"):
            defense.reverse_sigmoid(y, beta, gamma)


def test_equal_noise_is_as_large_as_the_poison():
    y = sure_answers()
    poisoned = defense.mad(y, sure_answers(scale=0.2), 0.5)
    noisy = defense.equal_noise(y, poisoned, seed=1)
    size = (noisy - y).abs().sum(-1)
    assert (size - 0.5).abs().mean() < 0.02
    assert torch.equal(noisy, defense.equal_noise(y, poisoned, seed=1))
    assert not torch.equal(noisy, defense.equal_noise(y, poisoned, seed=2))


def test_misinformation_changes_over_at_tau():
    y = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]])
    wrong = torch.tensor([[0.0, 1.0], [0.1, 0.9], [0.0, 1.0]])
    found = defense.misinform(y, wrong, 0.8)
    assert torch.allclose(found, torch.stack([y[0], wrong[1], (y[2] + wrong[2]) / 2]), atol=1e-3)


def test_information_gain_against_a_tree():
    rng = np.random.default_rng(0)
    x = rng.random((200, 3))
    labels = (x[:, 0] > 0.5) * 2 + (x[:, 1] > 0.3)
    tree = DecisionTreeClassifier(criterion="entropy").fit(x, labels)
    assert defense.information_gain(tree.apply(x), labels) == pytest.approx(monitor.entropy(labels))
    stump = DecisionTreeClassifier(criterion="entropy", max_depth=1).fit(x, labels)
    impurity, count = stump.tree_.impurity, stump.tree_.weighted_n_node_samples
    right = impurity[0] - (count[1] * impurity[1] + count[2] * impurity[2]) / count[0]
    assert defense.information_gain(stump.apply(x), labels) == pytest.approx(right)
    assert defense.information_gain(np.zeros(200), labels) == pytest.approx(0)
    assert monitor.entropy(np.array([])) == 0 and monitor.entropy(np.array([0, 1])) == 1


def test_coverage_adds_colluding_users_up():
    weights = np.array([0, 6, 3, 1])
    one, other = np.array([1, 1]), np.array([2])
    assert defense.coverage(one, weights) == 0.6
    assert defense.coverage(np.concatenate([one, other]), weights) == 0.9
    assert defense.coverage(np.array([]), weights) == 0


def test_augmented_queries_double_and_lie_one_step_away():
    asked = []

    def label(images):
        asked.append(len(images))
        return (images.mean((1, 2, 3)) > 0.5).long()

    start = 0.3 + 0.4 * torch.rand(8, 1, 4, 4)
    queries, labels = defense.augment(label, lambda: models.mlp((1, 4, 4), 2), start, 2, 0.1, 0)
    assert asked == [8, 8, 16] and queries.shape == (32, 1, 4, 4) and labels.shape == (32,)
    assert torch.equal(queries[:8], start)
    assert torch.allclose((queries[8:16] - start).abs(), torch.full_like(start, 0.1), atol=1e-6)


def test_lines_end_at_the_border():
    values = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.4])
    images = values[:, None, None, None].expand(6, 1, 2, 2)

    def label(images):
        return (images.mean((1, 2, 3)) > 0.53).long()

    queries, labels = defense.search_lines(label, images, halvings=8)
    # pairs 0.1 and 0.8, 0.9 and 0.3; 0.2 and 0.4 have one label
    assert len(queries) == 6 + 2 * 8 == len(labels)
    assert (queries[-2:].mean((1, 2, 3)) - 0.53).abs().max() < 0.7 / 2**7
    none, _ = defense.search_lines(one_class, images, halvings=8)
    assert torch.equal(none, images)


SOLUTIONS = {
    name: (getattr(ex, f"check_{name}"), getattr(ex, f"solve_{name}"))
    for name in ("alarm", "growing_distances", "undo")
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_solution_is_right(name):
    check, solve = SOLUTIONS[name]
    assert check(solve).startswith("right: ")
    assert check(lambda *given: None) is None


def alarm(distances, delta, fewest=100, outliers=3.0, side=np.abs, of="statistic"):
    if len(distances) <= fewest:
        return False
    inside = side(distances - distances.mean()) <= outliers * distances.std()
    return getattr(shapiro(distances[inside]), of) < delta


def no_sets(queries, labels):
    every = [min(float((q - p).norm()) for p in queries[:i]) for i, q in enumerate(queries) if i]
    return torch.tensor(every)


def all_enter(queries, labels):
    found = []
    for i, query in enumerate(queries):
        before = [q for q, c in zip(queries[:i], labels[:i], strict=True) if c == labels[i]]
        found += [min(float((query - q).norm()) for q in before)] if before else []
    return torch.tensor(found)


def not_scaled(answer, budget):
    found = answer.clone()
    found[answer.argmax()] -= budget / 2
    return found


@pytest.mark.parametrize(
    ("name", "attempt", "said"),
    [
        ("alarm", lambda d, delta: alarm(d, delta, fewest=3), "up to 100"),
        ("alarm", alarm, "right: "),
        ("alarm", lambda d, delta: alarm(d, 0.05, of="pvalue"), "not the p-value"),
        ("alarm", lambda d, delta: alarm(d, delta, outliers=99), "outliers first"),
        ("alarm", lambda d, delta: alarm(d, delta, side=np.asarray), "on both sides"),
        ("alarm", lambda d, delta: defense.normality(d), "True or False"),
        ("growing_distances", no_sets, "a set of its own"),
        ("growing_distances", all_enter, "too near does not enter"),
        ("undo", not_scaled, "scale the other classes back"),
        ("undo", lambda answer, budget: answer, "the largest entry is"),
    ],
)
def test_a_mistake_is_named(name, attempt, said):
    assert said in SOLUTIONS[name][0](attempt)
