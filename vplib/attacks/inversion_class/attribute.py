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
    if records.ndim != 2 or not records.size or outcomes.shape != records.shape[:1]:
        raise ValueError(f"no outcome for each row: {records.shape} records, {outcomes.shape}")
    if not -records.shape[1] <= column < records.shape[1]:
        raise ValueError(f"records have columns 0..{records.shape[1] - 1}, not {column}")
    if priors.shape not in (values.shape, (len(records), *values.shape)) or values.ndim != 1:
        raise ValueError(f"{priors.shape} priors: give one for each of {values.shape} values")
    if not ((priors > 0) & (priors < np.inf)).all() or not 0 < sigma < np.inf:
        raise ValueError("priors and sigma must be finite and above 0")
    if not (np.isfinite(np.delete(records, column, 1)).all() and np.isfinite(outcomes).all()):
        raise ValueError("records and outcomes must be finite; leave out rows with gaps")
    scores = []
    for value, prior in zip(values, priors.T, strict=True):
        records[:, column] = value
        scores.append(np.log(prior) - 0.5 * ((outcomes - predict(records.copy())) / sigma) ** 2)
    return values[np.argmax(scores, axis=0)]
