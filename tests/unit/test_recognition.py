"""Face recognition: the networks, the margin loss, and the error rates by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from vplib import cache
from vplib.victims import recognition


@pytest.mark.parametrize("network", [recognition.resnet, recognition.plain_cnn])
@pytest.mark.parametrize("size", [32, 48, 64, 96])
@pytest.mark.parametrize("channels", [1, 3])
def test_embeddings_are_unit_vectors(network, size, channels):
    embed = network((channels, size, size), channels=(4, 6, 8)).eval()
    found = embed(torch.rand(7, channels, size, size))
    assert found.shape == (7, 128)
    assert torch.allclose(found.norm(dim=1), torch.ones(7), atol=1e-5)


def test_many_photos_are_embedded_some_at_a_time():
    asked = []

    def embed(images):
        asked.append(len(images))
        return images.flatten(1)[:, :2]

    images = torch.rand(600, 1, 2, 2)
    assert torch.equal(recognition.embed_all(embed, images), embed(images))
    assert max(asked[:-1]) == 256


def test_margin_loss_by_hand():
    cosines, people = torch.tensor([[0.5, 0.1]]), torch.tensor([0])
    logits = [16 * (0.5 - 0.2), 16 * 0.1]
    expected = -math.log(math.exp(logits[0]) / (math.exp(logits[0]) + math.exp(logits[1])))
    found = recognition.margin_loss(cosines, people)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_photos_are_shaken_in_training_only():
    shaken, images = recognition.Shaken(), torch.rand(5, 3, 8, 8)
    assert shaken.eval()(images) is images
    torch.manual_seed(0)
    first, second = (shaken.train()(images) for _ in range(2))
    assert first.shape == images.shape and not torch.allclose(first, second)
    shaken.shift = shaken.light = 0.0
    still, mirrored = shaken(images), images.flip(3)
    for one, same, other in zip(still, images, mirrored, strict=True):
        assert torch.allclose(one, same, atol=1e-5) or torch.allclose(one, other, atol=1e-5)


def colored_people(num_people=4, photos=12, seed=0):
    """Photos that differ between people by a pattern that survives shaking."""
    rng = torch.Generator().manual_seed(seed)
    people = torch.arange(num_people).repeat_interleave(photos)
    looks = torch.rand(num_people, 3, 2, 2, generator=rng)
    images = F.interpolate(looks[people], size=(32, 32))
    return (images + 0.05 * torch.randn(images.shape, generator=rng)).clamp(0, 1), people


def test_training_separates_people_and_is_kept():
    images, people = colored_people()
    embed = recognition.train_embedding(images, people + 7, num_epochs=6)
    marks = recognition.embed_all(embed, images)
    first, second = torch.triu_indices(len(people), len(people), 1)
    same = people[first] == people[second]
    assert roc_auc_score(same, (marks[first] * marks[second]).sum(1)) > 0.95
    assert recognition.rank_accuracy(marks[::2], people[::2], marks[1::2], people[1::2]) > 0.9
    assert not any(p.requires_grad for p in embed.parameters())
    before = dict(cache.counts)
    again = recognition.train_embedding(images, people + 7, num_epochs=6)
    assert torch.equal(again(images), embed(images))
    assert cache.counts["reused"] == before["reused"] + 1
    other = recognition.train_embedding(images, people, num_epochs=6, seed=1)
    assert not torch.equal(other(images), embed(images))


def test_a_photo_that_is_left_over_is_no_batch_of_its_own():
    """65 photos, 64 a step: batch norm over embeddings has no statistics of one."""
    photos = torch.rand(65, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    embed = recognition.train_embedding(photos, torch.arange(65) % 5, num_epochs=1)
    assert embed(photos).norm(dim=1).allclose(torch.ones(65), atol=1e-5)


def test_one_person_cannot_be_told_apart():
    with pytest.raises(ValueError, match="at least two people"):
        recognition.train_embedding(torch.rand(4, 3, 32, 32), torch.zeros(4).long())


def test_identify_takes_the_nearest_photo():
    gallery = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=1)
    people = torch.tensor([5, 9, 5])
    probes = F.normalize(torch.tensor([[1.0, 0.9], [0.1, 1.0]]), dim=1)
    assert recognition.identify(gallery, people, probes).tolist() == [5, 9]
    assert recognition.rank_accuracy(gallery, people, probes, torch.tensor([9, 9])) == 0.5
    alone = recognition.identify(gallery[:1], people[:1], probes)
    assert alone.tolist() == [5, 5]  # a gallery of one person


def places_of(gallery, people, probes, truth) -> list[int]:
    """The definition, a pair of photos at a time: ties and NaN count against the attacker."""
    found = []
    for probe, who in zip(probes.double(), truth.tolist(), strict=True):
        best = {}
        for mark, name in zip(gallery.double(), people.tolist(), strict=True):
            likeness = sum(a * b for a, b in zip(probe.tolist(), mark.tolist(), strict=True))
            best.setdefault(name, []).append(likeness)
        best = {n: math.nan if any(map(math.isnan, v)) else max(v) for n, v in best.items()}
        if who not in best or math.isnan(best[who]):
            found.append(len(best) + 1)
            continue
        less = [n for n in best if n != who and best[who] - best[n] > 1e-6]
        found.append(len(best) - len(less))
    return found


def marks(num, num_nan, rng):
    """Embeddings on a coarse grid, so that many are equal, and some of them NaN."""
    found = F.normalize(torch.randint(-1, 2, (num, 3), generator=rng) + 0.5, dim=1)
    found[torch.randperm(num, generator=rng)[:num_nan]] = math.nan
    return found


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("num_nan", [0, 2])
def test_ranks_and_names_with_ties_and_nan(seed, num_nan):
    rng = torch.Generator().manual_seed(seed)
    gallery, probes = marks(12, num_nan, rng), marks(30, num_nan, rng)
    people, truth = (torch.randint(0, 6, (n,), generator=rng) for n in (12, 30))
    truth[:3] = 9  # in no gallery
    wanted = places_of(gallery, people, probes, truth)
    assert recognition.ranks(gallery, people, probes, truth).tolist() == wanted
    share = wanted.count(1) / 30
    assert recognition.rank_accuracy(gallery, people, probes, truth) == pytest.approx(share)
    # Whoever is identified is the one person at the first place, for whoever they are.
    names = sorted(set(people.tolist()))
    places = {n: places_of(gallery, people, probes, torch.full((30,), n)) for n in names}
    alone = [[n for n in names if places[n][i] == 1] for i in range(30)]
    said = recognition.identify(gallery, people, probes)
    assert said.tolist() == [n[0] if n else -1 for n in alone]


@pytest.mark.parametrize("dim", [2, 3, 128, 509])
def test_equal_embeddings_recognize_nobody(dim):
    mark = F.normalize(torch.randn(1, dim, generator=torch.Generator().manual_seed(dim)), dim=1)
    people = torch.arange(10).repeat_interleave(4)
    equal = mark.expand(40, -1).contiguous()
    assert recognition.rank_accuracy(equal, people, equal, people) == 0
    assert (recognition.identify(equal, people, equal) == -1).all()
    assert (recognition.ranks(equal, people, equal, people) == 10).all()


def test_a_network_that_says_nan_recognizes_nobody():
    people = torch.arange(10).repeat_interleave(4)
    broken, fine = torch.full((40, 5), math.nan), F.normalize(torch.rand(40, 5), dim=1)
    for gallery, probes in ((broken, broken), (fine, broken), (broken, fine)):
        assert recognition.rank_accuracy(gallery, people, probes, people) == 0
        assert (recognition.identify(gallery, people, probes) == -1).all()
        assert (recognition.ranks(gallery, people, probes, people) == 11).all()
