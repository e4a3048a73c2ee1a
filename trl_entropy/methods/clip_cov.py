# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Clip-Cov: drop the gradient of a few of the tokens that lower entropy most.

How it departs from GRPO:
1. Each token gets the covariance of its log-probability with its advantage, both centered over the batch (eq. 10).
2. Tokens whose covariance lies inside a band, and that have a gradient in TRL's loss, are eligible.
3. Some of the eligible tokens are drawn at random: a small ratio of all tokens.
4. The drawn tokens lose their policy gradient. They stay in the denominator of the loss.
"""

import random
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..collectives import SINGLE_PROCESS, Collectives
from ..functional import centered_product, ratio_count, scatter_valid
from ..knob import Knob
from ..paper import Paper
from ..settings import checked, one_of, ratio
from ..signs import Sign
from ..tokens import TokenBatch
from .base import Logs, Method


ENTROPY_MECHANISM = Paper(
    "2505.22617",
    "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
    """@article{cui2025entropy,
    title   = {The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models},
    author  = {Ganqu Cui and Yuchen Zhang and Jiacheng Chen and Lifan Yuan and Zhi Wang and Yuxin Zuo and Haozhan Li
               and Yuchen Fan and Huayu Chen and Weize Chen and Zhiyuan Liu and Hao Peng and Lei Bai and Wanli Ouyang
               and Yu Cheng and Bowen Zhou and Ning Ding},
    journal = {arXiv preprint arXiv:2505.22617},
    year    = {2025}
}""",
)


@dataclass
class ClipCovConfig:
    clip_cov_ratio: float = field(
        default=2e-4, metadata={"help": "Clip-Cov: ratio of all tokens whose policy gradient is dropped, in (0, 1]."}
    )
    clip_cov_low: float = field(
        default=1.0,
        metadata={"help": "Clip-Cov: covariance above which a token is eligible. Assumes scaled advantages."},
    )
    clip_cov_high: float = field(
        default=5.0, metadata={"help": "Clip-Cov: covariance below which a token is eligible."}
    )
    clip_cov_scope: Literal["micro_batch", "world"] = field(
        default="micro_batch",
        metadata={
            "help": "Clip-Cov: tokens over which means, ratio and draw are taken. `micro_batch`: one process' "
            "micro-batch, as in the released code. `world`: the micro-batches of all processes."
        },
    )


def clip_cov_mask(
    eligible: Tensor,
    mask: Tensor,
    ratio: float,
    seed: tuple[int, ...],
    world: Collectives = SINGLE_PROCESS,
    draw: tuple | None = None,
) -> Tensor:
    """(B, T) bool, (B, T) bool -> (B, T) bool: True for tokens that keep their gradient.

    Draws `min(|E|, max(1, floor(ratio * N)))` of the |E| eligible among the N valid tokens, uniformly and without
    replacement. The draw depends only on `seed`, so a resumed run repeats it. `draw` as in `ratio_count`.
    """
    local = eligible[mask]
    flags = world.gather(local)
    candidates = flags.nonzero().flatten()
    count = min(candidates.numel(), ratio_count(ratio, flags.numel(), draw))
    picks = random.Random(repr(seed)).sample(range(candidates.numel()), count)
    drawn = torch.zeros_like(flags)
    drawn[candidates[torch.tensor(picks, dtype=torch.long, device=flags.device)]] = True
    return mask & ~scatter_valid(world.own(drawn, local.numel()), mask)


class ClipCov(Method):
    """Drops the policy gradient of randomly drawn high-covariance tokens.

        L_t = max(-A_t r_t, -A_t clip(r_t)) · 1[t not drawn from E]
        E   = {t : ω_low < (ℓ_t - mean ℓ)(A_t - mean A) < ω_high, not clipped by PPO}                    (eq. 10-12)

    Tokens that another mask of TRL's loss takes out are not eligible either. The clip range is the user's `epsilon`;
    the released code uses 1 on both sides.
    """

    name = "clip_cov"
    summary = "drops the gradient of a few high-covariance tokens"
    checked_against = "the paper's formulas"
    config = ClipCovConfig
    paper = ENTROPY_MECHANISM
    assumes_unit_advantages = True
    compares_completions = True
    knob = Knob("clip_cov_ratio", "ratio", low=1e-4, high=1.0, start=0.05, limited_by="clip_cov_low")
    token_ratio = "clip_cov_ratio"
    idle = (Sign({"kept_fraction": (1, 1)}, "lower `clip_cov_low`: no covariance lies between the two bounds"),)
    strong = (Sign({"kept_fraction": (0, 0.5)}, "lower `clip_cov_ratio`"),)

    def __init__(self, config):
        self.ratio = ratio(config, "clip_cov_ratio")
        self.high = checked(config, "clip_cov_high", lambda high: high > -torch.inf, "a number")
        self.low = checked(
            config, "clip_cov_low", lambda low: low < self.high, f"less than `clip_cov_high` ({self.high!r})"
        )
        self.scope = one_of(config, "clip_cov_scope", "micro_batch", "world")

    @torch.no_grad()
    def token_advantages(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        world = tokens.scope(self.scope)
        covariance = centered_product(tokens.logps, tokens.advantages, tokens.mask, world)
        eligible = (covariance > self.low) & (covariance < self.high) & tokens.has_gradient
        seed = tokens.draw if self.scope == "world" else (*tokens.draw, tokens.world.rank)
        kept = clip_cov_mask(eligible, tokens.mask, self.ratio, seed, world, self.count_draw(*seed))
        logs = {"kept_fraction": kept, "eligible_fraction": eligible, "covariance_mean": covariance}
        logs["selected_tokens"] = tokens.mask & ~kept
        return tokens.advantages * kept, logs
