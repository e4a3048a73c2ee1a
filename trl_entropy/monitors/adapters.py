# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters: the weights with which a layer computes."""

from collections.abc import Iterator
from typing import Any

from accelerate.utils import is_peft_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def adapted_layers(model: nn.Module) -> Iterator[Any]:
    """The layers of a model of PEFT that have active LoRA adapters."""
    if not is_peft_model(model):
        return
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer) and active(layer):
            yield layer


def active(layer: Any) -> list[str]:
    """The active adapters of a layer: others than those of the whole model may be none of its own."""
    return [name for name in layer.active_adapters if name in layer.scaling]


def adapter_weights(model: nn.Module) -> Iterator[Tensor]:
    """The weights of LoRA adapters, and those that they adapt."""
    for layer in adapted_layers(model):
        yield from layer.parameters()


def adapted_weights(model: nn.Module) -> Iterator[tuple[float, float, float]]:
    """Frobenius norms of each adapted weight: ‖W_0‖ of the frozen weight, ‖W_0 + s B A‖, and ‖s B A‖."""
    for layer in adapted_layers(model):
        start = frozen_weight(layer).detach().float()
        moved = sum(layer.get_delta_weight(name).detach().float() for name in active(layer))
        yield norm(start), norm(start + moved), norm(moved)


def frozen_weight(layer: Any) -> Tensor:
    """The weight that a layer adapts, in full precision if it is quantized."""
    from peft.tuners.lora.layer import ParamWrapper
    from peft.utils.integrations import dequantize_module_weight

    if isinstance(layer, ParamWrapper):
        return layer.get_param()
    return dequantize_module_weight(layer.get_base_layer())


def norm(weight: Tensor) -> float:
    found = weight.norm()
    return float(found.full_tensor() if isinstance(found, DTensor) else found)
