# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The entropy in a log line. Imports nothing, so that a report starts quickly."""

import math
from collections.abc import Mapping
from typing import Any


# Ours is a mean over tokens. TRL's is a mean of micro-batch means, and 0 where a micro-batch has no valid token.
TOKEN_MEAN, MICRO_BATCH_MEAN = "entropy/mean", "entropy"


def entropy_of(line: Mapping[str, Any], split: str = "") -> float | None:
    """Mean token entropy (nats) in a log line: `entropy/mean`, or TRL's `entropy` in a line without it.

    `None` if it is not there or not finite.

    Args:
        line: the log line.
        split: prefix of the keys, "" for training or "eval_".
    """
    value = line.get(split + TOKEN_MEAN, line.get(split + MICRO_BATCH_MEAN))
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None
