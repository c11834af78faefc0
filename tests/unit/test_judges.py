"""The judges of protected photos, by hand: who trains on what, and what a rate means."""

import math
from dataclasses import replace

import pytest
import torch

from vplib.datasets import faces, files, protections, transforms
from vplib.datasets.imageset import ImageSet
from vplib.victims import judges

SMALL = dict(known=6, tagged=6, probes=4, public=12, photos=4)
QUICK = dict(passes=60, num_others=20)


@pytest.fixture(scope="module")
def parties():
    return judges.rendered(**SMALL)


def photos_of(images, labels=None):
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    names = tuple(map(str, range(int(labels.max()) + 1)))
    return ImageSet(images, labels, names, "photos")


def random_set(people=8, each=4, channels=3, size=24, seed=0):
    """People who differ by their mean color, with noise."""
    rng = torch.Generator().manual_seed(seed)
    centers = torch.rand(people, channels, 4, 4, generator=rng)
    labels = torch.arange(people).repeat_interleave(each)
    images = torch.nn.functional.interpolate(centers[labels], (size, size))
    noise = 0.05 * torch.randn(images.shape, generator=rng)
    return photos_of((images + noise).clamp(0, 1), labels)


def test_parties_share_no_photo_and_no_session(parties):
    public, tagged, probes = parties
    assert not set(public.attributes["person"].tolist()) & set(tagged.attributes["person"].tolist())
    assert tagged.classes == probes.classes
    assert not set(tagged.attributes["session"].tolist()) & set(
        probes.attributes["session"].tolist()
    )
    assert [len(p) for p in parties] == [48, 36, 24]


def test_real_people_are_dealt_out():
    data = random_set(people=9, each=5)
    public, tagged, probes = judges.dealt(data, known=40, seed=3)
    assert [len(p.classes) for p in (public, tagged, probes)] == [5, 4, 4]
    assert (torch.bincount(tagged.labels) == 3).all() and (torch.bincount(probes.labels) == 2).all()
    assert not set(public.classes) & set(tagged.classes) and tagged.classes == probes.classes
    images = [tuple(x.flatten().tolist()) for p in (public, tagged, probes) for x in p.images]
    assert len(set(images)) == 45


def test_a_picture_that_is_there_twice_counts_once(capsys):
    data = random_set(people=9, each=5)
    rows = [*range(45), 0, 7]  # a second copy of two photos
    double = data.subset(rows)
    parts = judges.dealt(double, known=40, seed=3)
    assert capsys.readouterr().out == "2 photos are exact copies of others and left out\n"
    for found, expected in zip(parts, judges.dealt(data, known=40, seed=3), strict=True):
        assert torch.equal(found.images, expected.images)
    assert not capsys.readouterr().out


def test_two_photos_a_person_are_one_tagged_and_one_probe():
    _, tagged, probes = judges.dealt(random_set(people=4, each=2))
    assert (
        torch.bincount(tagged.labels).tolist() == torch.bincount(probes.labels).tolist() == [1, 1]
    )


@pytest.mark.parametrize("people, each", [(1, 9), (3, 9), (9, 1)])
def test_too_few_people(people, each):
    with pytest.raises(ValueError, match="two photos or more; four are needed"):
        judges.dealt(random_set(people, each))


def test_rates_by_hand():
    truth = torch.tensor([0, 0, 1, 1, 1, 4])
    assert judges.named_right(truth, truth).tolist() == [1, 1, 1]  # a perfect recognizer
    blind = torch.zeros(6, dtype=torch.long)
    assert judges.named_right(blind, truth).tolist() == [1, 0, 0]  # always the same name: chance
    some = judges.named_right(torch.tensor([0, 1, 1, 0, 0, -1]), truth)
    torch.testing.assert_close(some, torch.tensor([1 / 2, 1 / 3, 0]))


def test_the_strongest_is_the_one_with_the_largest_mean_and_the_first_of_equals():
    rates = {
        ("naive", "pixels"): torch.tensor([0.2, 0.2]),
        ("parrot", "pixels"): torch.tensor([1.0, 0.0]),
        ("parrot", "network"): torch.tensor([0.5, 0.5]),
    }
    assert judges.strongest(rates)[0] == ("parrot", "pixels")
    assert judges.strongest(rates, "naive")[1].tolist() == pytest.approx([0.2, 0.2])
    with pytest.raises(ValueError, match="no attacker 'reverser'"):
        judges.strongest(rates, "reverser")


def flat(images):
    return images.flatten(1)


