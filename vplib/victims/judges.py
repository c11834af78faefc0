"""Who is still recognized on protected photos: attackers trained afresh, and a judge of utility.

A protection is as good as the strongest attacker leaves it. The attackers here differ in what they
train on and in how they see:

- *naive*: trained on clean photos, as many papers evaluate;
- *parrot*: trained on photos that were released through the same protection;
- *reverser*: restores a photo, then asks the naive recognizer;
- *context*: a parrot that sees the photo without the person's head.

They hold three kinds of photos, of disjoint people or sessions (`Parties`): public ones of others,
tagged ones of the people sought, and the probes, which nobody trains on. Each sees through three
kinds of eyes: `pixels`, `gradients`, and a `network` that is trained on the public photos. A parrot
has the naive attacker's network as well, the `clean network`. One head serves them all:
`train_recognizer`.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vplib import seeding
from vplib.datasets import faces
from vplib.datasets.files import to_levels
from vplib.datasets.imageset import ImageSet
from vplib.datasets.protections import Protection, nothing
from vplib.show import metrics
from vplib.victims import recognition

Eyes = Callable[[Tensor], Tensor]
Restore = Callable[[Tensor], Tensor]
Rates = dict[tuple[str, str], Tensor]

GRID, CELLS, ANGLES = 16, 8, 8  # averages a side; cells a side and directions of the gradients
SHRINK = 0.01  # of a covariance towards a multiple of the identity


class Parties(NamedTuple):
    """Whose photos they are; labels of `tagged` and `probes` name the same people.

    Args:
        public: photos of other people, which attackers and defenders may train on.
        tagged: photos with names, which the attacker finds.
        probes: photos from other sessions; they are asked about, and nobody trains on them.
    """

    public: ImageSet
    tagged: ImageSet
    probes: ImageSet


class Judged(NamedTuple):
    """What became of a protection.

    Args:
        rates: for each (attacker, kind of eyes), (people,) shares of probes that are named right.
        utility: the share of photos whose attribute a fresh judge reads right; NaN without one.
        ssim: mean structural similarity of the released probes to the photos.
        named: for each (attacker, kind of eyes), (N,) who is named on each probe.
        released: (N, C, H, W) the probes as they were released.
    """

    rates: Rates
    utility: float
    ssim: float
    named: Rates
    released: Tensor


def rendered(
    *,
    known: int = 40,
    tagged: int = 20,
    probes: int = 10,
    public: int = 240,
    photos: int = 10,
    seed: int = 0,
    **settings,
) -> Parties:
    """Rendered people: tagged photos from sessions 0 to 9, probes from sessions 10 to 14.

    Args:
        known: people who are sought.
        tagged: photos of each with a name.
        probes: photos of each without.
        public: other people.
        photos: of each of them.
        seed: another seed is another world.
        **settings: of `faces.people`, for example `image_size` and `body`.
    """
    make = partial(faces.people, seed=seed, **settings)
    return Parties(
        make(range(1000, 1000 + public), photos, sessions=5),
        make(range(known), tagged, sessions=min(10, tagged)),
        make(range(known), probes, sessions=range(10, 15)),
    )


def dealt(data: ImageSet, *, known: int = 40, share: float = 0.6, seed: int = 0) -> Parties:
    """Real people, dealt out: at most half of them are known, the others are public.

    A picture that is there twice, whosever it is, counts once: a copy of a tagged photo is no
    probe. The probes are the later photos, perhaps of the same day.

    Args:
        data: a class a person; photos of one person in the order in which they were taken.
        known: people who are sought: those with most photos, of whom each needs two.
        share: of a known person's photos that is tagged, the first ones; one at least stays.
        seed: decides who is known, and who is public.

    Raises:
        ValueError: fewer than two people could be known, or fewer than two be public.
    """
    first = {image.cpu().numpy().tobytes(): i for i, image in reversed([*enumerate(data.images)])}
    if len(first) < len(data):
        print(f"{len(data) - len(first)} photos are exact copies of others and left out")
        data = data.subset(sorted(first.values()))
    counts = torch.bincount(data.labels, minlength=len(data.classes))
    draws = torch.Generator().manual_seed(seeding.derive(seed, "known people"))
    order = torch.randperm(len(counts), generator=draws)
    order = order[counts[order].clamp(max=10).argsort(descending=True, stable=True)]
    order = order[counts[order] > 1].tolist()
    known = min(known, len(order) // 2)
    if known < 2:
        raise ValueError(
            f"{data.name} has {len(order)} people with two photos or more; four are needed: two to "
            "be recognized and two others to train on"
        )
    sought = data.with_classes(order[:known])
    number = torch.zeros_like(sought.labels)
    for person in range(known):
        mine = sought.labels == person
        number[mine] = torch.arange(int(mine.sum()))
    each = torch.bincount(sought.labels)
    few = (share * each).long().clamp(min=1)[sought.labels]
    early = number < torch.minimum(few, each[sought.labels] - 1)
    return Parties(data.with_classes(order[known:]), sought.subset(early), sought.subset(~early))


def pixels(images: Tensor) -> Tensor:
    """(N, C x 256) mean colors of 16x16 places, which a blurred face still has."""
    return F.adaptive_avg_pool2d(images, min(GRID, *images.shape[2:])).flatten(1)


def gradients(images: Tensor) -> Tensor:
    """(N, 512) strengths of brightness gradients in eight directions at 8x8 places.

    Source:
        After Dalal and Triggs, Histograms of oriented gradients, CVPR 2005. One norm for the whole
        photo instead of blocks, which would make noise of a smooth photo's gradients.
    """
    angles = torch.arange(ANGLES, device=images.device) * (2 * torch.pi / ANGLES)
    places = []
    for some in images.split(64):  # few enough to stay in a processor's cache
        gray = F.pad(some.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        across = gray[..., 1:-1, 2:] - gray[..., 1:-1, :-2]
        down = gray[..., 2:, 1:-1] - gray[..., :-2, 1:-1]
        along = across * angles.cos()[:, None, None] + down * angles.sin()[:, None, None]
        places.append(F.adaptive_avg_pool2d(along.relu(), CELLS).flatten(1))
    return ANGLES * CELLS * F.normalize(torch.cat(places), dim=1) / 2


def train_network(
    images: Tensor, people: Tensor, *, passes: int, seed: int, make=recognition.plain_cnn
) -> Eyes:
    """A network that tells public people apart, as eyes: from photos to (N, 128) embeddings.

    Args:
        images: (N, C, H, W) public photos, as they were released.
        people: (N,) who is on them.
        passes: photos that it sees in training, some of them several times.
        seed: of initialization and order.
        make: the untrained network, from the shape of a photo.
    """
    epochs = max(1, round(passes / len(images)))
    settings = dict(num_epochs=epochs, seed=seed, description="recognizer")
    return partial(
        recognition.embed_all, recognition.train_embedding(images, people, network=make, **settings)
    )


def train_recognizer(
    eyes: Eyes, tagged: Tensor, names: Tensor, others: Tensor, people: Tensor
) -> Callable[[Tensor], Tensor]:
    """A linear discriminant: one person is told from another by what differs least within people.

    How photos of one person differ is learned from everybody, so that one tagged photo is enough.

    Args:
        eyes: from (N, C, H, W) photos to (N, dim) features.
        tagged: (N, C, H, W) photos with names.
        names: (N,) the names, whole numbers; those in between that nobody has are never said.
        others: (M, C, H, W) photos of other people, released as the tagged ones were; M may be 0.
        people: (M,) who is on them.

    Returns:
        A function from photos to (N, classes) scores, the highest for the name; -inf for a name
        that no tagged photo has.

    Raises:
        ValueError: there is no tagged photo, or not a name for each.

    Source:
        Fisher's discriminant as in Belhumeur et al., Eigenfaces vs. Fisherfaces, PAMI 1997.
    """
    if not len(tagged) or len(tagged) != len(names) or len(others) != len(people):
        found = f"{len(tagged)} photos, {len(names)} names; {len(others)}, {len(people)} of others"
        raise ValueError(f"each tagged photo needs a name, and there must be one: {found}")
    means, within = _parted(eyes(tagged), names)
    if len(others):
        within = torch.cat([within, _parted(eyes(others), people)[1]])
    covariance = within.T @ within / len(within)
    spread = covariance.diagonal().mean().clamp(min=1e-8)
    covariance = (1 - SHRINK) * covariance + SHRINK * spread * torch.eye(len(covariance)).to(means)
    weights = torch.linalg.solve(covariance, means.T)
    bias = (means.T * weights).sum(0) / 2
    bias[torch.bincount(names) == 0] = torch.inf
    return lambda images: eyes(images) @ weights - bias


def _parted(features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each class, and how each row differs from its own."""
    counts = torch.bincount(classes).clamp(min=1)[:, None]
    sums = features.new_zeros(len(counts), features.shape[1]).index_add_(0, classes, features)
    means = sums / counts
    return means, features - means[classes]


