"""People at events, albums of photos with two of them each, and what an album says together."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vplib.datasets import faces
from vplib.datasets.imageset import ImageSet
from vplib.victims.judges import Eyes

# What everybody has in common who is photographed at one event.
PLACE = (
    "backdrop backdrop_2 gradient_x gradient_y disc disc_x disc_y light_x light_y gain cast"
).split()
APART = 8.0  # against one person standing twice on a photo: practically never
STEPS = 10  # of the mean-field iteration, each half of the way


def photographed(
    people: Iterable[int], photos: int, sessions: Iterable[int], *, seed: int = 0, size: int = 64
) -> ImageSet:
    """People with head and shoulders; each session is an event, with one place and light for all.

    What they wear at an event is their own, as in `faces.people`, whose backdrops are so as well.

    Args:
        people: who, as in `faces.people`.
        photos: of each person, dealt out evenly to the events.
        sessions: the events.
        seed: another seed is another world.
        size: height and width in pixels, 64 or more.
    """
    people, held = torch.tensor(list(people)), torch.tensor(list(sessions))
    number = torch.arange(photos).repeat(len(people))
    person, session = people.repeat_interleave(photos), held[number % len(held)]
    keys = person.numpy(), session.numpy(), (number // len(held)).numpy()
    looks = faces.nuisance_params(*keys, seed=seed)
    place = faces.nuisance_params(0 * keys[0], *keys[1:], seed=seed)
    looks |= {name: place[name] for name in PLACE}
    with torch.no_grad():
        found = faces.render(faces.identity_params(keys[0], seed=seed), looks, size, body=True)
    known = dict(person=person, session=session, head_box=found.head_box)
    labels = torch.arange(len(people)).repeat_interleave(photos)
    names = tuple(f"person {k}" for k in people.tolist())
    truth = dict(attributes=known, landmarks=found.landmarks, masks=found.masks)
    return ImageSet(found.images, labels, names, "faces", **truth)


def events(photos: ImageSet) -> Tensor:
    """(N,) a number for each (person, session): who wore the same clothes on the same day."""
    session = photos.attributes["session"]
    both = photos.labels * (int(session.max()) + 1) + session
    return both.unique(return_inverse=True)[1]


def deal_albums(photos: ImageSet, people: int, seed: int = 0) -> list[Tensor]:
    """Albums: each the photos of a few people in one session, two people on a photo.

    Args:
        photos: as many of each person in each session.
        people: in an album, an even number.
        seed: decides who is in which album, and who stands beside whom.

    Returns:
        For each album (n,) rows of `photos`; rows 2i and 2i + 1 stand on one photo, and show
        different people.

    Raises:
        ValueError: the number is odd or below 2, or there are fewer people.
    """
    if people % 2 or not 2 <= people <= len(photos.classes):
        raise ValueError(f"an album needs an even number of people, 2 or more, not {people}")
    draws, found = torch.Generator().manual_seed(seed), []
    session = photos.attributes["session"]
    for day in session.unique():
        order = torch.randperm(len(photos.classes), generator=draws)
        for group in order[: len(order) // people * people].split(people):
            rows = [((session == day) & (photos.labels == who)).nonzero()[:, 0] for who in group]
            rounds = torch.stack(rows, 1)  # (photos, people)
            order_of = [torch.randperm(people, generator=draws) for _ in rounds]
            found.append(torch.cat([r[o] for r, o in zip(rounds, order_of, strict=True)]))
    return found


def learn_likeness(eyes: Eyes, public: ImageSet) -> Callable[[Tensor], Tensor]:
    """How to tell from two photos of one day whether they show the same person.

    Features are whitened by how photos of one person and day differ, among every second of the
    public people; on pairs of the others a logistic regression makes evidence of the distance.

    Args:
        eyes: from (N, C, H, W) photos to (N, dim) features.
        public: photos of others, released as the album is, several of a person and session.

    Returns:
        A function from (N, C, H, W) photos of one session to (N, N): the log of how much likelier
        the two are if they show one person than if they show two. 0 on the diagonal.
    """
    from sklearn.linear_model import LogisticRegression

    features, first = eyes(public.images), public.labels % 2 == 0
    group = events(public)[first].unique(return_inverse=True)[1]
    sums = features.new_zeros(int(group.max()) + 1, features.shape[1])
    means = sums.index_add_(0, group, features[first]) / torch.bincount(group)[:, None]
    within = features[first] - means[group]
    covariance = within.T @ within / len(within)
    covariance += 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
    factor = torch.linalg.cholesky(covariance)

    def distances(seen):
        white = torch.linalg.solve_triangular(factor, seen.T, upper=False).T
        return torch.cdist(white, white) / len(factor) ** 0.5

    day, who = public.attributes["session"][~first], public.labels[~first]
    pairs = (day[:, None] == day).triu(1)
    same = (who[:, None] == who)[pairs]
    fitted = LogisticRegression(class_weight="balanced")  # likelihoods, not how many pairs
    fitted.fit(distances(features[~first])[pairs][:, None].cpu().numpy(), same.cpu().numpy())
    slope, offset = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    # No pair counts for more than twenty to one, either way.
    return lambda images: (slope * distances(eyes(images)) + offset).clamp(-3, 3).fill_diagonal_(0)


def infer_together(scores: Tensor, alike: Tensor, weight: float = 0.5) -> Tensor:
    """What an album's photos say together about who is who: beliefs by mean field.

    Args:
        scores: (n, people) log probabilities of each person's own photo, rows 2i and 2i + 1 of one
            photo.
        alike: (n, n) log likelihood ratios: one person on both, or two.
        weight: of this evidence, whose pairs are not independent. One half, and the notebook's
            division of scores by 20, are near the best of a grid (0 to 1, 5 to 40) on albums of
            public people, 2000 to 2039 in two worlds.

    Returns:
        (n, people) probabilities.

    Source:
        After Oh et al., Faceless person recognition, ECCV 2016: unary and pairwise terms on an
        album's graph. Theirs are learned by deep networks; mean field here.
    """
    pull = weight * alike
    even = torch.arange(0, len(scores) - 1, 2)
    pull[even, even + 1] = pull[even + 1, even] = -APART
    beliefs = scores.softmax(1)
    for _ in range(STEPS):
        beliefs = (beliefs + (scores + pull @ beliefs).softmax(1)) / 2
    return beliefs