def test_the_discriminant_by_hand():
    """Two people at (0, 0) and (4, 0), whose photos differ in the second direction only."""
    tagged = torch.tensor([[0, -1.0], [0, 1], [4, -1], [4, 1]]).view(4, 1, 1, 2)
    names = torch.tensor([0, 0, 1, 1])
    nobody = tagged[:0], names[:0]
    knows = judges.train_recognizer(flat, tagged, names, *nobody)
    asked = torch.tensor([[1.9, 9.0], [2.1, -9.0]]).view(2, 1, 1, 2)
    assert knows(asked).argmax(1).tolist() == [0, 1]


def test_one_tagged_photo_each_is_enough_where_others_show_how_photos_differ():
    rng = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.1, 5.0])
    centers = 2 * torch.randn(20, 2, generator=rng)
    people = torch.arange(20).repeat_interleave(10)
    others = centers[people] + spread * torch.randn(200, 2, generator=rng)
    tagged = torch.tensor([[0.0, 3.0], [1.0, -3.0]]).view(2, 1, 1, 2)
    asked = torch.tensor([[0.1, -3.0], [0.9, 3.0]]).view(2, 1, 1, 2)
    names = torch.tensor([0, 1])
    knows = judges.train_recognizer(flat, tagged, names, others.view(-1, 1, 1, 2), people)
    assert knows(asked).argmax(1).tolist() == [0, 1]
    alone = judges.train_recognizer(flat, tagged, names, others[:0].view(-1, 1, 1, 2), people[:0])
    assert alone(asked).argmax(1).tolist() == [1, 0]


def test_a_name_without_a_tagged_photo_is_never_said():
    data = random_set(people=3)
    kept = data.labels != 1
    nobody = data.images[:0], data.labels[:0]
    knows = judges.train_recognizer(judges.pixels, data.images[kept], data.labels[kept], *nobody)
    scores = knows(data.images)
    assert scores.shape == (12, 3) and (scores[:, 1] == -torch.inf).all()
    assert torch.equal(scores.argmax(1)[kept], data.labels[kept])


def test_one_person_is_always_named():
    data = random_set(people=1)
    knows = judges.train_recognizer(judges.pixels, data.images, data.labels, *[data.labels[:0]] * 2)
    assert knows(data.images).argmax(1).tolist() == [0] * 4


@pytest.mark.parametrize("photos, names", [(0, 0), (3, 2), (2, 3)])
def test_photos_without_names(photos, names):
    images = torch.rand(photos, 3, 8, 8)
    with pytest.raises(ValueError, match="each tagged photo needs a name"):
        judges.train_recognizer(
            flat, images, torch.zeros(names, dtype=torch.long), images[:0], torch.zeros(0)
        )


def test_photos_of_one_color_are_no_error():
    images, labels = torch.full((4, 3, 12, 12), 0.5), torch.tensor([0, 0, 1, 1])
    for look in (judges.pixels, judges.gradients):
        scores = judges.train_recognizer(look, images, labels, images[:0], labels[:0])(images)
        assert scores.isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (9, 9), (32, 32), (62, 47)])
def test_eyes_of_any_size(channels, size):
    images = torch.rand(2, channels, *size)
    assert len(judges.pixels(images)) == 2
    assert judges.gradients(images).shape == (2, 512)
    assert judges.gradients(images).isfinite().all()


def test_gradients_see_the_direction():
    ramp = torch.arange(16.0).div(16).expand(1, 1, 16, 16)
    found = judges.gradients(ramp).view(8, 64).sum(1)
    assert found.argmax() == 0 and found[4] == 0 and found[2] < 1e-3 * found[0]
    assert judges.gradients(ramp.mT).view(8, 64).sum(1).argmax() == 2
    torch.testing.assert_close(judges.gradients(ramp / 4), judges.gradients(ramp))  # contrast


def test_naive_and_parrot_are_one_where_nothing_is_protected(parties):
    found = judges.judge(parties, {"nothing": protections.nothing}, **QUICK)["nothing"]
    for kind in ("pixels", "gradients", "network"):
        assert torch.equal(found.named["naive", kind], found.named["parrot", kind])
    assert torch.equal(found.named["parrot", "clean network"], found.named["naive", "network"])
    assert found.ssim > 0.98 and math.isnan(found.utility)
    assert found.rates["naive", "pixels"].shape == (6,)


def test_a_perfect_reverser_is_the_naive_attacker_on_clean_photos(parties):
    def inverted(photos):
        return 1 - photos.images

    asked = {"nothing": protections.nothing, "inverted": inverted}
    restorers = {"inverted": lambda images: 1 - images}
    found = judges.judge(parties, asked, restorers=restorers, **QUICK)
    for kind in ("pixels", "gradients", "network"):
        clean, restored = found["nothing"].named, found["inverted"].named
        assert torch.equal(clean["naive", kind], restored["reverser", kind])
    assert ("reverser", "pixels") not in found["nothing"].rates


