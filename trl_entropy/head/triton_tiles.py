# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`torch_tiles` in Triton: the same three functions. Each reads a tile of logits once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .nucleus import BINS, CAPACITY, LIKELY, Candidates, Histogram
from .spec import FLOOR, MAX, SECOND, SHIFTED, SQUARES, SQUARES_SHIFTED, SUM, TARGET, HeadSpec, RowGradients
from .top import TopTokens


# Columns of a tile that a program processes at once
BLOCK = 1024
# Kernels can read only globals of this type
_MAX, _SUM, _SHIFTED, _TARGET = (tl.constexpr(row) for row in (MAX, SUM, SHIFTED, TARGET))
_SQUARES, _SQUARES_SHIFTED, _SECOND = (tl.constexpr(row) for row in (SQUARES, SQUARES_SHIFTED, SECOND))
_FLOOR, _LOWEST = tl.constexpr(FLOOR), tl.constexpr(torch.finfo(torch.float32).min)


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
    rows, width = tile.shape
    if not rows:
        return
    kept = 0 if top is None else top.z.shape[1]
    _fold_kernel[(rows,)](
        tile,
        tile.stride(0),
        targets,
        state,
        state.stride(0),
        state if candidates is None else candidates.z,
        targets if candidates is None else candidates.found,
        state if top is None else top.z,
        targets if top is None else top.ids,
        start,
        width,
        second_ratio=spec.second_ratio or 1.0,
        likely=LIKELY,
        HAS_SECOND_MOMENTS=spec.second_moments,
        HAS_SECOND_TEMPERATURE=spec.second_ratio is not None,
        HAS_CANDIDATES=candidates is not None,
        IS_FIRST=start == 0,
        CAPACITY=CAPACITY,
        TOP=kept,
        PLACES=triton.next_power_of_2(max(kept, 2)),
        BLOCK=BLOCK,
        **_transform_arguments(spec),
    )


def count(tile: Tensor, rows: Tensor, histogram: Histogram, spec: HeadSpec) -> None:
    """Counts `rows` (r,) of the raw logits `tile` (n, w) into a histogram of r rows."""
    if not len(rows):
        return
    _count_kernel[(len(rows), triton.cdiv(tile.shape[1], BLOCK))](
        tile,
        tile.stride(0),
        rows,
        histogram.row_max,
        histogram.low,
        histogram.lowest,
        histogram.highest,
        histogram.planes,
        histogram.planes.stride(0),
        tile.shape[1],
        1 / histogram.width,
        BINS=BINS,
        BLOCK=BLOCK,
        **_transform_arguments(spec),
    )


def differentiate(tile: Tensor, start: int, rows: RowGradients, spec: HeadSpec) -> None:
    """Overwrites the raw logits `tile` (n, w) of the vocabulary from `start` on with the gradient of the loss."""
    if not len(tile):
        return
    unused = rows.log_z
    optional = (
        rows.log_probs_grad,
        rows.entropy_grad,
        rows.nucleus_grad,
        rows.threshold,
        rows.log_share,
        rows.nucleus_entropy,
        rows.top_ids,
        rows.top_grads,
    )
    _differentiate_kernel[(len(tile), triton.cdiv(tile.shape[1], BLOCK))](
        tile,
        tile.stride(0),
        rows.targets,
        rows.log_z,
        rows.entropy,
        *(unused if values is None else values for values in optional),
        start,
        tile.shape[1],
        HAS_LOG_PROBS_GRAD=rows.log_probs_grad is not None,
        HAS_ENTROPY_GRAD=rows.entropy_grad is not None,
        HAS_NUCLEUS_GRAD=rows.nucleus_grad is not None,
        TOP=0 if rows.top_grads is None else rows.top_grads.shape[1],
        BLOCK=BLOCK,
        **_transform_arguments(spec),
    )


def _transform_arguments(spec: HeadSpec) -> dict[str, float | bool]:
    return {
        "logit_scale": float(spec.logit_scale),
        "softcap": float(spec.softcap or 1.0),
        "inverse_temperature": 1 / spec.temperature,
        "HAS_SOFTCAP": spec.softcap is not None,
    }


@triton.jit
def _tanh(x):
    # Not every backend has libdevice's tanh
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _final_logits(raw, logit_scale, softcap, inverse_temperature, HAS_SOFTCAP: tl.constexpr):
    z = raw.to(tl.float32) * logit_scale
    if HAS_SOFTCAP:
        z = softcap * _tanh(z / softcap)
    return z * inverse_temperature


@triton.jit
def _floored(x, floor):
    # `tl.maximum` would hide a NaN
    return tl.where(x < floor, floor, x)


@triton.jit
def _keep_likely(z, chosen, row_ptr, found, CAPACITY: tl.constexpr):
    # Appends the chosen logits of a block to those found before. Few blocks have any.
    count = tl.sum(chosen.to(tl.int32), axis=0)
    if count > 0:
        place = found + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
        tl.store(row_ptr + place, z, mask=chosen & (place < CAPACITY))
    return found + count


