"""What a run spends by the bounds of the papers, which today's accountants replace.

As in `accounting`, a history is a list of phases (sigma, sample_rate, num_steps), and batches are
Poisson samples; `accounting.epsilon` takes these bounds as its accountant. Only `zcdp_reshuffled`
is about another sampling and another neighbour.
"""

import math
from collections.abc import Sequence

import numpy as np
from opacus.accountants.analysis import rdp

from vplib.privacy import accounting

BLANKED = "one record's gradient replaced by zero"


def moments_bound(history: Sequence[accounting.Phase], delta: float) -> float:
    """Abadi's epsilon: the tail bound on the log moments, over integer orders.

    Args:
        history: the run's phases.
        delta: of the guarantee.

    Source:
        Abadi et al., Deep learning with differential privacy, CCS 2016, theorem 2. The log moment
        of order a - 1 is (a - 1) times the Renyi divergence of order a, which Opacus integrates
        exactly.
    """
    orders = [2, 3, 4, *(order for order in accounting.ORDERS if order >= 5)]
    spent = sum(
        rdp.compute_rdp(q=rate, noise_multiplier=sigma, steps=steps, orders=orders)
        for sigma, rate, steps in history
    )
    return float(np.min(spent + np.log(1 / delta) / (np.array(orders) - 1)))


def strong_composition(history: Sequence[accounting.Phase], delta: float) -> float:
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


def zcdp_reshuffled(sigmas: Sequence[float], delta: float) -> accounting.Statement:
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
    accounting.check_history([(sigma, 1, 1) for sigma in sigmas], delta)
    rho = sum(1 / (2 * sigma**2) if sigma else math.inf for sigma in sigmas)
    return accounting.Statement(
        rho + 2 * math.sqrt(rho * math.log(1 / delta)),  # Bun and Steinke, proposition 1.3
        delta,
        f"reshuffled batches, {len(sigmas)} epochs",
        "zCDP, parallel composition within an epoch",
        BLANKED,
    )
