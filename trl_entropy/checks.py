# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a trainer is given beside its config, checked where TRL's own error would come late or say little."""

import os
from collections.abc import Sized
from typing import Any

from trl import GRPOTrainer

from .methods import Method


ACCEPTED = "a model, a name on the Hub, or a folder that exists"


def refuse_unsloth(trainer_class: type) -> None:
    """Raises `RuntimeError` where Unsloth has patched the trainer: its forward returns no entropies."""
    sources = [*trainer_class.__mro__, GRPOTrainer._get_per_token_logps_and_entropies, GRPOTrainer._compute_loss]
    for source in sources:
        if "unsloth" in f"{source.__module__}.{source.__qualname__}".lower():
            raise RuntimeError(
                f"Unsloth has patched the GRPO trainer (`{source.__module__}.{source.__qualname__}`). Its forward "
                "returns no token entropies, which every method needs. Do not import unsloth in this program."
            )


def check_model(model: Any, field: str = "model") -> None:
    """Raises `ValueError` for what is neither a model nor the name of one. Whether the Hub has it shows when loading."""
    known = bool(model) and not is_missing_path(model) if isinstance(model, str) else hasattr(model, "config")
    if not known:
        raise ValueError(f"`{field}` must be {ACCEPTED}, got {model!r}.")


def check_rewards(reward_funcs: Any) -> None:
    """Raises `ValueError` for a reward that is neither a function nor a model. None at all is left to TRL."""
    for reward in reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]:
        known = bool(reward) and not is_missing_path(reward) if isinstance(reward, str) else callable(reward)
        if not known and not (reward is None and reward_funcs is None):
            raise ValueError(f"`reward_funcs` must be functions, or {ACCEPTED}, got {reward!r}.")


def check_prompts(dataset: Any, field: str) -> None:
    """Raises `ValueError` for a dataset without rows, or without the column that completions are asked for."""
    columns = getattr(dataset, "column_names", None)
    if columns and "prompt" not in columns:
        raise ValueError(f"`{field}` must have the column 'prompt', got the columns {columns!r}.")
    if isinstance(dataset, Sized) and len(dataset) == 0:
        raise ValueError(f"`{field}` must have at least one row, got {dataset!r}.".replace("\n", " "))


def check_none_changes_prompts(methods: list[Method]) -> None:
    """Raises `ValueError` for methods that cannot be used where an environment writes the prompts."""
    if names := [method.name for method in methods if method.overrides("prompts")]:
        raise ValueError(
            f"`methods` must not list {names[0]!r} with `environment_factory`, which writes the prompts, got "
            f"{[method.name for method in methods]!r}."
        )


def is_missing_path(name: str) -> bool:
    """Whether a name can only be that of a folder, and there is none."""
    return name.startswith(("/", ".", "~")) and not os.path.exists(os.path.expanduser(name))
