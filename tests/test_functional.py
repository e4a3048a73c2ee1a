# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from support.reference import reduce_terms
from support.tensors import random_tokens
from support.tiny import LOSS_TYPES

from trl_entropy.collectives import SINGLE_PROCESS
from trl_entropy.functional import (
    aggregate,
    centered_product,
    discriminator,
    masked_max,
    masked_mean,
    masked_mean_and_std,
    quantiles,
    ratio_count,
    top_count_mask,
)
from trl_entropy.trainers.metrics import reduce_metrics


VALUES = torch.tensor([[1.0, 2.0, 9.0], [4.0, 7.0, 9.0]])
MASK = torch.tensor([[True, True, False], [True, True, False]])
NONE = torch.zeros_like(MASK)


def test_masked_statistics():
    mean, std = masked_mean_and_std(VALUES, MASK)
    assert (mean.item(), std.item()) == (3.5, pytest.approx(math.sqrt((6.25 + 2.25 + 0.25 + 12.25) / 4)))
    assert masked_max(VALUES, MASK).item() == 7
    assert masked_mean(VALUES, NONE).item() == 0
    assert masked_max(VALUES, NONE).item() == -math.inf


def test_masked_mean_of_a_constant_is_that_constant():
    """float32 sums do not give this, and a covariance of constants must be exactly 0."""
    values = torch.full((7, 1013), 0.1)
    mask = torch.rand(7, 1013, generator=torch.Generator().manual_seed(0)) < 0.7
    assert masked_mean(values, mask).item() == values[0, 0].double().item()
    assert centered_product(torch.randn(7, 1013), values, mask).abs().max() == 0


def test_centered_product_averages_to_the_covariance():
    tokens = random_tokens(rows=6, length=30)
    product = centered_product(tokens.logps, tokens.advantages, tokens.mask)
    stacked = torch.stack([tokens.logps[tokens.mask], tokens.advantages[tokens.mask]])
    torch.testing.assert_close(product[tokens.mask].mean(), torch.cov(stacked, correction=0)[0, 1])
    assert product[~tokens.mask].abs().max() == 0


@pytest.mark.parametrize(
    "ratio, count, expected",
    [(0.29, 100, 29), (0.3, 10, 3), (2e-4, 2000, 1), (2e-4, 15000, 3), (1.0, 7, 7), (0.5, 0, 0)],
)
def test_ratio_count(ratio, count, expected):
    assert ratio_count(ratio, count) == expected


def test_top_count_mask():
    assert top_count_mask(VALUES, MASK, 0.5).tolist() == [[False, False, False], [True, True, False]]
    tied = torch.zeros(2, 3)
    assert top_count_mask(tied, MASK, 0.5).tolist() == [[True, True, False], [False, False, False]]
    assert not top_count_mask(VALUES, NONE, 0.5).any()


@pytest.mark.parametrize("size", [1, 2, 11, 1000])
def test_quantiles_are_those_of_torch(size):
    values = torch.randn(size, generator=torch.Generator().manual_seed(size))
    found = torch.stack(quantiles(values, (0.0, 0.1, 0.5, 0.9, 1.0)))
    torch.testing.assert_close(found, torch.quantile(values, torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])))


def test_quantiles_of_nothing():
    assert all(value.isnan() for value in quantiles(torch.empty(0), (0.5, 0.9)))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_aggregate(loss_type):
    tokens = random_tokens()
    terms = tokens.advantages.masked_fill(~tokens.mask, torch.inf)  # padding must have no effect
    found = aggregate(terms, tokens.mask, loss_type, tokens.mask.sum(), 8)
    torch.testing.assert_close(found, reduce_terms(loss_type, tokens.advantages, tokens.mask, max_length=8))


def test_reduce_metrics():
    values = {
        "m/plain_mean": VALUES,
        "m/some_mean": VALUES.masked_fill(VALUES < 3, math.nan),
        "m/flag": VALUES > 3,
        "m/low_min": VALUES,
        "m/high_max": VALUES,
        "m/scalar": torch.tensor(0.25),
        "m/nothing": VALUES * math.nan,
    }
    found = reduce_metrics(values, MASK, SINGLE_PROCESS)
    assert math.isnan(found.pop("m/nothing"))
    assert found == {
        "m/plain_mean": 3.5,
        "m/some_mean": 5.5,
        "m/flag": 0.5,
        "m/low_min": 1.0,
        "m/high_max": 7.0,
        "m/scalar": 0.25,
    }


def test_reduce_metrics_with_no_valid_token():
    found = reduce_metrics({"a_mean": VALUES, "a_min": VALUES, "a_max": VALUES}, NONE, SINGLE_PROCESS)
    assert all(math.isnan(value) for value in found.values()) and len(found) == 3


def test_a_token_of_probability_0_has_no_discriminator():
    logps = torch.tensor([[-torch.inf, -1.0]], dtype=torch.float64)
    found = discriminator(logps, torch.full((1, 2), 0.5, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([[0.0, -0.5 * math.exp(-1)]], dtype=torch.float64))


@pytest.mark.parametrize("expected, values", [(0.3, {0, 1}), (1.7, {1, 2}), (20.5, {20, 21})])
def test_ratio_count_with_a_draw_is_exact_on_average(expected, values):
    counts = [ratio_count(expected / 400, 400, ("test", step)) for step in range(10_000)]
    assert set(counts) == values and sum(counts) / 10_000 == pytest.approx(expected, abs=0.02)
    assert [ratio_count(expected / 400, 400, ("test", step)) for step in range(50)] == counts[:50]
    assert ratio_count(expected / 400, 400) == max(1, int(expected))
    assert ratio_count(1.0, 7, ("test", 0)) == 7
