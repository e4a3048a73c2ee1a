# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The columns that reward functions may request, and the rewards that methods add or shape."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from ..methods import Method
from ..settings import one_reward


# Parameters of reward functions in addition to TRL's: one list per completion, with one value per token.
COLUMNS = ("token_entropies", "token_mask")


def columns_taken(function: Any) -> set[str]:
    """The `COLUMNS` among the parameters of a reward function; empty for a reward model."""
    if isinstance(function, torch.nn.Module):
        return set()
    return set(COLUMNS) & inspect.signature(function).parameters.keys()


class Rewards:
    """The rewards of a trainer: those of the user's functions, and those that methods add.

    Args:
        trainer: TRL's trainer, once it is built. Methods with a reward of their own join its reward functions.
        methods: the active methods.
        ask: takes a method and the columns of the completions, returns the method's rewards.

    Attributes:
        columns: the `COLUMNS` that any function or method takes.
        shaped: the methods that replace a reward, with the index of the function whose reward they replace.
    """

    def __init__(self, trainer: Any, methods: list[Method], ask: Callable[..., list[float | None]]):
        names = list(trainer.reward_func_names)
        self.columns = set().union(*map(columns_taken, trainer.reward_funcs))
        self.shaped: list[tuple[Method, int]] = []
        for method in methods:
            method.check_rewards(names)
            if not method.overrides("reward"):
                continue
            self.columns |= columns_taken(method.reward)
            if method.shapes_reward:
                target = one_reward(method.shaped_reward, f"{method.name}_reward", names)
                self.shaped.append((method, names.index(target)))
            else:
                add_reward(trainer, method, ask)


def add_reward(trainer: Any, method: Method, ask: Callable[..., list[float | None]]) -> None:
    """Adds a reward function to `trainer`. Its lists are replaced, not extended, because they are the user's."""

    def reward(**columns: Any) -> list[float | None]:
        return ask(method, **columns)

    reward.__name__ = method.name
    trainer.reward_funcs = [*trainer.reward_funcs, reward]
    trainer.reward_func_names = [*trainer.reward_func_names, method.name]
    trainer.reward_processing_classes = [*trainer.reward_processing_classes, None]
    trainer.reward_weights = torch.cat([trainer.reward_weights, torch.ones(1)])
