# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Logistic regression with an L2 penalty, by Newton's method."""

import torch
from torch import Tensor


STEPS = 100
PRECISE = 1e-10  # norm of the gradient at which the fit has converged


def fit_logistic(
    features: Tensor, labels: Tensor, strength: float = 1.0, standardize: bool = True
) -> tuple[float, Tensor]:
    """Intercept b and weights w that minimize C Σ log(1 + exp(-y' (b + w·x))) + ½‖w‖², with y' = 2y - 1.

    The intercept is not penalized, so the minimum exists for separable data too.

    Args:
        features: (N, F).
        labels: (N,) of 0 and 1.
        strength: C > 0. The larger, the weaker the penalty.
        standardize: whether the penalty acts on features of mean 0 and deviation 1. The weights returned are those of
            the features as they were given. A constant feature gets weight 0.

    Returns:
        b, and w (F,) in float64.

    Raises:
        `ValueError`: one of the labels 0 and 1 is missing, or a feature is not finite.
    """
    x, y = features.double(), labels.double()
    ones = int(y.sum())
    if not 0 < ones < len(y):
        raise ValueError(f"`labels` must have both 0 and 1, got {ones} of 1 among {len(y)}.")
    if not x.isfinite().all():
        raise ValueError("`features` must be finite.")
    mean, scale = x.new_zeros(x.size(1)), x.new_ones(x.size(1))
    if standardize:
        mean, scale = x.mean(0), x.std(0, correction=0)
        scale = torch.where(scale > 1e-12 * (1 + mean.abs()), scale, torch.inf)  # 0 after the division
    design = torch.cat([torch.ones_like(x[:, :1]), (x - mean) / scale], 1)
    fitted = _minimize(design, y, strength)
    weights = fitted[1:] / scale
    return float(fitted[0] - weights @ mean), weights


def _minimize(design: Tensor, y: Tensor, strength: float) -> Tensor:
    """(1 + F,) coefficients of the (N, 1 + F) design, whose first column is that of the intercept."""
    penalty = torch.ones_like(design[0])
    penalty[0] = 0

    def objective(at: Tensor) -> Tensor:
        logits = design @ at
        return strength * (torch.nn.functional.softplus(logits) - y * logits).sum() + penalty @ at.square() / 2

    at = torch.zeros_like(design[0])
    for _ in range(STEPS):
        probability = (design @ at).sigmoid()
        gradient = strength * design.T @ (probability - y) + penalty * at
        if gradient.norm() < PRECISE * max(1, len(y)):
            break
        curvature = strength * (probability * (1 - probability))
        step = torch.linalg.solve(design.T * curvature @ design + penalty.diag(), gradient)
        length = 1.0
        while length > 1e-6 and objective(at - length * step) > objective(at) + 1e-12:  # far from the minimum
            length /= 2
        at = at - length * step
    return at
