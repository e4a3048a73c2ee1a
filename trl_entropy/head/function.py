# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The head as an autograd function: sweeps over tiles of logits, forward on all rows, backward on live rows."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from trl.trainer.utils import maybe_gather_lm_head_ctx

from .nucleus import Nucleus
from .spec import MAX, SECOND, SHIFTED, SQUARES, SQUARES_SHIFTED, SUM, TARGET, HeadSpec, RowGradients, new_state
from .sweeps import FEWEST_ROWS, Projection, accumulator_of, backward_sweep, fold_sweep, token_slices, with_company
from .top import TopTokens


# Devices on which a data-dependent shape costs a synchronization, not a compilation
DYNAMIC_DEVICES = ("cpu", "cuda", "xpu", "mps")


class TokenStatistics(NamedTuple):
    """Per-token outputs of the head, (N,) except one, in nats; `None` if not requested.

    Attributes:
        log_probs: log-probability of the label, differentiable.
        entropy: entropy of the whole distribution, differentiable, never below 0.
        sum_sq_probs: Σp².
        sum_sq_probs_log_probs: Σp² log p.
        second_log_probs: log-probability of the label at the second temperature.
        nucleus_entropy: entropy of the distribution renormalized on its nucleus, differentiable.
        top_log_probs: (N, K) log-probabilities of the K likeliest tokens in descending order, differentiable.
    """

    log_probs: Tensor
    entropy: Tensor
    sum_sq_probs: Tensor | None = None
    sum_sq_probs_log_probs: Tensor | None = None
    second_log_probs: Tensor | None = None
    nucleus_entropy: Tensor | None = None
    top_log_probs: Tensor | None = None


class HeadFunction(torch.autograd.Function):
    """Statistics of `softmax(hidden @ weight.T + bias)` without `[N, V]` logits. See [`TokenStatistics`].

    The projection runs on tiles of at most `token_tile` x `vocab_tile` logits, in the dtype of `hidden` or of
    autocast. Each tile is folded into a few sums per row in float32 (float64 for float64). The backward recomputes the
    tiles of the rows that a gradient reaches. Gradients of weight and bias also accumulate in float32.
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
        # Outputs that are only logged get no gradient, instead of zeros
        ctx.set_materialize_grads(False)
        device, count = hidden.device, len(hidden)
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else hidden.dtype
        targets = targets.contiguous()
        if device.type == "cpu" and 0 < count < FEWEST_ROWS:  # pad with copies of the last row, whose gradient is 0
            hidden, targets = (
                torch.cat([x, x[-1:].repeat_interleave(FEWEST_ROWS - count, 0)]) for x in (hidden, targets)
            )
        state = new_state(len(hidden), accumulator_of(dtype), device)
        slices = token_slices(len(hidden), spec.token_tile)
        projection = Projection(weight, bias, dtype, spec, slices)
        nucleus = None if spec.top_p is None else Nucleus(*state.new_zeros((3, len(hidden))))
        top = None if spec.top_k is None else TopTokens.none(len(hidden), spec.top_k, state.dtype, device)
        for rows in slices:
            top_rows = None if top is None else top[rows]
            found = fold_sweep(projection, hidden[rows], targets[rows], state[:, rows], top_rows)
            if nucleus is not None:
                nucleus.put(rows, found)
        top = None if top is None else top.ordered()
        statistics, log_z = _statistics(state, nucleus, top, spec)

        saved_nucleus = () if nucleus is None else (nucleus.threshold, nucleus.log_share, nucleus.entropy)
        top_ids = None if top is None else top.ids
        ctx.save_for_backward(hidden, weight, bias, targets, log_z, statistics.entropy, top_ids, *saved_nucleus)
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
        # Gathers a sharded head, so every process must enter it, even without a live row
        with maybe_gather_lm_head_ctx(weight, bias):
            chosen = None
            if ctx.spec.live_rows and hidden.device.type in DYNAMIC_DEVICES:
                chosen = with_company(rows.live())
            count = len(hidden) if chosen is None else len(chosen)
            slices = token_slices(count, ctx.spec.token_tile)
            projection = Projection(weight, bias, ctx.dtype, ctx.spec, slices)
            picks = slices if count == len(hidden) else [chosen[part] for part in slices]
            grad_hidden, grad_weight, grad_bias = backward_sweep(
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
    """Hidden states (N, H), weight (V, H), bias (V,), labels (N,) in [0, V) -> the statistics in `spec`, each (N,)."""
    return TokenStatistics(*HeadFunction.apply(hidden, weight, bias, targets, spec))


def _statistics(
    state: Tensor, nucleus: Nucleus | None, top: TopTokens | None, spec: HeadSpec
) -> tuple[TokenStatistics, Tensor]:
    """The outputs and log Z (N,) from a state into which the whole vocabulary has been folded."""
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
    if top is not None:
        extra["top_log_probs"] = top.log_probs(log_z)
    entropy = (log_sum - state[SHIFTED] / state[SUM]).clamp(min=0)
    return TokenStatistics(state[TARGET] - log_z, entropy, **extra), log_z


def _row_gradients(saved: list[Tensor], grads: TokenStatistics) -> RowGradients:
    """The saved tensors of the rows and the gradients of their outputs, padded like the rows."""
    targets, log_z, entropy, top_ids, *nucleus = saved

    def incoming(grad: Tensor | None) -> Tensor | None:
        if grad is None:
            return None
        missing = (0, 0) * (grad.dim() - 1) + (0, len(log_z) - len(grad))
        return pad(grad.to(log_z.dtype), missing).contiguous()

    nucleus_grad = incoming(grads.nucleus_entropy)
    of_nucleus = {}
    if nucleus_grad is not None:
        of_nucleus = dict(zip(("threshold", "log_share", "nucleus_entropy"), nucleus, strict=True))
        # The entropy of a nucleus with at most one token is constant, so it has no gradient
        nucleus_grad = nucleus_grad.masked_fill(nucleus[0] == torch.inf, 0.0)
    return RowGradients(
        targets,
        log_z,
        entropy,
        incoming(grads.log_probs),
        incoming(grads.entropy),
        nucleus_grad,
        top_ids=None if grads.top_log_probs is None else top_ids,
        top_grads=incoming(grads.top_log_probs),
        **of_nucleus,
    )
