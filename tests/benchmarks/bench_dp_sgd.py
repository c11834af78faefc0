"""DP-SGD: stacked models against Opacus' PrivacyEngine, one model after another.

    python tests/benchmarks/bench_dp_sgd.py

Both train the same network on the same records with the same sampling rate, clip norm and noise,
for the same number of steps, Poisson batches. The sides are warmed up and take turns, on one
thread; the time is per model and step, and the accuracy stands beside it. Nothing is asserted.
"""

import argparse
import platform
import warnings

import opacus
import torch
import torch.nn.functional as F
from bench_training import medians
from opacus import PrivacyEngine

from vplib import datasets, models, training
from vplib.defenses.dp_sgd import private_training as dp_sgd

RATE, SIGMA, LR = 0.1, 1.5, 1.0
GOALS = {"MLP": 6, "CNN": 1}  # times as fast as the faster Opacus mode


def by_opacus(build, train, num_steps, mode):
    """One model by Opacus: mode "hooks" (per-example gradients) or "ghost" (norms only)."""
    net = build()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(train.images, train.labels),
        batch_size=round(RATE * len(train)),
    )
    settings = dict(noise_multiplier=SIGMA, max_grad_norm=1.0, poisson_sampling=True)
    stepper, criterion = torch.optim.SGD(net.parameters(), lr=LR), torch.nn.CrossEntropyLoss()
    made = PrivacyEngine().make_private(
        module=net, optimizer=stepper, data_loader=loader, criterion=criterion,
        grad_sample_mode=mode, **settings,
    )  # fmt: skip
    net, stepper, loader = made[0], made[1], made[-1]
    loss = made[2] if mode == "ghost" else F.cross_entropy
    done = 0
    while done < num_steps:
        for x, y in loader:
            stepper.zero_grad()
            loss(net(x), y).backward()
            stepper.step()
            done += 1
            if done == num_steps:
                break
    return net


def compare(name: str, num_models: int, num_steps: int, rounds: int, network: str) -> None:
    """Times all sides on one dataset and prints the ratios."""
    data = datasets.load(name, "all")
    pools = data.split(train=1000, test=300, seed=0)

    def build():
        make = models.mlp if network == "MLP" else models.cnn
        return make(data.shape, len(data.classes))

    subsets = torch.arange(1000).expand(num_models, -1)
    sides = {
        "vplib": lambda: dp_sgd.train_private(
            build, pools.train.images, pools.train.labels, subsets, sigma=SIGMA,
            sample_rate=RATE, num_steps=num_steps, lr=LR,
        ).models.model(0),
        "Opacus": lambda: by_opacus(build, pools.train, num_steps, "hooks"),
        "Opacus, ghost": lambda: by_opacus(build, pools.train, num_steps, "ghost"),
    }  # fmt: skip
    seconds, found = medians(sides, rounds)
    print(f"\n{network} on {name}, {num_models} stacked, {num_steps} steps, median of {rounds}")
    each = {side: s / (num_models if side == "vplib" else 1) for side, s in seconds.items()}
    peer = min(seconds for side, seconds in each.items() if side != "vplib")
    ratio, goal = peer / each["vplib"], GOALS[network]
    verdict = "met" if ratio >= goal else "MISSED"
    print(f"  {ratio:.1f}x the faster Opacus mode; goal {goal}x: {verdict}")
    for side, model in found.items():
        accuracy = training.accuracy(model(pools.test.images), pools.test.labels).item()
        print(
            f"  {side:14} {1e3 * each[side] / num_steps:7.2f} ms a model and step  "
            f"accuracy {accuracy:.3f}  ratio {each[side] / each['vplib']:5.1f}x"
        )


def main() -> None:
    """Compares on an MLP and on a CNN, whose convolutions clip as ghosts where that is cheaper."""
    parser = argparse.ArgumentParser(description="stacked DP-SGD against Opacus")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--models", type=int, default=16, help="models stacked")
    parser.add_argument("--steps", type=int, default=50, help="steps of each run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Opacus: its random numbers are not cryptographic
    print(f"one thread; Opacus {opacus.__version__}, torch {torch.__version__}, "
          f"{platform.machine()}")  # fmt: skip
    compare("digits", options.models, options.steps, options.rounds, "MLP")
    compare("digits", min(4, options.models), options.steps, options.rounds, "CNN")


if __name__ == "__main__":
    main()
