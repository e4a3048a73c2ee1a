# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tensors of which each process holds a part, or the whole."""

import math

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def copies_of(tensor: DTensor) -> int:
    """On how many processes each part of a tensor is."""
    mesh = tensor.device_mesh
    return math.prod(mesh.size(dim) for dim, place in enumerate(tensor.placements) if place.is_replicate())


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, without gradient. It shares its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def norms(weights: list[Tensor]) -> Tensor:
    """(W,) Frobenius norms in float64, of the full tensors if they are sharded.

    A matrix in float64 is summed in it, any other in float32.
    """
    parts = [local(weight) for weight in weights]
    if not parts:
        return torch.zeros(0, dtype=torch.float64)
    dtype = torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32
    device = parts[0].device
    # One sweep over all tensors at once. Half precision would round the sums.
    found = torch.stack([norm.to(device) for norm in torch._foreach_norm(parts, 2, dtype=dtype)]).double()
    if not any(isinstance(weight, DTensor) for weight in weights):
        return found
    world = PartialState().num_processes
    copies = [copies_of(weight) if isinstance(weight, DTensor) else world for weight in weights]
    return reduce(found.square() / torch.tensor(copies, device=device), "sum").sqrt()


def reshard(model: nn.Module) -> None:
    """Frees full weights that a forward of FSDP2 has left: they would hide a change of the sharded ones."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
