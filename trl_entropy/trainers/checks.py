# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks of a trainer's arguments and config for which TRL's own error would come late or be unclear."""

import json
import os
from collections.abc import Sequence
from functools import partial
from numbers import Integral
from typing import Any

from accelerate.logging import get_logger
from packaging.version import Version
from trl import GRPOTrainer

from ..methods import Method
from ..settings import checked, one_of
from .data_checks import check_datasets, texts_of
from .model_checks import check_eos, check_fusible, check_vocabulary


logger = get_logger(__name__)

TRL_FROM, TRL_BELOW = "1.16", "1.17"
COUNTS = ("num_generations", "num_iterations", "gradient_accumulation_steps", "per_device_train_batch_size")
OPTIONAL_COUNTS = ("steps_per_generation", "generation_batch_size", "max_completion_length")  # may be unset
CHOICES = {
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
ACCEPTED = "a model, a name on the Hub, or a folder that exists"


def check_trl_version(version: str) -> None:
    """Raises `ImportError` for other releases of TRL: the trainers rely on its internals."""
    if not Version(TRL_FROM) <= Version(version) < Version(TRL_BELOW):
        raise ImportError(
            f"trl-entropy needs trl>={TRL_FROM},<{TRL_BELOW}, but trl {version} is installed. "
            f"Run `pip install 'trl>={TRL_FROM},<{TRL_BELOW}'`."
        )


def refuse_unsloth(trainer_class: type) -> None:
    """Raises `RuntimeError` if Unsloth has patched the trainer: its forward returns no entropies."""
    sources = [*trainer_class.__mro__, GRPOTrainer._get_per_token_logps_and_entropies, GRPOTrainer._compute_loss]
    for source in sources:
        if "unsloth" in f"{source.__module__}.{source.__qualname__}".lower():
            raise RuntimeError(
                f"Unsloth has patched the GRPO trainer (`{source.__module__}.{source.__qualname__}`). Its forward "
                "returns no token entropies, which every method needs. Do not import unsloth in this program."
            )


def check_model(model: Any, field: str = "model") -> None:
    """Raises `ValueError` if `model` is neither a model nor a name of one.

    Loading shows whether the Hub has a model of that name.
    """
    known = bool(model) and not is_missing_path(model) if isinstance(model, str) else hasattr(model, "config")
    if not known:
        raise ValueError(f"`{field}` must be {ACCEPTED}, got {model!r}.")


def check_rewards(reward_funcs: Any) -> None:
    """Raises `ValueError` for a reward that is neither a function nor a model. TRL handles missing rewards."""
    for reward in reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]:
        known = bool(reward) and not is_missing_path(reward) if isinstance(reward, str) else callable(reward)
        if not known and not (reward is None and reward_funcs is None):
            raise ValueError(f"`reward_funcs` must be functions, or {ACCEPTED}, got {reward!r}.")


def check_given(
    arguments: dict[str, Any],
    layouts: Sequence[tuple[str, ...]] | None,
    models: Sequence[str] = ("model",),
    fused: bool = True,
    ends: bool = True,
) -> None:
    """Checks what a trainer is given, before TRL loads anything.

    Args:
        arguments: the arguments of TRL's trainer by name.
        layouts: the columns that the trainer needs, as in [`check_datasets`]; `None` to check no dataset.
        models: names of the arguments that are models.
        fused: whether the loss reads the weight of the LM heads.
        ends: whether completions end at the tokenizer's EOS token.

    Raises:
        `ValueError`: a model, a dataset or the tokenizer is not what the trainer can use.
    """
    for name in models:
        model = arguments.get(name)
        check_model(model, name)
        if fused and not isinstance(model, str):
            check_fusible(model, name)
    if layouts is not None:
        check_datasets(layouts, **{name: arguments.get(name) for name in ("train_dataset", "eval_dataset")})
    if ends:
        check_eos(arguments.get("processing_class"))


