"""How much privacy a run of noisy steps spends, by five accountants, and what may be asked for.

A history is a list of phases (sigma, sample_rate, num_steps). `sigma` is the noise multiplier: the
standard deviation of the noise over the clip norm. Each step takes each record by a coin of its own
with probability `sample_rate` (Poisson sampling) and adds Gaussian noise to a sum in which one
record weighs at most the clip norm; a neighbour has one record more or less. Only
`zcdp_reshuffled` is about another sampling and another neighbour.
"""

import math
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from opacus.accountants import create_accountant
from opacus.accountants.analysis import rdp as renyi
from opacus.accountants.utils import get_noise_multiplier

from vplib import experiment

Phase = tuple[float, float, int]
ORDERS = [1.1, 1.2, 1.35, 1.5, 1.7, *(2 + x / 4 for x in range(4)), 3, 3.5, 4, 4.5]  # few: slow
ORDERS += [*range(5, 64), 80, 96, 128, 192, 256, 512]
# Orders below 2 take most of the time, and are the best ones only where epsilon is large.
WINDOWS = ORDERS[5:], ORDERS[3:6], ORDERS
ADD_REMOVE = "one record more or less"
BLANKED = "one record's gradient replaced by zero"
ACCOUNTANTS = {
    "prv": "PRV (Opacus, upper bound)",
    "rdp": "RDP (Opacus)",
    "moments": "moments accountant, classic bound",
    "strong": "strong composition of amplified steps",
    "zcdp": "zCDP bound for sampled batches",
}


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


def epsilon(history: Sequence[Phase], delta: float, accountant: str = "rdp") -> float:
    """The epsilon that a run has spent.

    Args:
        history: phases (sigma, sample_rate, num_steps); a sigma of 0 gives infinity.
        delta: of the guarantee.
        accountant: one of `ACCOUNTANTS`; "prv" is the tightest, "rdp" the usual one.

    Raises:
        ValueError: the accountant is unknown, or a number cannot be.

    Source:
        Gopi et al., Numerical composition of differential privacy, NeurIPS 2021 ("prv"); Mironov,
        Talwar and Zhang, arXiv:1908.10530, with the conversion of Balle et al., AISTATS 2020
        ("rdp"), both as Opacus has them; the others as in the functions below.
    """
    _check_history(history, delta)
    if accountant not in ACCOUNTANTS:
        hint = experiment.nearest(accountant, ACCOUNTANTS)
        raise ValueError(f"unknown accountant {accountant!r}; {hint}")
    if any(sigma == 0 and steps for sigma, _, steps in history):
        return math.inf
    if not sum(steps for *_, steps in history):
        return 0.0
    own = {"moments": moments_bound, "strong": strong_composition, "zcdp": zcdp_sampled}
    if accountant in own:
        return own[accountant](history, delta)
    counted = create_accountant(accountant)
    counted.history = [tuple(phase) for phase in history if phase[2]]
    with _quiet():
        if accountant == "prv":
            return float(counted.get_epsilon(delta=delta))
        for orders in WINDOWS:
            found, best = counted.get_privacy_spent(delta=delta, alphas=orders)
            if best > orders[0]:  # a bound by fewer orders is one, and here it is the smallest
                break
        return float(found)


def moments_bound(history: Sequence[Phase], delta: float) -> float:
    """Abadi's epsilon: the tail bound on the log moments, over integer orders.

    Args:
        history: the run's phases.
        delta: of the guarantee.

    Source:
        Abadi et al., Deep learning with differential privacy, CCS 2016, theorem 2. The log moment
        of order a - 1 is (a - 1) times the Renyi divergence of order a, which Opacus integrates
        exactly.
    """
    orders = [2, 3, 4, *(order for order in ORDERS if order >= 5)]
    spent = _renyi(history, orders)
    return float(np.min(spent + np.log(1 / delta) / (np.array(orders) - 1)))


def strong_composition(history: Sequence[Phase], delta: float) -> float:
    """The paper's yardstick: each step's epsilon amplified linearly, then strong composition.

    Linear amplification, e = sample_rate * e0, holds for e0 up to 1 only and flatters the yardstick
    beyond; amplified exactly, the result is larger still.

    Args:
        history: one phase.
        delta: half goes to the steps, half to the composition.

    Raises:
        ValueError: there are several phases; the theorem is for equal steps.

    Source:
        Abadi et al. 2016, section 3.2 and figure 2; Dwork and Roth 2014, theorems 3.20 and A.1.
    """
    if len(history) != 1:
        raise ValueError("strong composition is for equal steps: give one phase")
    sigma, rate, steps = history[0]
    single = math.sqrt(2 * math.log(1.25 * 2 * steps * rate / delta)) / sigma * rate
    spread = single * math.sqrt(2 * steps * math.log(2 / delta))
    return spread + steps * single * math.expm1(single)


