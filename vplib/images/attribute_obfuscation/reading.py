"""Which attributes photos have, and how well fresh attackers read them."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vplib.datasets.imageset import ImageSet
from vplib.victims import judges

RENDERED = ("beard", "long_hair", "glasses", "hat")
# CelebA's names, and whether they say the opposite.
CELEBA = dict(beard=("No_Beard", True), smile=("Smiling", False), hat=("Wearing_Hat", False))
CELEBA["glasses"] = ("Eyeglasses", False)


def attributes_of(photos: ImageSet, public: ImageSet) -> dict[str, Tensor]:
    """By name, (N,) 0 or 1: the attributes of rendered faces and CelebA, or what pixels tell.

    Without attributes, two things that are measured on any photo of a face: whether its upper
    fifth is dark against its middle (`dark_top`, mostly hair), and whether its left half is lighter
    than its right (`left_light`); more than half of the public photos each time.

    Args:
        photos: whose attributes.
        public: what is usual.
    """
    known = photos.attributes or {}
    if set(RENDERED) <= set(known):
        return {name: known[name].long() for name in RENDERED}
    if {name for name, _ in CELEBA.values()} <= set(known):
        return {k: (known[name] ^ other).long() for k, (name, other) in CELEBA.items()}
    usual = _measured(public.images)
    found = _measured(photos.images)
    return {name: (value > usual[name].median()).long() for name, value in found.items()}


def _measured(images: Tensor) -> dict[str, Tensor]:
    gray, (height, width) = images.mean(1), images.shape[2:]
    top, middle = gray[:, : max(1, height // 5)], gray[:, height // 3 : -(height // 3) or None]
    left, right = gray[..., : max(1, width // 2)], gray[..., width // 2 :]
    return {
        "dark_top": middle.mean((1, 2)) - top.mean((1, 2)),
        "left_light": left.mean((1, 2)) - right.mean((1, 2)),
    }


def seen_by(eyes: dict, images: Tensor) -> dict[str, Tensor]:
    """By kind of eyes, (N, dim) what they see of the images."""
    return {kind: look(images) for kind, look in eyes.items()}


def train_readers(shown: dict, values: Tensor) -> Callable[[dict], dict]:
    """Fresh readers: from what each kind of eyes sees of photos to its scores of each value.

    Args:
        shown: by kind, what the eyes see of M photos of public people, as the attacker has them:
            clean for a naive one, released as the asked ones were for a parrot.
        values: (M,) whole numbers, what the photos truly have.
    """
    readers = {
        kind: judges.train_recognizer(lambda seen: seen, seen, values, seen[:0], values[:0])
        for kind, seen in shown.items()
    }
    return lambda asked: {kind: reader(asked[kind]) for kind, reader in readers.items()}


def read_attribute(shown: dict, values: Tensor, asked: dict, changed: Tensor | None = None) -> dict:
    """(N, 2) scores of an attribute by a fresh attacker, for each kind of eyes.

    Args:
        shown: as for `train_readers`.
        values: (M,) 0 or 1, their true attribute.
        asked: by kind, what the eyes see of N released photos of others.
        changed: (M,) 0 or 1, which public photos were changed, for attackers who ran the means
            themselves. They come on top, as "knows, KIND": each tells four kinds of photos apart,
            and adds up the two that have the attribute, each with its share. Nobody comes on top
            where all photos were changed, or none.
    """
    found = train_readers(shown, values)(asked)
    if changed is None or not 0 < changed.float().mean() < 1:
        return found
    four = 2 * changed.long() + values
    shares = torch.bincount(four, minlength=4).view(2, 2)  # changed or not, by value
    prior = (shares / shares.sum(0)).log()
    for kind, scores in train_readers(shown, four)(asked).items():
        scores = F.pad(scores, (0, 4 - scores.shape[1]), value=-torch.inf).view(-1, 2, 2)
        found[f"knows, {kind}"] = (scores + prior).logsumexp(1)
    return found


def over_people(found: Tensor, truth: Tensor, people: Tensor) -> Tensor:
    """(people,) numbers whose mean is the mean of `found` over both values of an attribute.

    With `found` = guesses == truth, the mean is the balanced accuracy, for which a guess without
    a look gets one half whatever the shares. Each person's number says how they move that mean, so
    that the spread over people gives its standard error; a number by itself may exceed one.

    Args:
        found: (N,) numbers or truth values.
        truth: (N,) 0 or 1.
        people: (N,) who is on the photos.

    Raises:
        ValueError: only one of the two values is there.
    """
    counts = torch.bincount(truth, minlength=2)
    if not counts.all():
        raise ValueError("photos with and without the attribute are needed to judge its reading")
    found = found.float()
    means = torch.zeros(2, device=found.device).index_add_(0, truth, found) / counts
    apart = (found - means[truth]) / (2 * counts[truth])  # how a photo moves the mean of both
    _, who = people.unique(return_inverse=True)
    moved = torch.zeros(int(who.max()) + 1, device=found.device).index_add_(0, who, apart)
    return (means.mean() + moved * len(moved)).cpu()


def entropy(scores: Tensor) -> Tensor:
    """(N,) bits of uncertainty of (N, classes) scores, which are logarithms."""
    logs = scores.log_softmax(1)
    return -(logs.exp() * logs).sum(1) / torch.log(torch.tensor(2.0))


def missing_bits(scores: Tensor, truth: Tensor, people: Tensor) -> Tensor:
    """(people,) numbers whose mean is what a reader lacks of the attribute, in bits from 0 to 1.

    It is the log loss on photos that nobody trained on, the mean over both values of the attribute:
    never less than the uncertainty that the photos leave, however sure of itself the reader is. The
    scores are first scaled, all by one factor, so that the loss is least: too sure a reader is
    only a reader who has not looked at how often it errs.

    Args:
        scores: (N, 2), which are logarithms.
        truth: (N,) 0 or 1.
        people: (N,) who is on the photos.
    """
    factors = torch.logspace(-3, 1, 41).tolist()
    losses = (F.cross_entropy(scores * k, truth, reduction="none") / math.log(2) for k in factors)
    return min((over_people(x, truth, people) for x in losses), key=lambda bits: bits.mean().item())
