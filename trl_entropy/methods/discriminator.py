# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Entropy-discriminator clipping, Clip_B and Clip_V: skip negative-advantage tokens that would lower entropy.

How they depart from GRPO:
1. Each token gets the discriminator S = π (H + log π). Raising the token's logit lowers entropy if S > 0 and raises it
   if S < 0.
2. Clip_B centers S by its mean over the generation batch. Clip_V centers it by N, its mean over the vocabulary under
   the token's distribution: N - S is by how much, to first order, a negative-advantage token's update lowers entropy.
3. Negative-advantage tokens far on the side that lowers entropy lose their policy gradient. Positive-advantage tokens
   never do.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..collectives import SINGLE_PROCESS, Collectives
from ..functional import discriminator, masked_mean_and_std, mean_discriminator, top_count_mask
from ..knob import Knob
from ..paper import Paper
from ..settings import flag, non_negative, ratio
from ..signs import Sign
from ..tokens import Rollouts, TokenBatch
from .base import Logs, Method


@dataclass
class ClipBConfig:
    clip_b_mu: float = field(
        default=2.5,
        metadata={
            "help": "Clip_B: standard deviations below the mean at which a negative-advantage token is skipped."
        },
    )
    clip_b_renormalize: bool = field(
        default=False,
        metadata={
            "help": "Clip_B: also remove the skipped tokens from the denominators of the loss, as the released code "
            "does. Costs one forward per generation batch if every update is exactly on-policy."
        },
    )


@dataclass
class ClipVConfig:
    clip_v_mu: float = field(
        default=8.5,
        metadata={"help": "Clip_V: standard deviations of N - S above which a negative-advantage token is skipped."},
    )
    clip_v_max_ratio: float = field(
        default=1e-4, metadata={"help": "Clip_V: largest ratio of all tokens that may be skipped, in (0, 1]."}
    )
    clip_v_max_frac: float | None = field(
        default=None, metadata={"help": "Clip_V: deprecated, use `clip_v_max_ratio`."}
    )
    clip_v_renormalize: bool = field(
        default=False,
        metadata={
            "help": "Clip_V: also remove the skipped tokens from the denominators of the loss, at the same cost as "
            "Clip_B."
        },
    )


def clip_b_mask(
    scores: Tensor, advantages: Tensor, mask: Tensor, mu: float, world: Collectives = SINGLE_PROCESS
) -> Tensor:
    """(B, T) S and advantages -> (B, T) bool: keep if A >= 0 or S - mean S >= -μ σ. Keeps all if σ < 1e-12."""
    mean, std = masked_mean_and_std(scores, mask, world)
    kept = (advantages >= 0) | (scores - mean >= -mu * std) | (std < 1e-12)
    return mask & kept


def clip_v_mask(
    drains: Tensor,
    advantages: Tensor,
    mask: Tensor,
    mu: float,
    max_ratio: float,
    world: Collectives = SINGLE_PROCESS,
    draw: tuple | None = None,
) -> Tensor:
    """(B, T) D = N - S and advantages -> (B, T) bool: keep if A >= 0 or D <= μ σ_D, σ_D about the mean of D.

    Of the N valid tokens at most `max(1, floor(max_ratio * N))` are skipped, those of largest D.
    `draw` as in `ratio_count`.
    """
    _, std = masked_mean_and_std(drains, mask, world)
    out = mask & (advantages < 0) & (drains > mu * std)
    worst = top_count_mask(drains.masked_fill(~out, -torch.inf), mask, max_ratio, world, draw)
    return mask & ~(out & worst)


