# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Logistic regression: the worked example, its optimum, planted weights, and data that a line separates."""

import pytest
import torch

from trl_entropy.uncertainty.logistic import fit_logistic


def test_worked_example():
    x = torch.arange(4, dtype=torch.float64)[:, None]
    intercept, weights = fit_logistic(x, torch.tensor([0, 1, 0, 1]), standardize=False)
    assert weights.item() == pytest.approx(0.4528752639, abs=1e-9)
    assert intercept == pytest.approx(-0.6793128958, abs=1e-9)
    probability = (intercept + x[:, 0] * weights).sigmoid().tolist()
    assert probability == pytest.approx([0.3364146744, 0.4436312408, 0.5563687592, 0.6635853256], abs=1e-9)


def planted(rows=4000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 0.01, 50.0])
    x = x + torch.tensor([0.0, 3.0, -20.0])
    truth = torch.tensor([1.0, -150.0, 0.03], dtype=torch.float64)
    logits = 0.5 + (x - torch.tensor([0.0, 3.0, -20.0])) @ truth
    return x, (torch.rand(rows, generator=generator) < logits.sigmoid()).long(), truth


def test_planted_weights_are_recovered():
    x, y, truth = planted()
    intercept, weights = fit_logistic(x, y)
    assert (weights / truth).tolist() == pytest.approx([1] * 3, abs=0.15)
    at_center = intercept + float(weights @ torch.tensor([0.0, 3.0, -20.0], dtype=torch.float64))
    assert at_center == pytest.approx(0.5, abs=0.15)


def test_units_of_a_feature_do_not_matter():
    x, y, _ = planted(300)
    intercept, weights = fit_logistic(x, y)
    scale, shift = torch.tensor([10.0, 0.2, 3.0]).double(), torch.tensor([5.0, -7.0, 0.1]).double()
    other, changed = fit_logistic(x * scale + shift, y)
    torch.testing.assert_close(changed * scale, weights, rtol=1e-7, atol=1e-9)
    assert other + float(changed @ shift) == pytest.approx(intercept, abs=1e-6)


def test_it_is_the_minimum():
    x, y, _ = planted(200)
    x = x / x.std(0)
    intercept, weights = fit_logistic(x, y, strength=2.0, standardize=False)
    point = torch.cat([torch.tensor([intercept], dtype=torch.float64), weights]).requires_grad_()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(point[0] + x @ point[1:], y.double(), reduction="sum")
    (gradient,) = torch.autograd.grad(2.0 * loss + point[1:].square().sum() / 2, point)
    assert gradient.abs().max() < 1e-6


def test_separable_data_and_constant_features():
    x = torch.stack([torch.linspace(-1, 1, 40), torch.full((40,), 7.0)], 1)
    y = (x[:, 0] > 0).long()
    intercept, weights = fit_logistic(x, y)
    assert weights.isfinite().all() and weights[1] == 0
    assert ((intercept + x.double() @ weights > 0) == (y > 0)).all()
    wide = torch.randn(30, 60, generator=torch.Generator().manual_seed(0))
    intercept, weights = fit_logistic(wide, y[5:35])
    assert weights.isfinite().all() and ((intercept + wide.double() @ weights > 0) == (y[5:35] > 0)).all()


def test_bad_data():
    x = torch.ones(4, 1)
    with pytest.raises(ValueError, match="`labels` must have both 0 and 1, got 4 of 1 among 4"):
        fit_logistic(x, torch.ones(4))
    with pytest.raises(ValueError, match="`features` must be finite"):
        fit_logistic(x * torch.nan, torch.tensor([0, 1, 0, 1]))