def release(protection: Protection, photos: ImageSet) -> ImageSet:
    """The photos as they are posted: protected, on 8-bit levels, with what was known of them.

    Raises:
        ValueError: the protection gives images of another shape, or values that are not finite.
    """
    made = protection(photos)
    if made.shape != photos.images.shape or not made.isfinite().all():
        raise ValueError(
            f"a protection must give finite images of {tuple(photos.images.shape)}, "
            f"not {tuple(made.shape)}{'' if made.isfinite().all() else ' with NaN or infinity'}"
        )
    return replace(photos, images=to_levels(made))


def mixture(photos: ImageSet, protections: Iterable[Protection], *, seed: int = 0) -> Tensor:
    """The photos, each released by one of the protections, which are dealt out evenly."""
    protections, found = list(protections), photos.images.clone()
    draws = torch.Generator().manual_seed(seeding.derive(seed, "mixture"))
    order = torch.randperm(len(photos), generator=draws)
    for protection, rows in zip(protections, order.tensor_split(len(protections)), strict=True):
        if len(rows):
            found[rows] = release(protection, photos.subset(rows)).images
    return found


def named_right(named: Tensor, truth: Tensor) -> Tensor:
    """(people,) the share of each person's probes that got the right name."""
    everyone = truth.unique()
    right = (named == truth).float()
    return torch.stack([right[truth == person].mean() for person in everyone]).cpu()


