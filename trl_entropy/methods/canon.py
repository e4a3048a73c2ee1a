# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""CANON, conditional advantage estimation: compare completions of low and of high entropy, or length.

How it departs from GRPO:
1. The completions of a prompt are split into two halves by a metric: mean token entropy, or length.
2. The advantage of a completion is its reward minus the mean reward of the other half (inter: which half is better),
   of its own half (intra: which completion of a half is better), or a mixture of both. It is not divided by a standard
   deviation.
3. The mixture can be constant, follow the accuracy, or follow a cosine with restarts.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..paper import Paper
from ..settings import name_or_none, non_negative, one_of, one_reward
from ..tokens import Rollouts
from .base import Logs, Method


WARM_UP, CYCLE, INTRA_PEAK = 30, 40, 0.6  # of the cosine schedules, in generation batches (released code)
SCHEDULES = ("constant", "acc_inter_first", "acc_intra_first", "cosine_inter_first", "cosine_intra_first")


@dataclass
class CanonConfig:
    canon_metric: Literal["entropy", "length"] = field(
        default="entropy", metadata={"help": "CANON: metric by which a group is split into halves."}
    )
    canon_mu: float = field(
        default=1.0,
        metadata={"help": "CANON: weight of the comparison with the other half; the own half has 1 - this weight."},
    )
    canon_alpha: float = field(
        default=1.0,
        metadata={
            "help": "CANON: factor on the rewards of the low-entropy (or long) half in the comparison with the other "
            "half. Below 1 favors high entropy (or short completions)."
        },
    )
    canon_mu_schedule: Literal[
        "constant", "acc_inter_first", "acc_intra_first", "cosine_inter_first", "cosine_intra_first"
    ] = field(
        default="constant",
        metadata={
            "help": "CANON: schedule of the weight: constant, by accuracy (`acc`), or a cosine with restarts over "
            "generation batches."
        },
    )
    canon_accuracy: str | None = field(
        default=None,
        metadata={
            "help": "CANON: reward function whose mean is the accuracy of the `acc` schedules. None: the only one."
        },
    )


