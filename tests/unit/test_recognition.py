"""Face recognition: the networks, the margin loss, and the error rates by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from vplib import cache
from vplib.victims import recognition


@pytest.mark.parametrize("network", [recognition.resnet, recognition.plain_cnn])
@pytest.mark.parametrize("size", [32, 48, 64, 96])
@pytest.mark.parametrize("channels", [1, 3])
def test_embeddings_are_unit_vectors(network, size, channels):
    embed = network((channels, size, size), channels=(4, 6, 8), dim=5).eval()
    found = recognition.embed_all(embed, torch.rand(7, channels, size, size), batch_size=3)
    assert found.shape == (7, 5)
    assert torch.allclose(found.norm(dim=1), torch.ones(7), atol=1e-5)


def test_margin_loss_by_hand():
    cosines, people = torch.tensor([[0.5, 0.1]]), torch.tensor([0])
    logits = [2 * (0.5 - 0.3), 2 * 0.1]
    expected = -math.log(math.exp(logits[0]) / (math.exp(logits[0]) + math.exp(logits[1])))
    found = recognition.margin_loss(cosines, people, margin=0.3, scale=2.0)
    assert found.item() == pytest.approx(expected, abs=1e-6)
    plain = recognition.margin_loss(cosines, people, margin=0.0, scale=1.0)
    assert plain.item() == pytest.approx(F.cross_entropy(cosines, people).item())


def test_photos_are_shaken_in_training_only():
    shaken, images = recognition.Shaken(), torch.rand(5, 3, 8, 8)
    assert shaken.eval()(images) is images
    torch.manual_seed(0)
    first, second = (shaken.train()(images) for _ in range(2))
    assert first.shape == images.shape and not torch.allclose(first, second)
    still = recognition.Shaken(shift=0.0, light=0.0).train()(images)
    mirrored = images.flip(3)
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
    likeness, same = recognition.pairs(recognition.embed_all(embed, images), people)
    assert recognition.equal_error_rate(likeness, same) < 0.1
    assert not any(p.requires_grad for p in embed.parameters())
    before = dict(cache.counts)
    again = recognition.train_embedding(images, people + 7, num_epochs=6)
    assert torch.equal(again(images), embed(images))
    assert cache.counts["reused"] == before["reused"] + 1
    other = recognition.train_embedding(images, people, num_epochs=6, margin=0.1)
    assert not torch.equal(other(images), embed(images))


def test_one_person_cannot_be_told_apart():
    with pytest.raises(ValueError, match="at least two people"):
        recognition.train_embedding(torch.rand(4, 3, 32, 32), torch.zeros(4).long())


def test_identify_takes_the_nearest_photo():
    gallery = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=1)
    people = torch.tensor([5, 9, 5])
    probes = F.normalize(torch.tensor([[1.0, 0.9], [0.1, 1.0]]), dim=1)
    assert recognition.identify(gallery, people, probes).tolist() == [5, 9]
    truth = torch.tensor([9, 9])
    assert recognition.rank_accuracy(gallery, people, probes, truth) == 0.5
    assert recognition.rank_accuracy(gallery, people, probes, truth, rank=2) == 1.0
    for rank in (0, 3):
        with pytest.raises(ValueError, match="between 1 and 2"):
            recognition.rank_accuracy(gallery, people, probes, truth, rank=rank)


def test_pairs_are_all_pairs_once():
    embeddings = torch.eye(3)
    likeness, same = recognition.pairs(embeddings, torch.tensor([0, 0, 1]))
    assert likeness.tolist() == [0, 0, 0] and same.tolist() == [True, False, False]


@pytest.mark.parametrize(
    "likeness, same, expected",
    [
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 0.0),
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], 1.0),
        ([0.9, 0.3, 0.7, 0.1], [1, 1, 0, 0], 0.5),
        ([0.5, 0.5, 0.5, 0.5], [1, 1, 0, 0], 0.5),
    ],
)
def test_equal_error_rate_by_hand(likeness, same, expected):
    found = recognition.equal_error_rate(torch.tensor(likeness), torch.tensor(same).bool())
    assert found == pytest.approx(expected)


def test_true_acceptance_at_a_false_acceptance_rate():
    same = torch.tensor([True] * 4 + [False] * 10)
    likeness = torch.tensor([0.95, 0.9, 0.7, 0.3, 0.8, 0.75, *[0.1] * 8])
    assert recognition.tar_at_far(likeness, same, far=0.1).value == 0.5
    with pytest.raises(ValueError, match="cannot resolve"):
        recognition.tar_at_far(likeness, same, far=0.01)
