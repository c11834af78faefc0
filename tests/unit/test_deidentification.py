"""Swapped identities and fitted parameters; and the exercises of the notebook."""

import functools

import pytest
import torch
from exercise_cases import assert_judges

from vplib import seeding
from vplib.datasets import faces
from vplib.images import deidentification
from vplib.images.deidentification import exercises
from vplib.victims import judges, recognition


@pytest.fixture(scope="module")
def photos():
    return faces.people(range(5), 8, sessions=4)


@pytest.mark.parametrize("told", [True, False])
def test_a_swapper_puts_the_chosen_person_in(photos, told):
    settings = dict(passes=256, dim=16, size=4, conditioned=told)
    made = deidentification.train_swapper(photos, exercises.solve_loss, **settings)
    codes = made.represent(photos.images)
    assert codes.shape == (40, 4) and made.looks.shape == (5, 16)
    torch.testing.assert_close(made.looks[2], made.faces.encode(photos.images[16:24]).mean(0))
    here = torch.full((40,), 2)
    swapped = made.swap(photos.images, here)
    assert swapped.shape == photos.images.shape and 0 <= swapped.min() and swapped.max() <= 1
    torch.testing.assert_close(swapped, made.faces.decode(made.draw(codes, here)))
    assert torch.equal(swapped, made.swap(photos.images, here + 1)) != told
    again = deidentification.train_swapper(photos, exercises.solve_loss, **settings)
    assert torch.equal(again.represent(photos.images), codes)
    owned = again._replace(secret=1)
    assert not torch.equal(owned.represent(photos.images), codes)


def test_a_swapper_needs_two_people(photos):
    with pytest.raises(ValueError, match="two public people"):
        deidentification.train_swapper(photos.with_classes([1]), exercises.solve_loss)


def test_the_utility_network_sees_the_same_photos_once(photos):
    network = seeding.initialized(lambda: recognition.plain_cnn(photos.images.shape[1:]), 0)
    network.eval().requires_grad_(False)
    asked = []

    def look(embed, images):
        asked.append(len(images))
        return recognition.embed_all(embed, images)

    eyes = functools.partial(look, network)
    utility = eyes, photos.attributes["expression"]
    settings = dict(utility=utility, passes=64, dim=16, size=4)
    made = [deidentification.train_swapper(photos, exercises.solve_loss, seed=k, **settings)
            for k in (0, 1)]  # fmt: skip
    codes = made[0].represent(photos.images)
    assert asked == [40]
    torch.testing.assert_close(made[0].represent(photos.images.clone()), codes)
    other = made[0].represent(photos.images.flip(3))
    assert asked == [40, 40, 40] and not torch.equal(other, codes)


def test_fitted_parameters_draw_the_photo_again():
    who = torch.arange(60).repeat_interleave(2)
    known = faces.identity_params(who)
    taken = faces.nuisance_params(who, 0, torch.arange(2).repeat(60), glasses=0, hat=0, occluder=0)
    images = faces.render(known, taken).images
    space = deidentification.fit_space(images, known, taken, judges.pixels)
    both = deidentification.named(space, space.guess(images[:4]))
    assert both[0].keys() == known.keys() and both[1].keys() == taken.keys()
    errors = []
    for steps in (0, 8):
        found = deidentification.fit(space, images[:4], steps=steps)
        drawn = faces.render(*deidentification.named(space, found)).images
        errors.append((drawn - images[:4]).square().mean())
    assert errors[1] < 0.7 * errors[0]


CASES = {
    "loss": [
        (lambda s: exercises.solve_loss(s) + 60 * s.guesses.mean(), "sign"),
        (lambda s: exercises.solve_loss(s) + 30 * s.guesses.mean(), "adversary's term is missing"),
        (lambda s: exercises.solve_loss(s._replace(mean=0 * s.mean, log_variance=0 * s.mean)),
         "prior's term"),
        (lambda s: s.rebuilt.sum(), "mean log probability"),
    ],
    "unlock": [
        (lambda a, b: a & 1, "still enciphered"),
        (lambda a, b: a & 1 & b, "not and"),
        (lambda a, b: a & 1 | b, "not or"),
        (lambda a, b: a ^ b, "lowest bit first"),
    ],
    "latent_blur": [
        (lambda c, w: c * (torch.arange(5) < w), "not a cut"),
        (lambda c, w: c * torch.exp(0.5 * (torch.arange(5) / w) ** 2), "mind the sign"),
        (lambda c, w: c * torch.exp(-((torch.arange(5) / w) ** 2)), "2 below"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_exercises(name):
    assert_judges(exercises, name, CASES[name])
