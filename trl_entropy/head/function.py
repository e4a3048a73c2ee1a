# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The head as an autograd function: sweeps over tiles of logits, forward on all rows and backward on live ones."""

from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from trl.kernels.chunked_logprob import _addmm_fp32, _use_triton
from trl.trainer.utils import maybe_gather_lm_head_ctx

from ..functional import accumulator_dtype
from . import torch_tiles
from .nucleus import Histogram, Nucleus, undecided
from .spec import (
    MAX,
    SECOND,
    SHIFTED,
    SQUARES,
    SQUARES_SHIFTED,
    SUM,
    TARGET,
    HeadSpec,
    RowGradients,
    new_state,
)


# A matrix product of fewer rows per thread than a few is rounded differently from one of many
ROW_MULTIPLE = 16
# The bins of a row take 24 KiB, so that fewer rows are in flight while the nucleus is searched
NUCLEUS_TOKEN_TILE = 1024
# Devices on which a shape that depends on the data costs a synchronisation, and not a compilation
DYNAMIC_DEVICES = ("cpu", "cuda", "xpu", "mps")


class TokenStatistics(NamedTuple):
    """Per-token outputs of the head, all (N,), in nats; `None` where not asked for.

    Attributes:
        log_probs: log-probability of the label, differentiable.
        entropy: of the whole distribution, differentiable, never below 0.
        sum_sq_probs: Σp².
        sum_sq_probs_log_probs: Σp² log p.
        second_log_probs: log-probability of the label at the second temperature.
        nucleus_entropy: entropy of the distribution renormalised on its nucleus, differentiable.
    """

    log_probs: Tensor
    entropy: Tensor
    sum_sq_probs: Tensor | None = None
    sum_sq_probs_log_probs: Tensor | None = None
    second_log_probs: Tensor | None = None
    nucleus_entropy: Tensor | None = None


class HeadFunction(torch.autograd.Function):
    """Statistics of `softmax(hidden @ weight.T + bias)` without `[N, V]` logits. See [`TokenStatistics`].

    The projection runs on tiles of at most `token_tile` x `vocab_tile` logits, in the dtype of `hidden` or of
    autocast, and each tile is folded into a few sums per row in float32 (float64 for float64). The backward recomputes
    the tiles of the rows that a gradient reaches. Gradients of weight and bias accumulate in float32, too.
    """

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,  # (N, H)
        weight: Tensor,  # (V, H)
        bias: Tensor | None,  # (V,)
        targets: Tensor,  # (N,)
        spec: HeadSpec,
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        device, count = hidden.device, len(hidden)
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else hidden.dtype
        if device.type == "cpu" and 0 < count < ROW_MULTIPLE:
            hidden, targets = pad(hidden, (0, 0, 0, ROW_MULTIPLE - count)), pad(targets, (0, ROW_MULTIPLE - count))
        state = new_state(len(hidden), accumulator_of(dtype), device)
        slices = _token_slices(
            len(hidden), spec.token_tile if spec.top_p is None else min(spec.token_tile, NUCLEUS_TOKEN_TILE)
        )
        projection = _Projection(weight, bias, dtype, spec, slices)
        nucleus = None if spec.top_p is None else Nucleus.empty(state[MAX])
        for rows in slices:
            _sweep(projection, hidden[rows], targets[rows], state[:, rows])
            if nucleus is not None:
                nucleus.put(rows, _find_nuclei(projection, hidden[rows], state[MAX, rows], state[SUM, rows]))
        statistics, log_z = _statistics(state, nucleus, spec)

        saved_nucleus = () if nucleus is None else (nucleus.threshold, nucleus.log_share, nucleus.entropy)
        ctx.save_for_backward(hidden, weight, bias, targets, log_z, statistics.entropy, *saved_nucleus)
        ctx.dtype, ctx.spec, ctx.count = dtype, spec, count
        if count < len(hidden):
            statistics = TokenStatistics(*(None if x is None else x[:count].clone() for x in statistics))
        constants = (statistics.sum_sq_probs, statistics.sum_sq_probs_log_probs, statistics.second_log_probs)
        ctx.mark_non_differentiable(*(x for x in constants if x is not None))
        return tuple(statistics)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *saved = ctx.saved_tensors
        rows = _row_gradients(saved, TokenStatistics(*grads))
        # Every process gathers a sharded head, also one with no live row
        with maybe_gather_lm_head_ctx(weight, bias):
            chosen = None
            if ctx.spec.live_rows and hidden.device.type in DYNAMIC_DEVICES:
                chosen = _with_company(rows.live())
            count = len(hidden) if chosen is None else len(chosen)
            slices = _token_slices(count, ctx.spec.token_tile)
            projection = _Projection(weight, bias, ctx.dtype, ctx.spec, slices)
            picks = slices if count == len(hidden) else [chosen[part] for part in slices]
            grad_hidden, grad_weight, grad_bias = _backward_sweep(
                projection, hidden, rows, picks, ctx.needs_input_grad[:3]
            )
        return (
            grad_hidden[: ctx.count] if grad_hidden is not None else None,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
            None,
            None,
        )


