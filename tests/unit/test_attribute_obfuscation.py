"""Selection, transport, perturbation and readings by hand; and the exercises of the notebook."""

import pytest
import torch
from exercise_cases import assert_judges

from vplib.datasets import faces
from vplib.datasets.imageset import ImageSet
from vplib.images import attribute_obfuscation as hiding
from vplib.images.attribute_obfuscation import exercises, stages
from vplib.nets import eigenfaces


@pytest.mark.parametrize(
    "ones, number, share, t, wanted",
    [
        (10, 10, 0.4, 0.1, 5),
        (0, 10, 0.4, 0.1, 3),
        (4, 10, 0.4, 0.1, 4),
        (10, 10, 0.4, 1.0, 10),
        (7, 10, 0.4, 0.0, 4),
        (3, 3, 0.5, 0.0, 2),  # no third is within 0 of a half: the nearest
        (2, 2, 0.0, 0.0, 0),
        (0, 2, 1.0, 0.3, 2),
    ],
)
def test_the_nearest_number_within_t(ones, number, share, t, wanted):
    assert stages.within_t(ones, number, share, t) == wanted


@pytest.mark.parametrize("share", [0.1, 0.4, 0.77])
@pytest.mark.parametrize("t", [0.0, 0.1, 0.3, 1.0])
def test_every_album_is_t_close_and_few_photos_change(share, t):
    draws = torch.Generator().manual_seed(1)
    albums = torch.arange(30).repeat_interleave(20)[torch.randperm(600, generator=draws)]
    values = (torch.rand(30, generator=draws) < 0.5).long()[albums]
    values = values ^ (torch.rand(600, generator=draws) < 0.2).long()
    before = values.clone()
    shown = hiding.choose(values, albums, share, t, seed=3)
    assert torch.equal(values, before)  # what was given stays as it was
    for album in range(30):
        mine = albums == album
        now, was = shown[mine].float().mean(), values[mine].float().mean()
        assert abs(now - share) <= max(t, 0.5 / 20) + 1e-6  # half a photo, where t is less
        assert (shown != values)[mine].float().mean() == pytest.approx(abs(now - was).item())
        assert abs(now - was) <= max(abs(was - share) - t, 0) + 1 / 20 + 1e-6  # no more than needed
    assert torch.equal(shown, hiding.choose(values, albums, share, t, seed=3))


def test_a_single_photo_is_drawn_with_the_public_share():
    values = torch.ones(2000, dtype=torch.long)
    shown = hiding.choose(values, torch.arange(2000), 0.3, 0.1)
    assert abs(shown.float().mean() - 0.3) < 0.04
    assert torch.equal(hiding.choose(values, torch.arange(2000), 0.3, 1.0), values)


@pytest.mark.parametrize(
    "share, t, albums", [(1.2, 0.1, 4), (0.4, -0.1, 4), (0.4, 2, 4), (0.4, 0.1, 3)]
)
def test_what_cannot_be_chosen(share, t, albums):
    with pytest.raises(ValueError, match="share and t lie in 0 to 1"):
        hiding.choose(torch.zeros(4, dtype=torch.long), torch.zeros(albums), share, t)


def test_transport_gives_the_other_groups_mean_and_covariance_and_comes_back():
    draws = torch.Generator().manual_seed(0)
    values = (torch.arange(20_000) >= 12_000).long()
    codes = torch.randn(20_000, 3, generator=draws, dtype=torch.double)
    mix = torch.tensor([[2.0, 0.5, 0], [0, 1, 0.3], [0, 0, 0.6]], dtype=torch.double)
    codes[values == 1] = codes[values == 1] @ mix + 1
    move = hiding.fit_transport(codes, values)
    moved = move(codes, values)
    for k in (0, 1):
        new, there = moved[values == k], codes[values == 1 - k]
        torch.testing.assert_close(new.mean(0), there.mean(0))
        torch.testing.assert_close(new.T.cov(), there.T.cov(), atol=5e-3, rtol=0)
    torch.testing.assert_close(move(moved, 1 - values), codes)
    half = (codes + moved) / 2  # and halfway, nobody can tell by mean or covariance
    torch.testing.assert_close(
        half[values == 0].T.cov(), half[values == 1].T.cov(), atol=5e-3, rtol=0
    )
    with pytest.raises(ValueError, match="with and without"):
        hiding.fit_transport(codes, torch.zeros(20_000, dtype=torch.long))


