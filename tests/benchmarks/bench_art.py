"""Shadow attack: the library against ART's `ShadowModels` and `MembershipInferenceBlackBox`.

    pip install 'adversarial-robustness-toolbox>=1.20'     (the extra `bench`)
    python tests/benchmarks/bench_art.py

Equal work: the same pool, as many shadow models of the same network, each on half of the pool, the
same batch size, epochs and SGD with momentum. The shadow phase is timed from nothing to the
shadows' answers to their pool; the sides are warmed up and take turns, on one thread. Then both
attack the same victims, from probabilities and the true class, with each library's attack model as
it comes. ART's shadows answer with logits, so the softmax is taken for them. Nothing is asserted.
"""

import argparse
import os
import platform
import tempfile
import time

import numpy as np
import torch
from bench_training import medians
from torch import nn

from vplib import datasets, metrics, models, training
from vplib.attacks.membership_shadow import shadow as attack

try:
    import art
    from art.attacks.inference.membership_inference import (
        MembershipInferenceBlackBox,
        ShadowModels,
    )
    from art.estimators.classification import PyTorchClassifier
except ImportError as error:
    print(
        f"bench_art: skipped, ART cannot be imported ({error}); for this benchmark: "
        "pip install 'adversarial-robustness-toolbox>=1.20'"
    )
    raise SystemExit(0) from None

NUM_SHADOWS, NUM_VICTIMS, NUM_RECORDS, BATCH, LR, MOMENTUM = 64, 16, 200, 32, 0.1, 0.9


def template(shape: tuple, num_epochs: int) -> PyTorchClassifier:
    """An untrained classifier of ART's; `ShadowModels` trains clones of it, with these settings."""

    class Classifier(PyTorchClassifier):
        def fit(self, x, y, **_):  # ShadowModels has no argument for either
            super().fit(x, y, batch_size=BATCH, nb_epochs=num_epochs)

    model = models.mlp(shape, 10, hidden=(128,))
    stepper = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    return Classifier(model, nn.CrossEntropyLoss(), shape, 10, stepper, device_type="cpu")


def shadows_of_art(pool, num_epochs: int, seed: int):
    """ART's shadow phase: the trained shadows; answers and classes of members and nonmembers."""
    torch.manual_seed(seed)
    shadows = ShadowModels(template(pool.shape, num_epochs), NUM_SHADOWS, random_state=seed)
    return shadows, *shadows.generate_shadow_dataset(pool.images.numpy(), pool.labels.numpy())


def shadows_of_vplib(pool, num_epochs: int, seed: int):
    """Ours: the trained shadows, and their answers to the pool."""
    shadows = training.fit_many(
        lambda: models.mlp(pool.shape, 10, hidden=(128,)),
        pool.images,
        pool.labels,
        training.half_splits(len(pool), NUM_SHADOWS, seed),
        num_epochs=num_epochs,
        lr=LR,
        batch_size=BATCH,
        momentum=MOMENTUM,
        seed=seed,
        keep=False,
    )
    return shadows, shadows.probabilities(pool.images)


def attack_of_art(found, pool, answers):
    """ART's attack model on ART's shadows: a score for each victim and record."""
    _, (_, in_class, in_logits), (_, out_class, out_logits) = found
    inside, outside = (torch.from_numpy(z).softmax(-1).numpy() for z in (in_logits, out_logits))
    torch.manual_seed(0)
    attacker = MembershipInferenceBlackBox(template(pool.shape, 1))
    attacker.fit(y=in_class, test_y=out_class, pred=inside, test_pred=outside)
    labels = pool.labels.numpy()
    scores = [attacker.infer(None, labels, pred=a.numpy(), probabilities=True) for a in answers]
    return torch.from_numpy(np.stack(scores)).squeeze(-1)


def attack_of_vplib(found, shadow_pool, pool, answers):
    """Our attack models on our shadows: a score for each victim and record."""
    shadows, asked = found
    inside = shadows.membership(len(shadow_pool))
    judges = attack.train_attack_models(asked, shadow_pool.labels, inside)
    return attack.score_members(judges, answers, pool.labels)


def accuracy(trained, test) -> float:
    """The mean test accuracy over all shadows of one side."""
    if isinstance(trained, training.Ensemble):
        logits = trained.logits(test.images)
    else:
        images = test.images.numpy()
        logits = torch.from_numpy(
            np.stack([m.predict(images) for m in trained.get_shadow_models()])
        )
    return training.accuracy(logits, test.labels).mean().item()


def main() -> None:
    """Times both shadow phases, then attacks the same victims with both."""
    parser = argparse.ArgumentParser(description="the shadow attack against ART's")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--epochs", type=int, default=50, help="of shadows and victims")
    parser.add_argument("--seed", type=int, default=0, help="of pools, shadows and victims")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pools = datasets.load("digits", "all").split(
        seed=options.seed, victim=2 * NUM_RECORDS, shadow=2 * NUM_RECORDS, test=900
    )
    victims = training.fit_many(
        lambda: models.mlp(pools.victim.shape, 10, hidden=(128,)),
        pools.victim.images,
        pools.victim.labels,
        training.half_splits(len(pools.victim), NUM_VICTIMS, options.seed + 1),
        num_epochs=options.epochs,
        lr=LR,
        batch_size=BATCH,
        momentum=MOMENTUM,
        seed=options.seed + 1,
    )
    members = victims.membership(len(pools.victim))
    answers = victims.probabilities(pools.victim.images)
    print(
        f"{NUM_SHADOWS} shadows (MLP 64-128-10), {NUM_RECORDS} records each, batch {BATCH}, "
        f"{options.epochs} epochs, digits; one thread; ART {art.__version__}, "
        f"torch {torch.__version__}, {platform.machine()}"
    )
    sides = {
        "vplib": lambda: shadows_of_vplib(pools.shadow, options.epochs, options.seed),
        "ART": lambda: shadows_of_art(pools.shadow, options.epochs, options.seed),
    }
    seconds, found = medians(sides, options.rounds)
    print(f"\nShadow phase; median of {options.rounds} interleaved runs after a warm-up")
    for name in sides:
        right = accuracy(found[name][0], pools.test)
        print(f"  {name:6} {seconds[name]:7.2f} s   test accuracy of the shadows {right:.3f}")
    print(f"  ratio  {seconds['ART'] / seconds['vplib']:7.2f}x  goal 4x (stretch 6x)")
    print(
        f"\nAttack; mean AUC over the same {NUM_VICTIMS} victims [95 % interval], and seconds once"
    )
    attacks = {
        "vplib": lambda: attack_of_vplib(found["vplib"], pools.shadow, pools.victim, answers),
        "ART": lambda: attack_of_art(found["ART"], pools.victim, answers),
    }
    loss, aucs = -attack.losses(answers, pools.victim.labels), {}
    for name, run in (attacks | {"loss threshold, no shadows": lambda: loss}).items():
        start = time.perf_counter()
        scores = run()
        spent = time.perf_counter() - start
        auc = metrics.bootstrap(metrics.auc, scores, members)
        print(f"  {name:26} {auc:.3f}   {spent:6.1f} s", flush=True)
        aucs[name] = np.array([metrics.auc(s, m) for s, m in zip(scores, members, strict=True)])
    more = aucs["vplib"] - aucs["ART"]
    error = more.std(ddof=1) / len(more) ** 0.5
    print(f"  vplib minus ART, victim by victim: {more.mean():+.3f}, standard error {error:.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VPLIB_CACHE"] = cache  # what an earlier run trained would take no time
        main()
