# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Functions by name: rewards of TRL's GRPO script, our rewards, and anything by dotted path."""

import importlib
import os
import sys
from collections.abc import Callable

from trl.rewards import (
    accuracy_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)

from ..gym import REWARD, reasoning_gym_reward
from ..rewards import answer_line_accuracy_reward
from ..settings import did_you_mean


REWARDS: dict[str, Callable] = {
    "accuracy_reward": accuracy_reward,
    "answer_line_accuracy_reward": answer_line_accuracy_reward,
    "reasoning_accuracy_reward": reasoning_accuracy_reward,
    REWARD: reasoning_gym_reward,
    "think_format_reward": think_format_reward,
    # The same values as in TRL's script.
    "get_soft_overlong_punishment": get_soft_overlong_punishment(max_completion_len=1280, soft_punish_cache=256),
}


def reward_by_name(name: str) -> Callable:
    """A reward function.

    Args:
        name: one of `REWARDS`, or a dotted path. Modules in the current folder are found too.

    Raises:
        `ValueError`: unknown name, or the path cannot be imported.
    """
    if name in REWARDS:
        return REWARDS[name]
    if not name.rpartition(".")[0]:
        hint = did_you_mean(name, REWARDS, ignore_case=False)
        known = ", ".join(REWARDS)
        raise ValueError(f"`reward_funcs` has the unknown name {name!r}.{hint} Known: {known}, or a dotted path.")
    return imported(name, "reward_funcs")


def imported(path: str, field: str) -> Callable:
    """The function or class at a dotted path, which `field` has. Modules in the current folder are found too.

    Raises:
        `ValueError`: it is no dotted path, cannot be imported, or cannot be called.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module, _, attribute = path.rpartition(".")
    if not module:
        raise ValueError(f"`{field}` must have dotted paths, got {path!r}.")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"`{field}` has {path!r}, which cannot be imported: {error}.") from error
    if not callable(found):
        raise ValueError(f"`{field}` must name functions or classes, got {path!r}, which is {found!r:.80}.")
    return found
