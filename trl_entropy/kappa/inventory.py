# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The weights of a model in memory: listing them, and reading one of them."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .direct import directly_read
from .layers import DIRECT, EMBEDDING, EXPERTS, HEAD, LINEAR, ROUTER, TOWER, UNREADABLE, Layer


# Naming conventions of the models in transformers.
HEAD_NAME = re.compile(r"(^|\.)lm_heads?(\.|$)")  # for heads that `get_output_embeddings` does not find
ROUTER_NAME = re.compile(r"(^|\.)(\w*router\w*|gate|\w*expert_gate)(\.|$)")
ROUTER_TYPE = re.compile(r"Router|Gating$")
TOWER_NAME = re.compile(
    r"(^|\.)(visual|vision\w*|image\w*|audio\w*|multi_modal_projector|connector|qformer|embed_(vision|audio))(\.|$)"
)
STACK_NAME = re.compile(r"expert|weight$")
TABLE_NAME = re.compile(r"embed|position")


class Kinds:
    """Tells the kind of each weight of a model, from its name and from the modules around it."""

    def __init__(self, model: PreTrainedModel):
        self.head = model.get_output_embeddings()
        self.decoder = _decoder_name(model)
        self.direct = directly_read(model)
        self.routers = tuple(f"{name}." for name, module in model.named_modules() if _is_router(name, module))

    def of(self, name: str, module: nn.Module, default: str = LINEAR) -> str:
        """The kind of the weights of a module; `default` if no rule applies."""
        if module is self.head or HEAD_NAME.search(name):
            return HEAD
        if isinstance(module, nn.Embedding):
            return EMBEDDING
        if TOWER_NAME.search(name) or not f"{name}.".startswith(self.decoder):
            return TOWER
        if f"{name}.".startswith(self.routers):
            return ROUTER
        return DIRECT if name in self.direct and default == LINEAR else default


def _is_router(name: str, module: nn.Module) -> bool:
    return bool(ROUTER_NAME.search(name) or ROUTER_TYPE.search(type(module).__name__))


def _decoder_name(model: PreTrainedModel) -> str:
    """The prefix of the language model's names in a model that has other parts too; otherwise empty."""
    text = model.config.get_text_config(decoder=True)
    if text is model.config or model.config.is_encoder_decoder or text.is_encoder_decoder:
        return ""
    decoder = model.get_decoder()
    return next((f"{name}." for name, module in model.named_modules() if name and module is decoder), "")


def _is_stack(name: str, module: nn.Module, parameter: Tensor) -> bool:
    """Whether a parameter is a stack of matrices, as opposed to a convolution, a table of positions or vectors."""
    if (
        parameter.dim() != 3
        or isinstance(module, (nn.Conv1d, nn.ConvTranspose1d))
        or not STACK_NAME.search(name)
        or TABLE_NAME.search(name)
    ):
        return False
    return "expert" in name or min(parameter.shape) > 1


def _shape(module: nn.Module, parameter: Tensor) -> tuple[int, ...]:
    """The shape of the weight before it was quantized and packed."""
    return (module.out_features, module.in_features) if isinstance(module, nn.Linear) else tuple(parameter.shape)


def _is_quantized(tensor: Tensor) -> bool:
    return tensor.dtype.itemsize == 1 or not tensor.is_floating_point()


def _is_packed(key: str, tensor: Tensor) -> bool:
    """Whether a buffer, or a parameter not called `weight`, holds a quantized weight, as with GPTQ, AWQ and HQQ."""
    called = "weight" in key or isinstance(tensor, nn.Parameter)
    return called and tensor.dim() == 2 and _is_quantized(tensor)


def layers_of(model: PreTrainedModel) -> list[Layer]:
    """All matrices and stacks of fused experts of a model, tied ones once. The model may be on the meta device.

    Modules whose weights are packed into anything but a parameter `weight` come last, as `UNREADABLE`.
    """
    kinds, seen, found = Kinds(model), set(), []
    packed: dict[str, tuple[Any, str, Any]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{key}" if name else key
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            weight = key == "weight" and (parameter.dim() == 2 or isinstance(module, nn.Linear))
            if weight and (isinstance(module, (nn.Linear, nn.Embedding, Conv1D)) or module is kinds.head):
                found.append(Layer(name, full, _shape(module, parameter), kinds.of(name, module)))
            elif _is_stack(full, module, parameter):
                found.append(Layer(full, full, tuple(parameter.shape), kinds.of(full, module, EXPERTS)))
            elif _is_packed(key, parameter):
                packed.setdefault(name, (module, full, parameter))
            elif parameter.dim() == 2:
                kind = kinds.of(full, module)
                found.append(Layer(full, full, tuple(parameter.shape), ROUTER if kind == LINEAR else kind))
        for key, buffer in module.named_buffers(recurse=False):
            if _is_packed(key, buffer):
                packed.setdefault(name, (module, f"{name}.{key}", buffer))
    known = {layer.name for layer in found}
    for name, (module, full, tensor) in packed.items():
        if name not in known:
            found.append(Layer(name, full, tuple(tensor.shape), kinds.of(name, module, UNREADABLE)))
    return found


def read_weight(model: nn.Module, layer: Layer) -> Tensor:
    """The weight, dequantized. Raises `ValueError` if PEFT cannot dequantize its format."""
    module = model.get_submodule(layer.parameter.rpartition(".")[0])
    weight = getattr(module, layer.parameter.rpartition(".")[2], None)
    if weight is not None and _is_quantized(weight):
        from peft.utils.integrations import dequantize_module_weight

        weight = dequantize_module_weight(module)
    if weight is None or _is_quantized(weight):
        form = "in an unknown format" if weight is None else f"to {weight.dtype}"
        raise ValueError(
            f"`{layer.parameter}` is quantized {form} and cannot be dequantized: use a checkpoint that is not "
            "quantized."
        )
    return weight.detach().reshape(layer.shape)


def why_unreadable(model: nn.Module) -> str | None:
    """Why this process cannot read the weights of a model in memory; `None` if it can."""
    from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

    if is_deepspeed_zero3_enabled() or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return "sharded by DeepSpeed ZeRO-3"
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return "sharded"
    if any(parameter.device == torch.device("meta") for parameter in model.parameters()):
        return "on the meta device"
    if is_fsdp_enabled():  # transformers then loads the weights in one process only
        return "loaded for FSDP"
    return None
