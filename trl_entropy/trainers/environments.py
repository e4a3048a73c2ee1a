# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Environments of rollouts that branch: copied with their state, and what cannot be branched refused."""

from copy import deepcopy
from types import MethodType
from typing import Any


def copied(environment: Any) -> Any:
    """A copy of an environment. Raises `ValueError` if it cannot be copied."""
    try:
        return deepcopy(environment)
    except Exception as error:
        raise ValueError(
            "`environment_factory` must make environments that `copy.deepcopy` can copy if rollouts branch, got "
            f"{type(environment).__name__}, whose copy raises {type(error).__name__}: {error}. Give it a method "
            "`__deepcopy__`, or pass `tools` without state."
        ) from error


def rebound(tool: Any, old: Any, new: Any) -> Any:
    """`tool`, as a method of `new` if it is one of `old`."""
    return MethodType(tool.__func__, new) if getattr(tool, "__self__", None) is old else tool


def branch_environment(trainer: Any, parent: int, place: int) -> None:
    """Gives the row `place` a copy of the environment of `parent`, and tools that act on the copy."""
    if not trainer.environments:
        return
    old = trainer.environments[parent]
    trainer.environments[place] = new = copied(old)
    for tools in (trainer._sync_tool_dicts, trainer._async_tool_dicts):
        tools[place] = {name: rebound(tool, old, new) for name, tool in tools[parent].items()}


def check_branching(trainer: Any, name: str) -> None:
    """Checks that the rollouts of a trainer can branch, for the method `name`.

    Raises:
        `ValueError`: they have no tools, are made by a rollout function or have images, or an environment cannot be
            copied.
    """
    if trainer.rollout_func is not None:
        raise ValueError(
            f"`rollout_func` must be none with method {name!r}, which branches in TRL's own tool loop, got "
            f"{trainer.rollout_func!r}."
        )
    if not trainer.tools:
        raise ValueError(
            f"`tools` or `environment_factory` must be given with method {name!r}, which branches after tool results, "
            "got neither."
        )
    if trainer._is_vlm:
        raise ValueError(
            f"`processing_class` must be a tokenizer with method {name!r}, which does not branch images, got "
            f"{type(trainer.processing_class).__name__}."
        )
    if trainer.environment_factories is not None:
        for pool in trainer._environment_pool.values():
            copied(pool[0])
