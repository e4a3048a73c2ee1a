# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""For losses over full logits: the statistics that TIP selects tokens by, and the rows of the kept tokens."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from ..head.spec import FLOOR, INFINITE


CHUNK = 2**24  # logits per chunk, at most: 64 MiB in float32, and about five tensors of this size exist
FEWEST_CHUNKS = 16  # so that chunks are small even if the logits are


@torch.no_grad()
def token_statistics(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, needs: Iterable[str], temperature: float = 1.0
) -> dict[str, Tensor]:
    """(B, T, V), (B, T, V), (B, T) -> fields of [`TipTokens`], (B, T) in nats: `entropy` and those in `needs`.

    Of the distributions at `temperature`; 0 outside the mask. A few rows at a time are computed, which adds little to
    the memory of full logits.
    """
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    found = {name: torch.zeros(mask.shape, dtype=dtype, device=mask.device) for name in ("entropy", *needs)}
    valid = mask.nonzero()
    for places in valid.split(max(1, min(CHUNK // student_logits.size(-1), len(valid) // FEWEST_CHUNKS))):
        at = tuple(places.unbind(1))
        student = (student_logits[at].to(dtype) / temperature).log_softmax(-1).clamp_(min=FLOOR)
        found["entropy"][at] = -(student.exp() * student).sum(-1)
        if needs:
            teacher = (teacher_logits[at].to(dtype) / temperature).log_softmax(-1).clamp_(min=FLOOR)
        if "divergence" in needs:
            found["divergence"][at] = kl_div(teacher, student, reduction="none", log_target=True).sum(-1)
        if "forward_divergence" in needs:
            found["forward_divergence"][at] = kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return {name: values.masked_fill(values > INFINITE, torch.inf) for name, values in found.items()}


def compact(keep: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) bool -> (B, K) positions of each row's kept tokens, in order, and (B, K) bool: which positions are real.

    K is the largest number kept in a row. Shorter rows repeat their first position.
    """
    longest = int(keep.sum(1).max())
    order = keep.int().argsort(dim=1, descending=True, stable=True)
    real = keep.gather(1, order)[:, :longest]
    return torch.where(real, order[:, :longest], order[:, :1]), real


def rows_at(values: Tensor, positions: Tensor) -> Tensor:
    """(B, T, ...), (B, K) -> (B, K, ...). If K = 0, zeros (B, 1, ...) that depend on the values by a zero gradient."""
    found = values[torch.arange(len(values), device=values.device).unsqueeze(1), positions]
    return found if positions.size(1) else torch.cat([found, torch.zeros_like(values[:, :1])], 1)
