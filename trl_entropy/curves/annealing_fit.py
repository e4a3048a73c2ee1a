# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The fit of the law of annealing to loss curves.

For given α and λ the law is linear in L0, A and C. So the fit is a grid over α and λ, with least squares of relative
residuals and weights of Huber's loss, then a golden section over α.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from .annealing import Law, annealing_sums, negligible, warmup_steps, without_warmup
from .base import REWARDED, Curve
from .least_squares import golden_section, nonnegative_fits


STEP = 0.01  # of the grid
ALPHAS = STEP * np.arange(5, 151)
MOMENTA = (0.99, 0.995, 0.999, 0.9995)
NEAR = 0.005 * np.arange(-40, 41)  # the bootstrap's grid, around the fitted α
DELTA = 1e-3  # of Huber's loss, for relative residuals
ROUNDS = 3  # of weights
FEWEST = 50  # points of a fit
SKIP = 0.02  # of a run's steps, left out after warm-up


@dataclass(frozen=True)
class _Points:
    """N losses with S1, and S2 for each λ."""

    loss: np.ndarray
    first: np.ndarray
    seconds: dict[float, np.ndarray]

    def design(self, alphas: np.ndarray, momentum: float) -> np.ndarray:
        """(len(alphas), N, 3) columns of L0, A and C."""
        powers = self.first ** -alphas[:, None]
        columns = (np.ones_like(powers), powers, np.broadcast_to(-self.seconds[momentum], powers.shape))
        return np.stack(columns, axis=-1)


def _points(curves: Sequence[Curve], skip: int | None) -> _Points:
    parts: list[tuple[np.ndarray, np.ndarray, list[np.ndarray]]] = []
    for curve in curves:
        if curve.rewarded:
            raise ValueError(f"RUN must be a run of supervised training or distillation: {REWARDED}.")
        if not len(curve.rates) or curve.rates.max() <= 0:
            raise ValueError("The log must have `learning_rate` above 0, and has none.")
        start = warmup_steps(curve.rates) + SKIP * len(curve.rates) if skip is None else skip
        kept = (curve.middle > start) & (curve.loss > 0)
        rates, steps = without_warmup(curve.rates), np.arange(1, len(curve.rates) + 1)
        sums = [annealing_sums(rates, momentum) for momentum in MOMENTA]
        at = [[np.interp(curve.middle[kept], steps, values) for values in pair] for pair in sums]
        parts.append((curve.loss[kept], at[0][0], [second for _, second in at]))
    loss, first = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    if len(loss) < FEWEST:
        raise ValueError(
            f"The fit needs at least {FEWEST} logged losses after warm-up, got {len(loss)}: log more often."
        )
    seconds = {momentum: np.concatenate([part[2][place] for part in parts]) for place, momentum in enumerate(MOMENTA)}
    return _Points(loss, first, seconds)


@dataclass(frozen=True)
class _Fit:
    """The best parameters for some weights, and their sum of squares."""

    alpha: float
    momentum: float
    values: np.ndarray  # L0, A, C
    squares: float


def _robust_fit(points: _Points, alphas: np.ndarray, decays: bool) -> _Fit:
    """The best fit after `ROUNDS` of weights of Huber's loss: on the grid, and at last with α between its points."""
    weights = np.ones_like(points.loss)
    for _ in range(ROUNDS):
        weights = _huber_weights(_relative_residuals(points, _grid_fit(points, weights, alphas, decays)))
    fit = _grid_fit(points, weights, alphas, decays)
    return _refined(points, weights, fit, decays, float(alphas[1] - alphas[0]))


def _grid_fit(points: _Points, weights: np.ndarray, alphas: np.ndarray, decays: bool) -> _Fit:
    """The best point of the grid. Without decay the column of C is left out, and λ means nothing."""
    best: _Fit | None = None
    for momentum in MOMENTA if decays else MOMENTA[:1]:
        values, squares = _weighted_fits(points, weights, alphas, momentum, decays)
        place = int(squares.argmin())
        if best is None or squares[place] < best.squares:
            best = _Fit(float(alphas[place]), momentum, values[place], float(squares[place]))
    assert best is not None
    return best


