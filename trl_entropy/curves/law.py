# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The law between entropy and reward. Imports neither torch nor transformers, so that a report starts quickly."""

import math

import numpy as np


def fit_entropy_law(entropies: list[float], rewards: list[float]) -> tuple[float, float, float]:
    """Least-squares fit of R = -a exp(H) + b to entropies (nats) and rewards -> a, b and R².

    R² is NaN if all rewards are equal; all three are NaN if all entropies are equal.
    """
    heat, reward = np.exp(np.asarray(entropies, dtype=np.float64)), np.asarray(rewards, dtype=np.float64)
    if np.ptp(heat) <= 1e-9 * np.abs(heat).max(initial=0):
        return math.nan, math.nan, math.nan
    (slope, offset), *_ = np.linalg.lstsq(np.stack([heat, np.ones_like(heat)], 1), reward, rcond=None)
    left = np.square(reward - slope * heat - offset).sum()
    total = np.square(reward - reward.mean()).sum()
    return float(-slope), float(offset), float(1 - left / total) if total > 0 else math.nan
