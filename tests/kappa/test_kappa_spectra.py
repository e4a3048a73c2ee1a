# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Condition numbers of matrices whose condition number is known."""

import math

import numpy as np
import pytest
import torch
from support.tiny import build_model

from trl_entropy.kappa.inventory import layers_of, read_weight
from trl_entropy.kappa.layers import FULL_RANK, NOT_FINITE, RANK_DEFICIENT, ZERO
from trl_entropy.kappa.selection import Selection
from trl_entropy.kappa.spectra import condition_number, singular_values


def kappa_of(matrix):
    values, _ = singular_values(torch.as_tensor(matrix))
    return condition_number(values, matrix.shape)


def random_orthonormal(rows, columns, generator):
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def with_kappa(kappa, rows=96, columns=48, seed=0):
    """A matrix with singular values geometric from 1 to 1 / kappa."""
    generator = torch.Generator().manual_seed(seed)
    short = min(rows, columns)
    spectrum = torch.logspace(0, -math.log10(kappa), short, dtype=torch.float64)
    left, right = random_orthonormal(rows, short, generator), random_orthonormal(columns, short, generator)
    return left * spectrum @ right.T


@pytest.mark.parametrize(
    "matrix, expected",
    [
        ([[3.0, 0, 0], [0, 2, 0], [0, 0, 1]], (3.0, FULL_RANK)),
        ([[2.0, 0], [0, 0.5], [0, 0]], (4.0, FULL_RANK)),
        ([[0.0, 0], [0, 0]], (math.inf, ZERO)),
        ([[1.0, 1], [1, 1]], (math.inf, RANK_DEFICIENT)),
        ([[1.0, math.nan], [0, 1]], (math.inf, NOT_FINITE)),
        ([[1.0, math.inf], [0, 1]], (math.inf, NOT_FINITE)),
    ],
)
def test_by_hand(matrix, expected):
    assert kappa_of(torch.tensor(matrix)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "exponent, tolerance",
    [(0.5, 1e-12), (1, 1e-12), (2, 1e-11), (3, 1e-9), (4, 1e-7), (5, 1e-5), (6, 1e-9), (7, 1e-8), (8, 1e-7)],
)
@pytest.mark.parametrize("shape", [(48, 48), (160, 48), (48, 96)])
def test_known_condition_numbers(exponent, tolerance, shape):
    """The Gram matrix must suffice up to 1e5. Beyond that, singular values are used, which are more exact."""
    matrix = with_kappa(10**exponent, *shape)
    values, method = singular_values(matrix)
    assert values == pytest.approx(np.linalg.svd(matrix.numpy(), compute_uv=False), rel=10 * tolerance)
    kappa, state = condition_number(values, shape)
    assert state == FULL_RANK and kappa == pytest.approx(10**exponent, rel=tolerance)
    if exponent != 5:
        assert method == ("gram" if exponent < 5 else "svd")


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_scale_does_not_matter(scale):
    matrix = with_kappa(1e4).float()
    assert kappa_of(matrix * scale)[0] == pytest.approx(kappa_of(matrix)[0], rel=1e-4)
    assert kappa_of(matrix.T)[0] == pytest.approx(kappa_of(matrix)[0], rel=1e-9)


@pytest.mark.parametrize("kappa", [30.0, 1e7])
@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e160, 1e300])
def test_numbers_whose_squares_are_none(scale, kappa):
    matrix = with_kappa(kappa)
    assert kappa_of(matrix * scale) == (pytest.approx(kappa, rel=1e-8), FULL_RANK)
    values, _ = singular_values(matrix * scale)
    assert values[0] == pytest.approx(scale, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_types_are_read_as_they_are(dtype):
    matrix = with_kappa(30).to(dtype)
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    assert singular_values(matrix)[0] == pytest.approx(expected, rel=1e-9)


def test_a_real_initialisation_is_ranked_as_by_full_svd():
    """The authors' rule, s_0 / s_last of a full decomposition, on the weights of a model as transformers makes it."""
    model = build_model(hidden_size=32, intermediate_size=64, initializer_range=0.02)
    found, expected = {}, {}
    for layer in filter(Selection(include=["_proj", "lm_head"]).candidate, layers_of(model)):
        weight = read_weight(model, layer)
        _, spectrum, _ = torch.linalg.svd(weight.double(), full_matrices=False)
        expected[layer.name] = (spectrum[0] / spectrum[-1]).item()
        found[layer.name] = kappa_of(weight)[0]
    assert found == pytest.approx(expected, rel=1e-9) and len(found) == 15
    assert sorted(found, key=found.get) == sorted(expected, key=expected.get)
