# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Singular values of a matrix, from the eigenvalues of its Gram matrix in float64 or, if too coarse, from an SVD."""

import math

import numpy as np
import torch
from torch import Tensor

from .layers import FULL_RANK, NOT_FINITE, RANK_DEFICIENT, ZERO


# Squaring halves the number of correct digits. Below this ratio of eigenvalues (κ > 1e5) an SVD is computed instead.
COARSE = 1e-10
LEAST = 1e-60  # if the largest element is below this, or above the inverse, squares would under- or overflow: rescale


def gram_eigenvalues(matrix: Tensor) -> np.ndarray:
    """(m, n) float64 with m >= n -> (n,) eigenvalues of WᵀW, smallest first.

    On the CPU, NumPy needs half the operations, because it knows that the product is symmetric.
    """
    if matrix.device.type == "cpu":
        values = matrix.numpy()
        return np.linalg.eigvalsh(values.T @ values)
    return torch.linalg.eigvalsh(matrix.T @ matrix).cpu().numpy()


def singular_values(matrix: Tensor) -> tuple[np.ndarray, str]:
    """(m, n) of any float type -> (min(m, n),) float64, largest first, and how they were computed: `gram` or `svd`.

    All NaN if the matrix has an element that is not finite.
    """
    tall = matrix.detach().T if matrix.shape[0] < matrix.shape[1] else matrix.detach()
    peak = max(abs(extreme.item()) for extreme in tall.aminmax())
    if not math.isfinite(peak):
        return np.full(tall.shape[1], np.nan), "gram"
    tall, scale = tall.to(torch.float64), 1.0
    if peak and not LEAST < peak < 1 / LEAST:
        scale = math.ldexp(1.0, math.frexp(peak)[1] - 1)
        tall = tall / scale
    eigenvalues = gram_eigenvalues(tall)
    if eigenvalues[0] > COARSE * eigenvalues[-1] or eigenvalues[-1] == 0:
        return scale * np.sqrt(eigenvalues[::-1].clip(min=0)), "gram"
    if tall.shape[0] > 2 * tall.shape[1]:
        tall = torch.linalg.qr(tall, mode="r").R
    return scale * torch.linalg.svdvals(tall).cpu().numpy(), "svd"


def condition_number(values: np.ndarray, shape: tuple[int, ...]) -> tuple[float, str]:
    """Singular values (k,), largest first, of a matrix of `shape` -> κ = σ_max / σ_min, and the state of the matrix.

    κ is infinite without full rank, which means σ_min <= max(m, n) ε σ_max, as in `numpy.linalg.matrix_rank`.
    """
    largest, smallest = float(values[0]), float(values[-1])
    if not math.isfinite(largest):
        return math.inf, NOT_FINITE
    if largest == 0:
        return math.inf, ZERO
    if smallest <= max(shape) * np.finfo(np.float64).eps * largest:
        return math.inf, RANK_DEFICIENT
    return largest / smallest, FULL_RANK
