# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The ratios at which TRL's loss clips, as a method sets them in a forward.

TRL's loss reads `epsilon_low` and `epsilon_high` of the trainer after its forward, and only clamps and compares with
them. So a tensor with one bound per token is as good as a number.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..methods.base import Logs
from ..tokens import CLIPPING_LOSSES, TokenBatch
from .policy_gradient import clip_bounds


@contextmanager
def bounds_restored(trainer: Any) -> Iterator[None]:
    """After the context, the trainer has the configured bounds again."""
    configured = trainer.epsilon_low, trainer.epsilon_high
    try:
        yield
    finally:
        trainer.epsilon_low, trainer.epsilon_high = configured


def set_bounds(trainer: Any, tokens: TokenBatch) -> tuple[TokenBatch, Logs]:
    """Sets the bounds of the method that overrides `clip_bounds` on the trainer -> the tokens with them, and its logs.

    A bound that is NaN, or at which every ratio would clip, keeps the configured one. Of tensors, the logs count the
    bounds that were kept.
    """
    setters = [method for method in trainer.methods if method.overrides("clip_bounds")]
    if not setters or trainer.loss_type not in CLIPPING_LOSSES:
        return tokens, {}
    (method,) = setters  # `check_together` has seen to it
    configured = 1 - trainer.epsilon_low, 1 + trainer.epsilon_high
    bounds, logs = method.clip_bounds(tokens)
    if any(isinstance(bound, Tensor) for bound in bounds):  # TRL clamps to two numbers or to two tensors
        low, high = (torch.as_tensor(bound, dtype=tokens.ratio.dtype, device=tokens.ratio.device) for bound in bounds)
        fits = low < torch.inf, high > -torch.inf  # both False for NaN
        low, high = (torch.where(*values) for values in zip(fits, (low, high), configured, strict=True))
        logs = {**logs, "kept_bounds_fraction": ~(fits[0] & fits[1])}
    else:
        low = bounds[0] if bounds[0] < torch.inf else configured[0]
        high = bounds[1] if bounds[1] > -torch.inf else configured[1]
    if low is not configured[0] or high is not configured[1]:
        trainer.epsilon_low, trainer.epsilon_high = 1 - low, high - 1
        tokens = replace(tokens, **clip_bounds(trainer))  # with the rounding of TRL's own comparison
    return tokens, method.prefixed(logs)
