"""Label-only attacks: what they ask, what they find, and that masks change nothing."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vplib import datasets, metrics, models, training
from vplib.attacks.membership_label_only import hop_skip_jump as walk
from vplib.attacks.membership_label_only import label_only as attack
from vplib.defenses.output_perturbation import masks
from vplib.victims import endpoint as api

TOLERANCE = 0.01


@pytest.fixture(scope="module")
def setting():
    """Two pools, victims of one of them, and what they say about it."""
    pools = datasets.load("digits", "all").split(victim=120, own=80, seed=1)
    victims = training.fit_many(
        lambda: models.mlp((1, 8, 8), 10, (32,)),
        pools.victim.images,
        pools.victim.labels,
        training.half_splits(120, 4),
        num_epochs=30,
    )
    return pools, victims


class Recorder:
    """A bare callable, from images to labels, that remembers what it was asked."""

    def __init__(self, predict):
        self.predict, self.asked = predict, []

    def __call__(self, images):
        assert images.dtype == torch.float32 and images.ndim == 4
        assert images.min() >= 0 and images.max() <= 1
        self.asked.append(images.clone())
        return self.predict(images).argmax(-1)

    @property
    def queries(self):
        return sum(len(images) for images in self.asked)


def linear(weights, bias):
    """The labels of a linear model of two classes: 1 where w x + b > 0."""
    return lambda images: (images.flatten(1) @ weights + bias > 0).long()


def test_queries_are_exactly_what_was_asked(setting):
    pools, victims = setting
    victim = Recorder(victims.predict(0))
    found = attack.boundary_distances(
        victim, pools.victim.images, pools.victim.labels, pools.own.images, num_steps=4
    )
    assert found.queries.sum() == victim.queries
    assert torch.equal(found.trace_queries[-1], found.queries)
    assert torch.equal(found.trace_distances[-1], found.distances)
    assert (found.trace_distances.diff(dim=0) <= 0).all()
    assert (found.trace_queries.diff(dim=0) >= 0).all()


def test_wrong_records_have_distance_zero_and_cost_one_query(setting):
    pools, victims = setting
    images, labels = pools.victim.images, pools.victim.labels
    predict = victims.predict(0)
    found = attack.boundary_distances(
        Recorder(predict), images, labels, pools.own.images, num_steps=2
    )
    wrong = predict(images).argmax(-1) != labels
    assert wrong.any() and torch.equal(found.distances == 0, wrong)
    assert (found.queries[wrong] == 1).all()
    assert torch.equal(found.points[wrong], images[wrong])


def test_points_lie_within_the_tolerance_of_the_boundary(setting):
    pools, victims = setting
    images, labels = pools.victim.images, pools.victim.labels
    predict = victims.predict(1)
    found = attack.boundary_distances(
        Recorder(predict), images, labels, pools.own.images, num_steps=6, tolerance=TOLERANCE
    )
    right = found.distances > 0
    outside, inside = found.points[right], images[right]
    assert outside.min() >= 0 and outside.max() <= 1
    assert torch.allclose((outside - inside).flatten(1).norm(dim=1), found.distances[right])
    assert (predict(outside).argmax(-1) != labels[right]).all()
    before = torch.lerp(outside, inside, TOLERANCE)
    assert (predict(before).argmax(-1) == labels[right]).all()


@pytest.mark.parametrize("seed", range(3))
def test_distances_on_a_linear_model_are_the_closed_form(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(16, generator=generator)
    images = 0.35 + 0.3 * torch.rand(12, 1, 4, 4, generator=generator)  # the range binds nowhere
    bias = -(images.flatten(1) @ weights).mean()
    predict_label = linear(weights, bias)
    exact = (images.flatten(1) @ weights + bias).abs() / weights.norm()
    labels = predict_label(images)
    candidates = torch.rand(50, 1, 4, 4, generator=generator)
    found = attack.boundary_distances(
        predict_label, images, labels, candidates, num_steps=30, num_directions=200, seed=seed
    )
    assert (found.distances >= exact * (1 - 1e-4)).all()
    assert (found.distances <= exact * 1.05 + 1e-4).all()


def test_no_start_comes_from_the_victims_pool(setting):
    pools, victims = setting
    images, labels = pools.victim.images, pools.victim.labels
    victim = Recorder(victims.predict(0))
    starts = walk.find_starts(victim, labels, pools.own.images, seed=3)
    own = {image.numpy().tobytes() for image in pools.own.images}
    pool = {image.numpy().tobytes() for image in images}
    asked = {image.numpy().tobytes() for image in torch.cat(victim.asked)}
    assert asked <= own and not asked & pool
    assert all(image.numpy().tobytes() in own for image in starts.images)
    assert starts.queries.sum() == victim.queries
    answers = victims.predict(0)(starts.images).argmax(-1)
    assert starts.found.all() and (answers != labels).all()


def test_starts_are_chosen_by_the_victims_labels_alone():
    candidates = torch.rand(10, 1, 4, 4)
    starts = walk.find_starts(lambda x: torch.ones(len(x)).long(), torch.zeros(5).long(),
                                candidates)  # fmt: skip
    assert (starts.queries == 1).all()  # whatever the images show, the first is taken


def test_failed_starts_are_paid_for_and_said(monkeypatch):
    monkeypatch.setattr(walk, "MAX_TRIES", 6)
    images, labels = torch.rand(5, 1, 4, 4), torch.zeros(5, dtype=torch.int64)
    victim = Recorder(lambda x: torch.eye(3)[torch.zeros(len(x), dtype=torch.int64)])
    found = attack.boundary_distances(victim, images, labels, torch.rand(7, 1, 4, 4), num_steps=10)
    assert (found.queries == 7).all() and victim.queries == 35
    assert (found.distances == 4.0).all()  # sqrt(16 pixels): no image is farther
    assert found.trace_queries.shape == found.trace_distances.shape == (11, 5)  # as if it walked


@pytest.mark.parametrize(
    "mask",
    [
        lambda p: masks.top_k(p, 1),
        lambda p: masks.rounded(p, 1),
        lambda p: masks.temperature(p, 20.0),
        masks.MemGuard(lambda p: 5 * (p.amax(-1) - 0.6), budget=1.0, num_steps=20),
    ],
    ids=["top-1", "rounded", "temperature", "MemGuard"],
)
def test_masks_leave_queries_and_distances_equal_bit_for_bit(setting, mask):
    pools, victims = setting
    asked = pools.victim.images[:40], pools.victim.labels[:40], pools.own.images
    predict = victims.predict(0)
    plain = attack.boundary_distances(Recorder(predict), *asked, num_steps=2, num_directions=8)
    masked = attack.boundary_distances(
        Recorder(lambda x: mask(predict(x))), *asked, num_steps=2, num_directions=8
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, masked, strict=True))


def test_an_endpoint_of_labels_is_attacked_unchanged_and_counts_the_same(setting):
    pools, victims = setting
    endpoint = api.Endpoint(victims.predict(2), answers="labels")
    found = attack.boundary_distances(
        endpoint, pools.victim.images, pools.victim.labels, pools.own.images, num_steps=2
    )
    assert endpoint.queries == found.queries.sum()


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_labels_of_any_whole_kind_give_the_same_counts(setting, kind):
    pools, victims = setting
    images, labels = pools.victim.images[:30], pools.victim.labels[:30]
    wide, narrow = (
        attack.boundary_distances(Recorder(victims.predict(0)), images, y, pools.own.images,
                                  num_steps=6, num_directions=30)
        for y in (labels, labels.to(kind))
    )  # fmt: skip
    assert wide.queries.max() > 255  # which eight bits cannot count
    assert all(torch.equal(a, b) for a, b in zip(wide, narrow, strict=True))


def test_a_victim_of_doubles_is_asked_in_doubles():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(16, generator=generator, dtype=torch.float64)
    images = 0.35 + 0.3 * torch.rand(12, 1, 4, 4, generator=generator, dtype=torch.float64)
    bias = -(images.flatten(1) @ weights).mean()
    exact = (images.flatten(1) @ weights + bias).abs() / weights.norm()
    predict_label = linear(weights, bias)  # fails on images of another type
    found = attack.boundary_distances(
        predict_label, images, predict_label(images), torch.rand(50, 1, 4, 4), num_steps=30,
        num_directions=200,
    )  # fmt: skip
    assert found.distances.dtype == torch.float64
    assert (found.distances >= exact * (1 - 1e-9)).all() and (found.distances <= exact * 1.05).all()


def test_records_that_are_many_and_large_are_asked_in_parts(monkeypatch):
    monkeypatch.setattr(walk, "AT_ONCE", 160)
    monkeypatch.setattr(walk, "CHUNK", 160)
    generator = torch.Generator().manual_seed(0)
    weights, images = torch.randn(16), 0.3 + 0.4 * torch.rand(25, 1, 4, 4, generator=generator)
    predict_label = linear(weights, -(images.flatten(1) @ weights).mean())
    labels, candidates = predict_label(images), torch.rand(40, 1, 4, 4, generator=generator)
    asked = []

    def watched(some):
        asked.append(some.numel())
        return predict_label(some)

    starts = walk.find_starts(watched, labels, candidates)
    rows = starts.found
    bounded = walk.hop_skip_jump(
        watched, images[rows], labels[rows], starts.images[rows], num_steps=3
    )
    assert max(asked) <= 160
    monkeypatch.undo()
    whole = walk.hop_skip_jump(
        predict_label, images[rows], labels[rows], starts.images[rows], num_steps=3
    )
    assert torch.equal(bounded.queries, whole.queries)  # and parts walk as the whole does
    assert torch.allclose(bounded.distances, whole.distances, atol=1e-4)
    assert torch.equal(starts.images, walk.find_starts(predict_label, labels, candidates).images)


def test_many_large_records_find_their_starts_in_bounded_memory():
    code = """
