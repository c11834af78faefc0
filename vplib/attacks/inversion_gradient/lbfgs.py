"""Many minimizations by L-BFGS at once, each with a line search and a memory of its own.

`torch.optim.LBFGS` minimizes one function; given the sum of many it shares one step size and one
memory among them, so the worst holds up all. Here each row of a matrix is a problem, all rows are
evaluated together, and none waits for another's line search.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vplib import experiment

ARMIJO, CURVATURE, MAX_TRIALS = 1e-4, 0.9, 25  # of the strong Wolfe conditions
MEMORY = 10  # past steps that approximate the curvature

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Minimum:
    """Where K minimizations arrived.

    Args:
        points: (K, D) the best point of each; without a line search the last, finite or not.
        values: (K,) the function there.
        path: (T, K, D) the points on the way, every `keep_every` evaluations.
        path_values: (T, K) the function there.
        evaluations: (K,) how often each was evaluated.
    """

    points: Tensor
    values: Tensor
    path: Tensor
    path_values: Tensor
    evaluations: Tensor


def minimize(
    evaluate: Evaluate,
    starts: Tensor,
    num_evaluations: int,
    *,
    line_search: bool,
    keep_every: int | None = None,
    description: str = "",
) -> Minimum:
    """Minimizes K functions that are never negative; one ends at 0 or when no step lowers it.

    Args:
        evaluate: the functions, of D variables: from points (A, D) and the numbers (A,) of the
            problems that they belong to, to values (A,) and gradients (A, D).
        starts: (K, D) where to start.
        num_evaluations: at most this many of each problem.
        line_search: strong Wolfe; without it each step is 1 long, as in `torch.optim.LBFGS` by
            default, and a problem may diverge.
        keep_every: evaluations between two kept points; None keeps the first and the last.
        description: names the progress bar; empty for none.

    Returns:
        The best points, and the way there.

    Source:
        Nocedal and Wright, Numerical optimization, 2nd ed., algorithms 7.4, 3.5 and 3.6.
    """
    num, dim = starts.shape
    x, rows = starts.clone(), torch.arange(num, device=starts.device)
    f, g = evaluate(x, rows)
    best, best_f, used = x.clone(), f.clone(), torch.ones_like(rows)
    past = _Memory(x)
    d, t = -g, (1 / g.abs().sum(1)).clamp(max=1)
    slope, trials = (g * d).sum(1), torch.zeros_like(rows)
    zero = torch.zeros_like(f)
    low, high = [zero.clone(), f.clone(), slope.clone()], [zero + torch.inf for _ in range(3)]
    low_g = g.clone()
    running = f.isfinite() & (f > 0) & (slope < 0)
    path, path_values = [x.clone()], [f.clone()]
    for count in experiment.progress(range(1, num_evaluations), description):
        on = running.nonzero().squeeze(1)
        if not len(on):
            break
        here, step = t[on], d[on]
        point = x[on] + here[:, None] * step
        value, gradient = evaluate(point, on)
        finite = value.isfinite() & gradient.isfinite().all(1)
        value = value.where(finite, torch.inf)
        tilt = (gradient * step).sum(1)
        used[on] += 1
        trials[on] += 1
        better = value < best_f[on]
        if line_search:
            best[on[better]], best_f[on[better]] = point[better], value[better]

        bound = f[on] + ARMIJO * here * slope[on]
        above = (value > bound) | ((value >= low[1][on]) & (trials[on] > 1))
        flat = tilt.abs() <= -CURVATURE * slope[on]
        done = (~above & flat) | torch.full_like(above, not line_search)
        running[on[~finite]] &= line_search  # without a search there is no way back
        # The bracket: `low` is the best point yet that is low enough, `high` the other end.
        shrinks, passes = ~done & above, ~done & ~above & (tilt * (high[0] - low[0])[on] >= 0)
        for end, now, before in zip(high, (here, value, tilt), low, strict=True):
            end[on[passes]] = before[on[passes]]
            end[on[shrinks]] = now[shrinks]
        lower = ~done & ~above
        for end, now in zip(low, (here, value, tilt), strict=True):
            end[on[lower]] = now[lower]
        low_g[on[lower]] = gradient[lower]
        t[on] = torch.where(high[0][on].isinf(), 3 * here, _between(low, high, on))

        spent = ~done & (trials[on] >= MAX_TRIALS)
        stuck = on[spent & (low[0][on] == 0)]
        running[stuck[past.count[stuck] == 0]] = False  # not even downhill: nothing to gain
        past.count[stuck] = 0
        ends = done | spent
        end_rows = on[ends]
        length = torch.where(done, here, low[0][on])[ends]
        moved = length[:, None] * step[ends]
        after = gradient.where(done[:, None], low_g[on])[ends]
        after_f = value.where(done, low[1][on])[ends]
        past.push(end_rows, moved, after - g[end_rows])
        x[end_rows], f[end_rows], g[end_rows] = x[end_rows] + moved, after_f, after
        d[end_rows], scaled = past.direction(end_rows, after)
        slope[end_rows] = (after * d[end_rows]).sum(1)
        first = (1 / after.abs().sum(1)).clamp(max=1)
        t[end_rows] = torch.where(scaled, torch.ones_like(first), first)
        trials[end_rows] = 0
        for end, begin in zip(low, (zero, f, slope), strict=True):
            end[end_rows] = begin[end_rows]
        low_g[end_rows] = after
        high[0][end_rows] = torch.inf
        high[1][end_rows] = torch.inf
        running[end_rows] &= (after_f > 0) & (slope[end_rows] < 0)
        if not line_search:
            best, best_f = x, f
        if keep_every and count % keep_every == 0:
            path.append(best.clone())
            path_values.append(best_f.clone())
    path.append(best.clone())
    path_values.append(best_f.clone())
    return Minimum(best, best_f, torch.stack(path), torch.stack(path_values), used)


def _between(low: list[Tensor], high: list[Tensor], on: Tensor) -> Tensor:
    """The minimum of the cubic through both ends, kept off the ends; the middle if there is none.

    Source: Nocedal and Wright, equation 3.59.
    """
    (a, f_a, s_a), (b, f_b, s_b) = ([v[on] for v in end] for end in (low, high))
    one = s_a + s_b - 3 * (f_a - f_b) / (a - b)
    two = (b - a).sign() * (one.square() - s_a * s_b).sqrt()
    t = b - (b - a) * (s_b + two - one) / (s_b - s_a + 2 * two)
    edge = 0.1 * (b - a).abs()
    ends = torch.minimum(a, b) + edge, torch.maximum(a, b) - edge
    return torch.where(t.isfinite(), t.clamp(*ends), (a + b) / 2)


class _Memory:
    """The last steps of each problem, and what they did to its gradient."""

    def __init__(self, x: Tensor):
        self.steps = x.new_zeros(MEMORY, *x.shape)
        self.changes = self.steps.clone()
        self.weights = x.new_zeros(MEMORY, len(x))
        self.count = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def push(self, rows: Tensor, steps: Tensor, changes: Tensor) -> None:
        """Notes a step of these problems, where the curvature along it is positive."""
        product = (steps * changes).sum(1)
        fine = product > 1e-12 * steps.norm(dim=1) * changes.norm(dim=1)
        rows, place = rows[fine], self.count[rows[fine]] % MEMORY
        self.steps[place, rows], self.changes[place, rows] = steps[fine], changes[fine]
        self.weights[place, rows] = 1 / product[fine]
        self.count[rows] += 1

    def direction(self, rows: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The quasi-Newton direction (two-loop recursion), and which problems have a memory."""
        count, q, alphas = self.count[rows], gradient.clone(), []
        known = count > 0
        most = min(int(count.max()), MEMORY) if len(rows) else 0
        order = [((count - 1 - i) % MEMORY, (i < count)) for i in range(most)]
        for place, have in order:
            alpha = self.weights[place, rows] * (self.steps[place, rows] * q).sum(1) * have
            q -= alpha[:, None] * self.changes[place, rows]
            alphas.append(alpha)
        if most:
            place, _ = order[0]
            scale = 1 / (self.weights[place, rows] * self.changes[place, rows].square().sum(1))
            q *= scale.where(known, 1.0)[:, None]
        for (place, have), alpha in zip(reversed(order), reversed(alphas), strict=True):
            beta = self.weights[place, rows] * (self.changes[place, rows] * q).sum(1)
            q += ((alpha - beta) * have)[:, None] * self.steps[place, rows]
        return -q, known
