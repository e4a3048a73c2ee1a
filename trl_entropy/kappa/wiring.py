# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""How a trainer of this package applies `kappa_mode`: it changes the arguments of TRL's trainer."""

import inspect
from typing import Any

from .callback import KappaMonitor, KappaTuneCallback
from .config import kappa_selection
from .targets import with_targets


def is_frozen_by_quantization(model: Any) -> bool:
    """Whether a model is quantized in a way that adapters alone can be trained. Unknown of one given by name."""
    quantizer = getattr(model, "hf_quantizer", None)
    return getattr(model, "is_quantized", False) and not getattr(quantizer, "is_qat_trainable", False)


def with_kappa(trainer_class: type, *positional: Any, **keywords: Any) -> dict[str, Any]:
    """The arguments of TRL's trainer by name, changed as `args.kappa_mode` says.

    `freeze` adds a callback that freezes weights once the model is loaded; `lora` adds targets to `peft_config`. A
    model given by name is analyzed from its checkpoint, a model in memory as it is.

    Raises:
        `ValueError`: `peft_config` is missing with `lora` or given with `freeze`, or the model is quantized with
            `freeze`.
    """
    arguments = inspect.signature(trainer_class).bind(*positional, **keywords).arguments
    args, model, peft_config = arguments["args"], arguments["model"], arguments.get("peft_config")
    if args.kappa_mode == "none":
        return arguments
    if (args.kappa_mode == "lora") != (peft_config is not None):
        needed = "given, a LoRA config without targets" if args.kappa_mode == "lora" else "left out"
        raise ValueError(
            f"`peft_config` must be {needed}, with `kappa_mode` {args.kappa_mode!r}, got {peft_config!r}."
        )
    options = args.model_init_kwargs or {}
    if args.kappa_mode == "freeze" and (is_frozen_by_quantization(model) or options.get("quantization_config")):
        raise ValueError(
            "`kappa_mode` must be 'lora' for a quantized model, whose weights cannot be trained, got 'freeze'."
        )
    checkpoint = None
    if isinstance(model, str):
        trust = options.get("trust_remote_code", getattr(args, "trust_remote_code", False))
        checkpoint = (model, options.get("revision"), trust)
    freezes = args.kappa_mode == "freeze"
    monitor = (KappaTuneCallback if freezes else KappaMonitor)(
        cache=args.kappa_cache, track_steps=args.kappa_track_steps
    )
    monitor.selection, monitor.checkpoint = kappa_selection(args), checkpoint
    if not freezes:  # TRL's trainer creates the adapters, so the targets must be known before
        monitor.analyze(model, not args.disable_tqdm)
        arguments["peft_config"] = with_targets(peft_config, monitor.chosen, monitor.source(model).skeleton())
    arguments["callbacks"] = [*(arguments.get("callbacks") or []), monitor]
    return arguments
