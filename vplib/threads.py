"""On how many cores a computation runs: on one, so that its result is the same on any machine."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import threadpoolctl

if TYPE_CHECKING:  # the process of an encrypted server needs none of torch
    from torch import Tensor


@contextmanager
def one_thread(images: "Tensor | None" = None) -> Iterator[None]:
    """What runs on the CPU inside runs on one core: torch's products, and those of numpy's BLAS.

    A sum that several cores share is rounded otherwise, and training makes another model of that.
    Besides, where others want the second core (thirty students on one server, two test workers),
    waiting for it costs ten to twenty times what it gains.

    Args:
        images: what is computed on; on another device, threads stay as they are.
    """
    if images is not None and images.device.type != "cpu":
        yield
        return
    torch = sys.modules.get("torch")
    before = torch and torch.get_num_threads()
    with _libraries().limit(limits=1, user_api="blas"):
        try:
            if torch:
                torch.set_num_threads(1)
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


def stay_on_one() -> None:
    """From here on, this process computes on one core, and so do those that it starts."""
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"  # of what is loaded later
    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)


@cache
def _libraries() -> threadpoolctl.ThreadpoolController:
    """The libraries with threads of their own; finding them takes 40 ms, setting them under 0.2."""
    return threadpoolctl.ThreadpoolController()
