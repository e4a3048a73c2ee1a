# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The common part of methods that define the advantage of a completion by the rewards of its group."""

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..settings import checked
from ..tokens import Rollouts
from .base import Logs, Method


EPSILON = 1e-4  # TRL adds it to the standard deviation
PATIENCE = 20  # generation batches


def threshold(config: Any, name: str) -> float:
    """The value of a field that takes any finite number."""
    return checked(config, name, lambda value: abs(value) < float("inf"), "a finite number")


def standard_deviation(rewards: Tensor) -> Tensor:
    """(P, G) rewards, NaN if missing -> (P, 1) sample standard deviations; NaN if a group has fewer than two."""
    given = ~rewards.isnan()
    count = given.sum(1, keepdim=True)
    centered = (rewards - rewards.nanmean(1, keepdim=True)).masked_fill(~given, 0)
    return (centered.square().sum(1, keepdim=True) / (count - 1).masked_fill(count < 2, 0)).sqrt()


def divided(advantages: Tensor, rewards: Tensor, scale: str) -> Tensor:
    """(P, G) advantages, divided as TRL does for `scale_rewards`.

    Args:
        advantages: (P, G).
        rewards: (P, G), NaN if missing.
        scale: "group", "batch" or "none".

    Returns:
        (P, G), 0 if the reward is missing or the group has fewer than two.
    """
    known = ~rewards.isnan() & ((~rewards.isnan()).sum(1, keepdim=True) > 1)
    if scale == "none":
        return advantages.masked_fill(~known, 0)
    spread = standard_deviation(rewards if scale == "group" else rewards.view(1, -1))
    return (advantages / (spread + EPSILON)).masked_fill(~known, 0)


def spread_over_tokens(advantages: Tensor, rollouts: Rollouts) -> Tensor:
    """(P, G) advantages of all processes -> (B, T) of this process' tokens."""
    own = rollouts.world.own(advantages.flatten(), len(rollouts.mask))
    return own.unsqueeze(1).expand(rollouts.mask.shape).to(rollouts.advantages.dtype)


class LastingCondition:
    """Warns once, in the main process, if a condition holds in 20 generation batches of training in a row.

    The count starts again if a run is resumed.
    """

    def __init__(self, message: str):
        self.message = message
        self.batches = 0
        self.warned = False

    def update(self, holds: bool, rollouts: Rollouts) -> None:
        if not rollouts.training or self.warned:
            return
        self.batches = self.batches + 1 if holds else 0
        if self.batches == PATIENCE:
            self.warned = True
            if rollouts.world.rank == 0:
                warnings.warn(self.message, stacklevel=2)


class Correctness:
    """Tells right completions from wrong ones, by a threshold on the reward.

    Warns once, in the main process, if training meets more than two rewards: then not only correctness decides.
    """

    def __init__(self, config: Any, name: str):
        self.name = name
        self.threshold = threshold(config, f"{name}_threshold")
        self._seen: set[float] = set()

    def __call__(self, rewards: Tensor, rollouts: Rollouts) -> Tensor:
        """(P, G) rewards, NaN if missing -> (P, G) bool."""
        if rollouts.training and len(self._seen) <= 2:
            self._seen.update(rewards[~rewards.isnan()].unique().tolist())
            if len(self._seen) > 2 and rollouts.world.rank == 0:
                warnings.warn(
                    f"Method {self.name!r} counts a completion as right if the weighted sum of its rewards is above "
                    f"`{self.name}_threshold` ({self.threshold:g}), but this sum takes more than two values: rewards "
                    "for format or length also decide what is right.",
                    stacklevel=3,
                )
        return rewards > self.threshold


class GroupMethod(Method):
    """A method that makes advantages from the rewards of a group alone, in float64.

    Missing rewards are left out of every statistic, and their completions get advantage 0.

    Class attributes:
        divides: the method divides by the standard deviation that `scale_rewards` names.
    """

    replaces_advantages = True
    divides: ClassVar[bool] = False

    def check(self, config) -> list[str]:
        why = ", which compares the rewards of a group"
        self.require(config, "multi_objective_aggregation", "sum_then_normalize", why=why)
        found = super().check(config)
        if not self.divides and config.scale_rewards != "group":
            found.append(
                f"`scale_rewards` {config.scale_rewards!r} does nothing with method {self.name!r}, which has a scale "
                "of its own."
            )
        return found

    def advantages(self, rewards: Tensor, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        """(P, G) rewards in float64, NaN if missing -> (P, G) advantages."""
        raise NotImplementedError

    @torch.no_grad()
    def group_advantages(self, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        rewards = rollouts.groups(rollouts.rewards.double())
        found, logs = self.advantages(rewards, rollouts)
        found = spread_over_tokens(found.masked_fill(rewards.isnan(), 0), rollouts)
        return found, {**logs, "advantage_abs": found.abs()}
