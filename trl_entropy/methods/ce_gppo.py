# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""CE-GPPO: tokens that PPO clips keep a bounded gradient, with a scale for either side.

How it departs from GRPO:
1. Tokens that PPO clips keep a gradient.
2. Its size is that of a token at the clip bound, times β₁ below the lower bound (negative advantages) and β₂ above the
   upper bound (positive advantages).
3. It acts off policy only: with one optimizer step per generation batch no ratio is clipped.

As reported, a larger β₁ makes entropy fall faster and a larger β₂ keeps it higher. The loss at clipped tokens with a
negative advantage is scaled with the gradient, so logged losses change with β₁.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..paper import Paper
from ..settings import non_negative
from ..signs import Sign
from ..tokens import CLIPPING_LOSSES, TokenBatch
from .base import Logs, Method


@dataclass
class CeGppoConfig:
    ce_gppo_low: float = field(
        default=0.75,
        metadata={
            "help": "CE-GPPO: scale β₁ of the gradient of negative-advantage tokens below the lower clip bound. The "
            "paper uses 0.75 at 7B and 0.5 at 1.5B."
        },
    )
    ce_gppo_high: float = field(
        default=1.0,
        metadata={
            "help": "CE-GPPO: scale β₂ of the gradient of positive-advantage tokens above the upper clip bound."
        },
    )


def preserved_terms(logps: Tensor, size: Tensor, scale: Tensor) -> Tensor:
    """(B, T) ℓ, (B, T) bound times A, (B, T) β -> (B, T) -size (β r/sg(r) - 1), with gradient -size β.

    Added to PPO's clipped loss, -size, it gives -β size r/sg(r). Tokens of size 0 get 0, whatever their ℓ.
    """
    logps = torch.where(size != 0, logps, 0)
    return -size * (scale * (logps - logps.detach()).exp() - 1)  # r/sg(r) without a ratio that overflows


class CeGppo(Method):
    """Gives clipped tokens the gradient that they would have at the clip bound, scaled.

        L_t = -β₁ (1 - ε_low) / sg(r) · r A      where r < 1 - ε_low and A < 0
        L_t = -β₂ (1 + ε_high) / sg(r) · r A     where r > 1 + ε_high and A > 0
        L_t = -r A                               elsewhere

    TRL computes PPO's loss; the method adds the difference. The authors' "dual clip" is TRL's `delta`. The default of
    β₁ is the paper's; the released code's is 0.25. List the method after those that change token advantages.
    """

    name = "ce_gppo"
    summary = "keeps a bounded, scaled gradient for tokens that PPO clips"
    checked_against = "the released code's formulas"
    config = CeGppoConfig
    paper = Paper(
        "2509.20712",
        "CE-GPPO: Coordinating Entropy via Gradient-Preserving Clipping Policy Optimization in Reinforcement Learning",
        """@article{su2025cegppo,
    title   = {CE-GPPO: Coordinating Entropy via Gradient-Preserving Clipping Policy Optimization in
               Reinforcement Learning},
    author  = {Zhenpeng Su and Leiyu Pan and Minxuan Lv and Yuntao Li and Wenping Hu and Fuzheng Zhang and Kun Gai
               and Guorui Zhou},
    journal = {arXiv preprint arXiv:2509.20712},
    year    = {2025}
}""",
    )
    excludes = {
        "kl_cov": "KL-Cov turns off the clip whose tokens CE-GPPO acts on",
        "agentic_aepo": "both keep the gradient of tokens that PPO clips",
    }
    acts_on_ratio = True
    completes_policy_loss = True
    idle = (
        Sign(
            {"low_fraction": (0, 0), "high_fraction": (0, 0)},
            "lower `epsilon`, or set `num_iterations` above 1: no token is clipped",
        ),
    )
    strong = (
        Sign({"low_fraction": (0.3, 1)}, "lower `ce_gppo_low` or `learning_rate`"),
        Sign({"high_fraction": (0.3, 1)}, "lower `ce_gppo_high` or `learning_rate`"),
    )

    def __init__(self, config):
        self.low = non_negative(config, "ce_gppo_low")
        self.high = non_negative(config, "ce_gppo_high")

    def check(self, config) -> list[str]:
        self.require(config, "loss_type", *CLIPPING_LOSSES, why=", which acts on clipped tokens")
        self.require(config, "importance_sampling_level", "token")
        least = 1 + (config.epsilon if config.epsilon_high is None else config.epsilon_high)
        least = max(least, self.low * (1 - config.epsilon))  # `delta` bounds the kept loss too
        if config.delta is not None and config.delta < least:
            raise ValueError(
                f"`delta` must be at least {least:g} for method 'ce_gppo', the largest ratio of its kept gradients, "
                f"got {config.delta!r}."
            )
        if self.low or self.high:
            return []
        return [
            "Method 'ce_gppo' keeps no gradient, since `ce_gppo_low` and `ce_gppo_high` are 0: it only changes the "
            "logged loss."
        ]

    def loss(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        counts = tokens.in_loss & tokens.logps.detach().isfinite()
        low = counts & (tokens.ratio < tokens.clip_low) & (tokens.advantages < 0)
        high = counts & (tokens.ratio > tokens.clip_high) & (tokens.advantages > 0)
        clip_low, clip_high = (
            torch.as_tensor(bound, dtype=tokens.logps.dtype, device=low.device)
            for bound in (tokens.clip_low, tokens.clip_high)
        )
        size = torch.where(low, clip_low, clip_high) * tokens.advantages
        if tokens.engine_ratio is not None:  # the loss multiplies its own terms by it
            size = size * tokens.engine_ratio
        size = torch.where(low | high, size, 0)
        scale = self.low * low.to(size.dtype) + self.high * high.to(size.dtype)
        logs = {"low_fraction": low, "high_fraction": high, "selected_tokens": low | high}
        return preserved_terms(tokens.logps, size, scale), logs
