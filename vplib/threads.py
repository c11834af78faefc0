"""How many cores a computation takes: small ones take one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def one_thread(images: Tensor) -> Iterator[None]:
    """Tiny products run on one core inside.

    A second one gains little on them, and where others want it too (thirty students on one
    server, two test workers) waiting for it costs twenty times as much.

    Args:
        images: (N, ...) what is computed on; large ones, and other devices, keep their threads.
    """
    before = torch.get_num_threads()
    tiny = images.device.type == "cpu" and images[0].numel() < 2048
    torch.set_num_threads(1 if tiny else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
