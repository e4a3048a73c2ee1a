# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Agentic AEPO, entropy-balanced policy optimization: reinforce uncertain tokens more and keep their gradient.

How it departs from GRPO:
1. A token's advantage is multiplied by 1 + a z, where z is the token's entropy, standardized over the scope.
2. A token with positive advantage whose ratio the loss clips keeps its gradient, at the size that it has at the clip
   bound. The value of the loss does not change.

The paper's branching rollouts are the method `branching`: `methods: [agentic_aepo, branching]`.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..collectives import SINGLE_PROCESS, Collectives
from ..functional import masked_mean_and_std
from ..paper import Paper
from ..settings import flag, non_negative, one_of
from ..signs import Sign
from ..tokens import CLIPPING_LOSSES, Rollouts, TokenBatch
from .base import Logs, Method


@dataclass
class AgenticAepoConfig:
    agentic_aepo_coef: float = field(
        default=0.2,
        metadata={"help": "Agentic AEPO: relative change of a token's advantage per standard deviation of entropy."},
    )
    agentic_aepo_scope: Literal["world", "micro_batch", "generation_batch"] = field(
        default="world",
        metadata={
            "help": "Agentic AEPO: tokens over which mean and deviation are taken. `world`: the generation batch of "
            "all processes, under the old policy. `micro_batch`: one process' micro-batch, under the current policy, "
            "as in the released code. `generation_batch`: deprecated, use `world`."
        },
    )
    agentic_aepo_keep_gradient: bool = field(
        default=True,
        metadata={"help": "Agentic AEPO: keep the gradient of positive-advantage tokens that the loss clips."},
    )


def entropy_scores(entropy: Tensor, mask: Tensor, world: Collectives = SINGLE_PROCESS) -> Tensor:
    """(B, T) entropies -> (B, T) z = (H - mean) / std over all valid tokens, with the unbiased std; 0 if std is 0."""
    mean, std = masked_mean_and_std(entropy, mask, world)
    count = world.sum(mask.sum()).to(std.dtype)
    std = std * (count / (count - 1).clamp(min=1)).sqrt()
    return ((entropy - mean) / torch.where(std > 0, std, 1)).masked_fill(~mask, 0).to(entropy.dtype)


class AgenticAepo(Method):
    """Entropy-aware advantages, and a clip that keeps the gradient of clipped tokens.

        A_t <- A (1 + a z_t),   z_t = (H_t - mean H) / std H
        L   <- L - 1[r > 1 + ε_high, A > 0] (1 + ε_high) A (log π - sg(log π)), whose value is 0

    The second line gives min(r A, clip(r, 1 - ε_low, (1 + ε_high) / sg(r) · r) A) and its gradient. Departs from the
    released code: by default mean and deviation run over the generation batch. The paper does not specify this.
    """

    name = "agentic_aepo"
    summary = "scales advantages by entropy, keeps the gradient of clipped A > 0 tokens"
    checked_against = "formulas from paper notes and code"
    config = AgenticAepoConfig
    no_knob = "its settings hardly move entropy"
    paper = Paper(
        "2510.14545",
        "Agentic Entropy-Balanced Policy Optimization",
        """@article{dong2025agentic,
    title   = {Agentic Entropy-Balanced Policy Optimization},
    author  = {Guanting Dong and Licheng Bao and Zhongyuan Wang and Kangzhi Zhao and Xiaoxi Li and Jiajie Jin
               and Jinghan Yang and Hangyu Mao and Fuzheng Zhang and Kun Gai and Guorui Zhou and Yutao Zhu
               and Ji-Rong Wen and Zhicheng Dou},
    journal = {arXiv preprint arXiv:2510.14545},
    year    = {2025}
}""",
    )
    excludes = {"empg": "EMPG damps steps of high entropy and agentic AEPO amplifies tokens of high entropy"}
    off = ({"agentic_aepo_coef": 0, "agentic_aepo_keep_gradient": False},)
    idle = (
        Sign(
            {"weight_min": (1, 1), "weight_max": (1, 1), "kept_gradient_fraction": (0, 0)},
            "raise `agentic_aepo_coef`: all weights are 1",
        ),
    )
    strong = (Sign({"weight_min": (-1e30, 0)}, "lower `agentic_aepo_coef`: weights below 0 turn advantages around"),)

    def __init__(self, config):
        self.coef = non_negative(config, "agentic_aepo_coef")
        renamed = {"generation_batch": "world"}
        self.whole_batch = one_of(config, "agentic_aepo_scope", "world", "micro_batch", renamed=renamed) == "world"
        self.keep_gradient = flag(config, "agentic_aepo_keep_gradient")
        self.needs = ("rollout_entropy",) if self.whole_batch else ()

    def check(self, config) -> list[str]:
        if not self.keep_gradient:
            return super().check(config)
        self.require(config, "importance_sampling_level", "token", why=" and `agentic_aepo_keep_gradient`")
        if config.loss_type not in CLIPPING_LOSSES:
            return [
                f"`loss_type` {config.loss_type!r} has no PPO clip, so the gradient-keeping clip of method "
                "'agentic_aepo' does nothing. Only its entropy-aware advantage acts."
            ]
        if config.gradient_accumulation_steps % (config.steps_per_generation * config.num_iterations):
            return []
        return [
            "The gradient-keeping clip of method 'agentic_aepo' does nothing if each generation batch is used for one "
            "optimizer step, since no ratio is clipped. Only its entropy-aware advantage acts."
        ]

    def _weighted(self, batch: TokenBatch | Rollouts, world: Collectives) -> tuple[Tensor, Logs]:
        weights = 1 + self.coef * entropy_scores(batch.entropy, batch.mask, world)
        return batch.advantages * weights, {"weight_mean": weights, "weight_min": weights, "weight_max": weights}

    def group_advantages(self, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        return self._weighted(rollouts, rollouts.world) if self.whole_batch else (rollouts.advantages, {})

    @torch.no_grad()
    def token_advantages(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        return (tokens.advantages, {}) if self.whole_batch else self._weighted(tokens, SINGLE_PROCESS)

    def loss(self, tokens: TokenBatch) -> tuple[Tensor | None, Logs]:
        if not self.keep_gradient:
            return None, {}
        kept = tokens.in_loss & (tokens.ratio > tokens.clip_high) & (tokens.advantages > 0)
        high = torch.as_tensor(tokens.clip_high, dtype=tokens.logps.dtype, device=tokens.logps.device)
        size = torch.where(kept, tokens.advantages, 0) * high.clamp(max=torch.finfo(high.dtype).max)
        if tokens.engine_ratio is not None:  # the loss multiplies its own terms by it
            size = size * tokens.engine_ratio
        logs = {"kept_gradient_fraction": kept, "selected_tokens": kept}
        return -size * (tokens.logps - tokens.logps.detach()), logs
