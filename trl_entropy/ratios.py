# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ratios of tokens as whole numbers of tokens. Imports nothing slow."""

import math
import random


def ratio_count(ratio: float, count: int, draw: tuple | None = None) -> int:
    """`floor(ratio * count)`, at least 1 and at most `count`. The nudge keeps 0.29 of 100 at 29, not 28.

    With `draw`, which seeds a uniform U in [0, 1), it is `floor(ratio * count + U)`, at most `count`: `ratio * count`
    on average, and 0 is possible. A controller that lowers the ratio then has no dead zone.
    """
    exact = ratio * count * (1 + 1e-12)
    if draw is None:
        return min(count, max(1, int(exact)))
    return min(count, int(exact + random.Random(repr(draw)).random()))


def smallest_ratio(count: int) -> float:
    """The smallest ratio, in three significant digits, whose share of `count` > 0 tokens is at least one token."""
    scale = 10.0 ** (2 - math.floor(math.log10(1 / count)))
    return min(1.0, math.ceil(scale / count) / scale)
