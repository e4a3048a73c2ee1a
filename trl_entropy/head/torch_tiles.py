# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Folds tiles of logits into row statistics, and overwrites them with their gradient, in torch.

A few rows of a tile are processed at a time, so that intermediate results stay in the processor's cache.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .nucleus import Candidates, Histogram
from .spec import FLOOR, MAX, SECOND, SHIFTED, SQUARES, SQUARES_SHIFTED, SUM, TARGET, HeadSpec, RowGradients
from .top import TopTokens


# Elements of a tile processed at once: 2 MiB of float32 on a CPU. On other devices this only bounds scratch memory.
CPU_BLOCK = 2**19
DEVICE_BLOCK = 2**25


def fold(
    tile: Tensor,
    start: int,
    targets: Tensor,
    state: Tensor,
    spec: HeadSpec,
    candidates: Candidates | None = None,
    top: TopTokens | None = None,
) -> None:
    """Folds the raw logits `tile` (n, w) of the vocabulary from `start` on into `state` (STATE_ROWS, n)."""
    scratch = _Scratch(tile, state.dtype)
    for rows in _blocks(tile):
        block, buffer = state[:, rows], scratch.of(rows)
        z = _final_logits(tile[rows], spec, state.dtype, buffer)
        # Finite, also where all tokens so far have probability 0
        new_max = torch.maximum(block[MAX], z.amax(-1)).clamp_(min=torch.finfo(state.dtype).min)
        # The first tile finds a maximum of -inf, and sums of zero that no shift changes
        shift = (block[MAX] - new_max).clamp_(min=FLOOR)
        rescale = shift.exp()
        d = torch.sub(z, new_max.unsqueeze(-1), out=buffer("d")).clamp_(min=FLOOR)
        e = torch.exp(d, out=buffer("e"))
        total = e.sum(-1)
        if spec.second_ratio is not None:
            second = torch.mul(d, spec.second_ratio, out=buffer("x")).exp_().sum(-1)
            block[SECOND].mul_(torch.exp(shift * spec.second_ratio)).add_(second)
        if spec.second_moments:
            x = torch.mul(e, e, out=buffer("x"))
            squares = x.sum(-1)
            block[SQUARES_SHIFTED].add_(shift * block[SQUARES]).mul_(rescale.square()).add_(x.mul_(d).sum(-1))
            block[SQUARES].mul_(rescale.square()).add_(squares)
        if candidates is not None:
            candidates[rows].add(z, e, rescale * block[SUM] + total)
        if top is not None:
            top[rows].add(z, start)
        block[SHIFTED].add_(shift * block[SUM]).mul_(rescale).add_(e.mul_(d).sum(-1))
        block[SUM].mul_(rescale).add_(total)
        block[MAX] = new_max
        local, inside = _local(targets[rows], start, tile.shape[1])
        block[TARGET] = torch.where(inside, z.gather(-1, local.unsqueeze(-1)).squeeze(-1), block[TARGET])


def count(tile: Tensor, rows: Tensor, histogram: Histogram, spec: HeadSpec) -> None:
    """Counts `rows` (r,) of the raw logits `tile` (n, w) into a histogram of r rows."""
    scratch = _Scratch(tile[: len(rows)], histogram.row_max.dtype)
    for part in _blocks(tile[: len(rows)]):
        z = _final_logits(tile[rows[part]], spec, histogram.row_max.dtype, scratch.of(part))
        histogram.count(part, z)


def differentiate(tile: Tensor, start: int, rows: RowGradients, spec: HeadSpec) -> None:
    """Overwrites the raw logits `tile` (n, w) of the vocabulary from `start` on with the gradient of the loss."""
    scratch = _Scratch(tile, rows.log_z.dtype)
    for chosen in _blocks(tile):
        _differentiate_block(tile[chosen], start, rows[chosen], spec, scratch.of(chosen))