def strongest(rates: Rates, attacker: str | None = None) -> tuple[tuple[str, str], Tensor]:
    """The attacker who names most, and its (people,) rates; the first one of equals.

    Args:
        rates: as `judge` returns them.
        attacker: only the eyes of this one; all attackers by default.
    """
    some = {key: value for key, value in rates.items() if attacker in (None, key[0])}
    if not some:
        raise ValueError(f"no attacker {attacker!r}; known: {sorted({k[0] for k in rates})}")
    best = max(some, key=lambda key: some[key].mean().item())
    return best, some[best]


def judge(
    parties: Parties,
    protections: dict[str, Protection],
    *,
    restorers: dict[str, Restore] | None = None,
    context: Protection | None = None,
    attribute: str | None = None,
    passes: int = 24_000,
    num_others: int = 1200,
    seed: int = 0,
) -> dict[str, Judged]:
    """What the attackers still recognize after each protection, and what is left of the photos.

    The naive network is trained on clean public photos; one network for all parrots on public
    photos of which each is released by one of the protections. The heads are each attacker's own.
    A network trained for one protection alone may make a stronger parrot of that one.

    Args:
        parties: whose photos they are.
        protections: what to judge, by name; each is a function from an `ImageSet` to its images.
        restorers: by the name of a protection, what the reverser does to (N, C, H, W) released
            images; it must know nothing but what is published.
        context: what takes the person's head out of a photo, for the context attacker, who sees
            through pixels and gradients.
        attribute: of the photos, whole numbers, which a fresh judge reads for utility: its head is
            trained on released public photos, its eyes on clean ones (on the mixture they learn
            half as well), and it is asked about the released probes.
        passes: photos that each network sees in training.
        num_others: at most so many public photos train the heads.
        seed: decides the networks and the mixture.

    Returns:
        A `Judged` for each protection.
    """
    public, tagged, probes = parties
    names, truth, people = tagged.labels, probes.labels, public.labels
    some = torch.arange(len(public))[:: max(1, len(public) // num_others)].to(people.device)
    others = public.subset(some)
    mixed = mixture(public, protections.values(), seed=seed)
    networks = [
        train_network(x, people, passes=passes, seed=seed)
        for x in (to_levels(public.images), mixed)
    ]
    if attribute:
        sharp, classes = to_levels(public.images), public.attributes[attribute]
        networks.append(train_network(sharp, classes, passes=passes, seed=seed))
    every = [cache(look) for look in (pixels, gradients, *networks)]  # each photo is seen once
    fixed = {"pixels": every[0], "gradients": every[1]}
    clean_eyes, eyes = ({**fixed, "network": network} for network in every[2:4])
    clean = [release(nothing, x).images for x in (tagged, others)]

    def trained(look, photos, more):
        return train_recognizer(look, photos, names, more, others.labels)

    naive = {kind: trained(look, *clean) for kind, look in clean_eyes.items()}
    found = {}
    for name, protection in protections.items():
        shown, seen, asked = (release(protection, x) for x in (others, tagged, probes))
        said = {("naive", kind): knows(asked.images) for kind, knows in naive.items()}
        for kind, look in (eyes | {"clean network": clean_eyes["network"]}).items():
            said["parrot", kind] = trained(look, seen.images, shown.images)(asked.images)
        if name in (restorers or {}):
            restored = to_levels(restorers[name](asked.images))
            said |= {("reverser", kind): knows(restored) for kind, knows in naive.items()}
        if context is not None:
            hidden = [release(context, x).images for x in (seen, shown, asked)]
            for kind, look in fixed.items():
                said["context", kind] = trained(look, *hidden[:2])(hidden[2])
        named = {key: scores.argmax(1) for key, scores in said.items()}
        rates = {key: named_right(who, truth) for key, who in named.items()}
        readers = every[1], every[-1]
        utility = _read(readers, shown, asked, attribute) if attribute else torch.nan
        alike = metrics.ssim(asked.images, probes.images).mean().item()
        found[name] = Judged(rates, utility, alike, named, asked.images)
        for look in every:
            look.cache_clear()
    return found


def _read(eyes: Iterable[Eyes], shown: ImageSet, asked: ImageSet, attribute: str) -> float:
    """How often the better of two fresh judges reads an attribute right."""
    truth, nobody = shown.attributes[attribute], (shown.images[:0], shown.labels[:0])
    judges = [train_recognizer(look, shown.images, truth, *nobody) for look in eyes]
    right = [knows(asked.images).argmax(1) == asked.attributes[attribute] for knows in judges]
    return max(r.float().mean().item() for r in right)
