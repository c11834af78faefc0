"""Albums, joint inference and restored blur, by hand; and the exercises of the notebook."""

import pytest
import torch
from exercise_cases import assert_judges

from vplib.datasets import faces, files, protections
from vplib.images import obfuscation
from vplib.images.obfuscation import exercises
from vplib.victims import judges


@pytest.fixture(scope="module")
def photos():
    return faces.people(range(6), 6, sessions=2)


def test_events_are_people_on_a_day(photos):
    found = obfuscation.events(photos)
    both = list(zip(photos.labels.tolist(), photos.attributes["session"].tolist(), strict=True))
    groups = {
        g: {b for b, f in zip(both, found.tolist(), strict=True) if f == g} for g in range(12)
    }
    assert all(len(g) == 1 for g in groups.values()) and found.max() == 11


def test_people_at_an_event_have_one_backdrop_and_their_own_clothes():
    found = obfuscation.photographed([3, 1000, 7], 4, [5, 6], seed=2)
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.attributes["session"].tolist() == [5, 6] * 6
    again = faces.people([3, 1000, 7], 4, image_size=64, sessions=[5, 6], seed=2, body=True)
    for name in ("session", "person", "head_box"):
        torch.testing.assert_close(found.attributes[name], again.attributes[name])
    assert torch.equal(found.masks, again.masks)  # clothes and faces as elsewhere
    corners = found.images[:, :, 0, [0, -1]]
    behind = (found.masks[:, 0, [0, -1]] == 0).all(1)
    for day in (5, 6):
        seen = corners[behind & (found.attributes["session"] == day)]
        assert len(seen) > 2 and (seen - seen[0]).abs().max() < 0.25  # but for each photo's noise
        own = again.images[:, :, 0, [0, -1]][behind & (found.attributes["session"] == day)]
        assert (own - own[0]).abs().max() > (seen - seen[0]).abs().max()
    chest = found.images[found.attributes["session"] == 5][:, :, -4:, 30:34].mean((2, 3))
    assert torch.cdist(chest[::2], chest[::2])[0, 1:].min() > 0.05


def test_an_album_has_two_different_people_on_each_photo(photos):
    albums = obfuscation.deal_albums(photos, 4, seed=1)
    assert [len(a) for a in albums] == [12, 12]  # 4 of 6 people, 3 photos, on each of two days
    for rows in albums:
        assert len(photos.attributes["session"][rows].unique()) == 1
        pairs = photos.labels[rows].view(-1, 2)
        assert (pairs[:, 0] != pairs[:, 1]).all()
        assert len(rows.unique()) == 12 and len(photos.labels[rows].unique()) == 4


@pytest.mark.parametrize("people", [0, 3, 8])
def test_an_album_that_cannot_be(photos, people):
    with pytest.raises(ValueError, match="an even number of people"):
        obfuscation.deal_albums(photos, people)


def test_photos_of_one_day_and_person_are_alike(photos):
    public = faces.people(range(50, 80), 6, sessions=2)
    likeness = obfuscation.learn_likeness(judges.pixels, public)
    rows = obfuscation.deal_albums(photos, 6)[0]
    alike, labels = likeness(photos.images[rows]), photos.labels[rows]
    same = (labels[:, None] == labels) & ~torch.eye(len(rows), dtype=torch.bool)
    other = labels[:, None] != labels
    assert alike[same].mean() > 0 > alike[other].mean()
    assert (alike.diagonal() == 0).all() and torch.allclose(alike, alike.T, atol=1e-4)


def test_joint_inference_by_hand():
    """Nobody knows the second; the third looks like it and is surely person 1."""
    scores = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.01, 0.99], [0.99, 0.01]]).log()
    nothing = torch.zeros(4, 4)
    apart = obfuscation.infer_together(scores, nothing, weight=0.0)
    assert apart[1, 1] > 0.9  # for the other one on its photo is person 0
    alike = nothing.clone()
    alike[0, 2] = alike[2, 0] = 9.0  # the first looks like the third: both are person 1
    pulled = obfuscation.infer_together(scores, alike, weight=1.0)
    assert pulled[0, 1] > 0.9 and pulled[1, 0] > 0.9
    torch.testing.assert_close(pulled.sum(1), torch.ones(4))
    assert alike[0, 1] == 0  # what was given stays as it was


@pytest.mark.parametrize("size", [8, 32, 47])
@pytest.mark.parametrize("width", [1 / 16, 1 / 8])
def test_the_matrix_is_the_blur(size, width):
    images = torch.rand(2, 3, size, size)
    photos = faces.people([0, 1], 1)
    blurred = protections.transforms.blur(images, width * size)
    matrix = obfuscation.blur_matrix(width, size)
    torch.testing.assert_close(matrix @ images @ matrix.T, blurred, atol=1e-5, rtol=0)
    assert photos.shape == (3, 32, 32)


def test_a_blur_that_was_not_rounded_is_undone_and_a_rounded_one_less():
    photos = faces.people(range(6), 2)
    blurred = protections.blur(photos, width=1 / 16)
    rounded = files.to_levels(blurred)
    errors = {}
    for name, released in (("float", blurred), ("8 bits", rounded), ("nothing", None)):
        if released is None:
            made = rounded
        else:
            penalty = obfuscation.choose_penalty(photos.images, released, 1 / 16)
            made = obfuscation.restore(released, 1 / 16, penalty)
        errors[name] = (made - photos.images).square().mean().item()
    assert errors["float"] < 0.5 * errors["8 bits"] < 0.5 * 0.8 * errors["nothing"]
    wrong = obfuscation.restore(rounded, 1 / 8, 1e-6)
    assert (wrong - photos.images).square().mean() > errors["nothing"]


@pytest.mark.parametrize(
    "images, penalty", [((1, 3, 8, 9), 0.1), ((3, 8, 8), 0.1), ((1, 3, 8, 8), 0)]
)
def test_what_cannot_be_restored(images, penalty):
    with pytest.raises(ValueError, match="need square photos"):
        obfuscation.restore(torch.rand(images), 1 / 8, penalty)


def test_a_constant_photo_is_restored_as_it_was():
    images = torch.full((1, 1, 8, 8), 0.3)
    torch.testing.assert_close(obfuscation.restore(images, 1 / 8, 0.01), images)


CASES = {
    "mosaic": [
        (lambda x, n: x, "average over each cell"),
        (lambda x, n: exercises.solve_mosaic(x, n).mean(1, keepdim=True).expand_as(x), "channel"),
        (lambda x, n: exercises.solve_mosaic(x, n)[..., ::2, ::2], "keep the size"),
    ],
    "rate": [
        (lambda s, t: (s == t).double().mean(), "share of photos"),
        (lambda s, t: 0.5, "for each person"),
    ],
    "update": [
        (lambda s, a, b: (a @ b).softmax(1), "left the scores out"),
        (lambda s, a, b: s.softmax(1), "left the others out"),
        (lambda s, a, b: (s + a @ b).softmax(0), "over the names"),
        (lambda s, a, b: s + a @ b, "not probabilities"),
        (lambda s, a, b: (s + a @ s).softmax(1), "weigh with the beliefs"),
    ],
    "gain": [
        (lambda k, p: 1 / k, "blows the rounding up"),
        (lambda k, p: k / (k + p), "beside the square"),
        (lambda k, p: k**2 / (k**2 + p), "once"),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_exercises(name):
    assert_judges(exercises, name, CASES[name])
