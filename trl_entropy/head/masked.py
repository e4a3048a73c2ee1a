# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Vocabularies of which some tokens are masked: their logits are -inf, or so low that dividing makes them -inf.

Their probability p is 0. But TRL computes p times logit, or p times a difference of log-probabilities, and 0 times
infinity is NaN. So those logits are raised here to a finite value whose probability is 0 too.
"""

from typing import Any

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction


LOWEST, LOWEST_IN_HALF = -1e9, -1e4  # leave room for sums over tokens and for a division by a temperature


def lowest(dtype: torch.dtype) -> float:
    """The logit of a masked token in `dtype`. Its probability is 0."""
    return LOWEST_IN_HALF if dtype == torch.float16 else LOWEST


def is_masked(logits: Tensor) -> bool:
    """Whether any of the logits is that of a masked token."""
    return bool((logits.detach() < lowest(logits.dtype)).any())


def finite(logits: Tensor) -> Tensor:
    """The same logits with finite ones for masked tokens, which get no gradient."""
    return logits.clamp(min=lowest(logits.dtype))


class FiniteLogProbs(ChunkedLogProbFunction):
    """TRL's kernel with finite logits for tokens that the bias masks. Without any, it is TRL's to the bit."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        if bias is not None:  # in here, where autograd need not keep a bias that may be sharded
            bias = bias.clamp(min=lowest(dtype))
        return ChunkedLogProbFunction.forward(ctx, hidden, weight, bias, *arguments)