import resource, torch
from vplib.attacks.membership_label_only import hop_skip_jump as walk
labels, candidates = torch.zeros(1000).long(), torch.rand(20, 3, 100, 100)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB
before = peak()
starts = walk.find_starts(lambda x: (x[:, 0, 0, 0] > 0.5).long(), labels, candidates)
print(peak() - before)
"""
    grown = float(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert grown < 120 + 60  # MB: what is returned, and a part


def test_the_authors_probe_finds_the_closed_form_too():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(16, generator=generator)
    images = 0.35 + 0.3 * torch.rand(12, 1, 4, 4, generator=generator)
    bias = -(images.flatten(1) @ weights).mean()
    exact = (images.flatten(1) @ weights + bias).abs() / weights.norm()
    predict_label = linear(weights, bias)
    asked = predict_label, images, predict_label(images), torch.rand(50, 1, 4, 4)
    settings = dict(num_steps=30, num_directions=200, probe=1.0)
    found = attack.boundary_distances(*asked, tolerance=16**-1.5, **settings)
    assert (found.distances <= exact * 1.06 + 1e-4).all()


def test_direction_is_the_plain_sum():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(9, generator=generator)
    points = 0.3 + 0.4 * torch.rand(3, 1, 3, 3, generator=generator)
    predict_label = linear(weights, -(points.flatten(1) @ weights).mean())
    directions = torch.randn(40, 1, 3, 3, generator=generator)
    directions /= directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    labels, radii = predict_label(points), torch.tensor([0.9, 0.9, 0.9])
    fast = walk.estimate_direction(predict_label, points, labels, directions, radii)
    for i, point in enumerate(points):
        asked = (point + radii[i] * directions).clamp(0, 1)
        sign = 2.0 * (predict_label(asked) != labels[i]) - 1
        if sign.mean().abs() < 1:
            sign = sign - sign.mean()
        plain = (sign.view(-1, 1, 1, 1) * directions).mean(0)
        assert torch.allclose(plain / plain.norm(), fast[i], atol=1e-5)


def test_direction_is_the_same_in_any_chunks(monkeypatch):
    points, directions = torch.rand(4, 1, 3, 3), torch.randn(10, 1, 3, 3)
    predict_label = linear(torch.randn(9), torch.tensor(0.0))
    asked = predict_label, points, torch.zeros(4).long(), directions, torch.full((4,), 0.3)
    whole = walk.estimate_direction(*asked)
    monkeypatch.setattr(walk, "CHUNK", 1)
    assert torch.allclose(whole, walk.estimate_direction(*asked), atol=1e-6)


def test_the_walk_takes_the_direction_that_it_is_given(setting):
    pools, victims = setting
    asked = victims.predict(0), pools.victim.images[:20], pools.victim.labels[:20], pools.own.images
    predict_label, settings = Recorder(asked[0]), dict(num_steps=2, seed=5)
    usual = attack.boundary_distances(predict_label, *asked[1:], **settings)

    def backwards(*given):
        return -walk.estimate_direction(*given)

    for estimate, same in ((walk.estimate_direction, True), (backwards, False)):
        found = attack.boundary_distances(predict_label, *asked[1:], **settings, estimate=estimate)
        assert torch.equal(found.distances, usual.distances) is same


def test_the_same_seed_gives_the_same_distances(setting):
    pools, victims = setting
    asked = pools.victim.images[:30], pools.victim.labels[:30], pools.own.images
    runs = [
        attack.boundary_distances(Recorder(victims.predict(0)), *asked, num_steps=2, seed=s)
        for s in (5, 5, 6)
    ]
    assert torch.equal(runs[0].distances, runs[1].distances)
    assert not torch.equal(runs[0].distances, runs[2].distances)


def test_shifts_are_all_moves_of_that_distance():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 1
    copies = attack.shifted(image, 2)
    assert copies.shape == (9, 1, 1, 5, 5) and torch.equal(copies[0], image)
    places = {tuple(c[0, 0].nonzero()[0].tolist()) for c in copies[1:]}
    assert places == {(2 + i, 2 + j) for i in range(-2, 3) for j in range(-2, 3)
                      if abs(i) + abs(j) == 2}  # fmt: skip
    assert attack.shifted(torch.ones(1, 1, 5, 5), 1)[1:].sum() == 4 * 20  # zeros move in


def test_rotations_turn_by_plus_and_minus_the_angle():
    image = torch.rand(2, 3, 6, 6)
    copies = attack.rotated(image, 90)
    assert torch.equal(copies[0], image)
    turned = {k: torch.rot90(image, k, (-2, -1)) for k in (1, -1)}
    assert any(torch.allclose(copies[1], t, atol=1e-5) for t in turned.values())
    assert torch.allclose(copies[2].rot90(2, (-2, -1)), copies[1], atol=1e-5)


@given(st.floats(-180, 180), st.integers(2, 9), st.integers(2, 9))
@settings(deadline=None, max_examples=25)
def test_rotations_stay_in_range(degrees, height, width):
    copies = attack.rotated(torch.rand(2, 1, height, width), degrees)
    assert copies.shape == (3, 2, 1, height, width)
    assert copies.min() >= 0 and copies.max() <= 1


def test_copies_attack_learns_from_shadows_which_copies_tell(setting):
    pools, victims = setting
    copies = attack.shifted(pools.victim.images, 1)
    inside = victims.membership(120)
    victim = Recorder(victims.predict(0))
    right = attack.ask_copies(victim, copies, pools.victim.labels)
    assert right.shape == (120, 5) and victim.queries == 600
    answers = victims.probabilities(pools.victim.images)[0]
    assert torch.equal(right[:, 0].bool(), answers.argmax(-1) == pools.victim.labels)
    told = inside[..., None].double().expand(-1, -1, 5)  # each copy gives membership away
    judge = attack.train_copies_attack(told, inside)
    assert metrics.auc(judge(told[0]), inside[0]) == 1.0


X, Y = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64)


def label_zero(images):
    return torch.zeros(len(images), dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: attack.ask_copies(label_zero, X[None, 0], Y),
            r"floats of shape \(N, C, H, W\), not torch.float32 of shape \(1, 4, 4\)",
        ),
        (
            lambda: attack.ask_copies(label_zero, X[None], Y[:2]),
            r"3 records need as many whole labels, not torch.int64 of shape \(2,\)",
        ),
        (lambda: attack.ask_copies(label_zero, 255 * X[None], Y), r"records: .* in \[0, 1\]"),
        (lambda: attack.ask_copies(label_zero, torch.nan * X[None], Y), r"lie in \[0, 1\]"),
        (lambda: attack.ask_copies(label_zero, X[None, :0], Y[:0]), r"shape \(0, "),
        (lambda: attack.ask_copies(label_zero, X[None].round().byte(), Y), "not torch.uint8"),
        (lambda: attack.ask_copies(label_zero, X[None], Y.float()), "not torch.float32"),
        (
            lambda: attack.boundary_distances(label_zero, X, Y, 255 * X, num_steps=1),
            r"start images: .* in \[0, 1\]",
        ),
        (
            lambda: attack.boundary_distances(label_zero, X, Y, X[..., :3], num_steps=1),
            r"the records' shape \(1, 4, 4\), not \(1, 4, 3\)",
        ),
        (
            lambda: attack.boundary_distances(label_zero, X + 1, Y, X, num_steps=1),
            r"must lie in \[0, 1\]",
        ),
        (
            lambda: attack.boundary_distances(label_zero, X, Y, X[:0], num_steps=1),
            "start images must be",
        ),
        (lambda: walk.find_starts(label_zero, Y, X[0]), "start images must be"),
        (lambda: walk.hop_skip_jump(label_zero, X, Y, X, num_steps=1, tolerance=0.0), "tolerance"),
        (lambda: walk.hop_skip_jump(label_zero, X, Y, X, num_steps=1, tolerance=1.0), "tolerance"),
        (lambda: attack.shifted(X, 0), "1 to 3 pixels, not 0"),
        (lambda: attack.shifted(X, 4), "1 to 3 pixels, not 4"),
    ],
)
def test_errors_say_what_was_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
