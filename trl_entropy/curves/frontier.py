# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on trajectories: what one run offers at a given pass@1, and how far it lies above another.

A trajectory is a run's evaluations in the order of steps, as points (x, y): x is pass@1, y another score, such as
pass@16. Between two evaluations it is a straight line. Both scores are means over prompts, so every point of that line
is within reach: use one of the two checkpoints, drawn by chance.

The *envelope* at x is the best y that the trajectory offers at a pass@1 of at least x. It never rises with x, also
where the trajectory goes back and forth.

Out of range:
* below the least x of a trajectory, its envelope is its best y;
* above its greatest x it offers nothing: NaN;
* an evaluation with a NaN (the run has diverged) offers nothing and is left out; its neighbors are joined.
"""

import math

import numpy as np
from numpy.typing import ArrayLike


GRID = 4001  # points of the integral


def finite(points: ArrayLike) -> np.ndarray:
    """(N, 2) points -> those without NaN or infinity, in their order."""
    points = np.asarray(points, dtype=float).reshape(-1, 2)
    return points[np.isfinite(points).all(axis=1)]


def reach(points: ArrayLike) -> float:
    """The greatest x of a trajectory; NaN if it has no finite point."""
    points = finite(points)
    return float(points[:, 0].max()) if len(points) else math.nan


def envelope(points: ArrayLike, at: ArrayLike) -> np.ndarray:
    """Best y at x of at least `at`.

    Args:
        points: (N, 2) trajectory, in the order of steps.
        at: (M,) values of x.

    Returns:
        (M,) values of y, NaN where `at` is beyond the trajectory's reach.
    """
    points, at = finite(points), np.atleast_1d(np.asarray(at, dtype=float))
    best = np.full(at.shape, -np.inf)
    for x, y in points:
        best = np.where(x >= at, np.maximum(best, y), best)
    for (x1, y1), (x2, y2) in zip(points[:-1], points[1:], strict=True):
        if x1 != x2:
            crossed = (at - x1) * (at - x2) <= 0
            best = np.where(crossed, np.maximum(best, y1 + (at - x1) * (y2 - y1) / (x2 - x1)), best)
    return np.where(np.isinf(best), np.nan, best)


def matched(points: ArrayLike, baseline: ArrayLike, at: ArrayLike) -> np.ndarray:
    """Difference of the envelopes at each x; NaN beyond the reach of either trajectory."""
    return envelope(points, at) - envelope(baseline, at)


def matched_end(points: ArrayLike, baseline: ArrayLike) -> float:
    """y of the last point minus the baseline's envelope at its x; NaN beyond the reach of the baseline."""
    points = np.asarray(points, dtype=float).reshape(-1, 2)
    x, y = points[-1]
    return float(y - envelope(baseline, x)[0]) if math.isfinite(x) else math.nan


def area(points: ArrayLike, baseline: ArrayLike, start: float) -> float:
    """Area between the envelopes, from `start` to the smaller of both reaches.

    Positive where the trajectory lies above the baseline, negative where below. NaN if either does not reach beyond
    `start`.
    """
    end = min(reach(points), reach(baseline))
    if not end > start:
        return math.nan
    at = np.linspace(start, end, GRID)
    return float(np.trapezoid(matched(points, baseline, at), at))


def lead(points: ArrayLike, baseline: ArrayLike, start: float) -> float:
    """Mean height of [`area`]: the area divided by its width."""
    found = area(points, baseline, start)
    return found if math.isnan(found) else found / (min(reach(points), reach(baseline)) - start)
