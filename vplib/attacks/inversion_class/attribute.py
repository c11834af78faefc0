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
        priors: (V,) how frequent they are in the population, above 0.
        sigma: standard deviation of the model's error, above 0.

    Returns:
        (N,) of the values.

    Raises:
        ValueError: a prior or sigma is not above 0, or there is not one prior a value.

    Source:
        Fredrikson et al., Privacy in pharmacogenetics, USENIX Security 2014, with normal
        errors and priors of the one attribute. Yeom et al., Privacy risk in machine learning, CSF
        2018, compare it on members and on others.
    """
    if len(values) != len(priors) or not (np.asarray(priors) > 0).all() or not sigma > 0:
        raise ValueError("give one prior above 0 for each value, and a sigma above 0")
    scores = []
    for value, prior in zip(values, priors, strict=True):
        guessed = np.array(records, dtype=float)
        guessed[:, column] = value
        scores.append(np.log(prior) - 0.5 * ((outcomes - predict(guessed)) / sigma) ** 2)
    return np.asarray(values)[np.argmax(scores, axis=0)]