def test_perturbation_stays_within_epsilon_and_is_not_recognized():
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(3 * 8 * 8, 4, generator=torch.Generator().manual_seed(2))

    def surrogate(x):
        return torch.nn.functional.normalize((x - 0.5).flatten(1) @ weights, dim=1)

    made = stages.perturb(images, surrogate, epsilon=0.1)
    assert (made - images).abs().max() <= 0.1 + 1e-6 and 0 <= made.min() <= made.max() <= 1
    assert ((surrogate(made) * surrogate(images)).sum(1) < 0.5).all()
    assert torch.equal(stages.perturb(images, surrogate, epsilon=0.0), images)


def bright(images):
    """Scores of an "attribute" that is the image's brightness."""
    high = 40 * (images.mean((1, 2, 3)) - 0.5)
    return torch.stack([-high, high], 1) / 2


@pytest.fixture(scope="module")
def tools():
    draws = torch.Generator().manual_seed(4)
    images = (0.5 + 0.05 * torch.randn(200, 1, 4, 4, generator=draws)).clamp(0, 1)
    images[100:] = (images[100:] + 0.3).clamp(0, 1)
    images[:100] = (images[:100] - 0.3).clamp(0, 1)
    values = (torch.arange(200) >= 100).long()
    coder = eigenfaces.fit_eigenfaces(images, 8)
    move = hiding.fit_transport(coder.encode(images), values)
    photos = ImageSet(images, torch.arange(20).repeat_interleave(10), tuple(map(str, range(20))))
    return hiding.Tools(coder, bright, move, lambda x: x.flatten(1), 0.5), photos, values


def test_inversion_inverts_and_scrubbing_makes_uncertain(tools):
    tools, photos, values = tools
    assert torch.equal(bright(hiding.invert(photos, tools)).argmax(1), 1 - values)
    scrubbed = hiding.scrub(photos, tools)
    assert hiding.entropy(bright(scrubbed)).mean() > 0.8
    assert hiding.entropy(bright(photos.images)).mean() < 0.05
    amount = hiding.interpolate(photos.images, values, tools, torch.zeros(200))
    torch.testing.assert_close(amount, tools.faces.decode(tools.faces.encode(photos.images)))


def test_each_stage_of_anonymizing_can_be_switched_off(tools):
    tools, photos, values = tools
    shown = bright(hiding.anonymize(photos, tools, t=0.1)).argmax(1).view(20, 10).float().mean(1)
    assert ((shown - 0.5).abs() <= 0.1 + 1e-6).all()
    kept = hiding.anonymize(photos, tools, t=1.0)
    assert torch.equal(bright(kept).argmax(1), values)
    again = ImageSet(photos.images * 0.999, photos.labels, photos.classes)
    ways = [hiding.anonymize(x, tools, t=0.1, epsilon=0.01) - x.images for x in (photos, again)]
    assert (ways[0] - ways[1]).abs().max() > 0.01  # other photos, other coins, row by row
    same = hiding.anonymize(photos, tools, t=0.1, generates=False)
    assert torch.equal(same, photos.images)
    guessed = bright(hiding.anonymize(photos, tools, t=0.1, estimates=False)).argmax(1)
    assert 0.6 < (guessed == values).float().mean() < 1


def test_balanced_readings_and_how_people_move_them():
    truth, people = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([3, 3, 5, 5, 9])
    found = torch.tensor([1.0, 0, 1, 1, 0])
    rates = hiding.over_people(found, truth, people)
    assert len(rates) == 3 and rates.mean() == pytest.approx((2 / 3 + 1 / 2) / 2)
    torch.testing.assert_close(hiding.over_people(torch.ones(5), truth, people), torch.ones(3))
    with pytest.raises(ValueError, match="with and without"):
        hiding.over_people(found, torch.zeros(5, dtype=torch.long), people)


def test_standard_errors_are_those_of_repeated_draws():
    draws, means, errors = torch.Generator().manual_seed(5), [], []
    people = torch.arange(100).repeat_interleave(5)
    truth = (torch.arange(100) < 30).long()[people]
    for _ in range(300):
        skill = torch.rand(100, generator=draws)[people]
        rates = hiding.over_people(torch.rand(500, generator=draws) < skill, truth, people)
        means.append(rates.mean())
        errors.append(rates.std() / 10)
    assert torch.stack(means).std() == pytest.approx(torch.stack(errors).mean().item(), rel=0.15)


