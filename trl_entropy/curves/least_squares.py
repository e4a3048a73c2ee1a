# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small fits, many at once: least squares with few unknowns that are not negative, and a search along a line."""

import math
from collections.abc import Callable
from itertools import chain, combinations

import numpy as np


RATIO = (math.sqrt(5) - 1) / 2


def nonnegative_fits(design: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares with unknowns >= 0, by trying which of them are above 0.

    Args:
        design: (F, N, K) columns of each of F fits, K small.
        target: (N,).

    Returns:
        (F, K) unknowns, and (F,) sums of squared residuals.
    """
    norms = np.linalg.norm(design, axis=1)  # (F, K)
    norms = np.where(norms > 0, norms, 1.0)
    columns = design / norms[:, None]
    products, right = columns.transpose(0, 2, 1) @ columns, target @ columns  # (F, K, K), (F, K)
    total, count = float(target @ target), design.shape[-1]
    found, least = np.zeros_like(right), np.full(len(design), total)
    for support in map(list, chain.from_iterable(combinations(range(count), size + 1) for size in range(count))):
        chosen = products[:, support][:, :, support]
        values = (np.linalg.pinv(chosen, hermitian=True) @ right[:, support, None])[..., 0]
        full = np.zeros_like(found)
        full[:, support] = values
        left = total - 2 * (full * right).sum(-1) + ((full[:, None] @ products)[:, 0] * full).sum(-1)
        better = (values >= 0).all(-1) & (left < least)
        found = np.where(better[:, None], full, found)
        least = np.where(better, left, least)
    return found / norms, least


def golden_section(function: Callable[[float], float], low: float, high: float, tolerance: float = 1e-5) -> float:
    """Where a function of one minimum between `low` and `high` is least."""
    left, right = high - RATIO * (high - low), low + RATIO * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > tolerance:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - RATIO * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + RATIO * (high - low)
            at_right = function(right)
    return (low + high) / 2
