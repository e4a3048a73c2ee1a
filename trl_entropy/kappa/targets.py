# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The selected weights as targets of a PEFT config, and the check that adapters sit on exactly these.

PEFT matches targets by the ends of names. For mixture-of-experts models it also rewrites `layers.0.mlp.down_proj` to
`down_proj` of the fused experts in every layer. It does not rewrite names of parameters, so a layer with such a name
is targeted by its parameter.
"""

import copy
import re
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from accelerate.utils import is_peft_model
from torch import nn

from .layers import DIRECT, Layer


if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

# Parts of names that training wrappers add.
WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.|^module\.")
TARGETS = ("target_modules", "target_parameters")


def with_targets(
    peft_config: "PeftConfig", chosen: Sequence[Layer], skeleton: "PreTrainedModel | None" = None
) -> "PeftConfig":
    """A copy of a PEFT config with the chosen weights as its targets.

    Args:
        peft_config: a config without targets.
        chosen: the selected weights.
        skeleton: the model without data, on which the adapters are tried out. It is changed. `None`: not tried out.

    Raises:
        `ValueError`: the config has targets already, its method takes none, or PEFT cannot put an adapter that acts
            on exactly the chosen weights.
    """
    refuse_direct(chosen)
    whole = [layer for layer in chosen if layer.name == layer.parameter]
    renamed = rewritten(peft_config, chosen, skeleton)
    by_parameter = [*whole, *renamed]
    if not hasattr(peft_config, "target_modules") or by_parameter and not hasattr(peft_config, "target_parameters"):
        raise ValueError(
            f"`peft_config` must be the config of a method with targets, got {type(peft_config).__name__}."
        )
    for key in TARGETS:
        if getattr(peft_config, key, None):
            raise ValueError(
                f"`{key}` of `peft_config` must be unset, because KappaTune selects the targets, got "
                f"{getattr(peft_config, key)!r}. Restrict the candidates with `include` and `exclude`."
            )
    dropout = getattr(peft_config, "lora_dropout", 0)
    if by_parameter and dropout:
        what = "fused experts are" if whole else "a layer that PEFT targets by its parameter is"
        hint = "['experts']" if whole else repr([layer.name for layer in renamed])
        raise ValueError(
            f"`lora_dropout` of `peft_config` must be 0 if {what} selected, here `{by_parameter[0].name}`, got "
            f"{dropout!r}. To keep dropout, exclude them: `exclude={hint}`."
        )
    found = copy.deepcopy(peft_config)
    found.target_modules = {layer.name for layer in chosen} - {layer.name for layer in by_parameter}
    if by_parameter:
        found.target_parameters = [layer.parameter for layer in by_parameter]
    if skeleton is not None:
        try_out(found, chosen, skeleton)
    return found


def refuse_direct(chosen: Sequence[Layer]) -> None:
    """Raises `ValueError` if an adapter on a chosen layer would never act."""
    if direct := [f"`{layer.name}`" for layer in chosen if layer.kind == DIRECT]:
        raise ValueError(
            f"Adapters on {', '.join(direct)} would never act, because the model's code reads the weight and does not "
            "call the layer: exclude them, or train without adapters (`kappa_mode: freeze`, `KappaTuneCallback`)."
        )


def rewritten(peft_config: "PeftConfig", chosen: Sequence[Layer], model: "PreTrainedModel | None") -> list[Layer]:
    """The chosen layers whose names PEFT would rewrite for this architecture."""
    if model is None or not hasattr(peft_config, "target_parameters"):
        return []
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    changed = {}
    for leaf in {layer.name.rpartition(".")[2] for layer in chosen if layer.name != layer.parameter}:
        trial = copy.deepcopy(peft_config)
        trial.target_modules, trial.target_parameters = {leaf}, None
        try:
            convert_peft_config_for_transformers(trial, SimpleNamespace(config=model.config), conversions=None)
            changed[leaf] = trial.target_modules != {leaf}
        except ValueError:  # it needs a name that would be fused with this one
            changed[leaf] = True
    return [layer for layer in chosen if changed.get(layer.name.rpartition(".")[2]) and layer.name != layer.parameter]


def try_out(peft_config: "PeftConfig", chosen: Sequence[Layer], skeleton: "PreTrainedModel") -> None:
    """Creates the adapters on a model without data, and checks them. Raises `ValueError`."""
    from peft import get_peft_model

    trial = copy.deepcopy(peft_config)
    if hasattr(trial, "init_lora_weights"):
        trial.init_lora_weights = True  # other ways need data
    check_adapters(get_peft_model(skeleton, trial, low_cpu_mem_usage=True), chosen)


def adapted(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The adapters of a PEFT model by module, or by parameter if they are on one: names as in the base model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, list[nn.Module]] = {}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer):
            name = WRAPPERS.sub("", name).replace(".base_layer", "")
            parameter = getattr(module, "parameter_name", None)  # of LoRA on a parameter
            found.setdefault(f"{name}.{parameter}" if parameter else name, []).append(module)
    return found


def check_adapters(model: Any, chosen: Sequence[Layer]) -> None:
    """Checks that adapters sit on exactly the chosen weights and that these are what trains.

    `modules_to_save`, trainable tokens and biases that the PEFT config asks for may train too.

    Raises:
        `ValueError`: anything else trains, or a chosen weight does not.
    """
    from peft.utils.other import AuxiliaryTrainingWrapper

    adapters = adapted(model)
    names = {name for layer in chosen for name in (layer.name, layer.parameter) if name in adapters}
    missing = [layer.name for layer in chosen if not names & {layer.name, layer.parameter}]
    differ(missing, "gets no adapter, although it is selected")
    differ(adapters.keys() - names, "would get an adapter, although it is not selected")
    idle = [
        name
        for name in names
        if not any(weight.requires_grad for adapter in adapters[name] for weight in adapter_weights(adapter))
    ]
    differ(idle, "has an adapter that is frozen, although it is selected")
    own = {id(weight) for found in adapters.values() for adapter in found for weight in adapter_weights(adapter)}
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            own |= {id(weight) for weight in module.parameters()}
    biases = any(getattr(config, "bias", "none") != "none" for config in model.peft_config.values())
    other = [
        name
        for name, weight in model.named_parameters()
        if weight.requires_grad and id(weight) not in own and not (biases and "bias" in name)
    ]
    differ(other, "would train, although it is not selected")


def adapter_weights(adapter: nn.Module) -> list[nn.Parameter]:
    """The weights of one adapter, without those of the layer that it wraps."""
    base = {id(weight) for weight in adapter.base_layer.parameters()}
    return [weight for weight in adapter.parameters() if id(weight) not in base]


def without_gradient(model: nn.Module, chosen: Sequence[Layer]) -> list[str]:
    """Names of the chosen weights that have no gradient, with adapters or without."""
    if is_peft_model(model):
        found = {
            name: [weight for module in modules for weight in adapter_weights(module)]
            for name, modules in adapted(model).items()
        }
    else:
        found = {WRAPPERS.sub("", name): [weight] for name, weight in model.named_parameters()}
    moving = {name for name, weights in found.items() if any(weight.grad is not None for weight in weights)}
    return [layer.name for layer in chosen if not moving & {layer.name, layer.parameter}]


def differ(names: Iterable[str], problem: str) -> None:
    """Raises `ValueError` if there are names with this problem."""
    if found := sorted(names):
        more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
        raise ValueError(
            f"PEFT cannot train exactly the weights that KappaTune selects: {', '.join(map('`{}`'.format, found[:5]))}"
            f"{more} {problem}. Change `include` and `exclude`, or the other fields of `peft_config`."
        )
