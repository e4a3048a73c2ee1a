# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Estimates from samples and from what a run has logged, in plain Python."""

import math
from statistics import fmean


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, when `right` of `samples` were.

    1 − C(n − c, k) / C(n, k), equation 1 of [Codex](https://huggingface.co/papers/2107.03374).
    """
    if not 0 < k <= samples or not 0 <= right <= samples:
        raise ValueError(f"pass@k takes 0 < k <= samples and 0 <= right <= samples, got {k=}, {samples=}, {right=}")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def running_mean(values: list[float], width: int = 7) -> list[float]:
    """The mean of each value and up to `width - 1` before it."""
    return [fmean(values[max(0, index - width + 1) : index + 1]) for index in range(len(values))]