def token_statistics(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, spec: HeadSpec
) -> TokenStatistics:
    """Hidden states (N, H), weight (V, H), bias (V,), labels (N,) in [0, V) -> what `spec` asks for, each (N,)."""
    return TokenStatistics(*HeadFunction.apply(hidden, weight, bias, targets, spec))


class _Projection:
    """The head and one buffer for its tiles, for blocks of at most the rows of the longest of `slices`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, spec: HeadSpec, slices: list[slice]):
        self.weight, self.bias, self.dtype, self.spec = weight, bias, dtype, spec
        self.backend = backend_for(weight.device, dtype)
        rows = max((part.stop - part.start for part in slices), default=0)
        self._buffer = weight.new_empty((rows, min(spec.vocab_tile, len(weight))), dtype=dtype)

    def tiles(self, hidden: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """First token, rows of the weight (w, H) and raw logits (n, w) of one tile of the vocabulary after another."""
        for start in range(0, len(self.weight), self.spec.vocab_tile):
            stop = min(start + self.spec.vocab_tile, len(self.weight))
            columns = self.weight[start:stop].to(self.dtype)
            tile = self._buffer[: len(hidden), : stop - start]
            torch.mm(hidden, columns.t(), out=tile)
            if self.bias is not None:
                tile.add_(self.bias[start:stop].to(self.dtype))
            yield start, columns, tile

    def tiles_of(self, hidden: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Tile, and the rows (r,) of it, that hold the raw logits of some of the rows that were just swept."""
        if len(self.weight) <= self.spec.vocab_tile:  # all of their logits are still there
            yield self._buffer[: len(hidden)], rows
        else:
            every = torch.arange(len(rows), device=rows.device)
            for _, _, tile in self.tiles(hidden[rows].to(self.dtype)):
                yield tile, every


def _sweep(projection: _Projection, hidden: Tensor, targets: Tensor, state: Tensor) -> None:
    """Fold the logits of the whole vocabulary into `state`."""
    for start, _, tile in projection.tiles(hidden.to(projection.dtype)):
        projection.backend.fold(tile, start, targets, state, projection.spec)


def _find_nuclei(projection: _Projection, hidden: Tensor, row_max: Tensor, sum_exp: Tensor) -> Nucleus:
    """The nuclei of rows whose maximum and Σ exp(z - maximum) are known, by sweeps over those that need them."""
    spec = projection.spec

    def counted(histogram: Histogram, rows: Tensor) -> Histogram:
        for tile, at in projection.tiles_of(hidden, rows):
            projection.backend.count(tile, at, histogram, spec)
        return histogram

    found = Nucleus.empty(row_max)
    rows = _with_company(undecided(sum_exp, spec.top_p, spec.include_crossing))
    if len(rows):
        row_max, sum_exp = row_max[rows], sum_exp[rows]
        target = spec.top_p * sum_exp.to(accumulator_dtype(sum_exp.device))
        coarse = counted(Histogram.of_window(row_max, sum_exp, spec.top_p, len(projection.weight)), rows)
        cut = coarse.cut(target, None, spec.include_crossing)
        again = _with_company(cut.unresolved)
        if len(again):
            fine = counted(coarse.refined(again, cut), rows[again])
            cut.put(again, fine.cut(target[again], cut.of(again), spec.include_crossing))
        found.put(rows, cut.nucleus(row_max, sum_exp))
    return found


