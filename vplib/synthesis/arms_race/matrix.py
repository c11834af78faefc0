"""The two-way table of attacks (rows) and defenses (columns), and how an owner reads it.

A risk is higher where an attack finds more; NaN stands where an attack does not meet a defense.
"""

import torch
from torch import Tensor


def share_left(attack: Tensor, undefended: Tensor, floor: Tensor) -> Tensor:
    """Which share of an attack's lead over the best guess a defense leaves it.

    Below the best guess nothing is left, however far below: two failures are not compared.

    Args:
        attack: (...) what the attack reaches against the defense; NaN stays NaN.
        undefended: what it reaches without one.
        floor: what a guess reaches that does not ask the model; all three broadcast.

    Returns:
        (...) 0 at the floor, 1 as without the defense, more where the defense helps the attack;
        NaN where the attack fails without a defense, so that there is nothing to leave.
    """
    attack, undefended, floor = (torch.as_tensor(v).double() for v in (attack, undefended, floor))
    share = ((attack - floor) / (undefended - floor)).clamp_min(0)
    return share.masked_fill(undefended <= floor, torch.nan)


def worst_case(risks: Tensor) -> Tensor:
    """What the best of the attackers finds behind each defense.

    Args:
        risks: (attacks, defenses) on one scale; NaN where an attack does not meet a defense.

    Returns:
        (defenses,) the largest of each column; NaN where no attack meets it.

    Raises:
        ValueError: the table is none, or empty.
    """
    risks = torch.as_tensor(risks)
    if risks.ndim != 2 or not risks.numel():
        raise ValueError(f"risks must be (attacks, defenses), one of each, not {risks.shape}")
    met = ~risks.isnan()
    found = risks.masked_fill(~met, -torch.inf).amax(0)
    return found.masked_fill(~met.any(0), torch.nan)


def best_column(risks: Tensor, accuracies: Tensor, least: float) -> int:
    """The defense with the smallest worst case among those that are accurate enough.

    Args:
        risks: (attacks, defenses) as in `worst_case`.
        accuracies: (defenses,) test accuracies of the same models.
        least: the accuracy that the owner needs.

    Returns:
        The column; of equal ones the first.

    Raises:
        ValueError: there is not one accuracy a defense, or no defense is accurate enough that some
            attack meets.
    """
    worst, accuracies = worst_case(risks), torch.as_tensor(accuracies)
    if accuracies.shape != worst.shape:
        raise ValueError(f"{len(worst)} defenses need as many accuracies, not {accuracies.shape}")
    allowed = (accuracies >= least) & ~worst.isnan()
    if not allowed.any():
        raise ValueError(f"no defense has an accuracy of {least}; the best has {accuracies.max()}")
    return int(worst.masked_fill(~allowed, torch.inf).argmin())
