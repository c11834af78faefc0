"""Comparison at equal accuracy: what a baseline would leak if it were as accurate."""

import numpy as np


def frontier(accuracies, risks) -> tuple[np.ndarray, np.ndarray]:
    """The settings that no other beats in both, from the least accurate to the most.

    Args:
        accuracies: (points,) mean test accuracies.
        risks: (points, ...) what an attack finds at each, of one victim or many.

    Returns:
        The points' accuracies, rising, and their risks, whose means rise, too.

    Raises:
        ValueError: there is no point, not one accuracy a risk, or a value is not finite.
    """
    accuracies, risks = np.asarray(accuracies, float), np.asarray(risks, float)
    if accuracies.ndim != 1 or not len(accuracies) or len(risks) != len(accuracies):
        raise ValueError(
            f"accuracies {accuracies.shape} and risks {risks.shape} must be one of each a point"
        )
    if not (np.isfinite(accuracies).all() and np.isfinite(risks).all()):
        raise ValueError("an accuracy or a risk is not finite: leave that point out")
    means = risks.reshape(len(risks), -1).mean(1)
    kept = [
        i
        for i, (a, r) in enumerate(zip(accuracies, means, strict=True))
        if not ((accuracies >= a) & (means <= r) & ((accuracies > a) | (means < r))).any()
    ]
    kept = np.array(sorted(kept, key=lambda i: accuracies[i]))
    return accuracies[kept], risks[kept]


def risk_at_accuracy(accuracies, risks, accuracy: float) -> np.ndarray:
    """What a baseline's attacker finds where the baseline is as accurate as this.

    Between two settings of its frontier an owner can toss a coin, which makes accuracy and AUC
    the mean: so the risk is interpolated. Beyond its ends it is that of the end.

    Args:
        accuracies: (points,) mean test accuracies of the baseline's settings; give (1 / classes) of
            an untrained model as well.
        risks: (points, ...) what the attack finds at each; 0.5 of an untrained model.
        accuracy: where to compare.

    Returns:
        (...) risks.
    """
    have, found = frontier(accuracies, risks)
    flat = found.reshape(len(found), -1)
    between = [np.interp(accuracy, have, column) for column in flat.T]
    return np.reshape(between, found.shape[1:])


def accuracy_at_risk(accuracies, risks, risk: float) -> float:
    """The most accurate mix of a baseline's settings whose mean risk is at most this.

    Args:
        accuracies: (points,) as in `risk_at_accuracy`.
        risks: (points, ...) as there.
        risk: where to compare; below the lowest of the baseline, its least accurate setting counts.

    Returns:
        The accuracy.
    """
    have, found = frontier(accuracies, risks)
    return float(np.interp(risk, found.reshape(len(found), -1).mean(1), have))
