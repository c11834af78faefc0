"""PRADA: is what a user asks distributed as honest questions are?"""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

FEWEST = 100  # distances before anything is tested
EVERY = 10  # queries between two tests
OUTLIERS = 3.0  # standard deviations beyond which a distance is left out


def normality(distances: Sequence[float]) -> float:
    """Shapiro and Wilk's W of distances without their outliers: near 1 where they are normal.

    Args:
        distances: any number; those that are not finite are left out.

    Returns:
        W, from 0 to 1; NaN of up to `FEWEST` distances, 1 where all are equal.

    Source:
        Juuti et al., PRADA, EuroS&P 2019, algorithm 1: outliers are those beyond `OUTLIERS`
        standard deviations from the mean of all.
    """
    from scipy.stats import shapiro

    found = np.asarray(distances, dtype=float)
    found = found[np.isfinite(found)]
    if len(found) <= FEWEST:
        return float("nan")
    found = found[np.abs(found - found.mean()) <= OUTLIERS * found.std()]
    return 1.0 if np.ptp(found, axis=0) < 1e-12 else float(shapiro(found).statistic)


def choose_delta(lowest: Sequence[float], spread: float = 4.0) -> float:
    """The threshold that honest users set: their mean lowest W, less some standard deviations.

    Args:
        lowest: of each of two or more honest users, the lowest W of their stream.
        spread: how many standard deviations.

    Raises:
        ValueError: there are fewer than two, or one is NaN: a user of too few queries.
    """
    values = np.asarray(lowest, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        why = f"delta needs two or more honest users of over {FEWEST} distances each"
        raise ValueError(f"{why}; their lowest W: {values.tolist()}")
    return float(values.mean() - spread * values.std(ddof=1))


@dataclass
class Seen:
    """What a watch remembers of one user.

    Args:
        queries: how many were looked at.
        refused: how many held a number that is not finite; they are not looked at.
        distances: of each query to the nearest one of its class's growing set, without the first
            query of a class.
        sets: by class, the growing set, as flat images.
        set_distances: by class, the distance with which each member of the set entered, the first
            with 0.
        thresholds: by class, the distance that a query must exceed to enter.
        tests: (queries, W) of each test.
        alarm_at: the queries after which W first fell below delta; None: never.
    """

    queries: int = 0
    refused: int = 0
    distances: list[float] = field(default_factory=list)
    sets: dict[int, list[np.ndarray]] = field(default_factory=dict)
    set_distances: dict[int, list[float]] = field(default_factory=dict)
    thresholds: dict[int, float] = field(default_factory=dict)
    tests: list[tuple[int, float]] = field(default_factory=list)
    alarm_at: int | None = None

    @property
    def lowest(self) -> float:
        """The lowest W of all tests; NaN before the first."""
        return min((w for _, w in self.tests), default=float("nan"))

    def add(self, query: np.ndarray, label: int) -> None:
        """Notes one flat query, for which the model answers this label."""
        self.queries += 1
        if label not in self.sets:
            self.sets[label], self.set_distances[label] = [query], [0.0]
            self.thresholds[label] = 0.0
            return
        nearest = float(np.linalg.norm(np.stack(self.sets[label]) - query, axis=1).min())
        self.distances.append(nearest)
        if nearest > self.thresholds[label]:
            self.sets[label].append(query)
            entered = self.set_distances[label]
            entered.append(nearest)
            candidate = float(np.mean(entered) - np.std(entered))
            self.thresholds[label] = max(self.thresholds[label], candidate)


class Watch:
    """A detector in front of a model: a callable's queries go by it, user by user.

    Source:
        Juuti et al., PRADA: protecting against DNN model stealing attacks, EuroS&P 2019, algorithm
        1. As in the authors' code, a test follows every tenth query, not each. An alarm stays.
    """

    def __init__(self, predict_label: Callable[[Tensor], Tensor], delta: float = 0.0):
        """Watches nobody yet.

        Args:
            predict_label: the model that is protected, from (N, C, H, W) images to (N,) labels.
            delta: W below it is an alarm, from 0 (never) to 1; see `choose_delta`.

        Raises:
            ValueError: delta is no such number.
        """
        if not 0 <= delta <= 1:
            raise ValueError(f"delta must lie in 0..1, as W does, not {delta}")
        self.delta, self._predict_label = delta, predict_label
        self.users: dict[Hashable, Seen] = {}
        self._lock, self._shape = threading.Lock(), None

    def observe(self, user: Hashable, queries: Tensor) -> bool:
        """Looks at a user's queries, in order, and says whether there is an alarm by now.

        Users may come at the same time, each from a thread of its own. No queries and those that
        hold NaN or infinity change nothing but the count of the latter.

        Args:
            user: whose they are.
            queries: (N, C, H, W) floating point, N may be 0.

        Raises:
            ValueError: they are none, or of another shape than those before.
        """
        shape = tuple(getattr(queries, "shape", ()))
        if not isinstance(queries, Tensor) or len(shape) != 4 or not queries.is_floating_point():
            kind = f"{getattr(queries, 'dtype', type(queries).__name__)} of shape {shape}"
            raise ValueError(f"queries must be floating point (N, C, H, W), not {kind}")
        with self._lock:
            self._shape = self._shape or (shape[1:] if len(queries) else None)
        if len(queries) and shape[1:] != self._shape:
            raise ValueError(f"queries must be of one shape, {self._shape}, not {shape[1:]}")
        fine = queries.isfinite().flatten(1).all(1)
        kept = queries[fine]
        labels = self._predict_label(kept).tolist() if len(kept) else ()
        flat = kept.detach().cpu().double().flatten(1).numpy()
        with self._lock:
            seen = self.users.setdefault(user, Seen())
            seen.refused += int((~fine).sum())
            for query, label in zip(flat, labels, strict=True):
                seen.add(query, label)
                if seen.queries % EVERY == 0 and len(seen.distances) > FEWEST:
                    seen.tests.append((seen.queries, normality(seen.distances)))
                    if seen.alarm_at is None and seen.tests[-1][1] < self.delta:
                        seen.alarm_at = seen.queries
            return seen.alarm_at is not None
