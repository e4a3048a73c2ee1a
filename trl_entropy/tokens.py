# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a method sees: the completion tokens of one forward, or those of a whole generation batch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .collectives import SINGLE_PROCESS, Collectives


CLIPPING_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # TRL's losses that clip the ratio as PPO does


@dataclass(frozen=True)
class TokenBatch:
    """The completion tokens of one forward. B sequences, T tokens; entropies in nats at the sampling temperature.

    Attributes:
        logps: (B, T) log-probability of each sampled token under the current policy, with gradient.
        old_logps: (B, T) the same under the policy that generated, without gradient.
        entropy: (B, T) entropy of the current policy at each token, with gradient.
        old_entropy: (B, T) entropy of the policy that generated, without gradient.
        advantages: (B, T) as the rewards and the methods listed before left them.
        mask: (B, T) bool, the tokens that the loss counts: no padding, no tool results.
        ratio: (B, T) importance ratio of the loss, without gradient; one value per row if it is sequence-level.
        clip_low, clip_high: the ratio below which a negative, and above which a positive advantage is clipped;
            -inf and inf where the loss does not clip.
        clip_negative: the ratio above which a negative advantage is clipped, by TRL's `delta`; inf without it.
        on_policy: the current policy is the one that generated, and the ratio is 1 by construction.
        training: False during evaluation, which must not move the state of a method.
        draw: integers that identify this forward in the run (seed, optimizer step, micro-batch).
        total_steps: optimizer steps of the whole run.
        rewards: (B,) weighted sum of the rewards, where a method needs `rewards`.
        all_rewards: (N,) the same of the whole generation batch of all processes; `None` if this forward's are all.
        sum_sq_probs, sum_sq_probs_log_probs: (B, T) Σp² and Σp² log p of the current policy, without gradient, where
            a method needs `second_moments`.
        nucleus_entropy: (B, T) entropy of the current policy renormalised on its nucleus, with gradient, where a
            method needs `nucleus_entropy`.
        old_second_logps: (B, T) log-probability of each sampled token under the policy that generated, at a second
            temperature, where a method needs `second_temperature`.
        engine_ratio: (B, T) or (B, 1) correction for the inference engine by which the loss multiplies its terms.
        loss_weights: (B, T) advantages -> (B, T) the factor of each token's policy gradient in TRL's loss before its
            clip, 0 where a mask takes the token out of the loss; by default the ratio. See `gradient_weight`.
        world: collectives over all processes.
    """

    logps: Tensor
    old_logps: Tensor
    entropy: Tensor
    old_entropy: Tensor
    advantages: Tensor
    mask: Tensor
    ratio: Tensor
    clip_low: float = -torch.inf
    clip_high: float = torch.inf
    clip_negative: float = torch.inf
    on_policy: bool = False
    training: bool = True
    draw: tuple[int, int, int] = (0, 0, 0)
    total_steps: int = 1
    rewards: Tensor | None = None
    all_rewards: Tensor | None = None
    sum_sq_probs: Tensor | None = None
    sum_sq_probs_log_probs: Tensor | None = None
    nucleus_entropy: Tensor | None = None
    old_second_logps: Tensor | None = None
    engine_ratio: Tensor | None = None
    loss_weights: Callable[[Tensor], Tensor] | None = None
    world: Collectives = SINGLE_PROCESS

    @property
    def step(self) -> int:
        """Optimizer steps made so far."""
        return self.draw[1]

    @cached_property
    def clipped(self) -> Tensor:
        """(B, T) bool: tokens whose policy gradient the loss already cuts."""
        high = (self.ratio > self.clip_high) & (self.advantages > 0)
        low = ((self.ratio < self.clip_low) | (self.ratio > self.clip_negative)) & (self.advantages < 0)
        return high | low

    @cached_property
    def _unclipped_weight(self) -> Tensor:
        weights = self.ratio if self.loss_weights is None else self.loss_weights(self.advantages)
        return weights.masked_fill(~self.mask, 0)

    @property
    def in_loss(self) -> Tensor:
        """(B, T) bool: tokens whose policy term no mask takes out of the loss. The clip may still cut their gradient."""
        return self._unclipped_weight != 0

    @property
    def gradient_weight(self) -> Tensor:
        """(B, T) g >= 0: TRL's policy term has the gradient -A g ∇log π at each token, 0 where it is masked or clipped.

        With a sequence-level ratio g is that of the whole term, whose gradient all tokens of the sequence share.
        """
        return self._unclipped_weight.masked_fill(self.clipped, 0)

    @property
    def has_gradient(self) -> Tensor:
        """(B, T) bool: tokens whose policy term has a gradient wherever the advantage is not 0."""
        return self.gradient_weight != 0

    def scope(self, name: str) -> Collectives:
        """The processes that a statistic runs over: `micro_batch` is this process alone, `world` all of them."""
        return self.world if name == "world" else SINGLE_PROCESS


@dataclass(frozen=True)
class Rollouts:
    """The completions of one generation batch, before it is shuffled and split into micro-batches.

    Attributes:
        advantages: (B, T) from the rewards, each sequence's value at all its tokens.
        mask: (B, T) bool, as in [`TokenBatch`].
        generated: (B, T) bool, the tokens that the policy generated, also where the loss leaves a completion out.
        completion_ids: (B, T) tokens.
        rewards: (B,) weighted sum of the rewards; NaN where no reward function gave one.
        reward_columns: (B,) rewards by the name of the function that gave them, before any method has shaped them.
        num_generations: completions per prompt, which follow each other and may span processes.
        logps: (B, T) log-probabilities under the policy that generated, or `None` where no pass over the whole
            generation batch was made.
        entropy: (B, T) entropies of that policy in nats, or `None` likewise.
        sum_sq_probs, sum_sq_probs_log_probs: (B, T) Σp² and Σp² log p of that policy, where a method needs
            `second_moments` and such a pass was made.
        on_policy: each forward of the loss is made with the policy that generated.
        training: False during evaluation.
        batch: generation batches made so far.
        world: collectives over all processes.
    """

    advantages: Tensor
    mask: Tensor
    generated: Tensor | None = None
    completion_ids: Tensor | None = None
    rewards: Tensor | None = None
    reward_columns: dict[str, Tensor] = field(default_factory=dict)
    num_generations: int = 1
    logps: Tensor | None = None
    entropy: Tensor | None = None
    sum_sq_probs: Tensor | None = None
    sum_sq_probs_log_probs: Tensor | None = None
    on_policy: bool = False
    training: bool = True
    batch: int = 0
    world: Collectives = SINGLE_PROCESS

    @property
    def has_gradient(self) -> Tensor:
        """(B, T) bool: as in [`TokenBatch`]. Of the masks of the loss only truncation is known before its forward."""
        return self.mask

    def groups(self, values: Tensor) -> Tensor:
        """(B,) values of this process -> (P, G) of all prompts of all processes, group by group."""
        return self.world.gather(values).view(-1, self.num_generations)

    def uniform_groups(self) -> Tensor:
        """(B,) bool: sequences in whose group all rewards that were given are equal."""
        rewards = self.groups(self.rewards)
        lowest = rewards.nan_to_num(nan=torch.inf).amin(1, keepdim=True)
        highest = rewards.nan_to_num(nan=-torch.inf).amax(1, keepdim=True)
        uniform = (lowest >= highest).expand_as(rewards)
        return self.world.own(uniform.flatten(), len(self.mask))
