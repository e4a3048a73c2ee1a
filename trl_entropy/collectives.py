# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sums and gathers over the processes of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def _itself(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Collectives:
    """Collective operations for statistics over all processes. The defaults serve a single process.

    Every process must make every call, even if it holds no valid token.

    Attributes:
        sum: elementwise sum over processes, same shape.
        gather: 1-D tensors of any length, concatenated in the order of processes.
        rank: index of this process.
    """

    sum: Callable[[Tensor], Tensor] = _itself
    gather: Callable[[Tensor], Tensor] = _itself
    rank: int = 0

    def own(self, gathered: Tensor, length: int) -> Tensor:
        """The `length` entries of a gathered 1-D tensor that came from this process."""
        lengths = self.gather(torch.tensor([length], device=gathered.device))
        start = int(lengths[: self.rank].sum())
        return gathered[start : start + length]


SINGLE_PROCESS = Collectives()


def collectives_of(accelerator: Any) -> Collectives:
    """Sum and ragged gather over all processes of an accelerator. For a single process both return their input."""
    if accelerator.num_processes == 1:
        return SINGLE_PROCESS

    def gather(values: Tensor) -> Tensor:
        lengths = accelerator.gather(torch.tensor([values.numel()], device=values.device)).tolist()
        padded = values.new_zeros(max(lengths))
        padded[: values.numel()] = values
        rows = accelerator.gather(padded).view(len(lengths), -1)
        return torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])

    return Collectives(
        sum=lambda tensor: accelerator.reduce(tensor, reduction="sum"), gather=gather, rank=accelerator.process_index
    )
