# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reductions over tokens, in plain torch. B sequences, T completion tokens."""

import math
from typing import Any

import torch
from torch import Tensor

from .collectives import SINGLE_PROCESS, Collectives
from .ratios import ratio_count as ratio_count
from .ratios import smallest_ratio as smallest_ratio
from .tokens import TokenBatch


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """float64 if the device has it, else float32. In float64 the order of a sum changes no digit that matters."""
    return torch.float32 if device.type == "mps" else torch.float64


def masked_mean(values: Tensor, mask: Tensor, world: Collectives = SINGLE_PROCESS) -> Tensor:
    """Scalar mean of `values` (B, T) over `mask` (B, T) and over all processes; 0 if no token is valid."""
    dtype = accumulator_dtype(values.device)
    total, count = world.sum(torch.stack([values.masked_fill(~mask, 0).sum(dtype=dtype), mask.sum().to(dtype)]))
    return total / count.clamp(min=1)


def masked_mean_and_std(values: Tensor, mask: Tensor, world: Collectives = SINGLE_PROCESS) -> tuple[Tensor, Tensor]:
    """Scalar mean and population standard deviation of `values` (B, T) over `mask` (B, T) and over all processes."""
    mean = masked_mean(values, mask, world)
    return mean, masked_mean((values.to(mean.dtype) - mean).square(), mask, world).sqrt()


def masked_max(values: Tensor, mask: Tensor, world: Collectives = SINGLE_PROCESS) -> Tensor:
    """Scalar maximum of `values` (B, T) over `mask` (B, T) and over all processes; -inf if no token is valid."""
    return world.gather(values.masked_fill(~mask, -torch.inf).amax().reshape(1)).amax()


def top_count_mask(
    values: Tensor, mask: Tensor, ratio: float, world: Collectives = SINGLE_PROCESS, draw: tuple | None = None
) -> Tensor:
    """(B, T) -> (B, T) bool: the `max(1, floor(ratio * N))` largest of the N valid values of all processes.

    Of tied values the earlier token wins, in the order process, sequence, position. `draw` as in `ratio_count`.
    """
    local = values[mask]
    gathered = world.gather(local)
    count = ratio_count(ratio, gathered.numel(), draw)
    order = gathered.argsort(descending=True, stable=True)
    chosen = torch.zeros_like(gathered, dtype=torch.bool)
    chosen[order[:count]] = True
    return scatter_valid(world.own(chosen, local.numel()), mask)


def scatter_valid(flags: Tensor, mask: Tensor) -> Tensor:
    """(N,) bool for the N valid tokens -> (B, T) bool, False elsewhere."""
    return torch.zeros_like(mask).masked_scatter(mask, flags)


def quantiles(values: Tensor, probabilities: tuple[float, ...]) -> list[Tensor]:
    """Quantiles of a 1-D tensor, interpolated; NaN if it is empty. `torch.quantile` stops at 16 million values."""
    if values.numel() == 0:
        return [values.new_full((), torch.nan) for _ in probabilities]
    ordered = values.sort().values
    found = []
    for probability in probabilities:
        position = probability * (ordered.numel() - 1)
        low = int(position)
        high = min(low + 1, ordered.numel() - 1)
        found.append(torch.lerp(ordered[low], ordered[high], position - low))
    return found


def row_means(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T) -> (B,) mean of each row's valid values; 0 for a row without any."""
    return values.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)


def run_counts(flags: Tensor) -> Tensor:
    """(B, T) bool -> (B,) number of maximal runs of True in each row."""
    starts = flags.clone()
    starts[:, 1:] &= ~flags[:, :-1]
    return starts.sum(1)


def centered_product(x: Tensor, y: Tensor, mask: Tensor, world: Collectives = SINGLE_PROCESS) -> Tensor:
    """(B, T), (B, T) -> (B, T): (x - mean x)(y - mean y), whose mean is their covariance; 0 outside the mask."""
    product = (x - masked_mean(x, mask, world)) * (y - masked_mean(y, mask, world))
    return product.masked_fill(~mask, 0)


