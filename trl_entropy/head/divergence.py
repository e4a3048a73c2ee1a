# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The divergence of student and teacher, with a backward on the kept tokens only.

TRL's kernel sweeps the vocabulary once and keeps running sums per token. Entropy and both KLs follow from the sums,
but it returns only one divergence. We run its forward with a wrapper around the function that folds a tile into the
sums, which keeps the sums, and its backward on the rows that a gradient reaches.
"""

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from trl.kernels import chunked_divergence
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.trainer.utils import maybe_gather_lm_head_ctx

from .function import DYNAMIC_DEVICES, token_statistics
from .rebinding import rebound
from .spec import FLOOR, INFINITE, HeadSpec


class Head(NamedTuple):
    """The arguments of TRL's kernel. N rows, V words; hidden widths may differ."""

    student_hidden: Tensor  # (N, H_s)
    student_weight: Tensor  # (V, H_s)
    student_bias: Tensor | None  # (V,)
    teacher_hidden: Tensor  # (N, H_t)
    teacher_weight: Tensor  # (V, H_t)
    teacher_bias: Tensor | None  # (V,)
    beta: float
    temperature: float = 1.0
    student_logit_scale: float = 1.0
    student_softcap: float | None = None
    teacher_logit_scale: float = 1.0
    teacher_softcap: float | None = None

    def at(self, rows: Tensor) -> "Head":
        """The same arguments for the rows (R,) only."""
        return self._replace(
            student_hidden=self.student_hidden.index_select(0, rows),
            teacher_hidden=self.teacher_hidden.index_select(0, rows),
        )


class Divergences(NamedTuple):
    """Per token, all (N,) and in nats; only `loss` has a gradient.

    Attributes:
        loss: the divergence that `beta` selects.
        entropy: entropy of the student.
        reverse: KL(student || teacher).
        forward: KL(teacher || student).
    """

    loss: Tensor
    entropy: Tensor
    reverse: Tensor
    forward: Tensor


class SumsRecorder:
    """Wraps the function, or the Triton kernel, that folds a tile into the running sums, and keeps the sums."""

    def __init__(self, fold: Any):
        self._fold = fold
        self._sums: dict[int, tuple[Tensor, ...]] = {}  # first row -> views into TRL's buffers

    def __getitem__(self, grid: tuple[int, ...]) -> "SumsRecorder":
        """A wrapped launcher: Triton kernels are launched as `kernel[grid](...)`."""
        launcher = SumsRecorder(self._fold[grid])
        launcher._sums = self._sums
        return launcher

    def __call__(self, s_tile, s_stride, t_tile, t_stride, *args, **kwargs) -> None:
        sums = args[:7]
        self._sums[sums[0].storage_offset()] = sums
        self._fold(s_tile, s_stride, t_tile, t_stride, *args, **kwargs)

    def divergences(self) -> tuple[Tensor, Tensor]:
        """Reverse and forward KL of all rows in nats, (N,) each."""
        blocks = [self._sums[first] for first in sorted(self._sums)]
        s_max, s_sum, _, t_max, t_sum, t_gap, s_gap = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        s_log_z, t_log_z = s_max + torch.log(s_sum), t_max + torch.log(t_sum)
        return s_gap / s_sum - s_log_z + t_log_z, t_gap / t_sum - t_log_z + s_log_z


def _project(tile: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> None:
    """TRL's projection of a tile, with finite logits also for tokens of probability 0, which then add 0."""
    chunked_divergence._project(tile, hidden, weight, None if bias is None else bias.float().clamp(min=FLOOR), *args)


class DivergenceFunction(torch.autograd.Function):
    """TRL's kernel: `apply(*Head, live_rows)` gives [`Divergences`].

    With `live_rows` the backward leaves out rows whose incoming gradient is zero. Otherwise it is TRL's to the bit.
    """

    @staticmethod
    def forward(ctx, *arguments: Any) -> tuple[Tensor, ...]:
        *head, live_rows = arguments  # it is last, so that `ctx.needs_input_grad` has the positions of TRL's kernel
        tile, kernel = (SumsRecorder(getattr(chunked_divergence, name)) for name in ("_stats_tile", "_stats_kernel"))
        names = {"_stats_tile": tile, "_stats_kernel": kernel, "_project": _project}
        loss, entropy = rebound(ChunkedDivergenceFunction.forward, names)(ctx, *head)
        empty = loss.detach()  # of no rows
        reverse, forward = (tile if tile._sums else kernel).divergences() if len(loss) else (empty, empty.clone())
        loss, reverse, forward = (x.masked_fill(x > INFINITE, torch.inf) for x in (loss, reverse, forward))
        ctx.mark_non_differentiable(entropy, reverse, forward)
        ctx.live_rows = live_rows and loss.device.type in DYNAMIC_DEVICES
        return loss, entropy, reverse, forward

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        backward = rebound(ChunkedDivergenceFunction.backward, {"_project": _project})
        if grad is None or not ctx.live_rows:
            return *backward(ctx, grad, None), None
        rows = grad.nonzero().squeeze(1)
        hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias, *scalars = ctx.saved_tensors
        live = SimpleNamespace(
            saved_tensors=(
                *(hidden[rows], weight, bias, teacher_hidden[rows], teacher_weight, teacher_bias),
                *(scalar[rows] for scalar in scalars),
            ),
            **{name: getattr(ctx, name) for name in ("needs_input_grad", "dtypes", "beta", "mode", "kernel_args")},
        )
        # Every process gathers a sharded head in there, also one with no live row
        grad_hidden, *others = backward(live, grad[rows], None)
        if grad_hidden is not None:
            grad_hidden = torch.zeros_like(hidden).index_copy_(0, rows, grad_hidden)
        return grad_hidden, *others, None


def divergences(head: Head, live_rows: bool) -> Divergences:
    """Divergences of student and teacher per token.

    Args:
        head: hidden states, heads and settings.
        live_rows: whether the backward leaves out rows whose incoming gradient is zero.
    """
    return Divergences(*DivergenceFunction.apply(*head, live_rows))


@torch.no_grad()
def student_entropy(head: Head, rows: Tensor) -> Tensor:
    """(R,) entropies (nats) of the student at the rows (R,), by one sweep of its head only.

    As in TRL, the logits are not rounded to a narrow dtype.
    """
    hidden = head.student_hidden.index_select(0, rows)
    spec = HeadSpec(head.student_logit_scale, head.student_softcap, head.temperature, wide_logits=True)
    weight, bias = head.student_weight, head.student_bias
    with maybe_gather_lm_head_ctx(weight, bias):
        return token_statistics(hidden, weight, bias, torch.zeros_like(rows), spec).entropy


def entropy_first_is_cheaper(head: Head, ratio: float) -> bool:
    """Whether a sweep for the student's entropy, then both heads on the kept rows, needs fewer products.

    In units of rows x vocabulary, with hidden widths H_s and H_t, p passes of the loss (2 for generalized JSD, else 1)
    and a share ρ of kept rows: H_s + ρ p (H_s + H_t) against p (H_s + H_t). The backward costs the same.
    """
    student, teacher = head.student_hidden.size(1), head.teacher_hidden.size(1)
    forward = (2 if 0 < head.beta < 1 else 1) * (student + teacher)
    return student + ratio * forward < forward and not math.isclose(student + ratio * forward, forward)
