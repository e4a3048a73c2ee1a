# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reduces tensors of all processes to the logged numbers."""

import math

import torch
from torch import Tensor

from ..collectives import Collectives
from ..tokens import TokenBatch
from .window import Least, Mean, Most, Total, quantiles_of


COUNT = "selected_tokens"  # the end of a key whose values are summed


def entropy_metrics(tokens: TokenBatch, advantages: Tensor) -> dict[str, Tensor]:
    """Entropies in nats of all tokens, and of those with a positive and a negative advantage.

    Args:
        tokens: the tokens of a forward.
        advantages: (B,) or (B, T) from the rewards, before any method has changed them.

    Returns:
        (B, T) tensors for [`reduce_metrics`]. With Σp² from the fused head, which computes it for some methods and
        for the forecast, `entropy/tsallis_2` = 1 - Σp² is among them.
    """
    entropy = tokens.entropy.detach()
    advantages = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
    tsallis = {} if tokens.sum_sq_probs is None else {"entropy/tsallis_2": 1 - tokens.sum_sq_probs}
    return {
        "entropy/mean": entropy,
        "entropy/positive_advantage_mean": entropy.masked_fill(advantages <= 0, torch.nan),
        "entropy/negative_advantage_mean": entropy.masked_fill(advantages >= 0, torch.nan),
        **tsallis,
    }


def entropy_quantiles(tokens: TokenBatch) -> dict[str, float]:
    """Quantiles of the token entropies of all processes."""
    values = tokens.world.gather(tokens.entropy.detach()[tokens.mask])
    names = ("entropy/quantile_10", "entropy/quantile_50", "entropy/quantile_90")
    return dict(zip(names, quantiles_of(values, (0.1, 0.5, 0.9)), strict=True))


def reduce_metrics(values: dict[str, Tensor], mask: Tensor, world: Collectives) -> dict[str, float]:
    """Means over the valid tokens of all processes; extremes for keys that end in `_min` or `_max`; sums for `COUNT`.

    Args:
        values: scalars, (N,) or (B, T) tensors by key. NaN entries are left out.
        mask: (B, T) bool, the tokens that count in (B, T) values.
        world: collectives over all processes.

    Returns:
        One number per key; NaN if no entry counts, but 0 for a sum.
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
    reduced: dict[str, float] = {}
    if means:
        for key, (total, count) in zip(means, world.sum(torch.stack([*means.values()])).tolist(), strict=True):
            reduced[key] = Total(total) if key.endswith(COUNT) else Mean(total, count)
    if extremes:
        local = torch.stack([value for _, value in extremes.values()])
        found = world.gather(local).view(-1, len(extremes)).amax(0).tolist()
        for (key, (sign, _)), value in zip(extremes.items(), found, strict=True):
            reduced[key] = (Least if sign < 0 else Most)(sign * value if math.isfinite(value) else math.nan)
    return reduced
