"""Inversion of an attribute: what a record's outcome and a model's predictions say about it."""

from collections.abc import Callable

import numpy as np


def infer_attribute(
    predict: Callable[[np.ndarray], np.ndarray],
    records: np.ndarray,
    column: int,
    outcomes: np.ndarray,
    *,
    values: np.ndarray,
    priors: np.ndarray,
    sigma: float,
) -> np.ndarray:
    """The most probable value of one attribute of each record, from all else.

    Args:
        predict: the model as a black box, from (N, d) records to (N,) predictions.
        records: (N, d) what the attacker knows; the attribute's column is not looked at.
        column: of the attribute.
        outcomes: (N,) the true outcomes of the records.
        values: (V,) that the attribute can take.
        priors: (V,) how frequent they are in the population, above 0; or (N, V), how probable they
            are for each record by what the attacker knows without the model.
        sigma: standard deviation of the model's error, above 0.

    Returns:
        (N,) of the values.

    Raises:
        ValueError: shapes do not belong together, a number is not finite, or a prior or sigma is
            not above 0.

    Source:
        Fredrikson et al., Privacy in pharmacogenetics, USENIX Security 2014, with normal
        errors and priors of the one attribute. Yeom et al., Privacy risk in machine learning, CSF
        2018, compare it on members and on others.
    """
    records, outcomes = np.array(records, dtype=float), np.asarray(outcomes, dtype=float)
    values, priors = np.asarray(values), np.asarray(priors, dtype=float)
    known = records.ndim == 2 and records.size and outcomes.shape == records.shape[:1]
    if not known or priors.shape not in ((len(values),), (len(records), len(values))):
        shapes = f"{records.shape} records, {outcomes.shape} outcomes, {priors.shape} priors"
        raise ValueError(f"give an outcome for each record, a prior for each value, not {shapes}")
    if not -records.shape[1] <= column < records.shape[1]:
        raise ValueError(f"records have columns 0..{records.shape[1] - 1}, not {column}")
    records[:, column] = 0
    finite = all(np.isfinite(x).all() for x in (records, outcomes, priors, sigma))
    if not finite or priors.min() <= 0 or sigma <= 0:
        raise ValueError("all must be finite (leave out gaps), priors and sigma above 0")
    scores = []
    for value, prior in zip(values, priors.T, strict=True):
        records[:, column] = value
        scores.append(np.log(prior) - 0.5 * ((outcomes - predict(records.copy())) / sigma) ** 2)
    return values[np.argmax(scores, axis=0)]
