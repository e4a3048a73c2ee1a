# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks of TRL's own fields, where TRL divides by them, fails in the first step, or names no field."""

import json
import os
from numbers import Integral
from typing import Any

from .methods.settings import checked, one_of


COUNTS = ("num_generations", "num_iterations", "gradient_accumulation_steps", "per_device_train_batch_size")
OPTIONAL_COUNTS = ("steps_per_generation", "generation_batch_size", "max_completion_length")  # which may be unset
CHOICES = {
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}


def check_before(config: Any, **least: int) -> None:
    """What TRL's `__post_init__` computes with, as far as `config` has it. `least`: counts that must be above 1.

    Raises:
        `ValueError`: a count that is no integer or too low, text that is no JSON, a file that does not exist.
    """
    for name in (*COUNTS, *OPTIONAL_COUNTS):
        low, unset = least.get(name, 1), name in OPTIONAL_COUNTS
        if hasattr(config, name) and not (unset and getattr(config, name) is None):
            accepted = f"an integer >= {low}" + (" or none" if unset else "")
            checked(config, name, lambda value, low=low: isinstance(value, Integral) and value >= low, accepted)
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
    """What the first step would find, as far as `config` has it, once TRL has read it. Raises `ValueError`."""
    checked(config, "temperature", lambda value: 0 < value < float("inf"), "a finite number > 0")
    if hasattr(config, "top_entropy_quantile"):
        checked(config, "top_entropy_quantile", lambda value: 0 <= value <= 1, "a share in [0, 1]")
    for name, choices in CHOICES.items():
        if hasattr(config, name):
            one_of(config, name, *choices)