def aggregate(terms: Tensor, mask: Tensor, loss_type: str, items: Tensor, max_length: int) -> Tensor:
    """(B, T) -> scalar, reduced as TRL reduces its own per-token loss.

    Args:
        terms: (B, T) one value per token.
        mask: (B, T) bool, the tokens that count.
        loss_type: TRL's `loss_type`.
        items: valid tokens per process and micro-batch. Some types divide by the tokens of the whole optimizer step.
        max_length: TRL's `max_completion_length`, by which `dr_grpo` divides.
    """
    terms = terms.masked_fill(~mask, 0)
    if loss_type in ("grpo", "sapo"):
        return (terms.sum(1) / mask.sum(1).clamp(min=1)).mean()
    if loss_type == "bnpo":
        return terms.sum() / mask.sum().clamp(min=1)
    if loss_type == "dr_grpo":
        return terms.sum() / (terms.size(0) * max_length)
    if loss_type == "luspo":
        return terms.sum(1).mean()
    return terms.sum() / items


def discriminator(logps: Tensor, entropy: Tensor) -> Tensor:
    """(B, T) log-probabilities and entropies -> (B, T) S = π (H + log π) of the sampled token, in nats.

    0 for a token of probability 0.
    """
    return logps.exp() * (entropy + logps.clamp(min=torch.finfo(logps.dtype).min))


def mean_discriminator(entropy: Tensor, sum_sq_probs: Tensor, sum_sq_probs_log_probs: Tensor) -> Tensor:
    """(B, T) H, Σp², Σp² log p -> (B, T) N = H Σp² + Σp² log p, the policy's own mean of S, in nats."""
    return entropy * sum_sq_probs + sum_sq_probs_log_probs


def row_quantiles(values: Tensor, mask: Tensor, probability: float) -> Tensor:
    """(B, T) -> (B, 1): the quantile of each row's valid values, with linear interpolation; inf for an empty row."""
    ordered = values.masked_fill(~mask, torch.inf).sort(dim=1).values
    position = probability * (mask.sum(1, keepdim=True) - 1).clamp(min=0).to(accumulator_dtype(values.device))
    low = position.long()
    high = (low + 1).clamp(max=values.size(1) - 1)
    below, above = ordered.gather(1, low), ordered.gather(1, high)
    fraction = (position - low).to(values.dtype)
    return torch.where(fraction > 0, below + (above - below) * fraction, below)


def row_top_mask(values: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
    """(B, T), (B, T), (B,) -> (B, T) bool: each row's `counts` largest valid values; of tied ones the earlier wins."""
    order = values.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(values.size(1), device=values.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return (rank < counts.unsqueeze(1)) & mask


class StepMean:
    """Mean over the forwards of one optimizer step and over all processes, weighted by counts.

    A forward whose total is not finite, on whichever process, counts on none.
    """

    def __init__(self):
        self.step, self.total, self.count = None, 0.0, 0.0

    def add(self, step: int, total: Tensor, count: Tensor | int, world: Collectives) -> float | None:
        """Adds a forward. Returns the mean of the previous step if this forward begins a new one, else `None`."""
        finished = self.begin(step)
        dtype = accumulator_dtype(total.device)
        added = torch.stack([total.detach().to(dtype), torch.as_tensor(count, dtype=dtype, device=total.device)])
        total, count = world.sum(added).tolist()
        if math.isfinite(total + count):
            self.total += total
            self.count += count
        return finished

    def begin(self, step: int) -> float | None:
        """Returns the mean of the previous step if `step` is a new one, else `None`. Forwards count for `step` now."""
        if step == self.step:
            return None
        finished = self.mean
        self.step, self.total, self.count = step, 0.0, 0.0
        return finished

    @property
    def mean(self) -> float | None:
        """The mean of the forwards so far of this step; `None` if nothing was counted."""
        return self.total / self.count if self.count else None

    def add_tokens(self, tokens: TokenBatch, values: Tensor) -> float | None:
        """Adds (B, T) values of a forward, averaged over its valid tokens. Returns as `add` does."""
        return self.add(
            tokens.step, values.detach().masked_fill(~tokens.mask, 0).sum(), tokens.mask.sum(), tokens.world
        )

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "total": self.total, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.total, self.count = state["step"], state["total"], state["count"]
