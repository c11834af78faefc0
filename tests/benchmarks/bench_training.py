"""Shadow ensembles: `fit_many` against training one model after another.

    python tests/benchmarks/bench_training.py

Prints ratios of medians, each beside its goal. The sides are warmed up and then take turns, on
one thread, so that what else the machine does falls on all of them alike. All sides start from
the same weights, and the tight loop sees the images in the same order, so its test accuracies
must be the same: they stand beside the times, for a fast wrong answer is none. Nothing is asserted
about times.
"""

import argparse
import platform
import statistics
import time

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from vplib import datasets, models, seeding, training

NUM_MODELS, NUM_RECORDS, BATCH, LR, MOMENTUM = 64, 200, 32, 0.1, 0.9
SEEDS = [seeding.derive(0, k) for k in range(NUM_MODELS)]  # as fit_many starts its models


def tight_loop(build, images, labels, subsets, epochs, channels_last=False):
    """What one would write by hand, without a wasted call: one model after another."""
    trained = []
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    for seed, rows in zip(SEEDS, subsets, strict=True):
        torch.manual_seed(seed)
        model = build()
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        stepper = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)
        own_images, own_labels = images[rows], labels[rows]
        order = torch.Generator().manual_seed(seeding.derive(seed, "order"))
        for _ in range(epochs):
            for batch in torch.randperm(len(rows), generator=order).split(BATCH):
                loss = F.cross_entropy(model(own_images[batch]), own_labels[batch])
                stepper.zero_grad()
                loss.backward()
                stepper.step()
        trained.append(model.eval())
    return trained


def loader_loop(build, images, labels, subsets, epochs):
    """What tutorials write: a DataLoader over a TensorDataset for each model."""
    trained = []
    for seed, rows in zip(SEEDS, subsets, strict=True):
        torch.manual_seed(seed)
        model = build()
        stepper = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        data = TensorDataset(images[rows], labels[rows])
        for _ in range(epochs):
            for x, y in DataLoader(data, batch_size=BATCH, shuffle=True):
                loss = F.cross_entropy(model(x), y)
                stepper.zero_grad()
                loss.backward()
                stepper.step()
        trained.append(model.eval())
    return trained


def fit_many(build, images, labels, subsets, epochs):
    """The library, in the form that it chooses; without its cache, which would train nothing."""
    settings = dict(num_epochs=epochs, lr=LR, batch_size=BATCH, momentum=MOMENTUM)
    return training.fit_many(build, images, labels, subsets, keep=False, **settings)


def medians(sides: dict, rounds: int) -> tuple[dict, dict]:
    """The median seconds of each side, and what each returned, over interleaved rounds."""
    results = {name: run() for name, run in sides.items()}  # warms up caches and allocators
    seconds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}, results


@torch.no_grad()
def mean_accuracy(trained, images, labels) -> float:
    """The mean test accuracy over all models of one side."""
    if isinstance(trained, training.Ensemble):
        logits = trained.logits(images)
    else:
        logits = torch.stack([model(images) for model in trained])
    return training.accuracy(logits, labels).mean().item()


def compare(title: str, sides: dict, goals: dict, test, rounds: int) -> None:
    """Prints one block: seconds, ratio, goal and accuracy of each side against the first."""
    seconds, results = medians(sides, rounds)
    first, *others = sides
    accuracies = {name: mean_accuracy(r, test.images, test.labels) for name, r in results.items()}
    print(f"\n{title}; median of {rounds} interleaved runs after a warm-up")
    print(f"  {'':42} {'seconds':>8} {'ratio':>7}  {'goal':16} test accuracy")
    print(f"  {first:42} {seconds[first]:8.2f} {'':7}  {'':16} {accuracies[first]:.3f}")
    for name in others:
        ratio = f"{seconds[name] / seconds[first]:.2f}x"
        goal, accuracy = goals.get(name, ""), accuracies[name]
        same = "same" if abs(accuracy - accuracies[first]) <= 0.01 else "NOT WITHIN 0.01"
        print(f"  {name:42} {seconds[name]:8.2f} {ratio:>7}  {goal:16} {accuracy:.3f} {same}")


def main() -> None:
    """Runs both comparisons."""
    parser = argparse.ArgumentParser(description="fit_many against one model after another")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each side")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    split = datasets.load("digits", "all").split(seed=0, pool=2 * NUM_RECORDS, test=1000)
    pool, test = split.pool, split.test
    subsets = training.half_splits(len(pool), NUM_MODELS)
    data = pool.images, pool.labels, subsets
    print(
        f"{NUM_MODELS} models, {NUM_RECORDS} records each, batch {BATCH}, digits; one thread; "
        f"torch {torch.__version__}, {platform.machine()}"
    )

    def mlp():
        return models.mlp(pool.shape, 10, hidden=(128,))

    def cnn():
        return models.cnn(pool.shape, 10, channels=(8, 16), hidden=64)

    compare(
        "MLP 64-128-10, 5 epochs",
        {
            "fit_many": lambda: fit_many(mlp, *data, 5),
            "one by one, tight loop in PyTorch": lambda: tight_loop(mlp, *data, 5),
            "one by one, DataLoader": lambda: loader_loop(mlp, *data, 5),
        },
        {
            "one by one, tight loop in PyTorch": "4x (stretch 5x)",
            "one by one, DataLoader": "6x",
        },
        test,
        rounds,
    )
    compare(
        "CNN, 8 and 16 channels, 64 hidden, 10 epochs",
        {
            "fit_many": lambda: fit_many(cnn, *data, 10),
            "one by one, tight loop, channels-last": lambda: tight_loop(cnn, *data, 10, True),
        },
        {"one by one, tight loop, channels-last": "1.5x"},
        test,
        min(rounds, 3),
    )


if __name__ == "__main__":
    main()