def zcdp_sampled(history: Sequence[Phase], delta: float) -> float:
    """Yu's epsilon for randomly sampled batches: rho = q^2 / sigma^2 a step, up to an order.

    The bound is that of Abadi's lemma 3 without its third-order remainder; orders end at
    sigma^2 ln(1 / (q sigma)), which bends the conversion for small deltas.

    Args:
        history: phases of one sigma and rate.
        delta: of the guarantee.

    Raises:
        ValueError: sigma is below 1 or the rate is not small against it, where the bound does not
            hold; or phases differ.

    Source:
        Yu et al., Differentially private model publishing for deep learning, S&P 2019, section V,
        and the authors' code.
    """
    if len({(sigma, rate) for sigma, rate, _ in history}) != 1:
        raise ValueError("this bound is for equal steps: give phases of one sigma and sample rate")
    sigma, rate, _ = history[0]
    if sigma < 1 or rate >= 1 / (16 * sigma):
        raise ValueError(
            f"the bound needs sigma of at least 1 and a sample rate below 1 / (16 sigma), not "
            f"sigma {sigma} and rate {rate}; use the RDP accountant"
        )
    rho = sum(steps for *_, steps in history) * rate**2 / sigma**2
    highest = sigma**2 * math.log(1 / (rate * sigma))  # order - 1 of the moments that are bounded
    if math.sqrt(math.log(1 / delta) / rho) > highest:
        return rho * (highest + 1) + math.log(1 / delta) / highest
    return zcdp_to_epsilon(rho, delta)


def zcdp_reshuffled(sigmas: Sequence[float], delta: float) -> Statement:
    """Yu's guarantee where each epoch cuts a shuffled order into batches: no amplification at all.

    A record is in one batch an epoch, and batches do not overlap, so an epoch costs what one step
    costs, 1 / (2 sigma^2). To be in the same batch, the neighbour keeps the record's place and
    gives a zero gradient.

    Args:
        sigmas: noise multiplier of each epoch.
        delta: of the guarantee.

    Source:
        Yu et al. 2019, section V-A; Bun and Steinke, TCC 2016, propositions 1.3 and 1.6. The
        neighbour is spelled out by us.
    """
    _check_history([(sigma, 1, 1) for sigma in sigmas], delta)
    rho = sum(1 / (2 * sigma**2) if sigma else math.inf for sigma in sigmas)
    return Statement(
        zcdp_to_epsilon(rho, delta),
        delta,
        f"reshuffled batches, {len(sigmas)} epochs",
        "zCDP, parallel composition within an epoch",
        BLANKED,
    )


def zcdp_to_epsilon(rho: float, delta: float) -> float:
    """Rho-zCDP as an epsilon: rho + 2 sqrt(rho ln(1 / delta)) (Bun and Steinke 2016)."""
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def sigma_for(
    target: float,
    delta: float,
    sample_rate: float,
    num_steps: int,
    num_records: int | None = None,
) -> float:
    """The smallest noise multiplier, to about 1 % of epsilon, that keeps a run within a budget.

    By Opacus' RDP accountant.

    Args:
        target: the epsilon allowed.
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
    settings = dict(target_epsilon=target, target_delta=delta, steps=num_steps)
    settings |= dict(sample_rate=sample_rate, epsilon_tolerance=min(0.01, target / 100))
    try:
        with _quiet():
            for orders in WINDOWS:
                sigma = get_noise_multiplier(**settings, accountant="rdp", alphas=orders)
                spent = _renyi([(sigma, sample_rate, num_steps)], orders)
                _, best = renyi.get_privacy_spent(orders=orders, rdp=spent, delta=delta)
                if best > orders[0]:
                    break
            return sigma
    except ValueError as error:
        raise ValueError(f"no noise reaches epsilon {target} at delta {delta}: {error}") from None


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


@contextmanager
def _quiet():
    """Without the accountants' warnings: a bound at the last order is a bound, log 0 is meant."""
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield


def _renyi(history: Sequence[Phase], orders: Sequence[float]) -> np.ndarray:
    """The Renyi divergence of a run at each order."""
    return sum(
        renyi.compute_rdp(q=rate, noise_multiplier=sigma, steps=steps, orders=orders)
        for sigma, rate, steps in history
    )


def _check_history(history: Sequence[Phase], delta: float) -> None:
    if not len(history):
        raise ValueError("a history needs at least one phase (sigma, sample_rate, num_steps)")
    for sigma, rate, steps in history:
        if not sigma >= 0 or steps < 0:
            raise ValueError(f"sigma {sigma} and steps {steps} must not be negative")
        check_request(1.0, delta, rate)
