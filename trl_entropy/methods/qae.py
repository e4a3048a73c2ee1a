# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""QAE, quantile advantage estimation: a quantile of the group's rewards is the baseline.

How it departs from GRPO:
1. The baseline is the K-quantile of the group's rewards, not their mean. With rewards of 0 and 1, right completions of
   hard prompts have a positive advantage, wrong completions of easy prompts a negative one, and all others 0.
2. The division by the standard deviation stays as it is.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..paper import Paper
from ..settings import checked
from ..signs import Sign
from ..tokens import Rollouts
from .base import Logs
from .groups import GroupMethod, divided


FEW = 4  # completions per prompt


@dataclass
class QaeConfig:
    qae_quantile: float = field(
        default=0.4,
        metadata={
            "help": "QAE: K, in (0, 1). With rewards of 0 and 1, groups with a share of right completions up to 1 - K "
            "have only positive advantages, all others only negative ones. So a larger K has more negative "
            "advantages and keeps entropy higher. The paper takes 0.4 with a raised `epsilon_high`, and 0.6 against "
            "entropy collapse."
        },
    )


def lower_quantile(rewards: Tensor, quantile: float) -> Tensor:
    """(P, G) rewards, NaN if missing -> (P, 1) the smallest reward that at least `quantile` of them do not exceed.

    NaN for a group without rewards. Unlike `torch.quantile` it does not interpolate.
    """
    counts = (~rewards.isnan()).sum(1).tolist()
    # 1e-9: 0.07 * 100 is 7.000000000000001
    places = [max(math.ceil(quantile * count - 1e-9), 1) - 1 for count in counts]
    return rewards.sort(1).values.gather(1, torch.tensor(places, device=rewards.device).unsqueeze(1))  # NaN last


class Qae(GroupMethod):
    """Advantages over a quantile of the group's rewards.

        A = (R - b) / (std + 1e-4),   b the smallest reward x with (number of rewards <= x) / G >= K

    The division is the one that `scale_rewards` names, with TRL's constant. With continuous rewards b is one of the
    rewards. Departs from a released version that interpolates between two rewards, so that right completions of some
    groups would not get 0.
    """

    name = "qae"
    summary = "takes a quantile of the group's rewards as baseline"
    checked_against = "formulas from paper notes"
    config = QaeConfig
    divides = True
    paper = Paper(
        "2509.22611",
        "Quantile Advantage Estimation for Entropy-Safe Reasoning",
        """@article{wu2025quantile,
    title   = {Quantile Advantage Estimation for Entropy-Safe Reasoning},
    author  = {Junkang Wu and Kexin Huang and Jiancan Wu and An Zhang and Xiang Wang and Xiangnan He},
    journal = {arXiv preprint arXiv:2509.22611},
    year    = {2025}
}""",
    )
    idle = (Sign({"advantage_abs": (0, 0)}, "change `qae_quantile`, or check `reward_funcs`: all advantages are 0"),)

    def __init__(self, config):
        self.quantile = checked(config, "qae_quantile", lambda value: 0 < value < 1, "a number in (0, 1)")

    def check(self, config) -> list[str]:
        warnings = super().check(config)
        if config.num_generations < FEW:
            warnings.append(
                f"Method 'qae' takes a quantile of a group, but `num_generations` is only {config.num_generations}."
            )
        return warnings

    def advantages(self, rewards: Tensor, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        baseline = lower_quantile(rewards, self.quantile)
        found = divided(rewards - baseline, rewards, rollouts.scale_rewards)
        positive = (found >= 0).all(1) & (found > 0).any(1)
        return found, {
            "baseline": baseline.flatten(),
            "zero_fraction": (found == 0).double().masked_fill(rewards.isnan(), torch.nan).flatten(),
            "positive_group_fraction": positive,
        }
