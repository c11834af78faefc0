"""Seeds for the parts of an experiment: independent of each other, and of what ran before."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


def derive(seed: int, *path) -> int:
    """An independent seed for a part of an experiment.

    Args:
        seed: of the experiment.
        path: names or numbers of the part.
    """
    entropy = [seed, *(int.from_bytes(str(part).encode(), "little") for part in path)]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generators start from this seed inside, and are as before outside."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 1 ms: it notes a stack
        if gpus:
            torch.cuda.manual_seed_all(seed)
        yield


def initialized(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The model that `build` makes where torch starts from this seed."""
    with seeded(seed):
        return build()
