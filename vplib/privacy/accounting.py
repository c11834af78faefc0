"""How much privacy a run of noisy steps spends, by two accountants, and what may be asked for.

A history is a list of phases (sigma, sample_rate, num_steps). `sigma` is the noise multiplier: the
standard deviation of the noise over the clip norm. Each step takes each record by a coin of its own
with probability `sample_rate` (Poisson sampling) and adds Gaussian noise to a sum in which one
record weighs at most the clip norm; a neighbour has one record more or less.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from opacus.accountants import create_accountant

from vplib import experiment

Phase = tuple[float, float, int]
ORDERS = [1.1, 1.2, 1.35, 1.5, 1.7, *(2 + x / 4 for x in range(4)), 3, 3.5, 4, 4.5]  # few: slow
ORDERS += [*range(5, 64), 80, 96, 128, 192, 256, 512]
# Orders below 2 take most of the time, and are the best ones only where epsilon is large.
WINDOWS = ORDERS[5:], ORDERS[3:6], ORDERS
MAX_POINTS = 4e6  # of the PRV accountant's grid: some 10 seconds and half a gigabyte
ADD_REMOVE = "one record more or less"
ACCOUNTANTS = {"prv": "PRV (Opacus, upper bound)", "rdp": "RDP (Opacus)"}


@dataclass(frozen=True)
class Statement:
    """A privacy guarantee with everything without which its epsilon means nothing.

    Args:
        epsilon: rounded up when printed.
        delta: for which epsilon was computed.
        sampling: how batches were drawn.
        accountant: what computed epsilon.
        neighbour: what two data sets differ by that the guarantee cannot tell apart.
        note: what is not accounted for, such as tuning.
    """

    epsilon: float
    delta: float
    sampling: str
    accountant: str
    neighbour: str = ADD_REMOVE
    note: str = ""

    def __str__(self):
        """All of it in one line."""
        # A digit beyond what is printed decides nothing, but rounding down would promise more.
        shown = math.ceil(self.epsilon * 100 - 1e-9) / 100 if self.epsilon < 1e6 else self.epsilon
        parts = (
            f"epsilon {shown:.2f} at delta {self.delta:g}",
            f"sampling: {self.sampling}",
            f"accountant: {self.accountant}",
            f"neighbour: {self.neighbour}",
            self.note,
        )
        return "; ".join(part for part in parts if part)


def state(history: Sequence[Phase], delta: float, note: str = "") -> Statement:
    """The guarantee of a run with Poisson sampling, by the RDP accountant, ready to print.

    Args:
        history: the run's phases.
        delta: of the guarantee.
        note: what is not accounted for, such as tuning.
    """
    rates = sorted({rate for _, rate, _ in history})
    sampling = "Poisson, rate " + " and ".join(f"{rate:g}" for rate in rates)
    sampling += f", {sum(steps for *_, steps in history)} steps"
    return Statement(epsilon(history, delta), delta, sampling, ACCOUNTANTS["rdp"], note=note)


def epsilon(
    history: Sequence[Phase], delta: float, accountant: str | Callable[..., float] = "rdp"
) -> float:
    """The epsilon that a run has spent.

    Args:
        history: phases (sigma, sample_rate, num_steps); a sigma of 0 gives infinity.
        delta: of the guarantee.
        accountant: one of `ACCOUNTANTS`; "prv" is the tightest, "rdp" the usual one. Or another
            bound: a function of a history with noise and steps, and delta.

    Raises:
        ValueError: the accountant is unknown, a number cannot be, or "prv" would take too long.

    Source:
        Gopi et al., Numerical composition of differential privacy, NeurIPS 2021 ("prv"); Mironov,
        Talwar and Zhang, arXiv:1908.10530, with the conversion of Balle et al., AISTATS 2020
        ("rdp"), both as Opacus has them.
    """
    check_history(history, delta)
    if not (callable(accountant) or accountant in ACCOUNTANTS):
        hint = experiment.nearest(accountant, ACCOUNTANTS)
        raise ValueError(f"unknown accountant {accountant!r}; {hint}")
    if any(sigma == 0 and steps for sigma, _, steps in history):
        return math.inf
    steps = sum(n for *_, n in history)
    if not steps:
        return 0.0
    if callable(accountant):
        return accountant(history, delta)
    counted = create_accountant(accountant)
    counted.history = [tuple(phase) for phase in history if phase[2]]
    with warnings.catch_warnings(), np.errstate(divide="ignore"):  # log 0 is meant
        warnings.filterwarnings("ignore", message="Optimal order is the")  # it is a bound as well
        if accountant == "prv":
            mesh = 0.01 / math.sqrt(2 * steps * math.log(12e3 / delta))
            points = epsilon(history, delta / 4e3) / mesh  # the grid holds this loss and less
            if points > MAX_POINTS:
                raise ValueError(
                    f"so little noise takes the PRV accountant a grid of {points:.0e} points, more "
                    f"than {MAX_POINTS:.0e}; ask the RDP accountant, 'rdp'"
                )
            return max(0.0, float(counted.get_epsilon(delta=delta)))
        for orders in WINDOWS:
            found, best = counted.get_privacy_spent(delta=delta, alphas=orders)
            if best > orders[0]:  # a bound by fewer orders is one, and here it is the smallest
                break
        return max(0.0, float(found))  # the conversion goes below zero where delta does it all


def sigma_for(
    target: float,
    delta: float,
    sample_rate: float,
    num_steps: int,
    num_records: int | None = None,
) -> float:
    """The smallest noise multiplier, to about 1 % of epsilon, that keeps a run within a budget.

    By bisection on the RDP accountant.

    Args:
        target: the epsilon allowed; infinity needs no noise.
        delta: of the guarantee.
        sample_rate: of Poisson sampling.
        num_steps: steps of the whole run.
        num_records: size of the training set, to check delta against.

    Raises:
        ValueError: the request is impossible.
    """
    check_request(target, delta, sample_rate, num_records)
    if num_steps < 1:
        raise ValueError(f"a run needs at least one step, not {num_steps}")
    if target == math.inf:
        return 0.0

    def spent(sigma):
        return epsilon([(sigma, sample_rate, num_steps)], delta)

    low, high, error = 0.0, 20.0, min(0.01, target / 100)
    while spent(high) > target:
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError(f"no noise up to 1e6 reaches epsilon {target} at delta {delta}")
    while target - spent(high) > error and high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) < target else (middle, high)
    return high


def check_request(
    target: float, delta: float, sample_rate: float, num_records: int | None = None
) -> None:
    """Refuses what no training can give, before any training.

    Args:
        target: the epsilon asked for.
        delta: of the guarantee.
        sample_rate: of Poisson sampling.
        num_records: size of the training set; delta must lie below its inverse.

    Raises:
        ValueError: epsilon is not positive, delta is no small probability or not below
            1 / num_records, or the rate lies outside (0, 1].
    """
    if not target > 0:
        raise ValueError(
            f"epsilon must be positive, not {target}: at 0 the model may not depend on the data"
        )
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, not {delta}")
    if num_records is not None and delta >= 1 / num_records:
        raise ValueError(
            f"delta {delta:g} is not below 1 / {num_records} records: publishing one record at "
            f"random would pass for private; use at most {0.1 / num_records:.0e}"
        )
    if not 0 < sample_rate <= 1:
        raise ValueError(
            f"sample rate {sample_rate} is no probability; it is batch size over training-set "
            "size, at most 1"
        )


def check_history(history: Sequence[Phase], delta: float) -> None:
    """Refuses phases that cannot be.

    Args:
        history: the run's phases.
        delta: of the guarantee.

    Raises:
        ValueError: there is no phase, or a number is out of range.
    """
    if not len(history):
        raise ValueError("a history needs at least one phase (sigma, sample_rate, num_steps)")
    for sigma, rate, steps in history:
        if not sigma >= 0 or steps < 0:
            raise ValueError(f"sigma {sigma} and steps {steps} must not be negative")
        check_request(1.0, delta, rate)
