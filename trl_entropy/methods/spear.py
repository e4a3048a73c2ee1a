# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""SPEAR, self-imitation with progressive exploration: train on good completions of the last steps again.

How it departs from GRPO:
1. A bonus for turns with a tool call, which fades, makes the policy try tools first.
2. Completions with a positive advantage that called a tool are remembered, and forgotten after some steps.
3. Once enough of them are better than the median group of the recent generation batches, some are trained on again,
   and the memory is emptied. Their advantage is measured against that median.
4. Some of their tokens that lower entropy most lose their gradient, as in Clip-Cov.
5. The weight of the replay grows over the run.
"""

import math
import random
import statistics
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..functional import centered_product, row_means, run_counts
from ..paper import Paper
from ..settings import checked, flag, non_negative, one_of, whole
from ..signs import Sign
from ..tokens import Rollouts, Stored, TokenBatch
from .base import Choice, Logs, Method
from .clip_cov import clip_cov_mask


TRIGGER = 1.5  # completions worth a replay, in sizes of the memory, above which there is one
PATIENCE = 20  # generation batches without a tool call before a warning
MUCH = 0.5  # share of the completions that must be worth a replay, above which replays are rare


@dataclass
class SpearConfig:
    spear_coef: float = field(
        default=1.0, metadata={"help": "SPEAR: weight of the replayed completions' loss once it has grown."}
    )
    spear_replay_steps: int = field(
        default=200, metadata={"help": "SPEAR: optimizer steps over which that weight grows from 0."}
    )
    spear_tool_reward: float = field(
        default=0.1, metadata={"help": "SPEAR: bonus for each assistant turn with a tool call. 0: no bonus."}
    )
    spear_tool_cap: float = field(default=1.0, metadata={"help": "SPEAR: largest bonus of a completion."})
    spear_tool_steps: int = field(
        default=200, metadata={"help": "SPEAR: optimizer steps over which the bonus fades. 0: no bonus."}
    )
    spear_tool_schedule: Literal["cosine", "constant"] = field(
        default="cosine",
        metadata={"help": "SPEAR: `cosine` fades the bonus along half a cosine, `constant` keeps it as it is."},
    )
    spear_buffer_size: int | None = field(
        default=None,
        metadata={
            "help": "SPEAR: completions in a replay, at most; it takes 1.5 times as many that are worth one. A replay "
            "is trained on beside a generation batch, so this sets peak memory. Default: one generation batch."
        },
    )
    spear_baseline_size: int = field(
        default=10240, metadata={"help": "SPEAR: recent groups whose median reward is the baseline."}
    )
    spear_max_age: int = field(
        default=10,
        metadata={"help": "SPEAR: optimizer steps before the newest one after which a completion is forgotten."},
    )
    spear_decay: float | None = field(
        default=None,
        metadata={
            "help": "SPEAR: replay with this factor times the old advantage, in (0, 1], instead of the reward minus "
            "the baseline."
        },
    )
    spear_tools_only: bool = field(
        default=True, metadata={"help": "SPEAR: remember only completions that called a tool."}
    )
    spear_clip_cov_ratio: float = field(
        default=0.02,
        metadata={"help": "SPEAR: ratio of the replayed tokens whose gradient is dropped, in [0, 1]. 0: none."},
    )
    spear_clip_cov_low: float = field(
        default=1.0, metadata={"help": "SPEAR: covariance above which a replayed token may be dropped."}
    )
    spear_clip_cov_high: float = field(
        default=40.0, metadata={"help": "SPEAR: covariance below which a replayed token may be dropped."}
    )
    spear_save_buffer: bool = field(
        default=True, metadata={"help": "SPEAR: save remembered completions in checkpoints. A run resumes with them."}
    )


def rising(step: int, steps: int) -> float:
    """(1 - cos(π min(t / T, 1))) / 2: from 0 to 1 over `steps` steps; 1 if there are none."""
    return (1 - math.cos(math.pi * min(step / steps, 1))) / 2 if steps else 1.0


def falling(step: int, steps: int) -> float:
    """(1 + cos(π min(t / T, 1))) / 2: from 1 to 0 over `steps` steps; 0 if there are none."""
    return (1 + math.cos(math.pi * min(step / steps, 1))) / 2 if steps else 0.0


def tool_bonus(calls: int, each: float, cap: float) -> float:
    """min(cap, each · calls)"""
    return min(cap, each * calls)


def turns_with_calls(completion: Any, own: list) -> int:
    """Assistant turns with a tool call.

    Of a text, or if its messages name no call: the runs of tokens that the policy did not write, where `own` is false.
    """
    messages = completion if isinstance(completion, list) else []
    named = sum(bool(turn.get("tool_calls")) for turn in messages if turn.get("role") == "assistant")
    return named or int(run_counts(~torch.tensor([own], dtype=torch.bool)))


def recalibrated_advantages(
    rewards: Tensor, advantages: Tensor, baseline: float | None, decay: float | None
) -> Tensor:
    """(N,) rewards and old advantages -> (N,) Ã = R - b, or d A with a decay d. 0 while there is no baseline."""
    if decay is not None:
        return decay * advantages
    return torch.zeros_like(rewards) if baseline is None else rewards - baseline


def replay_count(candidates: int, size: int) -> int:
    """min(2^floor(log2 N), size); 0 for a single candidate."""
    return min(2 ** (candidates.bit_length() - 1), size) if candidates > 1 else 0


def replay_choice(advantages: Tensor, size: int, draw: tuple[int, ...], multiple: int = 1) -> list[int] | None:
    """(N,) Ã -> indices of the completions to replay, in their order; `None` until enough of them have Ã > 0.

    The draw is uniform without replacement among those with Ã > 0, and depends only on `draw`. Their number, that of
    `replay_count`, is cut to a multiple of `multiple`, which may leave none.
    """
    candidates = (advantages > 0).nonzero().flatten().tolist()
    if len(candidates) <= TRIGGER * size:
        return None
    count = replay_count(len(candidates), size) // multiple * multiple
    return sorted(random.Random(repr(draw)).sample(candidates, count))


def imitation_terms(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """(B, T) ratio r with gradient -> (B, T) -min(r Ã, clip(r, low, high) Ã)."""
    return -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)


class Spear(Method):
    """Adds the loss of replayed completions, whose advantage is measured against today's rewards.

        R    = R_outcome + μ(t) min(cap, c_tool n_calls),   μ(t) = (1 + cos(π min(t / T_μ, 1))) / 2
        L    = L_policy - γ(t) J_SIL,                       γ(t) = c (1 - cos(π min(t / T_γ, 1))) / 2
        J_SIL = agg k min(r Ã, clip(r) Ã),                  r = π_θ / π_stored,  Ã = R - median of the groups' means

    `agg` is the reduction of `loss_type`, and the clip is that of `epsilon` and `epsilon_high`, with every loss type
    and at the token level. k is 0 for replayed tokens that Clip-Cov draws, else 1.

    Departs from the released code, following the paper: one objective and one optimizer step. The code makes separate
    steps, whose size Adam makes almost independent of γ. Ã > 0 is required, not Ã >= 0. Covariances are taken over the
    replayed tokens that all processes train on at once. We could not read how the paper prints γ and μ: the formulas
    are those of the code.
    """

    name = "spear"
    summary = "trains again on good completions of the last steps; bonus for tool calls"
    checked_against = "formulas from paper notes and code"
    config = SpearConfig
    no_knob = "it moves entropy down by the replay and up by Clip-Cov"
    paper = Paper(
        "2509.22601",
        "Learn the Ropes, Then Trust the Wins: Self-imitation with Progressive Exploration for Agentic Reinforcement "
        "Learning",
        """@article{qin2025learn,
    title   = {Learn the Ropes, Then Trust the Wins: Self-imitation with Progressive Exploration for Agentic
               Reinforcement Learning},
    author  = {Yulei Qin and Xiaoyu Tan and Zhengbao He and Gang Li and Haojia Lin and Zongyi Li and Zihan Xu
               and Yuchen Shi and Siqi Cai and Renting Rui and Shaofei Cai and Yuzheng Cai and Xuan Zhang and Sheng Ye
               and Ke Li and Xing Sun},
    journal = {arXiv preprint arXiv:2509.22601},
    year    = {2025}
}""",
    )
    idle = (
        Sign({"stored": (0, 0)}, "set `spear_tools_only` to false, or raise `spear_max_age`: nothing is remembered"),
    )

    def __init__(self, config):
        self.coef = non_negative(config, "spear_coef")
        self.replay_steps = whole(config, "spear_replay_steps", 0)
        self.tool_reward = non_negative(config, "spear_tool_reward")
        self.tool_cap = checked(config, "spear_tool_cap", lambda value: 0 < value < math.inf, "a finite number > 0")
        self.tool_steps = whole(config, "spear_tool_steps", 0)
        self.constant = one_of(config, "spear_tool_schedule", "cosine", "constant") == "constant"
        self.size = whole(config, "spear_buffer_size", 1, optional=True)
        self.baseline_size = whole(config, "spear_baseline_size", 1)
        self.max_age = whole(config, "spear_max_age", 1)
        self.decay = checked(
            config, "spear_decay", lambda value: value is None or 0 < value <= 1, "a factor in (0, 1], or none"
        )
        self.tools_only = flag(config, "spear_tools_only")
        self.ratio = checked(config, "spear_clip_cov_ratio", lambda value: 0 <= value <= 1, "a ratio in [0, 1]")
        self.high = checked(config, "spear_clip_cov_high", lambda high: high > -math.inf, "a number")
        self.low = checked(
            config,
            "spear_clip_cov_low",
            lambda low: low < self.high,
            f"less than `spear_clip_cov_high` ({self.high!r})",
        )
        self.saves_memory = flag(config, "spear_save_buffer")
        self.adds_reward = bool(self.tool_reward and self.tool_steps)
        self.needs = ("replay",) if self.coef else ()
        self.baseline: list[list[float]] = []  # means of the groups, by generation batch
        self.without_calls: int | None = 0  # generation batches so far; `None` from the first tool call on
        self.eligible: Tensor | None = None  # tokens that Clip-Cov could drop in the current replay
        self.warned: set[str] = set()

    # Settings

    def check(self, config) -> list[str]:
        found = self._idle_settings(config)
        if not self.coef:
            rest = "only gives a bonus for tool calls" if self.adds_reward else "does nothing"
            return [f"Method 'spear' {rest}, since `spear_coef` is 0.", *found]
        unit = config.world_size * config.steps_per_generation
        checked(
            config,
            "spear_buffer_size",
            lambda size: size is None or size >= unit,
            f"none or at least {unit}, one completion per process and micro-batch",
        )
        updates = math.ceil(config.steps_per_generation * config.num_iterations / config.gradient_accumulation_steps)
        batch = unit * config.per_device_train_batch_size
        most = (self.max_age // updates + 2) * batch
        if (share := TRIGGER * (self.size or batch) / most) > MUCH:
            found.append(
                f"Method 'spear' replays only if {share:.0%} of the completions are worth it: the memory holds those "
                f"of {most // batch} generation batches. Raise `spear_max_age`, which counts optimizer steps "
                f"({updates} per generation batch), or lower `spear_buffer_size`."
            )
        return found

    def _idle_settings(self, config) -> list[str]:
        """Warnings about fields that another field leaves without effect."""
        groups = {
            "`spear_coef` is 0": not self.coef
            and ("replay_steps", "buffer_size", "baseline_size", "max_age", "decay", "tools_only", "save_buffer"),
            "`spear_clip_cov_ratio` or `spear_coef` is 0": not (self.ratio and self.coef)
            and ("clip_cov_low", "clip_cov_high"),
            "`spear_tool_reward` is 0": not self.tool_reward and ("tool_cap", "tool_steps", "tool_schedule"),
            "`spear_tool_steps` is 0": self.tool_reward and not self.tool_steps and ("tool_cap", "tool_schedule"),
            "`spear_tool_schedule` is 'constant'": self.adds_reward and self.constant and ("tool_steps",),
            "`spear_decay` is set": self.coef and self.decay is not None and ("baseline_size",),
        }
        return [
            f"`{name}` is set to {getattr(config, name)!r}, but {reason}: it does nothing."
            for reason, fields in groups.items()
            for name in (f"spear_{field}" for field in fields or ())
            if getattr(config, name) != getattr(SpearConfig, name)
        ]

    def check_tools(self, tools: bool) -> list[str]:
        if tools:
            return []
        if self.coef and self.tools_only:
            raise ValueError(
                "`spear_tools_only` must be false without `tools`, `environment_factory` or `rollout_func`, since no "
                "completion calls a tool, got True."
            )
        bonus = (
            "The bonus of method 'spear' is always 0, since no completion calls a tool: set `spear_tool_reward` to 0."
        )
        return [bonus] if self.adds_reward else []

    # Rewards

    def reward(self, completions, token_mask, trainer_state, **columns):
        scale = 1.0 if self.constant else falling(trainer_state.global_step, self.tool_steps)
        calls = [turns_with_calls(*pair) for pair in zip(completions, token_mask, strict=True)]
        found = [scale * tool_bonus(number, self.tool_reward, self.tool_cap) for number in calls]
        return found, {"tool_coef": torch.tensor(scale), "tool_calls": torch.tensor(calls)}

    # Memory

    def replays(self, stored: Stored) -> tuple[Choice | None, Logs]:
        baseline = statistics.median(sum(self.baseline, [])) if self.baseline else None
        advantages = recalibrated_advantages(stored.reward, stored.advantage, baseline, self.decay)
        coef = self.coef * rising(stored.now, self.replay_steps)
        facts = {"stored": len(stored.reward), "worthy": int((advantages > 0).sum()), "coef": coef}
        logs = {key: torch.tensor(value) for key, value in facts.items()}
        if baseline is not None:
            logs["baseline"] = torch.tensor(baseline)
        size = stored.capacity if self.size is None else self.size
        chosen = replay_choice(advantages, size, stored.draw, stored.multiple) if coef else None
        logs["replayed_rows"] = torch.tensor(len(chosen or ()))
        if chosen is None:
            return None, logs
        logs |= {"advantage_mean": advantages[chosen], "age_mean": stored.now - stored.step[chosen]}
        return (chosen, advantages[chosen].tolist()), logs

    def keeps(self, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        self._warn_of_replay(rollouts)
        self._add_to_baseline(rollouts)
        advantages = row_means(rollouts.advantages, rollouts.mask)
        kept = (advantages > 0) & ~rollouts.uniform_groups()  # whose advantages are 0 up to rounding
        if self.tools_only:
            none = torch.zeros(len(kept), dtype=torch.long, device=kept.device)
            calls = none if rollouts.tool_calls is None else rollouts.tool_calls
            kept &= calls > 0
            self._warn_without_calls(rollouts, calls)
        return kept, {"remembered_fraction": kept}

    def _add_to_baseline(self, rollouts: Rollouts) -> None:
        """Adds the mean reward of each group. Equal rewards have exactly their value as mean, in their precision."""
        while sum(map(len, self.baseline)) > self.baseline_size:
            self.baseline.pop(0)
        means = rollouts.groups(rollouts.rewards).double().nanmean(1).to(rollouts.rewards.dtype).double()
        self.baseline.append(means[means.isfinite()].tolist())
        self.baseline = [batch for batch in self.baseline if batch]

    def auxiliary_loss(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        ratio = (tokens.logps - tokens.old_logps).clamp(max=20).exp()
        clipped = (ratio > tokens.clip_high) & tokens.mask
        kept, eligible = self._kept(tokens, clipped)
        terms = imitation_terms(ratio, tokens.advantages, tokens.clip_low, tokens.clip_high).masked_fill(~kept, 0)
        if tokens.engine_ratio is not None:  # the loss multiplies its own terms by it
            terms = terms * tokens.engine_ratio
        logs = {"ratio_mean": ratio, "clip_fraction": clipped, "eligible_fraction": eligible, "kept_fraction": kept}
        return self.coef * rising(tokens.step, self.replay_steps) * terms, logs

    @torch.no_grad()
    def _kept(self, tokens: TokenBatch, clipped: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) bool, (B, T) bool: tokens that keep their gradient, and those among which Clip-Cov draws."""
        if not self.ratio:
            return tokens.mask, torch.zeros_like(tokens.mask)
        covariance = centered_product(tokens.logps, tokens.advantages, tokens.mask, tokens.world)
        eligible = (covariance > self.low) & (covariance < self.high) & tokens.mask & ~clipped
        found = eligible.sum()
        self.eligible = found if self.eligible is None else self.eligible + found
        return clip_cov_mask(eligible, tokens.mask, self.ratio, (*tokens.draw, 1), tokens.world), eligible

    def state_dict(self):
        return {"baseline": [list(batch) for batch in self.baseline]}

    def load_state_dict(self, state):
        self.baseline = [list(batch) for batch in state["baseline"]]

    # Warnings, each once

    def _warn_of_replay(self, rollouts: Rollouts) -> None:
        """Says if Clip-Cov could drop no token of the replay beside the last generation batch."""
        eligible, self.eligible = self.eligible, None
        if eligible is None or rollouts.world.sum(eligible):  # the first is the same on all processes
            return
        self._warn(
            "eligible",
            "Clip-Cov of method 'spear' could drop no token of a whole replay: all replayed rewards are equal, or no "
            "covariance lies between `spear_clip_cov_low` and `spear_clip_cov_high`.",
            rollouts,
        )

    def _warn_without_calls(self, rollouts: Rollouts, calls: Tensor) -> None:
        if self.without_calls is None:
            return
        self.without_calls = None if rollouts.world.sum((calls > 0).sum()) else self.without_calls + 1
        if self.without_calls == PATIENCE:
            text = (
                f"No completion of {PATIENCE} generation batches has called a tool, so method 'spear' remembers none."
            )
            self._warn("calls", text, rollouts)

    def _warn(self, reason: str, text: str, rollouts: Rollouts) -> None:
        if reason not in self.warned and rollouts.world.rank == 0:
            warnings.warn(text, stacklevel=4)
        self.warned.add(reason)
