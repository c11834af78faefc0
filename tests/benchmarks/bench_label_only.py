"""Label-only boundary distances: all records at once against ART's HopSkipJump.

    pip install 'adversarial-robustness-toolbox>=1.20'     (the extra `bench`)
    python tests/benchmarks/bench_label_only.py

Both attack the same victim from the same start points, in L2, clipped to [0, 1], with the same
number of steps and of directions a step. Queries are counted where the victim answers them, and
the time is divided by them; the distances reached stand beside it, for a fast attack that ends
farther away is none. The sides are warmed up and take turns, on one thread. Nothing is asserted.
"""

import argparse
import os
import platform
import tempfile

import numpy as np
import torch
from bench_training import medians
from torch import nn

from vplib import datasets, models, training
from vplib.attacks.membership_label_only import hop_skip_jump as walk

try:
    import art
    from art.attacks.evasion import HopSkipJump
    from art.estimators.classification import PyTorchClassifier
except ImportError as error:
    print(
        f"bench_label_only: skipped, ART cannot be imported ({error}); for this benchmark: "
        "pip install 'adversarial-robustness-toolbox>=1.20'"
    )
    raise SystemExit(0) from None

NUM_STEPS, TOLERANCE = 10, 0.01


class Counting(PyTorchClassifier):
    """ART's wrapper of a model, which counts the images it is asked about."""

    queries = 0

    def predict(self, x, *args, **kwargs):
        """The logits, as ART wants them."""
        self.queries += len(x)
        return super().predict(x.astype(np.float32), *args, **kwargs)


def distances_of_art(model, images, starts, directions, batch_size):
    """ART's attack: the distances, and how many queries it made."""
    shape = tuple(images.shape[1:])
    victim = Counting(
        model, nn.CrossEntropyLoss(), shape, 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    attacker = HopSkipJump(
        victim, batch_size=batch_size, norm=2, max_iter=NUM_STEPS, init_eval=directions,
        max_eval=10_000, verbose=False,
    )  # fmt: skip
    np.random.seed(0)
    points = attacker.generate(images.numpy(), x_adv_init=starts.numpy())
    return torch.from_numpy(points - images.numpy()).flatten(1).norm(dim=1), victim.queries


def distances_of_vplib(model, images, starts, directions):
    """Ours: the distances, and how many queries it made."""
    asked = 0

    @torch.no_grad()
    def predict_label(some):
        nonlocal asked
        asked += len(some)
        return model(some).argmax(-1)

    labels = predict_label(images)
    found = walk.hop_skip_jump(
        predict_label, images, labels, starts, num_steps=NUM_STEPS,
        num_directions=directions, tolerance=TOLERANCE,
    )  # fmt: skip
    return found.distances, asked


def compare(name: str, records: int, directions: int, rounds: int, batch_size: int) -> None:
    """Times both sides on one dataset and prints the ratio."""
    pools = datasets.load(name, "all").split(victim=400, own=400, seed=0)
    victim = training.fit_many(
        lambda: models.mlp(pools.victim.shape, 10),
        pools.victim.images,
        pools.victim.labels,
        training.half_splits(400, 2),
        num_epochs=100,
    )
    model, images = victim.model(0), pools.victim.images[:records]
    labels = victim.predict(0)(images).argmax(-1)
    starts = walk.find_starts(
        lambda x: victim.predict(0)(x).argmax(-1), labels, pools.own.images
    ).images
    sides = {
        "vplib": lambda: distances_of_vplib(model, images, starts, directions),
        "ART": lambda: distances_of_art(model, images, starts, directions, batch_size),
    }
    seconds, found = medians(sides, rounds)
    cost = {}
    print(
        f"\n{name}, {records} records, {directions} directions in the first step; "
        f"median of {rounds} interleaved runs after a warm-up"
    )
    for side, (distances, queries) in found.items():
        cost[side] = 1e6 * seconds[side] / queries
        print(
            f"  {side:6} {seconds[side]:7.2f} s  {queries / records:7.1f} queries a record  "
            f"{cost[side]:7.2f} us a query   median distance {distances.median():.3f}"
        )
    print(f"  ratio  {cost['ART'] / cost['vplib']:7.1f}x a query   goal 15x (at least 10x)")


def main() -> None:
    """Compares both on 8x8 and on 28x28 pixels."""
    parser = argparse.ArgumentParser(description="label-only boundary distances against ART's")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--records", type=int, default=100, help="records attacked")
    parser.add_argument("--batch-size", type=int, default=256, help="of ART's predictions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"HopSkipJump, {NUM_STEPS} steps, MLP with 128 hidden units; one thread; "
        f"ART {art.__version__}, torch {torch.__version__}, {platform.machine()}"
    )
    for name, directions in (("digits", 20), ("digits", 100), ("mnist5k", 20)):  # 100: ART's own
        compare(name, options.records, directions, options.rounds, options.batch_size)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VPLIB_CACHE"] = cache
        main()
