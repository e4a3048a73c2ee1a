# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Training for pass@k: raise the chance that one of k completions is right, not the mean reward.

How it departs from GRPO:
1. The objective of a group is the probability that k completions drawn from it contain a right one (form `pass`), or
   the expected best reward of the k (form `max`).
2. The advantage of a completion is its share in the objective minus what the group would have without it.
3. A prompt with more than G - k right completions of G gives no signal.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..estimates import pass_at_k
from ..paper import Paper
from ..settings import checked, one_of, ratio
from ..signs import Sign
from ..tokens import Rollouts
from .base import Logs
from .groups import Correctness, GroupMethod, LastingCondition, divided


SILENT = 0.9  # share of groups


@dataclass
class PassAtKConfig:
    pass_at_k_size: int = field(
        default=4,
        metadata={
            "help": "pass@k training: k, at least 2, at most `num_generations`. A larger k gives more weight to hard "
            "prompts, and more prompts give no signal."
        },
    )
    pass_at_k_form: Literal["pass", "max"] = field(
        default="pass",
        metadata={
            "help": "pass@k training: objective of a group: `pass`, the probability that k completions contain a "
            "right one, or `max`, the expected best reward of k completions."
        },
    )
    pass_at_k_threshold: float = field(
        default=0.5,
        metadata={"help": "pass@k training: in form `pass`, a completion is right if its reward is above this."},
    )
    pass_at_k_until: float = field(
        default=1.0,
        metadata={
            "help": "pass@k training: share of the optimizer steps, in (0, 1], after which the advantages of TRL "
            "return. 1: never."
        },
    )


def pass_values(samples: int, right: int, k: int) -> tuple[float, float, float]:
    """The rate ρ of a group and the advantages of its right and wrong completions, for `right` of `samples`.

    NaN, 0, 0 if the group has fewer than k completions.
    """
    if samples < k:
        return math.nan, 0.0, 0.0
    rate = pass_at_k(samples, right, k)
    deviation = math.sqrt(rate * (1 - rate))
    if deviation == 0:
        return rate, 0.0, 0.0
    without = 1 - pass_at_k(samples - 1, right, k - 1) if k > 1 else 1.0  # the k - 1 others are wrong
    return rate, (1 - rate) / (deviation + 1e-6), (1 - rate - without) / (deviation + 1e-6)


