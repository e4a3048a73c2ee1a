# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Collectives over the processes of an `accelerate.Accelerator`."""

import torch
from accelerate import Accelerator
from torch import Tensor

from .tokens import SINGLE_PROCESS, Collectives


def collectives_of(accelerator: Accelerator) -> Collectives:
    """Sum and ragged gather over all processes; the identity where there is one."""
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