class DiscriminatorClip(Method):
    """Common part of Clip_B and Clip_V: scores under the old policy, and the place where the mask acts.

    Departs from the released code: log-probabilities come from the training model, like the entropies, not from the
    inference engine. By default the skipped tokens stay in the denominators. If every update is exactly on-policy,
    scores come from the update's own forward, and moments are taken over one micro-batch of all processes. Only then
    are the masks of TRL's loss known, and tokens that they take out are not chosen.
    """

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
    statistics: tuple[str, ...] = ()

    def __init__(self, config):
        self.mu = non_negative(config, f"{self.name}_mu")
        self.renormalize = flag(config, f"{self.name}_renormalize")
        self.needs = self.statistics + (("rollout_entropy", "rollout_logps") if self.renormalize else ())

    def scores(self, batch: TokenBatch | Rollouts) -> Tensor:
        """(B, T) scores to which the threshold applies."""
        raise NotImplementedError

    def kept(self, scores: Tensor, batch: TokenBatch | Rollouts) -> Tensor:
        """(B, T) bool: the tokens that keep their gradient."""
        raise NotImplementedError

    def learned_advantages(self, batch: TokenBatch | Rollouts) -> Tensor:
        """(B, T) advantages, 0 for tokens to which the loss leaves no gradient: there is nothing to leave out."""
        return batch.advantages.masked_fill(~batch.has_gradient, 0)

    def _masked(self, batch: TokenBatch | Rollouts) -> tuple[Tensor, Logs]:
        scores = self.scores(batch)
        kept = self.kept(scores, batch)
        _, std = masked_mean_and_std(scores, batch.mask, batch.world)
        return batch.advantages * kept, {
            "kept_fraction": kept,
            "selected_tokens": batch.mask & ~kept,
            "discriminator_mean": scores,
            "discriminator_std": std,
        }

    @torch.no_grad()
    def group_advantages(self, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        if rollouts.entropy is None or (rollouts.on_policy and not self.renormalize):  # `token_advantages` acts
            return rollouts.advantages, {}
        return self._masked(rollouts)

    @torch.no_grad()
    def group_mask(self, rollouts: Rollouts) -> Tensor:
        return self.kept(self.scores(rollouts), rollouts) if self.renormalize else rollouts.mask

    @torch.no_grad()
    def token_advantages(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        return (tokens.advantages, {}) if self.renormalize or not tokens.on_policy else self._masked(tokens)


class ClipB(DiscriminatorClip):
    """Skips tokens with A < 0 and S - mean S < -μ σ, S = π (H + log π), once per generation batch (thm. 3.2)."""

    name = "clip_b"
    summary = "skips negative-advantage tokens whose update would lower entropy"
    checked_against = "the released code's rule"
    config = ClipBConfig
    knob = Knob("clip_b_mu", "mu", low=0.0, high=8.0, start=2.5, scale="linear", per_unit=2.0, rises=False)
    idle = (Sign({"kept_fraction": (1, 1)}, "lower `clip_b_mu`: no token lies that far from the mean"),)
    strong = (Sign({"kept_fraction": (0, 0.5)}, "raise `clip_b_mu`"),)

    def scores(self, batch: TokenBatch | Rollouts) -> Tensor:
        return discriminator(batch.logps, batch.entropy)

    def kept(self, scores: Tensor, batch: TokenBatch | Rollouts) -> Tensor:
        return clip_b_mask(scores, self.learned_advantages(batch), batch.mask, self.mu, batch.world)


class ClipV(DiscriminatorClip):
    """Skips tokens with A < 0 and D > μ σ_D, D = N - S, at most a small ratio of all tokens (thm. 3.3).

    Departs from the released code in one case: a token with A = 0 is never skipped. It carries no gradient, so this
    matters only to denominators.
    """

    name = "clip_v"
    summary = "like clip_b, by the exact first-order entropy change and with a cap"
    checked_against = "the released code's rule"
    config = ClipVConfig
    knob = Knob("clip_v_max_ratio", "max_ratio", low=1e-4, high=0.5, start=0.02, limited_by="clip_v_mu")
    statistics = ("second_moments",)
    token_ratio = "clip_v_max_ratio"
    ratio_scope = "generation"
    idle = (Sign({"kept_fraction": (1, 1)}, "lower `clip_v_mu`: no token lies that far out"),)
    strong = (Sign({"kept_fraction": (0, 0.5)}, "lower `clip_v_max_ratio`"),)

    def __init__(self, config):
        super().__init__(config)
        self.max_ratio = ratio(config, "clip_v_max_ratio", was="clip_v_max_frac")

    def scores(self, batch: TokenBatch | Rollouts) -> Tensor:
        mean = mean_discriminator(batch.entropy, batch.sum_sq_probs, batch.sum_sq_probs_log_probs)
        return mean - discriminator(batch.logps, batch.entropy)

    def kept(self, scores: Tensor, batch: TokenBatch | Rollouts) -> Tensor:
        learned = self.learned_advantages(batch)
        draw = self.count_draw(*(batch.draw if isinstance(batch, TokenBatch) else (batch.batch,)))
        return clip_v_mask(scores, learned, batch.mask, self.mu, self.max_ratio, batch.world, draw)