def test_who_knows_what_was_changed_reads_what_others_cannot():
    # Changed photos show the opposite, at another place: by their mean nobody reads them.
    draws = torch.Generator().manual_seed(6)
    values = (torch.rand(4000, generator=draws) < 0.4).long()
    changed = (torch.rand(4000, generator=draws) < 0.5).long()
    place = torch.tensor([[0.0, 8.0], [12.0, -4.0]])[changed, values]
    seen = {"eyes": torch.stack([place, torch.zeros(4000)], 1)}
    seen["eyes"] = seen["eyes"] + torch.randn(4000, 2, generator=draws)
    public, asked = ({"eyes": x} for x in seen["eyes"].split(2000))
    found = hiding.read_attribute(public, values[:2000], asked, changed[:2000])
    assert list(found) == ["eyes", "knows, eyes"]
    right = {who: (s.argmax(1) == values[2000:]).float().mean() for who, s in found.items()}
    assert right["eyes"] < 0.8 and right["knows, eyes"] > 0.95
    nobody = torch.zeros(2000, dtype=torch.long)
    for all_alike in (None, nobody, nobody + 1):
        assert list(hiding.read_attribute(public, values[:2000], asked, all_alike)) == ["eyes"]
    only = changed[:2000] * (1 - values[:2000])  # with the attribute, none was changed
    scores = hiding.read_attribute(public, values[:2000], asked, only)["knows, eyes"]
    assert scores.shape == (2000, 2) and not scores.isnan().any()
    naive = hiding.train_readers(public, values[:2000])
    torch.testing.assert_close(naive(asked)["eyes"], found["eyes"])


def test_missing_bits_of_sure_unsure_and_too_sure_readers():
    truth, people = torch.tensor([0, 1] * 500), torch.arange(1000) % 50
    right = 2 * truth - 1.0
    assert hiding.missing_bits(torch.stack([0 * right, 50 * right], 1), truth, people).mean() < 1e-3
    nothing = torch.zeros(1000, 2)
    assert hiding.missing_bits(nothing, truth, people).mean() == pytest.approx(1)
    draws = torch.Generator().manual_seed(7)
    right = torch.where(torch.rand(1000, generator=draws) < 0.9, right, -right)
    entropy = -(0.9 * torch.tensor(0.9).log2() + 0.1 * torch.tensor(0.1).log2())
    for sure in (1, 30):  # a reader that is right nine times of ten, however sure it says it is
        scores = torch.stack([0 * right, sure * right], 1)
        bits = hiding.missing_bits(scores, truth, people)
        assert len(bits) == 50 and bits.mean() == pytest.approx(entropy.item(), abs=0.06)


def test_entropy_in_bits():
    scores = torch.tensor([[0.0, 0.0], [0.0, 100.0], [0.0, 3.0]]).log_softmax(1)
    p = torch.tensor(3.0).sigmoid()
    bits = -(p * p.log2() + (1 - p) * (1 - p).log2())
    torch.testing.assert_close(
        hiding.entropy(scores), torch.stack([torch.tensor(1.0), 0 * p, bits])
    )


def test_attributes_of_rendered_faces_of_celeba_and_of_any_photo():
    photos = faces.people(range(6), 4)
    assert list(hiding.attributes_of(photos, photos)) == ["beard", "long_hair", "glasses", "hat"]
    named = {name: torch.tensor([True, False]) for name in ("No_Beard", "Smiling")}
    named |= {name: torch.tensor([False, True]) for name in ("Eyeglasses", "Wearing_Hat")}
    two = ImageSet(torch.rand(2, 3, 8, 8), torch.arange(2), ("a", "b"), attributes=named)
    found = hiding.attributes_of(two, two)
    assert found["beard"].tolist() == [0, 1] and found["smile"].tolist() == [1, 0]
    images = torch.full((4, 1, 10, 10), 0.5)
    images[:2, :, :2] = 0.1  # a dark top
    images[::2, :, :, :5] += 0.2  # a light left half
    any_set = ImageSet(images, torch.arange(4), tuple("abcd"))
    found = hiding.attributes_of(any_set, any_set)
    assert found["dark_top"].tolist() == [1, 1, 0, 0] and found["left_light"].tolist() == [1, 0] * 2


CASES = {
    "target": [
        (lambda o, n, p, t: round(n * p), "as few photos"),
        (lambda o, n, p, t: min(max(o, n * (p - t)), n * (p + t)) / n, "not a share"),
        (lambda o, n, p, t: {10: 6, 0: 2, 4: 4}[o], "round inwards"),
        (lambda o, n, p, t: 5 if o > 3 else 3, "stays as it is"),
    ],
    "bits": [
        (lambda p: -(p * p.log() + (1 - p) * (1 - p).log()), "nats"),
        (lambda p: -p * p.log2(), "both answers"),
        (lambda p: p * p.log2() + (1 - p) * (1 - p).log2(), "not negative"),
    ],
    "transport": [
        (lambda x, a, b: x - a[0] + b[0], "the spread"),
        (lambda x, a, b: b[0] + (x - a[0]) * a[1] / b[1], "wrong way round"),
        (lambda x, a, b: x * b[1] / a[1], "subtract the mean"),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_exercises(name):
    assert_judges(exercises, name, CASES[name])
