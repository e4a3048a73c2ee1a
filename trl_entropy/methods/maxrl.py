# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""MaxRL, maximum-likelihood reinforcement learning: rare successes count more.

How it departs from GRPO:
1. The divisor is the mean of the group's rewards, not their standard deviation. With a share p of right completions,
   each of them weighs (1 - p) / p. This is the gradient of log p, where GRPO without a division has that of p.
"""

from dataclasses import dataclass, field

from torch import Tensor

from ..paper import Paper
from ..settings import checked
from ..signs import Sign
from ..tokens import Rollouts
from .base import Logs
from .groups import GroupMethod


@dataclass
class MaxrlConfig:
    maxrl_cap: float | None = field(
        default=None,
        metadata={
            "help": "MaxRL: largest advantage, above 0. None: no cap; one right completion of G has G - 1. Not in the "
            "paper."
        },
    )


def mean_scaled(rewards: Tensor) -> Tensor:
    """(P, G) rewards >= 0, NaN if missing -> (P, G) advantages; 0 in a group with mean 0 or fewer than two rewards."""
    given = ~rewards.isnan()
    mean = rewards.nanmean(1, keepdim=True)
    known = given & (given.sum(1, keepdim=True) > 1) & (mean > 0)
    return ((rewards - mean) / (mean + 1e-6)).masked_fill(~known, 0)


class Maxrl(GroupMethod):
    """Advantages relative to the mean reward.

        A = (R - mean R) / (mean R + 1e-6),   0 if mean R = 0

    Rewards must not be negative. Wrong completions always weigh about -1. A single right completion of 64 has 63 and
    dominates its batch, so `max_grad_norm` then scales all others down. A small positive reward for format makes the
    mean small but positive in groups without a right completion, and advantages large. `maxrl_cap` is an extension.
    """

    name = "maxrl"
    summary = "divides by the mean reward, so that rare successes count more"
    checked_against = "formulas from the project page and code"
    config = MaxrlConfig
    excludes = {"pear": "PEAR's rewards may be negative, and MaxRL divides by their mean"}
    paper = Paper(
        "2602.02710",
        "Maximum Likelihood Reinforcement Learning",
        """@article{tajwar2026maximum,
    title   = {Maximum Likelihood Reinforcement Learning},
    author  = {Fahim Tajwar and Guanning Zeng and Yueer Zhou and Yuda Song and Daman Arora and Yiding Jiang
               and Jeff Schneider and Ruslan Salakhutdinov and Haiwen Feng and Andrea Zanette},
    journal = {arXiv preprint arXiv:2602.02710},
    year    = {2026}
}""",
    )
    idle = (Sign({"advantage_abs": (0, 0)}, "raise `num_generations`, or check `reward_funcs`: all advantages are 0"),)

    def __init__(self, config):
        self.cap = checked(
            config,
            "maxrl_cap",
            lambda value: value is None or 0 < value < float("inf"),
            "a finite number above 0, or none",
        )

    def advantages(self, rewards: Tensor, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        if (negative := rewards[rewards < 0]).numel():
            raise ValueError(
                "`reward_funcs` must give weighted sums of rewards >= 0 with method 'maxrl', which divides by their "
                f"mean, got {negative.min().item():g}."
            )
        found = mean_scaled(rewards)
        if self.cap is not None:
            found = found.clamp(max=self.cap)
        return found, {"advantage_max": found.flatten()}
