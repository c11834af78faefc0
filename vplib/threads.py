"""How many cores a computation takes: small ones take one."""

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
    """Small products run on one core inside, torch's and those of numpy's BLAS.

    A second one gains little on them, and where others want it too (thirty students on one
    server, two test workers) waiting for it costs twenty times as much.

    Args:
        images: (N, ...) what is computed on; large ones, and other devices, keep their threads.
            None: all products inside are small.
    """
    if images is not None and (images.device.type != "cpu" or images[0].numel() >= 2048):
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


@cache
def _libraries() -> threadpoolctl.ThreadpoolController:
    """The libraries with threads of their own; finding them takes 40 ms, setting them under 0.2."""
    return threadpoolctl.ThreadpoolController()
