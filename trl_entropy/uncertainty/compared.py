# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares two ways to answer the same questions, with bootstrap intervals over questions."""

import math
from collections.abc import Sequence

import torch

from .quality import Estimate


DRAWS = 1000


def mean_with_interval(values: Sequence[float], draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The mean of N values, and the ends of its 95 % interval. Values that are NaN do not count.

    For a difference of two ways, give the N differences of the same questions.
    """
    known = torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)
    if not len(known):
        return Estimate(math.nan)
    rows = torch.randint(len(known), (draws, len(known)), generator=torch.Generator().manual_seed(seed))
    low, high = torch.quantile(known[rows].mean(1), known.new_tensor([0.025, 0.975])).tolist()
    return Estimate(float(known.mean()), low, high)
