# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Unlikeliness reward: among the right completions of a prompt, the likelier ones earn less.

How it departs from GRPO:
1. A completion's rank is the number of completions of its group that have a lower mean log-probability per token.
2. A positive reward is multiplied by a factor that falls with the rank, from 1 to almost 1 - β. The advantages are
   GRPO's of these rewards.
3. A group in which all completions are right has a signal too, which never ends: towards the unlikely ones.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..paper import Paper
from ..settings import checked
from ..signs import Sign
from ..tokens import Rollouts
from .base import Logs
from .groups import GroupMethod, divided


FEW = 8  # completions per prompt


@dataclass
class UnlikelinessConfig:
    unlikeliness_coef: float = field(
        default=0.25,
        metadata={
            "help": "Unlikeliness: β, in [0, 1): by how much the reward of the likeliest completion of a prompt is "
            "lowered, as a share. The paper takes 0.25."
        },
    )


def likelihood_ranks(values: Tensor, given: Tensor) -> Tensor:
    """(P, G) values and which of them count -> (P, G) ranks among them, 0 for the lowest; ties get their mean rank.

    A value that counts but is not finite has the rank of the median. Ranks of others are NaN.
    """
    known = given & values.isfinite()
    median = values.masked_fill(~known, torch.nan).nanquantile(0.5, dim=1, keepdim=True).nan_to_num()
    values = torch.where(known, values, median)
    mine, other = values.unsqueeze(2), values.unsqueeze(1)
    counts = given.unsqueeze(1)
    lower, equal = ((other < mine) & counts).sum(2), ((other == mine) & counts).sum(2)
    return (lower + (equal - 1) / 2).to(values).masked_fill(~given, torch.nan)


def lowered(rewards: Tensor, ranks: Tensor, coef: float) -> Tensor:
    """(P, G) rewards, NaN if missing, and ranks -> (P, G) R (1 - β rank / G) if R > 0, else R."""
    size = (~rewards.isnan()).sum(1, keepdim=True)
    return torch.where(rewards > 0, rewards * (1 - coef * ranks / size), rewards)


class Unlikeliness(GroupMethod):
    """Lowers the reward of right completions that the old policy already favors.

        R' = R (1 - β rank / G) if R > 0, else R;   A = (R' - mean R') / (std R' + 1e-4)

    rank = 0 for the unlikeliest completion of the group. The division is the one that `scale_rewards` names. Ties get
    their mean rank, so that equal completions have equal rewards. A negative reward stays as it is, because the factor
    would raise it. A completion without a token in the loss has the rank of the median. As in the released code,
    completions are ranked by log-probability per token, so long ones are not unlikely by their length. The second part
    of the paper's remedy is two passes over each batch, `num_iterations: 2`. The method needs many completions per
    prompt: with few, or if one answer dominates, ranks are noise.
    """

    name = "unlikeliness"
    summary = "lowers the reward of right answers that the policy already favors"
    checked_against = "formulas from the released code"
    config = UnlikelinessConfig
    needs = ("rollout_entropy", "rollout_logps")
    divides = True
    paper = Paper(
        "2506.02355",
        "Rewarding the Unlikely: Lifting GRPO Beyond Distribution Sharpening",
        """@article{he2025rewarding,
    title   = {Rewarding the Unlikely: Lifting {GRPO} Beyond Distribution Sharpening},
    author  = {Andre Wang He and Daniel Fried and Sean Welleck},
    journal = {arXiv preprint arXiv:2506.02355},
    year    = {2025}
}""",
    )
    off = ({"unlikeliness_coef": 0},)
    idle = (Sign({"factor": (1, 1)}, "raise `unlikeliness_coef`: no reward is lowered"),)

    def __init__(self, config):
        self.coef = checked(config, "unlikeliness_coef", lambda value: 0 <= value < 1, "a number in [0, 1)")

    def check(self, config) -> list[str]:
        warnings = super().check(config)
        if config.num_generations < FEW:
            warnings.append(
                f"Method 'unlikeliness' ranks the completions of a prompt, but `num_generations` is only "
                f"{config.num_generations}."
            )
        return warnings

    def advantages(self, rewards: Tensor, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        tokens = rollouts.mask.sum(1)
        logps = rollouts.logps.double().masked_fill(~rollouts.mask, 0).sum(1) / tokens  # NaN without a token
        ranks = likelihood_ranks(rollouts.groups(logps), ~rewards.isnan())
        changed = lowered(rewards, ranks, self.coef)
        found = divided(changed - changed.nanmean(1, keepdim=True), changed, rollouts.scale_rewards)
        wrong = ~(rewards > 0)
        return found, {
            "factor": (changed / rewards).masked_fill(wrong, torch.nan).flatten(),
            "rank_of_right": ranks.masked_fill(wrong, torch.nan).flatten(),
        }

    def group_advantages(self, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        if not self.coef:
            return rollouts.advantages, {"advantage_abs": rollouts.advantages.abs()}
        return super().group_advantages(rollouts)
