"""What depth costs: operations timed on SEAL, and a model of a packed network's latency."""

import time

import numpy as np
from tenseal import sealapi

from vplib.defenses.encrypted_inference.seal import STANDARD_BITS, Parameters, Secret

LEVEL_BITS, OUTER_BITS = 26, 60  # of modulus: each level, and both ends together
Stage = tuple[int, int, int]


def time_operations(degree: int, levels: int, repeats: int = 8) -> tuple[float, float]:
    """CPU seconds of a product with a known number, and of a rotation.

    Args:
        degree: the poly modulus degree N.
        levels: primes of the ciphertext.
        repeats: the fastest of so many counts.
    """
    key, galois = Secret(Parameters(degree, (30,) * (levels + 1), 20)), sealapi.GaloisKeys()
    context, values = key.context, np.array([1.0, 2.0])
    plain, cipher, out = key.encode(values), key.encrypt_slots(values), sealapi.Ciphertext(context)
    key.generator.create_galois_keys([3], galois)
    run, spent = sealapi.Evaluator(context), np.empty((2, repeats))
    for i in range(repeats):
        start = time.process_time()
        run.multiply_plain(cipher, plain, out)
        middle = time.process_time()
        run.apply_galois(cipher, 3, galois, out)
        spent[:, i] = middle - start, time.process_time() - middle
    return tuple(spent.min(1))


def layers_of(stages: list[Stage], mobile: list[bool]) -> list[tuple[list[Stage], int]]:
    """The layers one after another: parallel (in, out, kernel) triples, and the map's pixels.

    Args:
        stages: (maps in, maps out, pixels in a row) of each 3x3 convolution.
        mobile: which of them become blocks: squeeze to an eighth of the maps, then expand by 1x1
            and 3x3 in parallel.
    """
    parts = []
    for (cin, cout, pixels), small in zip(stages, mobile, strict=True):
        few, half = cout // 8, cout // 2
        block = [[(cin, few, 1)], [(few, half, 1), (few, half, 3)]]
        parts += [(layers, pixels) for layers in (block if small else [[(cin, cout, 3)]])]
    return parts


def latency(
    stages: list[Stage],
    mobile: list[bool],
    merged: bool,
    unit: tuple[float, float],
    free_depth: bool = False,
) -> tuple[float, int, int, int]:
    """Modelled seconds of an encrypted network, its depth, its N, and its products in the clear.

    Args:
        stages: as for `layers_of`.
        mobile: as for `layers_of`.
        merged: the activation's coefficients are in the layers; else they cost a level each.
        unit: seconds of a product by N times levels, of a rotation by N times levels (levels + 1).
        free_depth: as if each layer had the one level that it needs itself.

    Raises:
        ValueError: no N of the standard's table takes that depth.

    Source:
        After Lou and Jiang, HEMET, ICML 2021; the counts of products and rotations of packed
        convolutions are our own simplification.
    """
    parts, total, products = layers_of(stages, mobile), 0.0, 0
    each = 2 if merged else 3  # a layer, its square, and the coefficients
    depth = 1 if free_depth else each * len(parts) + 1
    fits = [d for d, most in STANDARD_BITS.items() if most >= LEVEL_BITS * depth + OUTER_BITS]
    if not fits:
        raise ValueError(f"no N of the standard's table takes a depth of {depth}")
    for i, (layers, pixels) in enumerate(parts):
        level, share = max(depth - each * i, 1), pixels**2 / (fits[0] / 2)
        for cin, cout, k in layers:
            products += cin * cout * k * k * pixels**2
            total += cin * cout * k * k * share * unit[0] * fits[0] * level
            turns = (cin * cout + cin * (k * k - 1)) * share
            total += turns * unit[1] * fits[0] * level * (level + 1)
    return total, depth, fits[0], products


def choose_blocks(stages: list[Stage], unit: tuple[float, float], free_depth=False) -> list[bool]:
    """Greedily, stage by stage: which become mobile blocks because the latency falls."""
    chosen = [False] * len(stages)
    for i in range(len(stages)):
        trial = [*chosen[:i], True, *chosen[i + 1 :]]
        chosen = min(chosen, trial, key=lambda m: latency(stages, m, True, unit, free_depth))
    return chosen