def test_all_black_photos_leave_chance(parties):
    def black(photos):
        return torch.zeros_like(photos.images)

    found = judges.judge(
        parties, {"black": black}, context=protections.black_head, attribute="expression", **QUICK
    )["black"]
    for rates in found.rates.values():
        assert rates.mean() == pytest.approx(1 / 6)  # one name for all
    assert {key[0] for key in found.rates} == {"naive", "parrot", "context"}
    expression = parties.probes.attributes["expression"]
    shares = torch.bincount(expression) / len(expression)
    assert any(found.utility == pytest.approx(share.item()) for share in shares)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda photos: photos.images[:, :1],
        lambda photos: photos.images[1:],
        lambda photos: photos.images * float("nan"),
    ],
)
def test_a_protection_that_is_none(parties, wrong):
    with pytest.raises(ValueError, match="a protection must give finite images"):
        judges.release(wrong, parties.probes)


def test_each_public_photo_is_released_by_one_protection(parties):
    def gray(photos):
        return torch.full_like(photos.images, 0.5)

    mixed = judges.mixture(parties.public, [protections.nothing, gray, gray], seed=1)
    clean = (mixed == files.to_levels(parties.public.images)).flatten(1).all(1)
    grays = (mixed == files.to_levels(torch.tensor(0.5))).flatten(1).all(1)
    assert clean.sum() == 16 and grays.sum() == 32


# protections


def test_what_is_released_is_what_the_file_holds(parties):
    for protection in protections.basic().values():
        released = judges.release(protection, parties.probes.subset(range(3))).images
        assert torch.equal(released, files.to_png(released))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (32, 32), (112, 112)])
def test_basic_protections_take_any_photo(channels, size):
    photos = photos_of(torch.rand(2, channels, *size))
    for name, protection in protections.basic().items():
        assert judges.release(protection, photos).images.shape == (2, channels, *size), name


def test_blur_and_cells_scale_with_the_photo():
    photos = photos_of(torch.rand(2, 3, 32, 32))
    blurred = protections.blur(photos, width=1 / 8)
    torch.testing.assert_close(blurred, transforms.blur(photos.images, 4.0))
    mosaic = protections.cells(photos, number=4)
    assert torch.equal(mosaic, transforms.pixelate(photos.images, 8))
    assert len(mosaic[0, 0].unique()) == 16


def test_the_same_photo_gets_the_same_noise_and_another_one_another():
    photos = photos_of(torch.full((2, 1, 8, 8), 0.5))
    once, again = (protections.noise(photos, scale=0.1, seed=3) for _ in range(2))
    assert torch.equal(once, again) and not torch.equal(once[0], once[1])
    other = protections.noise(photos.subset([0]), scale=0.1, seed=3)
    assert not torch.equal(other[0], once[0])
    assert not torch.equal(protections.noise(photos, scale=0.1, seed=4), once)


def test_bar_and_boxes_cover_eyes_and_heads():
    photos = faces.people(range(4), 3, hat=0, glasses=0)
    barred = protections.eye_bar(photos)
    for image, points in zip(barred, photos.landmarks, strict=True):
        for x, y in points[2:4].round().long().tolist():
            assert image[:, y, x].sum() == 0
        x, y = points[8].round().long().tolist()  # the mouth is free
        assert image[:, y, x].sum() > 0
    boxes = photos.attributes["head_box"]
    inside = transforms.mask(torch.zeros_like(photos.images), boxes, 1.0) > 0
    black, filled = protections.black_head(photos), protections.fill_head(photos)
    assert (black[inside] == 0).all()
    for made in (black, filled):
        assert torch.equal(made[~inside], photos.images[~inside])
    for image, original, where in zip(filled, photos.images, inside, strict=True):
        torch.testing.assert_close(image[0][where[0]].unique(), original[0][where[0]].mean()[None])
    only = protections.within_heads(photos, protections.nothing)
    assert torch.equal(only, photos.images)


def test_a_photo_without_known_places_is_an_upright_face():
    photos = photos_of(torch.ones(1, 3, 100, 100))
    bar = protections.eye_bar(photos)[0, 0]
    assert bar[30:48, 20:80].max() == 0 and bar[:24].min() == 1 and bar[55:].min() == 1
    assert protections.black_head(photos)[0, 0].mean() < 0.3
    unlike = replace(photos, landmarks=torch.rand(1, 5, 2))  # of another kind than ours
    assert torch.equal(protections.eye_bar(unlike), protections.eye_bar(photos))