def _differentiate_block(
    raw: Tensor, start: int, rows: RowGradients, spec: HeadSpec, buffer: Callable[[str], Tensor]
) -> None:
    z = raw if raw.dtype == rows.log_z.dtype else buffer("z").copy_(raw)
    if spec.logit_scale != 1.0:
        z.mul_(spec.logit_scale)
    if spec.softcap is not None:
        tanh = torch.div(z, spec.softcap, out=buffer("tanh")).tanh_()
        torch.mul(tanh, spec.softcap, out=z)
    if spec.temperature != 1.0:
        z.mul_(1 / spec.temperature)
    nucleus = None if rows.nucleus_grad is None else z >= rows.threshold.unsqueeze(-1)

    log_p = z.sub_(rows.log_z.unsqueeze(-1)).clamp_(min=FLOOR)
    p = torch.exp(log_p, out=buffer("p"))
    grad = torch.mul(p, _gradient_per_probability(log_p, nucleus, rows, buffer), out=z)
    if rows.log_probs_grad is not None:
        # ∂ log p_k / ∂z_j is -p_j except at the label. There g (1 - p_k) is rounded once if nothing else is added.
        g = rows.log_probs_grad.unsqueeze(-1)
        local, inside = (x.unsqueeze(-1) for x in _local(rows.targets, start, raw.shape[1]))
        p_target, at_target = p.gather(-1, local), grad.gather(-1, local)
        grad.scatter_(-1, local, torch.where(inside, g * (1 - p_target) + (at_target + g * p_target), at_target))
    if rows.top_grads is not None:
        local, inside = _local(rows.top_ids, start, raw.shape[1])
        grad.scatter_add_(-1, local, rows.top_grads.masked_fill(~inside, 0))
    if spec.temperature != 1.0:
        grad.mul_(1 / spec.temperature)
    if spec.softcap is not None:
        grad.mul_(tanh.square_().neg_().add_(1))
    if spec.logit_scale != 1.0:
        grad.mul_(spec.logit_scale)
    if grad is not raw:
        raw.copy_(grad)


def _gradient_per_probability(
    log_p: Tensor, nucleus: Tensor | None, rows: RowGradients, buffer: Callable[[str], Tensor]
) -> Tensor:
    """(r, w) or (r, 1): factor of p_j in the gradient of z_j, except at the label and top tokens. Overwrites `log_p`.

    ∂ log p_k / ∂z_j = -p_j;  ∂H / ∂z_j = -p_j (log p_j + H);  ∂H_S / ∂z_j = -q_j (log q_j + H_S) for j in the nucleus,
    with log q = log p - log_share, and 0 elsewhere.
    """
    inner = None
    if nucleus is not None:
        weight = -rows.nucleus_grad * torch.exp(-rows.log_share)
        inner = torch.mul(log_p, weight.unsqueeze(-1), out=buffer("inner"))
        inner.add_((weight * (rows.nucleus_entropy - rows.log_share)).unsqueeze(-1)).mul_(nucleus)
    constant = torch.zeros_like(rows.log_z) if rows.log_probs_grad is None else -rows.log_probs_grad
    if rows.top_grads is not None:
        constant = constant - rows.top_grads.sum(-1)
    if rows.entropy_grad is None:
        outer = constant.unsqueeze(-1)
    else:
        outer = log_p.mul_(-rows.entropy_grad.unsqueeze(-1))
        outer.add_((constant - rows.entropy_grad * rows.entropy).unsqueeze(-1))
    return outer if inner is None else inner.add_(outer)


def _final_logits(raw: Tensor, spec: HeadSpec, dtype: torch.dtype, buffer: Callable[[str], Tensor]) -> Tensor:
    """Final logits of a block in `dtype`: `raw` itself if they are the same."""
    if raw.dtype == dtype and spec.keeps_logits:
        return raw
    z = buffer("z").copy_(raw)
    if spec.logit_scale != 1.0:
        z.mul_(spec.logit_scale)
    if spec.softcap is not None:
        z.div_(spec.softcap).tanh_().mul_(spec.softcap)
    if spec.temperature != 1.0:
        z.mul_(1 / spec.temperature)
    return z


def _local(targets: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Column of each token id within the tile, and whether the token is in the tile."""
    local = targets - start
    return local.clamp(0, width - 1), (local >= 0) & (local < width)


def _blocks(tile: Tensor) -> Iterator[slice]:
    """Slices of rows, about equal in size: a single leftover row would be summed in another order than the rest."""
    n, width = tile.shape
    count = -(-n * width // (CPU_BLOCK if tile.device.type == "cpu" else DEVICE_BLOCK))
    count = max(1, min(count, n))
    for i in range(count):
        yield slice(i * n // count, (i + 1) * n // count)


class _Scratch:
    """Buffers for the intermediate results of a block, reused by the next block and made on first use."""

    def __init__(self, tile: Tensor, dtype: torch.dtype):
        self._tile = tile
        self._dtype = dtype
        self._rows = max(rows.stop - rows.start for rows in _blocks(tile))
        self._buffers: dict[str, Tensor] = {}

    def of(self, rows: slice) -> Callable[[str], Tensor]:
        """A function that returns the buffers for one block by name."""
        return lambda name: self._buffer(name)[: rows.stop - rows.start]

    def _buffer(self, name: str) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = self._tile.new_empty((self._rows, self._tile.shape[1]), dtype=self._dtype)
        return self._buffers[name]
