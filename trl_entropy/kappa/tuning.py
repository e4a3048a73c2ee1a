# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Applying a selection to a model: freezing the rest, setting LoRA targets, reading trained weights."""

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather_object, is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from .analysis import Processes, analyze
from .cache import KappaCache
from .config import SELECTION_KNOBS, documented, kappa_cache
from .inventory import read_weight
from .layers import Layer
from .report import notes, summary
from .selection import Selection
from .sources import CheckpointSource, Source, source_of
from .targets import with_targets


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = get_logger(__name__)


def processes_of_run() -> Processes:
    """The processes of this run, to share an analysis."""
    state = PartialState()
    if state.num_processes == 1:
        return Processes()
    return Processes(
        state.process_index,
        state.num_processes,
        int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes)),
        gather_object,
        lambda value: broadcast_object_list([value])[0],
    )


def analyzed(
    source: Source, selection: Selection, cache: KappaCache | None, progress: bool = True
) -> tuple[list[Layer], list[Layer]]:
    """All weights and the selected ones, same on every process. Raises `ValueError` if the selection is empty."""
    layers = analyze(source, selection.candidate, cache, processes_of_run(), progress)
    chosen = selection.select(layers)
    names = [layer.name for layer in chosen]
    for note in notes(layers, names, selection):
        logger.warning(note)
    # Nothing to worry about, but users should see it, and warnings are the lowest level shown by default.
    logger.warning(f"KappaTune selects {summary(layers, names, selection)}: {', '.join(names)}.")
    return layers, chosen


def freeze_all_but(model: PreTrainedModel, chosen: Sequence[Layer]) -> None:
    """Freezes all weights but the chosen ones. Raises `ValueError` if one of them does not exist or is quantized."""
    parameters = dict(model.named_parameters())
    names = {layer.parameter for layer in chosen}
    missing = sorted(names - parameters.keys())
    if missing:
        raise ValueError(f"The model has no parameter `{missing[0]}`, but its checkpoint has one.")
    for name in names:
        if not parameters[name].is_floating_point():
            raise ValueError(f"`{name}` is quantized to {parameters[name].dtype} and cannot be trained: use LoRA.")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)


def kappa_peft_config(
    model: str | PreTrainedModel, peft_config: "PeftConfig", cache: str | None = None, **selection: Any
) -> "PeftConfig":
    """
    A copy of a PEFT config whose targets are the weights of low condition number, for any trainer.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The model, or the folder or id on the Hub that it will be loaded from.
        peft_config ([`~peft.PeftConfig`]):
            A config without targets.
        {knobs}
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random order.

    Raises:
        `ValueError`: an argument is out of range, the budget selects nothing, the model has adapters, `peft_config`
            has targets, or PEFT cannot put an adapter on exactly the selected weights.

    Example:

    ```python
    peft_config = kappa_peft_config("Qwen/Qwen3-8B", LoraConfig(r=64), top_p=0.2)
    trainer = SFTTrainer("Qwen/Qwen3-8B", train_dataset=dataset, peft_config=peft_config)
    ```
    """
    source = CheckpointSource(model) if isinstance(model, str) else source_of(model)
    _, chosen = analyzed(source, Selection(**selection), kappa_cache(cache))
    return with_targets(peft_config, chosen, source.skeleton())


documented(kappa_peft_config, (*SELECTION_KNOBS, "cache"))


def _adapters(model: "PeftModel", layer: Layer) -> Iterator[nn.Module]:
    """The modules that PEFT wrapped around the module with this weight, outermost first; that module comes last."""
    owner, _, _ = layer.parameter.rpartition(".")
    module = model.get_base_model().get_submodule(owner)
    while hasattr(module, "base_layer"):
        yield module
        module = module.base_layer
    yield module


def why_untracked(model: "PreTrainedModel | PeftModel", chosen: Sequence[Layer]) -> str | None:
    """Why `trained_weight` cannot read these weights (adapters of an unknown kind); `None` if it can."""
    if not is_peft_model(model):
        return None
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.variants import DoraLinearVariant
    from peft.tuners.lycoris_utils import LycorisLayer

    for layer in chosen:
        *adapters, _ = _adapters(model, layer)
        for module in adapters:
            variants = getattr(module, "lora_variant", {}).values()
            if not isinstance(module, (LoraLayer, LycorisLayer)) or not all(
                isinstance(variant, DoraLinearVariant) for variant in variants
            ):
                return (
                    f"adapted by {type(module).__module__}.{type(module).__name__}, which is not LoRA, DoRA or LyCORIS"
                )
    return None


def trained_weight(model: "PreTrainedModel | PeftModel", layer: Layer) -> Tensor:
    """The current weight in training, with LoRA, DoRA and LyCORIS adapters merged."""
    if not is_peft_model(model):
        return read_weight(model, layer)
    key = layer.parameter.rpartition(".")[2]
    *adapters, owner = _adapters(model, layer)
    weight = read_weight(owner, Layer(key, key, layer.shape, layer.kind))
    for module in adapters:
        if getattr(module, "parameter_name", key) != key:
            continue
        for adapter in module.active_adapters:
            if adapter in module.merged_adapters or adapter not in module.scaling:
                continue
            variant = getattr(module, "lora_variant", {}).get(adapter)
            if variant is not None:
                weight = variant.merge_safe(module, adapter, weight).detach()
            else:
                weight = weight + module.get_delta_weight(adapter).detach().reshape(weight.shape).to(weight.dtype)
    return weight
