"""Independent computations side by side."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from vplib import experiment, threads


def concurrently(calls: Mapping[str, Callable], device="cpu", description: str = "") -> dict:
    """What independent calls return, by name, with as many at a time as torch has threads.

    Small tensors gain little from a second thread each; two computations side by side do. Results
    are those of one call after another, which is what a GPU gets, but for what torch itself rounds
    otherwise on fewer threads. An interrupt, like an error, waits for the calls that have begun.

    Args:
        calls: functions without arguments. They must not draw from torch's global generator (build
            models before): who draws first would be left to chance.
        device: where they compute.
        description: names the progress bar; empty for none.

    Raises:
        Exception: what the first call that failed has raised; those not yet begun are dropped.
    """
    total = torch.get_num_threads()
    workers = min(total, len(calls)) if torch.device(device).type == "cpu" else 1
    names = experiment.progress(calls, description) if description else calls
    if workers < 2:
        return {name: calls[name]() for name in names}
    share = max(1, total // workers)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    with threads.blas(share):
        try:
            running = {name: pool.submit(call) for name, call in calls.items()}
            return {name: running[name].result() for name in names}
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(total)  # the workers set it for threads to come