@triton.jit
def _fold_kernel(
    tile_ptr,
    tile_stride,
    targets_ptr,
    state_ptr,
    state_stride,
    candidates_ptr,
    found_ptr,
    top_z_ptr,
    top_ids_ptr,
    start,
    width,
    logit_scale,
    softcap,
    inverse_temperature,
    second_ratio,
    likely,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SECOND_MOMENTS: tl.constexpr,
    HAS_SECOND_TEMPERATURE: tl.constexpr,
    HAS_CANDIDATES: tl.constexpr,
    IS_FIRST: tl.constexpr,
    CAPACITY: tl.constexpr,
    TOP: tl.constexpr,
    PLACES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per row. The state of a statistic that is not requested is neither read nor written.
    row = tl.program_id(0).to(tl.int64)
    tile_ptr += row * tile_stride
    state_ptr += row
    row_max = tl.load(state_ptr + _MAX * state_stride)
    total = tl.load(state_ptr + _SUM * state_stride)
    shifted = tl.load(state_ptr + _SHIFTED * state_stride)
    if HAS_SECOND_MOMENTS:
        squares = tl.load(state_ptr + _SQUARES * state_stride)
        squares_shifted = tl.load(state_ptr + _SQUARES_SHIFTED * state_stride)
    if HAS_SECOND_TEMPERATURE:
        second = tl.load(state_ptr + _SECOND * state_stride)
    if HAS_CANDIDATES:
        candidates_ptr += row * CAPACITY
        found = tl.load(found_ptr + row)
    if TOP > 0:
        place = tl.arange(0, PLACES)
        # Places beyond the last are never the smallest
        top_z = tl.load(top_z_ptr + row * TOP + place, mask=place < TOP, other=float("inf"))
        top_ids = tl.load(top_ids_ptr + row * TOP + place, mask=place < TOP, other=0)

    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        valid = column < width
        raw = tl.load(tile_ptr + column, mask=valid, other=0.0)
        z = _final_logits(raw, logit_scale, softcap, inverse_temperature, HAS_SOFTCAP)
        # Finite, also where all tokens so far have probability 0
        new_max = _floored(tl.maximum(row_max, tl.max(tl.where(valid, z, -float("inf")), axis=0)), _LOWEST)
        # The first block finds a maximum of -inf, and sums of zero that no shift changes
        shift = _floored(row_max - new_max, _FLOOR)
        rescale = tl.exp(shift)
        d = tl.where(valid, _floored(z - new_max, _FLOOR), 0.0)
        e = tl.where(valid, tl.exp(d), 0.0)
        # In this order, because the shifted sums need the old sums
        shifted = rescale * (shifted + shift * total) + tl.sum(e * d, axis=0)
        total = rescale * total + tl.sum(e, axis=0)
        if HAS_SECOND_MOMENTS:
            square = e * e
            squares_shifted = rescale * rescale * (squares_shifted + shift * squares) + tl.sum(square * d, axis=0)
            squares = rescale * rescale * squares + tl.sum(square, axis=0)
        if HAS_SECOND_TEMPERATURE:
            tempered = tl.where(valid, tl.exp(d * second_ratio), 0.0)
            second = tl.exp(shift * second_ratio) * second + tl.sum(tempered, axis=0)
        if HAS_CANDIDATES and not IS_FIRST:
            found = _keep_likely(z, valid & (e > 0) & (e >= likely * total), candidates_ptr, found, CAPACITY)
        if TOP > 0:
            rest = tl.where(valid, _floored(z, _LOWEST), -float("inf"))
            for _ in range(TOP):
                best = tl.max(rest, axis=0)
                least = tl.min(top_z, axis=0)
                if best > least:  # few blocks hold one of the largest logits so far
                    at = tl.min(tl.where(rest == best, column, width), axis=0)
                    # Of equal logits the highest id goes. Tokens of later blocks have higher ids, so they never win.
                    gone = tl.max(tl.where(top_z == least, top_ids, -1 - TOP), axis=0)
                    replaced = (top_z == least) & (top_ids == gone)
                    top_z = tl.where(replaced, best, top_z)
                    top_ids = tl.where(replaced, (start + at).to(tl.int64), top_ids)
                    rest = tl.where(column == at, -float("inf"), rest)
        row_max = new_max

    if HAS_CANDIDATES and IS_FIRST:
        # In the first few blocks all tokens would seem likely. So read the tile again, now that its sum is known.
        for first in range(0, width, BLOCK):
            column = first + tl.arange(0, BLOCK)
            valid = column < width
            raw = tl.load(tile_ptr + column, mask=valid, other=0.0)
            z = _final_logits(raw, logit_scale, softcap, inverse_temperature, HAS_SOFTCAP)
            e = tl.exp(z - row_max)
            chosen = valid & (e > 0) & (e >= likely * total)
            found = _keep_likely(z, chosen, candidates_ptr, found, CAPACITY)
    if HAS_CANDIDATES:
        tl.store(found_ptr + row, found)
    if TOP > 0:
        tl.store(top_z_ptr + row * TOP + place, top_z, mask=place < TOP)
        tl.store(top_ids_ptr + row * TOP + place, top_ids, mask=place < TOP)
    tl.store(state_ptr + _MAX * state_stride, row_max)
    tl.store(state_ptr + _SUM * state_stride, total)
    tl.store(state_ptr + _SHIFTED * state_stride, shifted)
    if HAS_SECOND_MOMENTS:
        tl.store(state_ptr + _SQUARES * state_stride, squares)
        tl.store(state_ptr + _SQUARES_SHIFTED * state_stride, squares_shifted)
    if HAS_SECOND_TEMPERATURE:
        tl.store(state_ptr + _SECOND * state_stride, second)
    target = tl.load(targets_ptr + row) - start
    if (target >= 0) & (target < width):
        raw = tl.load(tile_ptr + target)
        z = _final_logits(raw, logit_scale, softcap, inverse_temperature, HAS_SOFTCAP)
        tl.store(state_ptr + _TARGET * state_stride, z)


@triton.jit
def _count_kernel(
    tile_ptr,
    tile_stride,
    rows_ptr,
    row_max_ptr,
    low_ptr,
    lowest_ptr,
    highest_ptr,
    planes_ptr,
    plane_stride,
    width,
    inverse_bin_width,
    logit_scale,
    softcap,
    inverse_temperature,
    HAS_SOFTCAP: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per row and block. Few tokens are likely enough to be counted, so atomics rarely collide.
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = column < width
    raw = tl.load(tile_ptr + tl.load(rows_ptr + row) * tile_stride + column, mask=valid, other=0.0)
    z = _final_logits(raw, logit_scale, softcap, inverse_temperature, HAS_SOFTCAP)
    d = z - tl.load(row_max_ptr + row)
    counted = valid & (d >= tl.load(lowest_ptr + row)) & (d < tl.load(highest_ptr + row))
    position = tl.where(counted, (d - tl.load(low_ptr + row)) * inverse_bin_width, 0.0)
    slot = tl.minimum(position.to(tl.int32), BINS - 1)
    place = position - slot.to(tl.float32)
    weight = tl.exp(d)
    bin_ptr = planes_ptr + row * BINS + slot
    tl.atomic_add(bin_ptr, weight, mask=counted, sem="relaxed")
    tl.atomic_add(bin_ptr + plane_stride, weight * place, mask=counted, sem="relaxed")
    tl.atomic_add(bin_ptr + 2 * plane_stride, weight * place * place, mask=counted, sem="relaxed")


@triton.jit
def _differentiate_kernel(
    tile_ptr,
    tile_stride,
    targets_ptr,
    log_z_ptr,
    entropy_ptr,
    log_probs_grad_ptr,
    entropy_grad_ptr,
    nucleus_grad_ptr,
    threshold_ptr,
    log_share_ptr,
    nucleus_entropy_ptr,
    top_ids_ptr,
    top_grads_ptr,
    start,
    width,
    logit_scale,
    softcap,
    inverse_temperature,
    HAS_SOFTCAP: tl.constexpr,
    HAS_LOG_PROBS_GRAD: tl.constexpr,
    HAS_ENTROPY_GRAD: tl.constexpr,
    HAS_NUCLEUS_GRAD: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per row and block of columns. See `torch_tiles._gradient_per_probability` for the formulas.
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = column < width
    place_ptr = tile_ptr + row * tile_stride + column
    scaled = tl.load(place_ptr, mask=valid, other=0.0).to(tl.float32) * logit_scale
    slope = inverse_temperature * logit_scale
    if HAS_SOFTCAP:
        tanh = _tanh(scaled / softcap)
        z = softcap * tanh * inverse_temperature
    else:
        z = scaled * inverse_temperature
    log_p = _floored(z - tl.load(log_z_ptr + row), _FLOOR)
    p = tl.exp(log_p)

    grad = tl.zeros((BLOCK,), tl.float32)
    if HAS_LOG_PROBS_GRAD:
        g = tl.load(log_probs_grad_ptr + row)
        is_target = column + start == tl.load(targets_ptr + row)
        grad += g * (is_target.to(tl.float32) - p)
    if HAS_ENTROPY_GRAD:
        g = tl.load(entropy_grad_ptr + row)
        grad -= g * p * (log_p + tl.load(entropy_ptr + row))
    if HAS_NUCLEUS_GRAD:
        g = tl.load(nucleus_grad_ptr + row)
        log_q = log_p - tl.load(log_share_ptr + row)
        inner = tl.exp(log_q) * (log_q + tl.load(nucleus_entropy_ptr + row))
        grad -= tl.where(z >= tl.load(threshold_ptr + row), g * inner, 0.0)
    for k in range(TOP):
        g = tl.load(top_grads_ptr + row * TOP + k)
        is_token = column + start == tl.load(top_ids_ptr + row * TOP + k)
        grad += g * (is_token.to(tl.float32) - p)
    grad = grad * slope
    if HAS_SOFTCAP:
        grad = grad * (1 - tanh * tanh)
    tl.store(place_ptr, grad.to(tile_ptr.dtype.element_ty), mask=valid)
