# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Spectra, effective ranks and power laws against literals, and what leaves them as they are."""

import math

import pytest
import torch
from support.tiny import FLOAT64

from trl_entropy.monitors.geometry import diffusion_entropy, effective_rank, power_law, spectrum


CROSS = torch.tensor([[2.0, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 0.5], [0, 0, -0.5]])


def test_worked_example():
    values = spectrum(CROSS)
    torch.testing.assert_close(values, torch.tensor([4 / 3, 1 / 3, 1 / 12], dtype=torch.float64), **FLOAT64)
    assert effective_rank(values) == pytest.approx(1.9503675045, abs=1e-9)
    assert float(values.sum() ** 2 / values.square().sum()) == pytest.approx(1.6153846154, abs=1e-9)
    assert float(values[0] / values.sum()) == pytest.approx(0.7619047619, abs=1e-9)


def test_power_laws():
    rank = torch.arange(1, 101, dtype=torch.float64)
    assert power_law(rank**-1.3) == pytest.approx((1.3, 1.0), abs=1e-9)
    found = power_law(rank**-1.3 * (1 + 0.1 * (-1) ** rank))
    assert found == pytest.approx((1.2938133274, 0.9860627141), abs=1e-9)
    # Beyond rank 100 nothing counts, and 11 ranks are too few.
    assert power_law(torch.cat([rank**-1.3, torch.ones(9, dtype=torch.float64)])) == pytest.approx((1.3, 1.0))
    assert all(math.isnan(value) for value in power_law((rank**-1.3)[:21]))
    assert power_law((rank**-1.3)[:22])[0] == pytest.approx(1.3)


def literal_rank(features):
    """RankMe of the covariance matrix, from its definition."""
    values = torch.linalg.eigvalsh(torch.cov(features.double().T, correction=0)).clamp(min=0)
    share = values / values.sum()
    return math.exp(-sum(p * math.log(p) for p in share.tolist() if p > 0))


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (20, 20)])
def test_both_routes_are_the_covariance_and_know_no_origin_rotation_or_scale(shape):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 2, shape[1])
    expected = literal_rank(features)
    assert effective_rank(spectrum(features)) == pytest.approx(expected, rel=1e-9)
    rotation = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64))[0]
    moved = 7 * features @ rotation + 100 * torch.randn(shape[1], generator=generator, dtype=torch.float64)
    assert effective_rank(spectrum(moved)) == pytest.approx(expected, rel=1e-8)


def test_features_without_a_spectrum():
    for features in (torch.full((5, 3), 0.3), torch.full((5, 3), 1e6).add(0.1), torch.tensor([[1.0, math.nan]] * 3)):
        values = spectrum(features)
        assert len(values) == 0 and math.isnan(effective_rank(values))
        assert all(math.isnan(value) for value in power_law(values))


def test_diffusion_entropy():
    points = torch.tensor([[0.0, 0], [0, 1], [3, 0], [3, 1]])
    assert diffusion_entropy(points, 1.0) == pytest.approx(1.7152601435, abs=1e-9)
    assert diffusion_entropy(points, 1.0, time=2) == pytest.approx(1.3134032944, abs=1e-9)
    assert diffusion_entropy(points) == pytest.approx(0.8945702760, abs=1e-9)  # σ is the median, 3
    turned = points @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]]) + 5
    assert diffusion_entropy(turned) == pytest.approx(0.8945702760, abs=1e-5)
    assert diffusion_entropy(1000 * points, 1.0) == pytest.approx(2.0)  # far apart: log2 of their number
    twice = torch.tensor([[0.0], [0], [0], [0], [1]])  # σ 0: log2 of the number of distinct points
    assert diffusion_entropy(twice) == pytest.approx(1.0)
    assert math.isnan(diffusion_entropy(points[:1]))
