# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A recipe as the advice reads it: with defaults, and the batch sizes that follow."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ..settings import checked, did_you_mean


COUNTS = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_iterations", "num_generations")
OPTIONAL_COUNTS = ("steps_per_generation", "generation_batch_size", "max_completion_length")
NUMBERS = ("epsilon", "epsilon_high", "entropy_keep")


def number(value: Any) -> Any:
    """Text that is a number as one: YAML reads `2e-4` as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def listed(value: Any) -> list[str]:
    """An entry that may be one name, a list of names or nothing -> names."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def read_setup(
    recipe: Mapping[str, Any], defaults: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]]
) -> SimpleNamespace:
    """The fields of a recipe with their defaults.

    `steps_per_generation` is what TRL derives. `world_size` is the recipe's `num_processes`, else 1, and `bounded`
    whether a listed method sets the clip bounds.

    Args:
        recipe: the mapping in the file.
        defaults: of the config.
        methods: facts of the methods by name.

    Raises:
        `ValueError`: a field that is read here has no valid value, or a method is unknown.
    """
    setup = SimpleNamespace(**{**defaults, **{key: number(value) for key, value in recipe.items()}})
    setup.methods = [name.lower().replace("-", "_") for name in listed(recipe.get("methods"))]
    for name in setup.methods:
        if name not in methods:
            raise ValueError(f"`methods` has the unknown name {name!r}.{did_you_mean(name, methods)}")
    for name in (name for name in COUNTS if name in defaults):
        checked(setup, name, lambda value: type(value) is int and value >= 1, "an integer >= 1")
    for name in (name for name in OPTIONAL_COUNTS if name in defaults):
        checked(setup, name, lambda value: value is None or (type(value) is int and value >= 1), "an integer >= 1")
    for name in (name for name in NUMBERS if name in defaults):
        checked(setup, name, lambda value: value is None or value >= 0, "a number >= 0")
    setup.num_processes = recipe.get("num_processes") or 1
    setup.world_size = checked(
        setup, "num_processes", lambda value: type(value) is int and value >= 1, "an integer >= 1"
    )
    if "steps_per_generation" in defaults and setup.steps_per_generation is None:
        rows = setup.per_device_train_batch_size * setup.world_size
        steps = setup.generation_batch_size and setup.generation_batch_size // rows
        setup.steps_per_generation = max(1, steps or setup.gradient_accumulation_steps)
    setup.bounded = any(methods[name]["sets_clip_bounds"] for name in setup.methods)
    return setup


def case_of(recipe: Mapping[str, Any]) -> str:
    """The case that a recipe is of, as far as its fields say."""
    signs = {
        "distillation": "teacher_model_name_or_path",
        "agents": "tools",
        "cpu": "use_cpu",
        "lora": "use_peft",
    }
    return next((case for case, key in signs.items() if recipe.get(key)), "math")