def check_one_device(trainer: Any) -> None:
    """Raises `ValueError` if the model would be wrapped in `nn.DataParallel`, as TRL does in most of its trainers.

    Its replicas run what is bound to the original model. It is known once `Trainer` has been built: a model that is
    split across devices is not wrapped.
    """
    if trainer.args.n_gpu > 1:
        raise ValueError(
            f"{type(trainer).__name__} does not support `nn.DataParallel`, which `Trainer` uses when several GPUs "
            f"are visible to a single process, got {trainer.args.n_gpu} of them. Launch the script with `accelerate "
            "launch` or `torchrun`, or make a single GPU visible with `CUDA_VISIBLE_DEVICES`."
        )


def check_built(trainer: Any, fused: bool = True, ends: bool = True) -> None:
    """Checks what TRL has loaded and wrapped. Arguments and errors are those of [`check_given`]."""
    check_one_device(trainer)
    teacher = getattr(trainer, "teacher_model", None)
    for name, model in {"model": trainer.model, "teacher_model": teacher}.items():
        if fused and model is not None:
            check_fusible(trainer.accelerator.unwrap_model(model), name)
    if ends:
        check_eos(trainer.processing_class)
    check_vocabulary(trainer.processing_class, trainer.model, texts_of(trainer.train_dataset))


def check_none_changes_prompts(methods: list[Method]) -> None:
    """Raises `ValueError` if a method changes prompts: with an environment, the environment writes them."""
    if names := [method.name for method in methods if method.overrides("prompts")]:
        raise ValueError(
            f"`methods` must not list {names[0]!r} with `environment_factory`, which writes the prompts, got "
            f"{[method.name for method in methods]!r}."
        )


def is_missing_path(name: str) -> bool:
    """Whether a name looks like the path of a folder that does not exist."""
    return name.startswith(("/", ".", "~")) and not os.path.exists(os.path.expanduser(name))


def _is_count(low: int, value: Any) -> bool:
    return isinstance(value, Integral) and int(value) >= low


def check_before(config: Any, **least: int) -> None:
    """Checks the fields that TRL's `__post_init__` computes with, among those that `config` has.

    Args:
        config: the config of a trainer.
        least: lowest values of counts, by field; 1 if not given.

    Raises:
        `ValueError`: a count is not an integer or too low, text is not valid JSON, or a file does not exist.
    """
    for name in (*COUNTS, *OPTIONAL_COUNTS):
        low, unset = least.get(name, 1), name in OPTIONAL_COUNTS
        if hasattr(config, name) and not (unset and getattr(config, name) is None):
            accepted = f"an integer >= {low}" + (" or none" if unset else "")
            checked(config, name, partial(_is_count, low), accepted)
    for name in config._VALID_DICT_FIELDS:
        value = getattr(config, name)
        if isinstance(value, str) and value.startswith("{"):
            try:
                json.loads(value)
            except ValueError as error:
                raise ValueError(f"`{name}` must be a mapping, or one as JSON, got {value!r}: {error}.") from None
    path = config.deepspeed
    if isinstance(path, str) and path.endswith(".json") and not os.path.exists(path):
        raise ValueError(f"`deepspeed` must be a mapping, or the path of a file that exists, got {path!r}.")


def check_after(config: Any) -> None:
    """What the first step would find, as far as `config` has it, once TRL has read it.

    Warns if `fsdp` is set on a CPU, where accelerate takes DDP instead without a word.

    Raises:
        `ValueError`: a field that is out of range.
    """
    checked(config, "temperature", lambda value: 0 < value < float("inf"), "a finite number > 0")
    if hasattr(config, "top_entropy_quantile"):
        checked(config, "top_entropy_quantile", lambda value: 0 <= value <= 1, "a share in [0, 1]")
    for name, choices in CHOICES.items():
        if hasattr(config, name):
            one_of(config, name, *choices)
    if config.fsdp and config.use_cpu:
        logger.warning("`fsdp` does nothing with `use_cpu`: accelerate shards on accelerators only, and CPUs use DDP.")
