# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics of a logging window that do not depend on how its batches were split.

TRL keeps a list of floats for each metric and logs their plain mean. Ours are floats that know what they were computed
from; just before TRL logs, those of each list are joined to one.
"""

import math

import torch
from torch import Tensor

from ..functional import quantiles


SAMPLE_SIZE = 4096  # order statistics that a forward leaves for the quantiles of its window


class Mean(float):
    """total / count, NaN without a count. Joined, the mean of everything that was counted."""

    total: float
    count: float

    def __new__(cls, total: float, count: float = 1):
        found = super().__new__(cls, total / count if count else math.nan)
        found.total, found.count = total, count
        return found

    @staticmethod
    def join(values: "list[Mean]") -> float:
        return Mean(sum(value.total for value in values), sum(value.count for value in values))


class Total(float):
    """A count. Joined, their sum."""

    @staticmethod
    def join(values: "list[Total]") -> float:
        return Total(sum(values))


class Least(float):
    """A minimum."""

    join = staticmethod(min)


class Most(float):
    """A maximum."""

    join = staticmethod(max)


class Quantile(float):
    """A quantile of a forward, with order statistics (N,) of it that stand for `count` values."""

    probability: float
    sample: Tensor
    count: int

    def __new__(cls, value: float, probability: float = 0.5, sample: Tensor | None = None, count: int = 0):
        found = super().__new__(cls, value)
        found.probability, found.count = probability, count
        found.sample = torch.empty(0) if sample is None else sample
        return found

    @staticmethod
    def join(values: "list[Quantile]") -> float:
        """Exact if no forward had more than `SAMPLE_SIZE` values; else off by at most one in `SAMPLE_SIZE` ranks."""
        if len(values) == 1:
            return values[0]
        sample = torch.cat([value.sample for value in values])
        weights = torch.cat([torch.full_like(v.sample, v.count / len(v.sample), dtype=torch.float64) for v in values])
        ordered, order = sample.sort()
        ranks = weights[order].cumsum(0)
        position = values[0].probability * (sum(value.count for value in values) - 1)
        low = math.floor(position)
        at = torch.searchsorted(ranks, ranks.new_tensor([low, low + 1]), right=True).clamp(max=len(ordered) - 1)
        return torch.lerp(*ordered[at], position - low).item()


def quantiles_of(values: Tensor, probabilities: tuple[float, ...]) -> list[Quantile]:
    """(N,) values -> their quantiles, which can be joined; NaN without values."""
    count = values.numel()
    ordered = values.sort().values
    if count > SAMPLE_SIZE:
        places = (torch.arange(SAMPLE_SIZE, device=values.device) + 0.5) * (count / SAMPLE_SIZE)
        ordered = ordered[places.long()]
    ordered = ordered.cpu()
    found = quantiles(values, probabilities)
    return [Quantile(value.item(), p, ordered, count) for value, p in zip(found, probabilities, strict=True)]


def join_metrics(metrics: dict[str, list[float]]) -> None:
    """Joins, in place, the values of each of our metrics in a logging window. Non-finite values do not count."""
    for key, values in metrics.items():
        if values and hasattr(values[0], "join"):
            finite = [value for value in values if math.isfinite(value)]
            metrics[key] = [values[0].join(finite)] if finite else [math.nan]