def _weighted_fits(
    points: _Points, weights: np.ndarray, alphas: np.ndarray, momentum: float, decays: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Parameters (..., 3), and the weighted sum of squared relative residuals, for each α."""
    scale = np.sqrt(weights) / points.loss
    design = points.design(alphas, momentum) * scale[:, None]
    return nonnegative_fits(design if decays else design[..., :2], points.loss * scale)


def _relative_residuals(points: _Points, fit: _Fit) -> np.ndarray:
    columns = points.design(np.array([fit.alpha]), fit.momentum)[0, :, : len(fit.values)]
    return (points.loss - columns @ fit.values) / points.loss


def _huber_weights(residuals: np.ndarray) -> np.ndarray:
    return np.minimum(1, DELTA / np.maximum(np.abs(residuals), 1e-300))


@threadpool_limits.wrap(1)  # small products, for which several threads wait for each other
def fit_annealing_law(curves: Sequence[Curve], skip: int | None = None, draws: int = 200, seed: int = 0) -> Law:
    """The law of one or several runs together.

    Args:
        curves: of the runs, which have the same model, data and batch size.
        skip: first steps to leave out of the fit. By default warm-up and 2 % of the steps.
        draws, seed: of the block bootstrap of residuals, from which the intervals are.

    Raises:
        `ValueError`: a run is no supervised one, its learning rate was not logged, or there are fewer than 50 points.
    """
    points = _points(curves, skip)
    largest = max(float(np.abs(second).max()) for second in points.seconds.values())
    decays = largest > negligible(np.array([points.first.max()]))
    fit = _robust_fit(points, ALPHAS, decays)
    residuals = _relative_residuals(points, fit)
    law = _law(points, fit, decays)
    intervals = _intervals(points, residuals, law, decays, draws, np.random.default_rng(seed))
    return replace(law, error=float(np.median(np.abs(residuals))), intervals=intervals)


def _refined(points: _Points, weights: np.ndarray, fit: _Fit, decays: bool, step: float) -> _Fit:
    """The fit with the best α between its neighbors on a grid of this step."""

    def squares(alpha: float) -> float:
        return float(_weighted_fits(points, weights, np.array([alpha]), fit.momentum, decays)[1][0])

    alpha = golden_section(squares, max(fit.alpha - step, ALPHAS[0] / 2), fit.alpha + step, step / 1000)
    values, left = _weighted_fits(points, weights, np.array([alpha]), fit.momentum, decays)
    return _Fit(alpha, fit.momentum, values[0], float(left[0])) if left[0] <= fit.squares else fit


def _law(points: _Points, fit: _Fit, decays: bool) -> Law:
    floor, scale, *gain = map(float, fit.values)
    reach = float(points.first.max())
    return Law(floor, scale, fit.alpha, gain[0] if decays else None, fit.momentum, reach, len(points.loss))


def _intervals(
    points: _Points, residuals: np.ndarray, law: Law, decays: bool, draws: int, random: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the parameters: refits to the law with blocks of its residuals, near its own α."""
    if not draws:
        return {}
    count = len(residuals)
    length = max(1, round(count ** (1 / 3)))
    fitted = points.loss * (1 - residuals)
    near = law.alpha + NEAR
    near = near[near >= ALPHAS[0]]
    found = []
    for _ in range(draws):
        starts = random.integers(0, count, -(-count // length))
        drawn = residuals[(starts[:, None] + np.arange(length)).ravel()[:count] % count]
        again = replace(points, loss=fitted * (1 + drawn))
        fit = _robust_fit(again, near, decays)
        found.append([fit.alpha, *fit.values])
    low, high = np.quantile(np.array(found), (0.025, 0.975), axis=0)
    names = ("alpha", "floor", "scale", "gain")
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=False)}
