"""The rendered faces: how fast they come, and how hard they are to tell apart.

    python tests/benchmarks/bench_faces.py     (nine minutes on one core)

Small networks, each trained for 13 to 42 s on one thread, beside the range that the set was made
for. A closed set of 40 people is learnt from 20 photos each in ten sessions and tested on ten
in five others; verification, attributes and expression are asked of people that no network saw.
A seed draws other people and other weights: rates are means over seeds, with the range beside.
Prints what came out and asserts nothing: a time or a rate moves with machine and seed.
"""

import argparse
import platform
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from vplib import models, training
from vplib.datasets import ImageSet, faces


class Figure(NamedTuple):
    """What was measured, what came out with one seed, what was aimed at."""

    what: str
    value: float
    target: str = ""


def show(what: str, value: str, target: str = "") -> None:
    """One line."""
    print(f"  {what:54} {value:>22}   {target}", flush=True)


def speed() -> None:
    """Images a second of one core with all truth, median of five calls.

    In CPU seconds: whoever else is on the machine counts less.
    """
    for size, count, body, target in (
        (32, 1024, False, "1,000 a second of one core"),
        (48, 768, False, ""),
        (64, 512, False, "500 a second of one core"),
        (64, 512, True, ""),
        (128, 128, False, ""),
    ):
        seconds = []
        for _ in range(6):
            start = time.process_time()
            faces.people(range(count // 4), 4, image_size=size, body=body)
            seconds.append(time.process_time() - start)
        median = torch.tensor(seconds[1:]).median().item()
        name = f"{size} px{', head and shoulders' if body else ''}"
        show(name, f"{count / median:,.0f} /s", target)


def train(images, labels, num_classes: int, num_epochs: int, seed: int) -> nn.Sequential:
    """The small CNN of this file: two convolutions, one hidden layer."""
    torch.manual_seed(seed)
    model = models.cnn(tuple(images.shape[1:]), num_classes)
    settings = dict(num_epochs=num_epochs, lr=1e-3, optimizer="adam", seed=seed)
    return training.fit(model, images, labels, **settings)


@torch.no_grad()
def accuracy(model, images, labels) -> float:
    """The share of right answers."""
    return training.accuracy(model(images), labels).item()


def pixelated(images, cells: int):
    """Means over cells x cells squares, at the size of the image."""
    return F.interpolate(F.adaptive_avg_pool2d(images, cells), images.shape[-1])


def closed_set(seed: int) -> Iterator[Figure]:
    """Forty people, other sessions; clean, pixelated, and by what should not tell them apart."""
    known = faces.people(range(40), 20, sessions=range(10), seed=seed)
    other = faces.people(range(40), 10, sessions=range(10, 15), seed=seed)
    start = time.process_time()
    model = train(known.images, known.labels, 40, 20, seed)
    seconds = time.process_time() - start
    right = accuracy(model, other.images, other.labels)
    yield Figure("closed set, 40 people, other sessions", right, "0.80 to 0.90")
    yield Figure("  its training, CPU seconds", seconds, "20")
    for cells, target in ((8, "0.60 to 0.70"), (4, "about 0.30")):
        x, y = pixelated(known.images, cells), pixelated(other.images, cells)
        parrot = accuracy(train(x, known.labels, 40, 20, seed), y, other.labels)
        yield Figure(f"{cells}x{cells} cells, retrained on them", parrot, target)
        naive = accuracy(model, y, other.labels)
        yield Figure(f"{cells}x{cells} cells, trained on clean photos", naive)

    def background(data: ImageSet):  # in quarters: finer ones would tell the outline of the hair
        empty = (data.masks == 0)[:, None].float()
        share = F.adaptive_avg_pool2d(empty, 2)
        return (F.adaptive_avg_pool2d(data.images * empty, 2) / (share + 1e-6)).flatten(1)

    for name, feature in (
        ("background, colours of its quarters", background),
        ("mean colour of the image", lambda data: data.images.mean((2, 3))),
    ):
        x, y = feature(known).numpy(), feature(other).numpy()
        for judge in (LogisticRegression(max_iter=2000, C=100), KNeighborsClassifier(5)):
            score = judge.fit(x, known.labels).score(y, other.labels)
            yield Figure(f"{name}, {type(judge).__name__}", score, "under 0.075")


def equal_error(embedded, labels) -> float:
    """The rate at which false matches and false non-matches are equally frequent."""
    embedded = F.normalize(embedded)
    score, same = embedded @ embedded.T, labels[:, None] == labels
    upper = torch.ones_like(same).triu(1)
    genuine, impostor = score[same & upper].sort().values, score[~same & upper].sort().values
    missed = torch.arange(len(genuine)) / len(genuine)
    passed = 1 - torch.searchsorted(impostor, genuine) / len(impostor)
    k = (missed - passed).abs().argmin()
    return ((missed[k] + passed[k]) / 2).item()


def verification(seed: int) -> Iterator[Figure]:
    """An embedding learnt on 300 other people, pairs of 100 unseen ones."""
    pool = faces.people(range(1000, 1300), 16, sessions=8, seed=seed)
    unseen = faces.people(range(100), 10, sessions=range(8, 13), seed=seed)
    start = time.process_time()
    model = train(pool.images, pool.labels, 300, 5, seed)
    seconds = time.process_time() - start
    with torch.no_grad():
        embedded = model[:-1](unseen.images)
    rate = equal_error(embedded, unseen.labels)
    yield Figure("verification of unseen people, equal error rate", rate, "0.05 to 0.12")
    yield Figure("  its training, CPU seconds", seconds, "20")


def attributes(seed: int) -> Iterator[Figure]:
    """Attributes and expression at 48 px, on people that were not trained on."""
    pool = faces.people(range(1000, 2200), 4, image_size=48, sessions=4, seed=seed)
    unseen = faces.people(range(300), 4, image_size=48, sessions=4, seed=seed)
    names = ("beard", "long_hair", "glasses", "hat")
    targets, truths = (
        torch.stack([data.attributes[name] for name in names], 1).float() for data in (pool, unseen)
    )
    start = time.process_time()
    torch.manual_seed(seed)
    model = nn.Sequential(  # its first convolution takes every second pixel: half the time
        nn.Conv2d(3, 24, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 36, 128), nn.ReLU(), nn.Linear(128, len(names) + 3),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    stepper = torch.optim.Adam(model.parameters(), 2e-3)
    images = pool.images.contiguous(memory_format=torch.channels_last)
    for _ in range(6):
        for rows in torch.randperm(len(images)).split(32):
            out = model(images[rows])
            loss = F.binary_cross_entropy_with_logits(out[:, :4], targets[rows]) + F.cross_entropy(
                out[:, 4:], pool.attributes["expression"][rows]
            )
            stepper.zero_grad()
            loss.backward()
            stepper.step()
    seconds = time.process_time() - start
    with torch.no_grad():
        out = model(unseen.images)
    for k, name in enumerate(names):
        right = ((out[:, k] > 0) == truths[:, k].bool()).float().mean().item()
        yield Figure(f"{name} on unseen people, 48 px", right, "0.95")
    right = training.accuracy(out[:, 4:], unseen.attributes["expression"]).item()
    yield Figure("expression on unseen people, 48 px", right, "0.95")
    yield Figure("  their training, CPU seconds", seconds, "20")


def main() -> None:
    """Runs all of it."""
    parts = {"closed": closed_set, "verification": verification, "attributes": attributes}
    parser = argparse.ArgumentParser(description="speed and difficulty of the rendered faces")
    parser.add_argument("--seeds", type=int, default=4, help="seeds that a rate is the mean over")
    parser.add_argument("--only", choices=("speed", *parts), help="one part alone")
    told = parser.parse_args()
    torch.set_num_threads(1)
    print(f"rendered faces; one thread; torch {torch.__version__}, {platform.machine()}")
    if told.only in (None, "speed"):
        speed()
    for name, part in parts.items():
        if told.only in (None, name):
            for same in zip(*(part(seed) for seed in range(told.seeds)), strict=True):
                values = torch.tensor([figure.value for figure in same])
                low, high = values.min(), values.max()
                show(same[0].what, f"{values.mean():.3f} ({low:.3f}-{high:.3f})", same[0].target)


if __name__ == "__main__":
    main()
