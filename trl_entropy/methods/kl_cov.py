# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""KL-Cov: tie the tokens that lower entropy most to the old policy.

How it departs from GRPO:
1. Each token gets the covariance of its log-probability with its advantage, both centered over the batch (eq. 10).
2. A small ratio of all tokens, those with the largest covariance, gets a penalty on the log-ratio.
3. No token is clipped by PPO.

With one optimizer step per generation batch the log-ratio is 0 and the penalty does nothing.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..collectives import SINGLE_PROCESS, Collectives
from ..functional import centered_product, masked_max, top_count_mask
from ..knob import Knob
from ..settings import flag, non_negative, one_of, ratio
from ..signs import Sign
from ..tokens import TokenBatch
from .base import Bounds, Logs, Method
from .clip_cov import ENTROPY_MECHANISM


@dataclass
class KlCovConfig:
    kl_cov_ratio: float = field(
        default=2e-3,
        metadata={
            "help": "KL-Cov: ratio of all tokens that is penalized, in (0, 1]. The paper uses 2e-3 at 7B and 2e-4 at "
            "32B."
        },
    )
    kl_cov_coef: float = field(default=1.0, metadata={"help": "KL-Cov: coefficient of the penalty."})
    kl_cov_penalty: Literal["abs", "k2", "k3"] = field(
        default="abs",
        metadata={
            "help": "KL-Cov: penalty on the log-ratio d of a selected token: `abs` |d| as in the released code, `k2` "
            "d²/2, `k3` exp(-d) - 1 + d."
        },
    )
    kl_cov_scope: Literal["micro_batch", "world"] = field(
        default="micro_batch",
        metadata={
            "help": "KL-Cov: tokens over which means and ratio are taken. `micro_batch`: one process' "
            "micro-batch. `world`: the micro-batches of all processes."
        },
    )
    kl_cov_ppo_clip: bool = field(
        default=False,
        metadata={"help": "KL-Cov: keep the PPO clip range `epsilon`. The paper has no clip."},
    )


def kl_cov_mask(
    covariance: Tensor, mask: Tensor, ratio: float, world: Collectives = SINGLE_PROCESS, draw: tuple | None = None
) -> Tensor:
    """(B, T) -> (B, T) bool: the `max(1, floor(ratio * N))` tokens of largest covariance.

    All False if no covariance is positive, as with constant advantages: the largest would be an arbitrary tie.
    `draw` as in `ratio_count`.
    """
    return top_count_mask(covariance, mask, ratio, world, draw) & (masked_max(covariance, mask, world) > 0)


def kl_cov_penalty(log_ratio: Tensor, kind: str) -> Tensor:
    """(B, T) log-ratio d -> (B, T) penalty in nats, with gradient: |d|, d²/2 or exp(-d) - 1 + d."""
    if kind == "abs":
        return log_ratio.abs()
    if kind == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio.clamp(min=-20)) + log_ratio  # the bound keeps the exponential finite


class KlCov(Method):
    """Penalizes the log-ratio of the tokens of largest covariance.

        L_t = -A_t r_t + β |ℓ_t - ℓ_old,t| · 1[t in the top ratio by (ℓ_t - mean ℓ)(A_t - mean A)]      (eq. 10, 13-14)

    The selection has no gradient. It skips tokens without a gradient in TRL's loss, except those that
    `kl_cov_ppo_clip` clips: the penalty pulls them back. Departs from the paper, like its released code: the KL
    divergence is estimated by the absolute log-ratio of the sampled token.
    """

    name = "kl_cov"
    summary = "penalizes the log-ratio of the highest-covariance tokens"
    checked_against = "the paper's formulas"
    config = KlCovConfig
    paper = ENTROPY_MECHANISM
    acts_on_ratio = True
    knob = Knob("kl_cov_ratio", "ratio", low=1e-4, high=0.1, start=0.02, brake=True, most=1.0)
    token_ratio = "kl_cov_ratio"
    compares_completions = True
    off = ({"kl_cov_coef": 0},)
    idle = (
        Sign(
            {"penalty_mean": (0, 0)},
            "set `num_iterations` above 1, or `steps_per_generation` above "
            "`gradient_accumulation_steps`: the log-ratio is 0",
        ),
        Sign(
            {"selected_fraction": (0, 0)},
            "check `reward_funcs`: no covariance is positive, so advantages are constant",
        ),
    )
    strong = (Sign({"selected_fraction": (0.5, 1)}, "lower `kl_cov_ratio`"),)

    def __init__(self, config):
        self.ratio = ratio(config, "kl_cov_ratio")
        self.coef = non_negative(config, "kl_cov_coef")
        self.penalty = one_of(config, "kl_cov_penalty", "abs", "k2", "k3")
        self.scope = one_of(config, "kl_cov_scope", "micro_batch", "world")
        self.ppo_clip = flag(config, "kl_cov_ppo_clip")

    def check(self, config) -> list[str]:
        if self.coef:
            return []
        rest = "" if self.ppo_clip else " but for `kl_cov_ppo_clip: false`, which turns PPO's clip off"
        return [f"Method 'kl_cov' does nothing{rest}, since `kl_cov_coef` is 0."]

    def clip_bounds(self, tokens: TokenBatch) -> tuple[Bounds, Logs]:
        return super().clip_bounds(tokens) if self.ppo_clip else ((-torch.inf, torch.inf), {})

    def loss(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        with torch.no_grad():
            world = tokens.scope(self.scope)
            covariance = centered_product(tokens.logps, tokens.advantages, tokens.mask, world)
            learns = tokens.in_loss if self.ppo_clip else tokens.has_gradient
            candidates = covariance.masked_fill(~learns, -torch.inf)
            draw = tokens.draw if self.scope == "world" else (*tokens.draw, tokens.world.rank)
            selected = kl_cov_mask(candidates, tokens.mask, self.ratio, world, self.count_draw(*draw)) & learns
        term = kl_cov_penalty(tokens.logps - tokens.old_logps, self.penalty)
        logs = {
            "selected_fraction": selected,
            "selected_tokens": selected,
            "covariance_mean": covariance,
            "penalty_mean": term.detach().masked_fill(~selected, torch.nan),
        }
        return self.coef * term.masked_fill(~selected, 0), logs
