# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Entropy-discriminator clipping: leave out punished tokens that would drain entropy.

How Clip_B departs from GRPO:
1. Each token gets the discriminator S = π (H + log π), which fixes the sign of the entropy change that raising or
   lowering its logit causes.
2. S is centred and scaled over the whole generation batch.
3. Tokens with a negative advantage whose S lies far below the mean lose their policy gradient. Rewarded tokens
   never do.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..functional import masked_mean_and_std
from ..tokens import SINGLE_PROCESS, Collectives, Rollouts, TokenBatch
from .base import Method, Paper, flag, non_negative


@dataclass
class ClipBConfig:
    clip_b_mu: float = field(
        default=2.5,
        metadata={"help": "Clip_B: standard deviations below the mean at which a punished token is left out."},
    )
    clip_b_renormalize: bool = field(
        default=False,
        metadata={
            "help": "Clip_B: also take the left-out tokens out of the denominators of the loss, as the released code "
            "does. Costs one forward per generation batch where every update is exactly on-policy."
        },
    )


def discriminator(logps: Tensor, entropy: Tensor) -> Tensor:
    """(B, T) log-probabilities and entropies -> (B, T) S = π (H + log π), in nats."""
    return logps.exp() * (entropy + logps)


def clip_b_mask(
    scores: Tensor, advantages: Tensor, mask: Tensor, mu: float, world: Collectives = SINGLE_PROCESS
) -> Tensor:
    """(B, T) S and advantages -> (B, T) bool: keep where A >= 0 or S - mean S >= -μ σ. Keeps all where σ < 1e-12."""
    mean, std = masked_mean_and_std(scores, mask, world)
    kept = (advantages >= 0) | (scores - mean >= -mu * std) | (std < 1e-12)
    return mask & kept


class ClipB(Method):
    """Leaves out tokens with A < 0 and S - mean S < -μ σ, S = π (H + log π), once per generation batch (thm. 3.2).

    Departs from the released code: log-probabilities are the training model's, as the entropies are, and not the
    inference engine's. By default the left-out tokens stay in the denominators. Where every update is exactly
    on-policy, S is that of the update's own forward and the moments run over one micro-batch of all processes.
    """

    name = "clip_b"
    paper = Paper(
        "2602.03392",
        "On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models",
        """@article{wang2026entropy,
    title   = {On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models},
    author  = {Shumin Wang and Yuexiang Xie and Wenhao Zhang and Yuchang Sun and Yanxi Chen and Yaliang Li
               and Yanyong Zhang},
    journal = {arXiv preprint arXiv:2602.03392},
    year    = {2026}
}""",
    )

    def __init__(self, config):
        self.mu = non_negative(config, "clip_b_mu")
        self.renormalize = flag(config, "clip_b_renormalize")
        self.needs = ("rollout_entropy",) if self.renormalize else ()

    def _keep(self, logps: Tensor, entropy: Tensor, batch: TokenBatch | Rollouts) -> Tensor:
        self._scores = discriminator(logps, entropy)
        self._kept = clip_b_mask(self._scores, batch.advantages, batch.mask, self.mu, batch.world)
        return self._kept

    @torch.no_grad()
    def group_advantages(self, rollouts: Rollouts) -> Tensor:
        self._scores = None
        if rollouts.entropy is None:  # each forward of the loss is the generating policy's own
            return rollouts.advantages
        return rollouts.advantages * self._keep(rollouts.logps, rollouts.entropy, rollouts)

    def group_mask(self, rollouts: Rollouts) -> Tensor:
        return self._kept if self.renormalize else rollouts.mask

    @torch.no_grad()
    def token_advantages(self, tokens: TokenBatch) -> Tensor:
        self._scores = None
        if self.renormalize or not tokens.on_policy:
            return tokens.advantages
        return tokens.advantages * self._keep(tokens.logps, tokens.entropy, tokens)

    def metrics(self, tokens: TokenBatch | Rollouts) -> dict[str, Tensor]:
        if self._scores is None:
            return {}
        mean, std = masked_mean_and_std(self._scores, tokens.mask, tokens.world)
        return {"kept_fraction": self._kept, "discriminator_mean": mean, "discriminator_std": std}
