# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The weights of a model in memory: which there are, and reading one of them."""

import re

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .layers import EMBEDDING, EXPERTS, HEAD, LINEAR, ROUTER, TOWER, Layer


# Parts of names by which models of transformers go.
ROUTER_NAME = re.compile(r"(^|[._])(router|gate)$")
TOWER_NAME = re.compile(r"(^|\.)(visual|vision\w*|image\w*|audio\w*|multi_modal_projector)(\.|$)")


def _kind(name: str, module: nn.Module, head: nn.Module | None) -> str:
    if module is head:
        return HEAD
    if isinstance(module, nn.Embedding):
        return EMBEDDING
    if TOWER_NAME.search(name):
        return TOWER
    if ROUTER_NAME.search(name) or "Router" in type(module).__name__:
        return ROUTER
    return LINEAR


def _shape(module: nn.Module, parameter: Tensor) -> tuple[int, ...]:
    """That of the weight also where it is quantised and packed."""
    return (module.out_features, module.in_features) if isinstance(module, nn.Linear) else tuple(parameter.shape)


def layers_of(model: PreTrainedModel) -> list[Layer]:
    """Every matrix and every stack of fused experts of a model, which may be on the meta device. Tied ones once."""
    head, seen, found = model.get_output_embeddings(), set(), []
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{key}"
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            weight = key == "weight" and parameter.dim() == 2 or isinstance(module, nn.Linear) and key == "weight"
            if weight and (isinstance(module, (nn.Linear, nn.Embedding, Conv1D)) or module is head):
                found.append(Layer(name, full, _shape(module, parameter), _kind(name, module, head)))
            elif parameter.dim() == 3 and "expert" in full:
                found.append(Layer(full, full, tuple(parameter.shape), EXPERTS))
            elif parameter.dim() == 2:
                kind = _kind(name, module, head)
                found.append(Layer(full, full, tuple(parameter.shape), ROUTER if kind == LINEAR else kind))
    return found


def read_weight(model: nn.Module, layer: Layer) -> Tensor:
    """The weight, dequantised. Raises `ValueError` where it is quantised in a way that PEFT does not know to undo."""
    module = model.get_submodule(layer.parameter.rpartition(".")[0])
    weight = model.get_parameter(layer.parameter)
    if weight.dtype.itemsize == 1 or not weight.is_floating_point():
        from peft.utils.integrations import dequantize_module_weight

        weight = dequantize_module_weight(module)
    if weight.dtype.itemsize == 1 or not weight.is_floating_point():
        raise ValueError(
            f"`{layer.parameter}` is quantised to {weight.dtype} and cannot be restored: compute the condition numbers "
            "on the checkpoint that is not quantised."
        )
    return weight.detach().reshape(layer.shape)


def why_unreadable(model: nn.Module) -> str | None:
    """What keeps this process from reading the weights of a model in memory, if something does."""
    from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

    if is_deepspeed_zero3_enabled() or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return "sharded by DeepSpeed ZeRO-3"
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return "sharded"
    if any(parameter.device == torch.device("meta") for parameter in model.parameters()):
        return "on the meta device"
    if is_fsdp_enabled():  # transformers then fills the weights of one process only
        return "loaded for FSDP"
    return None
