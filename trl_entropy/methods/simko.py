# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""SimKO: spread the credit of correct answers over the likeliest tokens, where the policy is uncertain.

How it departs from GRPO:
1. At the high-entropy tokens (forks) of sequences with positive advantage, a share of the gradient goes from the
   sampled token to the K likeliest tokens.
2. At the forks of sequences with negative advantage, the penalty is larger if the sampled token is the likeliest one.
3. The mix changes the gradient of the loss, not its value.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..functional import row_quantiles
from ..paper import Paper
from ..settings import checked
from ..signs import Sign
from ..tokens import TokenBatch
from .base import Logs, Method


LARGEST_WEIGHT = 1e8  # of a loss without a clip it may be infinite


@dataclass
class SimkoConfig:
    simko_k: int = field(default=3, metadata={"help": "SimKO: how many of the likeliest tokens share the credit."})
    simko_mix: float = field(
        default=0.01,
        metadata={"help": "SimKO: share of the gradient that goes to the likeliest tokens, in [0, 1]."},
    )
    simko_quantile: float = field(
        default=0.8,
        metadata={"help": "SimKO: quantile of a sequence's entropies above which a token is a fork, in [0, 1)."},
    )
    simko_penalty: float = field(
        default=1.1,
        metadata={"help": "SimKO: factor of a negative advantage at forks whose sampled token is the likeliest one."},
    )


def fork_mask(entropy: Tensor, mask: Tensor, quantile: float) -> Tensor:
    """(B, T) entropies -> (B, T) bool: strictly above the quantile of the row's valid tokens."""
    return mask & (entropy > row_quantiles(entropy, mask, quantile))


def without_value(values: Tensor, where: Tensor) -> Tensor:
    """0 with the gradient of `values` at `where`, and none elsewhere or at values that are not finite."""
    values = torch.where(where & values.isfinite(), values, 0.0)
    return values - values.detach()


class Simko(Method):
    """Mixes the gradients of likely tokens into that of the sampled one.

        fork = H > τ-quantile of the sequence's H,   w = a · fork
        A > 0:  r <- (1 - w) r + (w/K) Σ_k [sg(r)/sg(r_k)] r_k,   r_k = π_k/π_k,old of the k-th likeliest token
        A < 0:  A <- λ A  at forks where the sampled token is the likeliest

    The old policy's r_k cancel, so the K tokens are those of the current policy, and nothing about them is kept from
    the rollouts. The first line is a term of value 0: -A w g [(1/K) Σ_k ∇ℓ_k - ∇ℓ], where -A g ∇ℓ is the token's
    gradient in TRL's loss: g = r in losses that clip, and 0 where they do.

    Departs from the released code: a sequence is right if its advantage is positive, which is the same for rewards of
    0 and 1; the mask of right sequences holds for all their tokens; the quantile is over valid tokens only; and ratios
    of less than 1e-8 keep their share. Tokens that a mask takes out of TRL's loss are no forks.
    """

    name = "simko"
    summary = "spreads the credit of correct answers over the likeliest tokens"
    checked_against = "the released code's formulas"
    config = SimkoConfig
    paper = Paper(
        "2510.14807",
        "SimKO: Simple Pass@K Policy Optimization",
        """@article{peng2025simko,
    title   = {SimKO: Simple Pass@K Policy Optimization},
    author  = {Ruotian Peng and Yi Ren and Zhouliang Yu and Weiyang Liu and Yandong Wen},
    journal = {arXiv preprint arXiv:2510.14807},
    year    = {2025}
}""",
    )
    off = ({"simko_mix": 0, "simko_penalty": 1},)
    idle = (Sign({"fork_fraction": (0, 0)}, "lower `simko_quantile`: no token counts as a fork"),)
    strong = (Sign({"fork_fraction": (0.8, 1)}, "raise `simko_quantile`"),)

    def __init__(self, config):
        self.count = checked(config, "simko_k", lambda value: type(value) is int and value >= 1, "an integer >= 1")
        self.mix = checked(config, "simko_mix", lambda value: 0 <= value <= 1, "a share in [0, 1]")
        self.quantile = checked(config, "simko_quantile", lambda value: 0 <= value < 1, "a quantile in [0, 1)")
        self.penalty = checked(config, "simko_penalty", lambda value: 1 <= value < torch.inf, "a finite number >= 1")
        self.acts = self.mix > 0 or self.penalty > 1
        self.needs = ("top_logps",) if self.acts else ()

    def check(self, config) -> list[str]:
        self.require(config, "importance_sampling_level", "token", why=", which mixes gradients of tokens")
        return super().check(config)

    def head_settings(self):
        return {"top_k": self.count if self.mix else 1} if self.acts else {}

    @torch.no_grad()
    def token_advantages(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        if not self.acts:
            return tokens.advantages, {}
        forks = fork_mask(tokens.entropy, tokens.mask, self.quantile) & tokens.in_loss
        top1 = forks & (tokens.advantages < 0) & (tokens.logps >= tokens.top_logps[..., 0])
        logs = {
            "fork_fraction": forks,
            "selected_tokens": forks,
            "top1_fraction": top1,
            "candidate_mass": tokens.top_logps.exp().sum(-1).masked_fill(~tokens.in_loss, torch.nan),
        }
        return torch.where(top1, self.penalty * tokens.advantages, tokens.advantages), logs

    def loss(self, tokens: TokenBatch) -> tuple[Tensor | None, Logs]:
        if not self.mix:
            return None, {}
        forks = fork_mask(tokens.entropy.detach(), tokens.mask, self.quantile)
        mixed = forks & (tokens.advantages > 0) & tokens.has_gradient
        weight = tokens.gradient_weight.clamp(max=LARGEST_WEIGHT)
        size = torch.where(mixed, self.mix * tokens.advantages * weight, 0.0)
        likeliest = without_value(tokens.top_logps, mixed.unsqueeze(-1)).mean(-1)
        return -size * (likeliest - without_value(tokens.logps, mixed)), {}
