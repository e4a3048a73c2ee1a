# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Agentic AEPO, entropy-balanced policy optimization: reinforce uncertain tokens more, and keep them in the gradient.

How it departs from GRPO:
1. The advantage of a token is multiplied by 1 + a z, with z its entropy's distance from the mean in standard deviations.
2. A rewarded token whose ratio the loss clips keeps its gradient, at the size that it has at the bound. The value of the
   loss stays.

The paper's branching rollouts are not part of this method.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..collectives import SINGLE_PROCESS, Collectives
from ..functional import masked_mean_and_std
from ..paper import Paper
from ..settings import flag, non_negative, one_of
from ..tokens import CLIPPING_LOSSES, Rollouts, TokenBatch
from .base import Logs, Method


@dataclass
class AgenticAepoConfig:
    agentic_aepo_coef: float = field(
        default=0.2,
        metadata={"help": "Agentic AEPO: change of a token's advantage per standard deviation of entropy."},
    )
    agentic_aepo_scope: Literal["generation_batch", "micro_batch"] = field(
        default="generation_batch",
        metadata={
            "help": "Agentic AEPO: tokens that mean and deviation run over: the generation batch of all processes under "
            "the policy that generated, or one process' micro-batch under the current policy, as the released code does."
        },
    )
    agentic_aepo_keep_gradient: bool = field(
        default=True, metadata={"help": "Agentic AEPO: keep the gradient of rewarded tokens that the loss clips."}
    )


def entropy_scores(entropy: Tensor, mask: Tensor, world: Collectives = SINGLE_PROCESS) -> Tensor:
    """(B, T) entropies -> (B, T) z = (H - mean) / std with the unbiased deviation of all valid tokens; 0 without spread."""
    mean, std = masked_mean_and_std(entropy, mask, world)
    count = world.sum(mask.sum()).to(std.dtype)
    std = std * (count / (count - 1).clamp(min=1)).sqrt()
    return ((entropy - mean) / torch.where(std > 0, std, 1)).masked_fill(~mask, 0).to(entropy.dtype)


class AgenticAepo(Method):
    """Entropy-aware advantages, and a clip that keeps the gradient of what it clips.

        A_t <- A (1 + a z_t),   z_t = (H_t - mean H) / std H
        L   <- L - 1[r > 1 + ε_high, A > 0] (1 + ε_high) A (log π - sg(log π)), whose value is 0

    The second line gives the loss of min(r A, clip(r, 1 - ε_low, (1 + ε_high) / sg(r) · r) A) and its gradient. Departs
    from the released code: by default mean and deviation run over the generation batch, on which the paper is silent.
    """

    name = "agentic_aepo"
    summary = "scales advantages by entropy, keeps the gradient of clipped A > 0 tokens"
    config = AgenticAepoConfig
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

    def __init__(self, config):
        self.coef = non_negative(config, "agentic_aepo_coef")
        self.whole_batch = (
            one_of(config, "agentic_aepo_scope", "generation_batch", "micro_batch") == "generation_batch"
        )
        self.keep_gradient = flag(config, "agentic_aepo_keep_gradient")
        self.needs = ("rollout_entropy",) if self.whole_batch else ()

    def check(self, config) -> list[str]:
        if not self.keep_gradient:
            unset = "Method 'agentic_aepo' does nothing, since `agentic_aepo_coef` is 0 and it keeps no gradient."
            return [] if self.coef else [unset]
        if config.importance_sampling_level != "token":
            raise ValueError(
                "`importance_sampling_level` must be 'token' for method 'agentic_aepo' with `agentic_aepo_keep_gradient`, "
                f"got {config.importance_sampling_level!r}."
            )
        if config.loss_type not in CLIPPING_LOSSES:
            return [
                f"`loss_type` {config.loss_type!r} does not clip as PPO does, so that the gradient-keeping clip of method "
                "'agentic_aepo' does nothing: its entropy-aware advantage acts alone."
            ]
        if config.gradient_accumulation_steps % (config.steps_per_generation * config.num_iterations):
            return []
        return [
            "The gradient-keeping clip of method 'agentic_aepo' does nothing where each generation batch is used for one "
            "optimizer step, since no ratio is clipped: its entropy-aware advantage acts alone."
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
        size = torch.where(kept, tokens.advantages, 0) * min(tokens.clip_high, torch.finfo(tokens.logps.dtype).max)
        if tokens.engine_ratio is not None:  # by which the loss multiplies its own terms
            size = size * tokens.engine_ratio
        return -size * (tokens.logps - tokens.logps.detach()), {"kept_gradient_fraction": kept}
