"""Cloaks: all photos at once against one photo after another.

    python tests/benchmarks/bench_cloaking.py

Prints the time a photo and its ratio, beside its goal, on one thread; the sides take turns, so
that what else the machine does falls on both alike. Both make the same cloaks but for the noise
they start from: how near they come to the target, and how much of the budget they take, stands
beside the times, for a fast wrong answer is none. Nothing is asserted about times.
"""

import argparse
import platform
import statistics
import time

import torch

from vplib import metrics
from vplib.datasets import faces
from vplib.images.adversarial_cloaking import cloaks as cloaking
from vplib.victims import recognition

BUDGET, STEPS, GOAL = 0.02, 20, 4


def together(photos, goals, embed):
    """What the notebook does."""
    return cloaking.cloak(photos, goals, embed, budget=BUDGET, num_steps=STEPS)


def one_by_one(photos, goals, embed):
    """The same function, a photo at a time."""
    return torch.cat([
        cloaking.cloak(x, goal, embed, budget=BUDGET, num_steps=STEPS)
        for x, goal in zip(photos.split(1), goals.split(1), strict=True)
    ])  # fmt: skip


def dssim_times(photos, repeats: int) -> tuple[float, float]:
    """Seconds of a DSSIM with its gradient: ours and torchmetrics'."""
    found = []
    for measure in (cloaking.dssim, metrics.ssim):
        times = []
        for _ in range(repeats):
            x = (photos + 0.01).requires_grad_()
            start = time.process_time()
            measure(x, photos).sum().backward()
            times.append(time.process_time() - start)
        found.append(statistics.median(times))
    return tuple(found)


def main() -> None:
    """Runs all of it."""
    parser = argparse.ArgumentParser(description="batched cloaking against one by one")
    parser.add_argument("--photos", type=int, default=64, help="photos to cloak")
    parser.add_argument("--repeats", type=int, default=3, help="times that the sides take turns")
    told = parser.parse_args()
    torch.set_num_threads(1)
    print(f"cloaking; one thread; torch {torch.__version__}, {platform.machine()}")
    pool = faces.people(range(1000, 1060), 8, sessions=4)
    photos = cloaking.to_levels(faces.people(range(told.photos // 4), 4).images)
    for name, make in (("plain_cnn", recognition.plain_cnn), ("resnet", recognition.resnet)):
        embed = recognition.train_embedding(pool.images, pool.labels, network=make, num_epochs=2)
        aim = recognition.embed_all(embed, pool.images)
        goals = aim[torch.arange(len(photos)) * 5 % len(aim)]
        sides, seconds, made = (together, one_by_one), ([], []), [None, None]
        for side in sides:  # warm up
            side(photos[:2], goals[:2], embed)
        for _ in range(told.repeats):
            for i, side in enumerate(sides):
                start = time.process_time()
                made[i] = side(photos, goals, embed)
                seconds[i].append(time.process_time() - start)
        fast, slow = (statistics.median(s) / len(photos) for s in seconds)
        print(f"\n{name}: {1000 * fast:.1f} ms a photo together, {1000 * slow:.1f} one by one: "
              f"{slow / fast:.1f}x (goal {GOAL}x)")  # fmt: skip
        for label, result in zip(("together", "one by one"), made, strict=True):
            likeness = (embed(result) * goals).sum(1).mean().item()
            spent = cloaking.dssim(result, photos)
            print(f"  {label:11} cosine to the target {likeness:.3f}, DSSIM mean "
                  f"{spent.mean():.4f}, largest {spent.max():.4f}")  # fmt: skip
    ours, theirs = dssim_times(photos, told.repeats)
    print(f"\nDSSIM with gradient, {len(photos)} photos: {1000 * ours:.0f} ms, torchmetrics "
          f"{1000 * theirs:.0f} ms: {theirs / ours:.0f}x (no goal)")  # fmt: skip


if __name__ == "__main__":
    main()
