"""The arms race's networks: all columns of its table in one batch against one after another.

    python tests/benchmarks/bench_arms_race.py

Eleven columns of 24 networks, victims and shadows: 264 MLPs. Both sides start from the same weights
and see the images in the same order, so their test accuracies must be the same: they stand beside
the times, for a fast wrong answer is none. Prints a ratio; nothing is asserted about times.
"""

import argparse
import platform
import statistics
import time

import torch

from vplib import datasets, models, training

COLUMNS, NETWORKS, NUM_RECORDS, EPOCHS = 11, 24, 200, 50
GOAL = "4x"


def train(form, build, pool, subsets, epochs):
    """All networks, in one of the library's two forms, without its cache."""
    settings = dict(num_epochs=epochs, lr=0.1, batch_size=32, keep=False, form=form)
    return training.fit_many(build, pool.images, pool.labels, subsets, **settings)


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description="264 networks at once against one by one")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over each subset")
    options = parser.parse_args()
    torch.set_num_threads(1)
    split = datasets.load("digits", "all").split(seed=0, pool=2 * NUM_RECORDS, test=1000)
    subsets = training.half_splits(len(split.pool), COLUMNS * NETWORKS)

    def mlp():
        return models.mlp(split.pool.shape, 10)

    seconds, accuracies = {"batched": [], "loop": []}, {}
    for form in seconds:  # warms up
        train(form, mlp, split.pool, subsets[:16], 1)
    for _ in range(options.rounds):
        for form, taken in seconds.items():
            start = time.perf_counter()
            trained = train(form, mlp, split.pool, subsets, options.epochs)
            taken.append(time.perf_counter() - start)
            right = training.accuracy(trained.logits(split.test.images), split.test.labels)
            accuracies[form] = right.mean().item()
    batched, loop = (statistics.median(taken) for taken in seconds.values())
    same = "same" if abs(accuracies["batched"] - accuracies["loop"]) <= 0.01 else "NOT THE SAME"
    print(
        f"{COLUMNS} x {NETWORKS} MLPs, {NUM_RECORDS} records each, {options.epochs} epochs, "
        f"digits; one thread; torch {torch.__version__}, {platform.machine()}"
    )
    print(f"  in one batch {batched:.1f} s, one by one {loop:.1f} s: ", end="")
    print(f"{loop / batched:.2f}x (goal {GOAL}), accuracies {same}")


if __name__ == "__main__":
    main()