def halves(metric: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(P, G) -> (P, G) bool low and high: the floor(n/2) smallest of n valid values, the earlier at ties; the rest."""
    order = metric.masked_fill(~valid, torch.inf).argsort(dim=1, stable=True)
    low = order.argsort(dim=1) < valid.sum(1, keepdim=True) // 2
    return low, valid & ~low


def group_mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, 0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def canon_advantages(rewards: Tensor, low: Tensor, high: Tensor, mu: float, alpha: float, plus_is_low: bool) -> Tensor:
    """(P, G) rewards and halves -> (P, G) μ inter + (1 - μ) intra (eq. 5), with α on one half of inter (eq. 8).

    0 if fewer than two completions of a group have a reward.
    """
    low_mean, high_mean = group_mean(rewards, low), group_mean(rewards, high)
    plus, minus_mean, plus_mean = (low, high_mean, low_mean) if plus_is_low else (high, low_mean, high_mean)
    inter = torch.where(plus, alpha * rewards - minus_mean, rewards - alpha * plus_mean)
    intra = rewards - torch.where(low, low_mean, high_mean)
    paired = (low | high) & low.any(1, keepdim=True)
    return torch.where(paired, mu * inter + (1 - mu) * intra, 0.0)


def cosine_mu(batch: int, intra_first: bool) -> float:
    """Weight of inter after `batch` generation batches: a linear warm-up, then a falling cosine in each cycle."""
    wave = 0.5 * (1 + math.cos(math.pi * ((batch - WARM_UP) % CYCLE) / CYCLE))
    rise = (batch + 1) / WARM_UP
    if intra_first:
        return 1 - INTRA_PEAK * (rise if batch < WARM_UP else wave)
    return rise if batch < WARM_UP else (1 - INTRA_PEAK) + INTRA_PEAK * wave


class Canon(Method):
    """Advantages from the comparison of two halves of a group.

        A = μ (R - mean R of the other half) + (1 - μ) (R - mean R of the own half)

    μ = 0.5 and halves of equal size give R - mean R. Entropies are those of the old policy, over all tokens that it
    wrote, including completions that the loss masks. Departs from the released code: α acts under every schedule, and
    a group of one gets 0. The `acc` schedules set μ = 1 - accuracy of the batch (inter first) or μ = accuracy (intra
    first), from rewards before other methods shape them.
    """

    name = "canon"
    summary = "compares completions of low and high entropy (or length) with each other"
    checked_against = "formulas from paper notes and code"
    config = CanonConfig
    no_knob = "its weight acts in opposite directions above and below 1"
    paper = Paper(
        "2509.23962",
        "Conditional Advantage Estimation for Reinforcement Learning in Large Reasoning Models",
        """@article{chen2025conditional,
    title   = {Conditional Advantage Estimation for Reinforcement Learning in Large Reasoning Models},
    author  = {Guanxu Chen and Yafu Li and Yuxian Jiang and Chen Qian and Qihan Ren and Jingyi Yang and Yu Cheng
               and Dongrui Liu and Jing Shao},
    journal = {arXiv preprint arXiv:2509.23962},
    year    = {2025}
}""",
    )
    replaces_advantages = True

    def __init__(self, config):
        self.by_entropy = one_of(config, "canon_metric", "entropy", "length") == "entropy"
        self.needs = ("rollout_entropy",) if self.by_entropy else ()
        self.mu = non_negative(config, "canon_mu")
        if self.mu > 1:
            raise ValueError(f"`canon_mu` must be a weight in [0, 1], got {self.mu!r}.")
        self.alpha = non_negative(config, "canon_alpha")
        self.schedule = one_of(config, "canon_mu_schedule", *SCHEDULES)
        self.accuracy = name_or_none(config, "canon_accuracy")

    def check(self, config) -> list[str]:
        warnings = []
        if config.multi_objective_aggregation != "sum_then_normalize":
            warnings.append(
                f"Method 'canon' compares weighted sums of rewards: `multi_objective_aggregation` "
                f"{config.multi_objective_aggregation!r} does nothing."
            )
        if config.num_generations % 2 == 0:
            if (self.schedule, self.mu, self.alpha) == ("constant", 0.5, 1):
                warnings.append("Method 'canon' with `canon_mu: 0.5` gives the reward minus the group mean: Dr. GRPO.")
            return warnings
        return [
            *warnings,
            f"Method 'canon' halves a group, but `num_generations` is {config.num_generations}: the halves differ in "
            "size, and `canon_mu: 0.5` does not give the reward minus the group mean.",
        ]

    def check_rewards(self, names: list[str]) -> None:
        if self.accuracy is not None or self.schedule.startswith("acc"):
            self.accuracy = one_reward(self.accuracy, "canon_accuracy", names)

    def weight(self, rollouts: Rollouts) -> float:
        if self.schedule == "constant":
            return self.mu
        if self.schedule.startswith("cosine"):
            return cosine_mu(rollouts.batch, self.schedule == "cosine_intra_first")
        accuracy = rollouts.world.gather(rollouts.reward_columns[self.accuracy]).double().nanmean().item()
        if math.isnan(accuracy):  # no rewards, so no advantages to weight
            return self.mu
        if not 0 <= accuracy <= 1:
            raise ValueError(
                f"`canon_accuracy` must name a reward function with a mean in [0, 1] for `canon_mu_schedule` "
                f"{self.schedule!r}, got {self.accuracy!r} with a mean of {accuracy:g}."
            )
        return 1 - accuracy if self.schedule == "acc_inter_first" else accuracy

    def group_advantages(self, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        if self.by_entropy:
            own = rollouts.generated
            metric = rollouts.entropy.double().masked_fill(~own, 0).sum(1) / own.sum(1).clamp(min=1)
        else:
            metric = rollouts.generated.sum(1).double()
        rewards, metric = rollouts.groups(rollouts.rewards), rollouts.groups(metric)
        low, high = halves(metric, ~rewards.isnan())
        mu, known = self.weight(rollouts), rewards.nan_to_num()
        found = canon_advantages(known, low, high, mu, self.alpha, self.by_entropy)
        gap = group_mean(known, high) - group_mean(known, low)
        gap = gap.masked_fill(~(low.any(1, keepdim=True) & high.any(1, keepdim=True)), torch.nan)
        own = rollouts.world.own(found.flatten(), len(rollouts.mask))
        advantages = own.unsqueeze(1).expand(rollouts.mask.shape).to(rollouts.advantages.dtype)
        return advantages, {
            "mu": torch.tensor(mu, device=rollouts.mask.device),
            "high_minus_low_reward": gap.flatten(),
        }
