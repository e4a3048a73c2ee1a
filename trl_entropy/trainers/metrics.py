# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reduces tensors of all processes to the logged numbers."""

import math

import torch
from torch import Tensor

from ..collectives import Collectives
from ..functional import quantiles
from ..tokens import TokenBatch


def entropy_metrics(tokens: TokenBatch, advantages: Tensor) -> dict[str, Tensor]:
    """Quantiles of token entropies (nats) over all processes, and entropies of tokens by the sign of their advantage.

    Args:
        tokens: the tokens of a forward.
        advantages: (B,) or (B, T) from the rewards, before any method has changed them.

    Returns:
        Scalars, and (B, T) tensors for [`reduce_metrics`].
    """
    entropy = tokens.entropy.detach()
    advantages = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
    q10, q50, q90 = quantiles(tokens.world.gather(entropy[tokens.mask]), (0.1, 0.5, 0.9))
    return {
        "entropy/quantile_10": q10,
        "entropy/quantile_50": q50,
        "entropy/quantile_90": q90,
        "entropy/positive_advantage_mean": entropy.masked_fill(advantages <= 0, torch.nan),
        "entropy/negative_advantage_mean": entropy.masked_fill(advantages >= 0, torch.nan),
    }


def reduce_metrics(values: dict[str, Tensor], mask: Tensor, world: Collectives) -> dict[str, float]:
    """Means over the valid tokens of all processes, extremes for keys that end in `_min` or `_max`.

    Args:
        values: scalars, (N,) or (B, T) tensors by key. NaN entries are left out.
        mask: (B, T) bool, the tokens that count in (B, T) values.
        world: collectives over all processes.

    Returns:
        One number per key; NaN if no entry counts.
    """
    means, extremes = {}, {}
    for key, value in values.items():
        value = value.detach().to(mask.device, torch.float32)
        if value.dim() == 2:
            value = value[mask]
        value = value[~value.isnan()]
        if key.endswith(("_min", "_max")):
            sign = -1 if key.endswith("_min") else 1
            extremes[key] = (sign, (sign * value).amax() if value.numel() else value.new_full((), -torch.inf))
        else:
            means[key] = torch.stack([value.sum(), value.new_tensor(value.numel())])
    reduced = {}
    if means:
        for key, (total, count) in zip(means, world.sum(torch.stack([*means.values()])).tolist(), strict=True):
            reduced[key] = total / count if count else math.nan
    if extremes:
        local = torch.stack([value for _, value in extremes.values()])
        found = world.gather(local).view(-1, len(extremes)).amax(0).tolist()
        for (key, (sign, _)), value in zip(extremes.items(), found, strict=True):
            reduced[key] = sign * value if math.isfinite(value) else math.nan
    return reduced
