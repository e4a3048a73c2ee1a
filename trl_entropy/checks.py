# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a trainer is given beside its config, checked where TRL's own error would come late or say little."""

import os
from collections.abc import Sized
from typing import Any


ACCEPTED = "a model, a name on the Hub, or a folder that exists"


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


def is_missing_path(name: str) -> bool:
    """Whether a name can only be that of a folder, and there is none."""
    return name.startswith(("/", ".", "~")) and not os.path.exists(os.path.expanduser(name))