def _statistics(state: Tensor, nucleus: Nucleus | None, spec: HeadSpec) -> tuple[TokenStatistics, Tensor]:
    """The outputs, and log Z (N,), of a state into which the whole vocabulary has been folded."""
    log_sum = torch.log(state[SUM])
    log_z = state[MAX] + log_sum
    extra = {}
    if spec.second_moments:
        square = state[SUM].square()
        extra["sum_sq_probs"] = state[SQUARES] / square
        extra["sum_sq_probs_log_probs"] = (state[SQUARES_SHIFTED] - log_sum * state[SQUARES]) / square
    if spec.second_ratio is not None:
        shifted = (state[TARGET] - state[MAX]) * spec.second_ratio
        extra["second_log_probs"] = shifted - torch.log(state[SECOND])
    if nucleus is not None:
        extra["nucleus_entropy"] = nucleus.entropy.clone()
    entropy = (log_sum - state[SHIFTED] / state[SUM]).clamp(min=0)
    return TokenStatistics(state[TARGET] - log_z, entropy, **extra), log_z


def _row_gradients(saved: list[Tensor], grads: TokenStatistics) -> RowGradients:
    """The saved (N,) tensors of the rows with the gradients of their outputs, padded as the rows were."""
    targets, log_z, entropy, *nucleus = saved

    def incoming(grad: Tensor | None) -> Tensor | None:
        return None if grad is None else pad(grad.to(log_z.dtype), (0, len(log_z) - len(grad))).contiguous()

    nucleus_grad = incoming(grads.nucleus_entropy)
    if nucleus_grad is None:
        nucleus = ()
    else:
        # No gradient goes through an empty nucleus
        nucleus_grad = nucleus_grad.masked_fill(nucleus[0] == torch.inf, 0.0)
    return RowGradients(
        targets, log_z, entropy, incoming(grads.log_probs), incoming(grads.entropy), nucleus_grad, *nucleus
    )


def _backward_sweep(
    projection: _Projection,
    hidden: Tensor,
    rows: RowGradients,
    picks: list[slice] | list[Tensor],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden (in its dtype), and of weight and bias (accumulated), over the rows in `picks`."""
    weight, bias, accumulator = projection.weight, projection.bias, accumulator_of(projection.dtype)
    grad_hidden = torch.zeros_like(hidden) if needed[0] else None
    grad_weight = torch.zeros_like(weight, dtype=accumulator) if needed[1] else None
    grad_bias = torch.zeros_like(bias, dtype=accumulator) if needed[2] else None
    for pick in picks:
        block, of_rows = hidden[pick].to(projection.dtype), rows[pick]
        grad_block = block.new_zeros(block.shape, dtype=accumulator) if needed[0] else None
        for start, columns, tile in projection.tiles(block):
            projection.backend.differentiate(tile, start, of_rows, projection.spec)
            if grad_block is not None:
                _accumulate(grad_block, tile, columns)
            if grad_weight is not None:
                _accumulate(grad_weight[start : start + len(columns)], tile.t(), block)
            if grad_bias is not None:
                grad_bias[start : start + len(columns)] += tile.sum(dim=0, dtype=accumulator)
        if grad_block is not None:
            grad_hidden[pick] = grad_block.to(hidden.dtype)
    return grad_hidden, grad_weight, grad_bias


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total += a @ b`, without rounding the product to a narrower dtype than that of `total`."""
    if total.dtype == torch.float64:
        total.addmm_(a, b)
    else:
        _addmm_fp32(total, a, b)


def _with_company(wanted: Tensor) -> Tensor:
    """(N,) bool -> indices of the wanted rows, in order, and of as many others as make a multiple of `ROW_MULTIPLE`."""
    count = min(len(wanted), -(-int(wanted.sum()) // ROW_MULTIPLE) * ROW_MULTIPLE)
    return wanted.to(torch.int8).argsort(descending=True, stable=True)[:count].sort().values


def _token_slices(count: int, limit: int) -> list[slice]:
    """Slices of about equal length, of at most `limit` rows, over `count` rows."""
    parts = -(-count // limit)
    return [slice(i * count // parts, (i + 1) * count // parts) for i in range(parts)]


def accumulator_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def backend_for(device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The module that folds tiles: Triton kernels where there are some for the device, torch elsewhere."""
    if _use_triton(device) and dtype != torch.float64:
        from . import triton_tiles

        return triton_tiles
    return torch_tiles
