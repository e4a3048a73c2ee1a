# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The tokens that a method sees: the completions of one forward, or of a whole generation batch."""

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
        old_logps: (B, T) the same under the old policy, without gradient.
        entropy: (B, T) entropy of the current policy at each token, with gradient.
        old_entropy: (B, T) entropy of the old policy, without gradient.
        advantages: (B, T) from the rewards, as the methods listed before left them.
        mask: (B, T) bool, the tokens that the loss counts: no padding, no tool results.
        ratio: (B, T) importance ratio of the loss, without gradient; one value per row if it is sequence-level.
        clip_low, clip_high: bounds of the ratio, floats or tensors that broadcast with it. The loss clips tokens with
            a negative advantage below `clip_low`, and tokens with a positive advantage above `clip_high`. -inf and inf
            if it does not clip.
        clip_negative: the ratio above which TRL's `delta` clips a negative advantage; inf without `delta`.
        on_policy: the current policy is the old policy, so the ratio is 1 by construction.
        training: False during evaluation, which must not change the state of a method.
        draw: integers that identify this forward in the run (seed, optimizer step, micro-batch).
        total_steps: optimizer steps of the whole run.
        rewards: (B,) weighted sum of the rewards, if a method needs `rewards`.
        all_rewards: (N,) the same for the whole generation batch of all processes; `None` if this forward has all.
        sum_sq_probs, sum_sq_probs_log_probs: (B, T) Σp² and Σp² log p of the current policy, without gradient, if a
            method needs `second_moments`.
        nucleus_entropy: (B, T) entropy of the current policy renormalized on its nucleus, with gradient, if a method
            needs `nucleus_entropy`.
        top_logps: (B, T, K) log-probabilities of the K likeliest tokens under the current policy in descending order,
            with gradient, if a method needs `top_logps`. -inf for a token of probability 0.
        old_second_logps: (B, T) log-probability of each sampled token under the old policy at a second temperature,
            without gradient, if a method needs `second_temperature`.
        engine_ratio: (B, T) or (B, 1) correction for the inference engine. The loss multiplies its terms by it.
        loss_weights: (B, T) advantages -> (B, T) factor of each token's policy gradient in TRL's loss before its clip,
            0 if a mask takes the token out of the loss. Default: the ratio. See `gradient_weight`.
        world: collectives over all processes.
    """

    logps: Tensor
    old_logps: Tensor
    entropy: Tensor
    old_entropy: Tensor
    advantages: Tensor
    mask: Tensor
    ratio: Tensor
    clip_low: float | Tensor = -torch.inf
    clip_high: float | Tensor = torch.inf
    clip_negative: float | Tensor = torch.inf
    on_policy: bool = False
    training: bool = True
    draw: tuple[int, int, int] = (0, 0, 0)
    total_steps: int = 1
    rewards: Tensor | None = None
    all_rewards: Tensor | None = None
    sum_sq_probs: Tensor | None = None
    sum_sq_probs_log_probs: Tensor | None = None
    nucleus_entropy: Tensor | None = None
    top_logps: Tensor | None = None
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
        """(B, T) bool: tokens whose policy gradient the loss clips already."""
        high = (self.ratio > self.clip_high) & (self.advantages > 0)
        low = ((self.ratio < self.clip_low) | (self.ratio > self.clip_negative)) & (self.advantages < 0)
        return high | low

    @cached_property
    def _unclipped_weight(self) -> Tensor:
        weights = self.ratio if self.loss_weights is None else self.loss_weights(self.advantages)
        return weights.masked_fill(~self.mask, 0)

    @property
    def in_loss(self) -> Tensor:
        """(B, T) bool: tokens that no mask takes out of the policy loss. The clip may still cut their gradient."""
        return (self._unclipped_weight != 0) | (self.mask & (self.ratio == 0))  # a ratio that underflows is no mask

    @property
    def gradient_weight(self) -> Tensor:
        """(B, T) g >= 0: the gradient of TRL's policy term is -A g ∇log π at each token; 0 if it is masked or clipped.

        With a sequence-level ratio g is that of the whole term, whose gradient all tokens of the sequence share.
        """
        return self._unclipped_weight.masked_fill(self.clipped, 0)

    @property
    def has_gradient(self) -> Tensor:
        """(B, T) bool: tokens whose policy term has a gradient wherever the advantage is not 0."""
        return self.gradient_weight != 0

    def scope(self, name: str) -> Collectives:
        """The processes that a statistic covers: `micro_batch` is this process alone, `world` all of them."""
        return self.world if name == "world" else SINGLE_PROCESS


@dataclass(frozen=True)
class Rollouts:
    """The completions of one generation batch, before it is shuffled and split into micro-batches.

    Attributes:
        advantages: (B, T) from the rewards: all tokens of a sequence have its value.
        mask: (B, T) bool, as in [`TokenBatch`].
        generated: (B, T) bool, the tokens that the policy generated, including completions that the loss leaves out.
        completion_ids: (B, T) token ids.
        rewards: (B,) weighted sum of the rewards; NaN if no reward function gave one.
        reward_columns: (B,) rewards by the name of their function, before any method has shaped them.
        tool_calls: (B,) answered tool calls: maximal runs of tokens inside a completion that the policy did not write.
            One per turn, whoever ran the tool. `None` if it wrote all tokens.
        num_generations: completions per prompt. They follow each other and may span processes.
        scale_rewards: what TRL divides advantages by: the standard deviation of a "group" or "batch", or "none".
        logps: (B, T) log-probabilities under the old policy, or `None` if it made no pass over the whole generation
            batch.
        entropy: (B, T) entropies of the old policy in nats, or `None` likewise.
        sum_sq_probs, sum_sq_probs_log_probs: (B, T) Σp² and Σp² log p of the old policy, if a method needs
            `second_moments` and such a pass was made.
        on_policy: whether each forward of the loss is the old policy's.
        training: False during evaluation.
        batch: generation batches made so far.
        progress: share of the run's optimizer steps that have been made.
        world: collectives over all processes.
    """

    advantages: Tensor
    mask: Tensor
    generated: Tensor | None = None
    completion_ids: Tensor | None = None
    rewards: Tensor | None = None
    reward_columns: dict[str, Tensor] = field(default_factory=dict)
    tool_calls: Tensor | None = None
    num_generations: int = 1
    scale_rewards: str = "group"
    logps: Tensor | None = None
    entropy: Tensor | None = None
    sum_sq_probs: Tensor | None = None
    sum_sq_probs_log_probs: Tensor | None = None
    on_policy: bool = False
    training: bool = True
    batch: int = 0
    progress: float = 0.0
    world: Collectives = SINGLE_PROCESS

    @property
    def has_gradient(self) -> Tensor:
        """(B, T) bool: as in [`TokenBatch`]. Of the masks of the loss only truncation is known before its forward."""
        return self.mask

    def groups(self, values: Tensor) -> Tensor:
        """(B,) values of this process -> (P, G) of all prompts of all processes, group by group."""
        return self.world.gather(values).view(-1, self.num_generations)

    def uniform_groups(self) -> Tensor:
        """(B,) bool: sequences whose group has equal rewards; missing rewards do not count."""
        rewards = self.groups(self.rewards)
        lowest = rewards.nan_to_num(nan=torch.inf).amin(1, keepdim=True)
        highest = rewards.nan_to_num(nan=-torch.inf).amax(1, keepdim=True)
        uniform = (lowest >= highest).expand_as(rewards)
        return self.world.own(uniform.flatten(), len(self.mask))


@dataclass(frozen=True)
class Stored:
    """Facts about the N sequences that a method remembers on all processes, in the order of processes.

    Tensors are float64, on the CPU, and equal on every process.

    Attributes:
        reward: (N,) weighted sum of the rewards.
        advantage: (N,) mean over the tokens of the advantage, as the methods listed before left it.
        step: (N,) optimizer steps made when the sequence was generated.
        now: optimizer steps made so far.
        capacity: completions in a generation batch of all processes.
        multiple: replays are multiples of this many sequences: one per process and micro-batch.
        draw: integers that identify the generation batch in the run (seed, optimizer step).
    """

    reward: Tensor
    advantage: Tensor
    step: Tensor
    now: int = 0
    capacity: int = 1
    multiple: int = 1
    draw: tuple[int, int] = (0, 0)