def pass_advantages(right: Tensor, given: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(P, G) bool, right completions and those with a reward -> (P,) rates ρ, (P, G) advantages."""
    counts = zip(given.sum(1).tolist(), (right & given).sum(1).tolist(), strict=True)
    values = torch.tensor([pass_values(*pair, k) for pair in counts], dtype=torch.float64, device=right.device)
    rate, positive, negative = values.view(-1, 3).unbind(1)
    return rate, torch.where(right, positive.unsqueeze(1), negative.unsqueeze(1)).masked_fill(~given, 0)


def max_advantages(rewards: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(P, G) rewards, NaN if missing -> (P,) expected best reward of k completions, (P, G) advantages G s.

    NaN and 0 for a group with fewer than k rewards.
    """
    ordered, order = rewards.sort(dim=1, stable=True)  # NaN last
    ordered = ordered.nan_to_num()
    counts, places = (~rewards.isnan()).sum(1).tolist(), range(rewards.size(1))
    both, alone = (
        torch.tensor(
            [
                [math.comb(place, others) / math.comb(n, k) if n >= k and place < n else 0.0 for place in places]
                for n in counts
            ],
            dtype=rewards.dtype,
            device=rewards.device,
        ).view(rewards.shape)
        for others in (k - 2, k - 1)
    )
    best = (ordered * alone).sum(1).masked_fill(alone.sum(1) == 0, torch.nan)
    lead = (ordered.unsqueeze(2) - ordered.unsqueeze(1)).tril()  # (P, G, G), over those with a lower reward
    share = (lead * both.unsqueeze(1)).sum(2)
    size = (~rewards.isnan()).sum(1, keepdim=True)
    found = torch.zeros_like(rewards).scatter(1, order, size * share)
    return best, found.masked_fill(rewards.isnan(), 0)


class PassAtK(GroupMethod):
    """Advantages that maximize pass@k.

    Form `pass`, for c right completions of G, with ρ the unbiased estimate of pass@k and q the probability that k - 1
    others of a wrong completion are all wrong:

        ρ = 1 - C(G - c, k) / C(G, k),   q = C(G - c - 1, k - 1) / C(G - 1, k - 1),   σ = √(ρ (1 - ρ))
        A = (1 - ρ) / (σ + 1e-6) if right, (1 - ρ - q) / (σ + 1e-6) if wrong, 0 if σ = 0

    Form `max`, for rewards g(1) <= ... <= g(G), divided as `scale_rewards` says:

        A(i) = G Σ_{j<i} (g(i) - g(j)) C(j - 1, k - 2) / C(G, k)

    This is the mean, over the subsets of k that hold completion i, of the best reward minus the best without i
    (leave-one-out of [PKPO](https://huggingface.co/papers/2505.15201)). With k = G only the best completion has an
    advantage. The factor G is our reading; it agrees with the plain policy gradient as k falls to 1. Departs from the
    released code, where right means a reward of exactly 1, and from its variant that samples subsets: A is its
    expectation.
    """

    name = "pass_at_k"
    summary = "maximizes the chance that one of k completions is right"
    checked_against = "the definition, over all subsets"
    config = PassAtKConfig
    paper = Paper(
        "2508.10751",
        "Pass@k Training for Adaptively Balancing Exploration and Exploitation of Large Reasoning Models",
        """@article{chen2025passk,
    title   = {Pass@k Training for Adaptively Balancing Exploration and Exploitation of Large Reasoning Models},
    author  = {Zhipeng Chen and Xiaobo Qin and Youbin Wu and Yue Ling and Qinghao Ye and Wayne Xin Zhao
               and Guang Shi},
    journal = {arXiv preprint arXiv:2508.10751},
    year    = {2025}
}""",
    )
    idle = (Sign({"silent_fraction": (1, 1)}, "lower `pass_at_k_size`: no group has a signal"),)
    strong = (Sign({"silent_fraction": (0.8, 1)}, "lower `pass_at_k_size`: most groups have no signal"),)

    def __init__(self, config):
        self.k = checked(
            config, "pass_at_k_size", lambda value: type(value) is int and value >= 2, "a whole number >= 2"
        )
        self.form = one_of(config, "pass_at_k_form", "pass", "max")
        self.correct = Correctness(config, self.name)
        self.until = ratio(config, "pass_at_k_until")
        self._silent = LastingCondition(
            f"Method 'pass_at_k' gave no signal for more than {SILENT:.0%} of the groups in 20 generation batches in "
            f"a row: lower `pass_at_k_size` ({self.k}), or use harder prompts."
        )

    @property
    def divides(self) -> bool:  # type: ignore[override]
        return self.form == "max"

    def check(self, config) -> list[str]:
        if self.k > config.num_generations:
            raise ValueError(
                f"`pass_at_k_size` must be at most `num_generations`, which is {config.num_generations}, got {self.k}."
            )
        return super().check(config)

    def advantages(self, rewards: Tensor, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        if self.form == "pass":
            rate, found = pass_advantages(self.correct(rewards, rollouts), ~rewards.isnan(), self.k)
        else:
            rate, found = max_advantages(rewards, self.k)
            found = divided(found, rewards, rollouts.scale_rewards)
        silent = (found == 0).all(1)
        self._silent.update(silent.double().mean().item() > SILENT, rollouts)
        return found, {"rate": rate, "silent_fraction": silent}

    def group_advantages(self, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        if self.until < 1 and rollouts.progress >= self.until:
            return rollouts.advantages, {"advantage_abs": rollouts.advantages.abs()}
        return super().group_advantages(rollouts)
