# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sweeps over the vocabulary: each projects rows onto all of it, one tile of logits after another."""

from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor
from trl.kernels.chunked_divergence import _project
from trl.kernels.chunked_logprob import _addmm_fp32, _use_triton

from ..functional import accumulator_dtype
from . import torch_tiles
from .nucleus import Candidates, Histogram, Nucleus, highest_top_p
from .spec import MAX, SUM, HeadSpec, RowGradients
from .top import TopTokens


# A matrix product of very few rows per thread is rounded differently from one of many
FEWEST_ROWS = 16
# Rows whose nuclei are found by bins at once; the bins of one row take 24 KiB
NUCLEUS_ROWS = 1024


class Projection:
    """The head and one buffer for its tiles, with as many rows as the longest of `slices`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, spec: HeadSpec, slices: list[slice]):
        self.weight, self.bias, self.dtype, self.spec = weight, bias, dtype, spec
        self.backend = backend_for(weight.device, dtype)
        rows = max((part.stop - part.start for part in slices), default=0)
        tile_dtype = accumulator_of(dtype) if spec.wide_logits else dtype
        self._buffer = weight.new_empty((rows, min(spec.vocab_tile, len(weight))), dtype=tile_dtype)

    def tiles(self, hidden: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each tile of the vocabulary: its first token, rows of the weight (w, H), and raw logits (n, w)."""
        for start in range(0, len(self.weight), self.spec.vocab_tile):
            stop = min(start + self.spec.vocab_tile, len(self.weight))
            columns = self.weight[start:stop].to(self.dtype)
            tile = self._buffer[: len(hidden), : stop - start]
            if tile.dtype == self.dtype:
                torch.mm(hidden, columns.t(), out=tile)
                if self.bias is not None:
                    tile.add_(self.bias[start:stop].to(self.dtype))
            else:
                _project(tile, hidden, self.weight, self.bias, start, stop, self.dtype)
            yield start, columns, tile

    def tiles_of(self, hidden: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Tiles with the raw logits of some of the rows just swept, each with the rows (r,) within the tile."""
        if len(self.weight) <= self.spec.vocab_tile:  # the buffer still holds all their logits
            yield self._buffer[: len(hidden)], rows
        else:
            every = torch.arange(len(rows), device=rows.device)
            for _, _, tile in self.tiles(hidden[rows].to(self.dtype)):
                yield tile, every


def fold_sweep(
    projection: Projection, hidden: Tensor, targets: Tensor, state: Tensor, top: TopTokens | None = None
) -> Nucleus | None:
    """Folds the logits of the whole vocabulary into `state` and `top`, and finds the nuclei if the spec has a `top_p`.

    Raises:
        `ValueError`: `top_p` is so high that a nucleus could reach below the window of bins, or `top_k` exceeds the
            vocabulary.
    """
    spec, vocab = projection.spec, len(projection.weight)
    if spec.top_p is not None and spec.top_p > highest_top_p(vocab):
        raise ValueError(
            f"`top_p` must be at most {highest_top_p(vocab):.6f} for a vocabulary of {vocab}, got {spec.top_p}."
        )
    if spec.top_k is not None and spec.top_k > vocab:
        raise ValueError(f"`top_k` must be at most {vocab}, the size of the vocabulary, got {spec.top_k}.")
    candidates = None if spec.top_p is None else Candidates.none(state[MAX])
    for start, _, tile in projection.tiles(hidden.to(projection.dtype)):
        projection.backend.fold(tile, start, targets, state, spec, candidates, top)
    if candidates is None:
        return None
    nuclei, settled = candidates.settle(state[MAX], state[SUM], spec.top_p, spec.include_crossing)
    for rows in with_company(~settled).split(NUCLEUS_ROWS):
        nuclei.put(rows, _nuclei_from_bins(projection, hidden, rows, state[MAX, rows], state[SUM, rows]))
    return nuclei


def _nuclei_from_bins(
    projection: Projection, hidden: Tensor, rows: Tensor, row_max: Tensor, sum_exp: Tensor
) -> Nucleus:
    """The nuclei of some of the rows just swept, `rows` (r,), by one or two more sweeps."""
    spec = projection.spec

    def counted(histogram: Histogram, rows: Tensor) -> Histogram:
        for tile, at in projection.tiles_of(hidden, rows):
            projection.backend.count(tile, at, histogram, spec)
        return histogram

    target = spec.top_p * sum_exp.to(accumulator_dtype(sum_exp.device))
    coarse = counted(Histogram.of_window(row_max, sum_exp, spec.top_p, len(projection.weight)), rows)
    cut = coarse.cut(target, None, spec.include_crossing)
    again = with_company(cut.unresolved)
    if len(again):
        fine = counted(coarse.refined(again, cut), rows[again])
        cut.put(again, fine.cut(target[again], cut[again], spec.include_crossing))
    return Nucleus.of_sums(cut.mass, cut.shifted, cut.threshold, row_max, sum_exp)


def backward_sweep(
    projection: Projection,
    hidden: Tensor,
    rows: RowGradients,
    picks: list[slice] | list[Tensor],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden (in its dtype), and of weight and bias (accumulated), over the rows in `picks`."""
    weight, bias, accumulator = projection.weight, projection.bias, accumulator_of(projection.dtype)
    grad_hidden = torch.zeros_like(hidden) if needed[0] else None
    # Memory is slow on a CPU: write the first product instead of adding it to zeros
    fresh = len(picks) > 0 and weight.device.type == "cpu"
    start_from = torch.empty_like if fresh else torch.zeros_like
    grad_weight = start_from(weight, dtype=accumulator) if needed[1] else None
    grad_bias = torch.zeros_like(bias, dtype=accumulator) if needed[2] else None
    for pick in picks:
        block, of_rows = hidden[pick].to(projection.dtype), rows[pick]
        grad_block = block.new_zeros(block.shape, dtype=accumulator) if needed[0] else None
        for start, columns, tile in projection.tiles(block):
            projection.backend.differentiate(tile, start, of_rows, projection.spec)
            if grad_block is not None:
                _accumulate(grad_block, tile, columns)
            if grad_weight is not None:
                _accumulate(grad_weight[start : start + len(columns)], tile.t(), block, fresh)
            if grad_bias is not None:
                grad_bias[start : start + len(columns)] += tile.sum(dim=0, dtype=accumulator)
        if grad_block is not None:
            grad_hidden[pick] = grad_block.to(hidden.dtype)
        fresh = False
    return grad_hidden, grad_weight, grad_bias


def _accumulate(total: Tensor, a: Tensor, b: Tensor, fresh: bool = False) -> None:
    """`total += a @ b`, or `total = a @ b`, without rounding the product to a narrower dtype than `total`'s."""
    if fresh:
        torch.mm(a.to(total.dtype), b.to(total.dtype), out=total)
    elif total.dtype == torch.float64:
        total.addmm_(a, b)
    else:
        _addmm_fp32(total, a, b)


def with_company(wanted: Tensor) -> Tensor:
    """(N,) bool -> sorted indices of the wanted rows; if any, filled up to `FEWEST_ROWS` with other rows."""
    count = int(wanted.sum())
    if 0 < count < FEWEST_ROWS:
        count = min(FEWEST_ROWS, len(wanted))
    return wanted.to(torch.int8).argsort(descending=True, stable=True)[:count].sort().values


def token_slices(count: int, limit: int) -> list[slice]:
    """Slices of about equal length that cover `count` rows, at most `limit` rows each."""
    parts = -(-count // limit)
    return [slice(i * count // parts, (i + 1) * count // parts) for i in range(parts)]


def accumulator_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def backend_for(device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The module that folds tiles: Triton kernels if the device has them, else torch."""
    if _use_triton(device) and dtype != torch.float64:
        from . import triton_tiles

        return triton_tiles
    return torch_tiles
