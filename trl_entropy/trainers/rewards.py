# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The columns that reward functions may request, and the rewards that methods add or shape."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from trl.trainer.utils import is_async_callable

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
            if not (method.overrides("reward") and method.adds_reward):
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


@contextmanager
def checking_rewards(trainer: Any) -> Iterator[None]:
    """While TRL calls the reward functions of `trainer`, checks what they return."""
    functions = trainer.reward_funcs
    names = trainer.reward_func_names
    trainer.reward_funcs = [checked_reward(function, name) for function, name in zip(functions, names, strict=True)]
    try:
        yield
    finally:
        trainer.reward_funcs = functions


def checked_reward(function: Any, name: str) -> Any:
    """The reward function, which raises `ValueError` unless it returns one number or `None` per completion.

    A reward model stays as it is.
    """
    if isinstance(function, torch.nn.Module):
        return function
    if is_async_callable(function):

        @functools.wraps(function)
        async def checked(**columns: Any) -> list[float | None]:
            return read_rewards(await function(**columns), len(columns["completions"]), name)
    else:

        @functools.wraps(function)
        def checked(**columns: Any) -> list[float | None]:
            return read_rewards(function(**columns), len(columns["completions"]), name)

    return checked


def read_rewards(returned: Any, count: int, name: str) -> list[float | None]:
    """What the reward function `name` has returned for `count` completions, as a list.

    Raises:
        `ValueError`: it is no list, has another length, or has an entry that is not a number.
    """
    accepted = f"reward function {name!r} in `reward_funcs` must return a list of {count} numbers or `None`"
    if not isinstance(returned, Iterable) or isinstance(returned, (str, bytes, dict)):
        raise ValueError(f"The {accepted}, got {returned!r:.80}.")
    rewards = list(returned)
    if len(rewards) != count:
        raise ValueError(f"The {accepted}, one per completion, got {len(rewards)} rewards.")
    for index, reward in enumerate(rewards):
        if reward is not None and not is_number(reward):
            raise ValueError(f"The {accepted}, got {reward!r:.80} for completion {index}.")
    return rewards


def is_number(value: Any) -> bool:
    """Whether a value is a number or an array of one. Text is not, even if it reads as a number."""
    if isinstance(value, (str, bytes)):
        return False
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True
