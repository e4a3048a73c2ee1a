# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Estimates from samples, in plain Python."""

import math
from collections.abc import Iterable


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k samples is right, if `right` of `samples` were.

    1 − C(n − c, k) / C(n, k), equation 1 of [Codex](https://huggingface.co/papers/2107.03374).

    Args:
        samples: n, completions of one prompt.
        right: c, how many of them are right.
        k: completions that the estimate is about, at most `samples`.

    Raises:
        `ValueError`: `k` is not in [1, `samples`], or `right` is not in [0, `samples`].
    """
    if not 0 < k <= samples or not 0 <= right <= samples:
        raise ValueError(f"pass@k takes 0 < k <= samples and 0 <= right <= samples, got {k=}, {samples=}, {right=}")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def accuracy_first(names: Iterable[str]) -> list[str]:
    """Names of reward functions in their order, but those that hold "accuracy" first: they tell right from wrong."""
    return sorted(names, key=lambda name: "accuracy" not in name)
