# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""AEPO, Arbitrary Entropy Policy Optimization: hold entropy at a target by reinforcing samples of a set temperature.

How it departs from GRPO:
1. A controller compares the mean entropy of the last optimizer step with the target and sets a temperature: above 1
   if entropy is too low, below 1 if it is too high.
2. In mode `rollout`, a ratio of the prompts is completed a second time at that temperature. Completions with a
   positive reward are reinforced with weight 1. They are scored at the ordinary temperature without importance
   correction, which pulls the policy towards the tempered one.
3. In mode `reweight` there is no second rollout. Sequences with a positive reward are reinforced as if they had been
   sampled at that temperature: each of their tokens gets an extra advantage, the ratio of its probabilities at the two
   temperatures. This term replaces more of GRPO's advantage the further entropy is from the target, and the fewer
   sequences have a positive reward.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..functional import StepMean
from ..knob import Knob
from ..paper import Paper
from ..settings import checked, non_negative, one_of, ratio
from ..signs import EntropyBand, Sign
from ..tokens import TokenBatch
from .base import Logs, Method


LARGEST_GAP = 0.1  # nats from the target beyond which the correction stops growing (released code)


@dataclass
class AepoConfig:
    aepo_target_entropy: float | None = field(
        default=None,
        metadata={"help": "AEPO: target mean token entropy, in nats. Required: no default fits all models."},
    )
    aepo_mode: Literal["rollout", "reweight"] = field(
        default="rollout",
        metadata={
            "help": "AEPO: `rollout` completes prompts a second time at the regulated temperature; `reweight` uses "
            "it to reweight the advantages of the ordinary rollouts."
        },
    )
    aepo_coef: float = field(
        default=1 / 64, metadata={"help": "AEPO: coefficient of the second rollout's loss term. `rollout` mode only."}
    )
    aepo_ratio: float = field(
        default=0.25,
        metadata={"help": "AEPO: ratio of the prompts completed a second time, in (0, 1]. `rollout` mode only."},
    )
    aepo_share: float | None = field(default=None, metadata={"help": "AEPO: deprecated, use `aepo_ratio`."})
    aepo_gain: float = field(
        default=1.0,
        metadata={
            "help": "AEPO: factor on the strength of the correction, for targets of a few hundredths of a nat. "
            "`reweight` mode only."
        },
    )
    aepo_rule: Literal["clip", "binary"] = field(
        default="clip",
        metadata={
            "help": "AEPO: how the temperature is set. `clip`: 1 + target - entropy, clipped to the two bounds. "
            "`binary`: one of the two bounds, as in the released code."
        },
    )
    aepo_temperature_min: float = field(default=0.8, metadata={"help": "AEPO: lowest temperature, in (0, 1]."})
    aepo_temperature_max: float = field(default=1.2, metadata={"help": "AEPO: highest temperature, at least 1."})
    aepo_positive_reward: float = field(
        default=0.05, metadata={"help": "AEPO: reward above which a sequence counts as positive."}
    )
    aepo_positive_by: Literal["reward", "advantage"] = field(
        default="reward",
        metadata={
            "help": "AEPO: what is compared with `aepo_positive_reward`: the `reward`, or the `advantage` as in the "
            "released code, so that groups whose completions are all right add nothing. `rollout` mode only."
        },
    )


def regulated_temperature(entropy: float | None, target: float, low: float, high: float, rule: str) -> float:
    """Temperature, relative to that of sampling, that moves `entropy` towards `target` (nats); 1 for `None`."""
    if entropy is None:
        return 1.0
    if rule == "binary":
        return high if entropy <= target else low
    return min(max(1 + target - entropy, low), high)


def reweighted_advantages(
    advantages: Tensor, positive: Tensor, ratio: Tensor, strength: float, rewarded: Tensor
) -> Tensor:
    """(B, T) A, (B,) bool, (B, T) π^T/π -> (B, T) (1 - α) A + α 1[positive] π^T/π.

    α = a / (1 + a), a = strength / rewarded, where `rewarded` is the ratio of positive sequences. A if it is 0.
    """
    strength = strength / rewarded.clamp(min=1e-12)
    alpha = torch.where(rewarded > 0, strength / (1 + strength), 0).to(advantages.dtype)
    return (1 - alpha) * advantages + alpha * positive.unsqueeze(1) * ratio


class Aepo(Method):
    """Regulates entropy to a target H₀ through a second temperature T = clip(1 + H₀ - H, 0.8, 1.2).

        rollout:   L = L_policy - α mean_i 1[R_i > 0] mean_t min(r_t, 1 + ε),   o_i drawn at T, r_t = π_θ / π_old at 1
        reweight:  A_t <- (1 - α) A_t + α 1[R > 0] π_old^T(o_t) / π_old(o_t),   α = a / (1 + a),
                   a = min(|H₀ - H|, 0.1) / (ratio of the generation batch's sequences with R > 0)

    The first is the objective of the paper's later version, according to a summary. The second is called DCPO in the
    released code; we found no paper that prints it. Departs from the released code: entropy is the exact mean over the
    completions of one optimizer step and all processes, not the sampled surprisal on one process; the extra
    completions are added and replace none; T = 1 in the first step, when no entropy has been measured yet.
    """

    name = "aepo"
    summary = "steers entropy to a target by the temperature of what it reinforces"
    checked_against = "formulas from the released code and from a summary of the paper"
    config = AepoConfig
    knob = Knob("aepo_target_entropy", "target", low=1e-4, high=100.0, start=1.0, scale="target")
    entropy_band = EntropyBand(1.0, 1.0, times="aepo/target_entropy")
    paper = Paper(
        "2510.08141",
        "Arbitrary Entropy Policy Optimization: Entropy Is Controllable in Reinforcement Fine-tuning",
        """@article{wang2025arbitrary,
    title   = {Arbitrary Entropy Policy Optimization: Entropy Is Controllable in Reinforcement Fine-tuning},
    author  = {Chen Wang and Zhaochun Li and Jionghao Bai and Yuzhi Zhang and Shisheng Cui and Zhou Zhao and Yue Wang},
    journal = {arXiv preprint arXiv:2510.08141},
    year    = {2025}
}""",
    )
    off = ({"aepo_mode": "rollout", "aepo_coef": 0}, {"aepo_mode": "reweight", "aepo_gain": 0})
    idle = (
        Sign(
            {"auxiliary_positive_fraction": (0, 0)},
            "lower `aepo_positive_reward`: no completion counts as positive",
        ),
    )

    def __init__(self, config):
        self.target = checked(
            config, "aepo_target_entropy", lambda value: 0 < value < torch.inf, "an entropy in nats > 0, and set"
        )
        self.rollout = one_of(config, "aepo_mode", "rollout", "reweight") == "rollout"
        self.needs = ("auxiliary_rollouts",) if self.rollout else ("second_temperature", "rewards")
        self.coef = non_negative(config, "aepo_coef")
        self.ratio = ratio(config, "aepo_ratio", was="aepo_share")
        self.gain = non_negative(config, "aepo_gain")
        self.rule = one_of(config, "aepo_rule", "clip", "binary")
        self.low = checked(config, "aepo_temperature_min", lambda value: 0 < value <= 1, "a temperature in (0, 1]")
        self.high = checked(config, "aepo_temperature_max", lambda value: 1 <= value < torch.inf, "a temperature >= 1")
        self.positive_reward = checked(config, "aepo_positive_reward", math.isfinite, "a finite number")
        self.positive_by = one_of(config, "aepo_positive_by", "reward", "advantage")
        self.entropy: float | None = None
        self.step_mean = StepMean()

    def check(self, config) -> list[str]:
        mode, idle = "rollout", ["aepo_gain"]
        if not self.rollout:
            mode, idle = "reweight", ["aepo_coef", "aepo_ratio", "aepo_positive_by"]
        found = [
            f"`{name}` is set to {getattr(config, name)!r}, but `aepo_mode` is {mode!r}: it does nothing."
            for name in idle
            if getattr(config, name) != getattr(AepoConfig, name)
        ]
        name = "aepo_coef" if self.rollout else "aepo_gain"
        if not getattr(config, name):
            found.append(f"Method 'aepo' does nothing, since `{name}` is 0.")
        if self.low == self.high:
            found.append(
                "Method 'aepo' regulates nothing, since `aepo_temperature_min` and `aepo_temperature_max` are both 1."
            )
        return found

    @property
    def temperature(self) -> float:
        return regulated_temperature(self.entropy, self.target, self.low, self.high, self.rule)

    def head_settings(self):
        return {} if self.rollout else {"second_temperature": self.temperature}

    def begin_step(self, step):
        finished = self.step_mean.begin(step)
        if finished is not None:
            self.entropy = finished

    @torch.no_grad()
    def token_advantages(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        if tokens.training:
            self.begin_step(tokens.step)
            self.step_mean.add_tokens(tokens, tokens.entropy)
        logs = {
            "temperature": torch.tensor(self.temperature, device=tokens.mask.device),
            "target_entropy": torch.tensor(float(self.target), device=tokens.mask.device),
        }
        if self.rollout or self.entropy is None:
            return tokens.advantages, logs
        positive = tokens.rewards > self.positive_reward
        everyone = tokens.world.gather(tokens.rewards) if tokens.all_rewards is None else tokens.all_rewards
        rewarded = (everyone > self.positive_reward).double().mean()
        ratio = (tokens.old_second_logps - tokens.old_logps).clamp(max=20).exp()
        strength = self.gain * min(abs(self.target - self.entropy), LARGEST_GAP)
        return reweighted_advantages(tokens.advantages, positive, ratio, strength, rewarded), logs

    def auxiliary_rollouts(self):
        return self.temperature, self.ratio

    def auxiliary_loss(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        values = tokens.rewards if self.positive_by == "reward" else tokens.advantages[:, 0]
        positive = values > self.positive_reward
        ratio = (tokens.logps - tokens.old_logps).clamp(max=20).exp().clamp(max=tokens.clip_high)
        means = ratio.masked_fill(~tokens.mask, 0).sum(1) / tokens.mask.sum(1).clamp(min=1)
        term = -self.coef * means.masked_fill(~positive, 0).mean()
        return term, {"auxiliary_positive_fraction": positive}

    def state_dict(self):
        return {"entropy": self.entropy, "step_mean": self.step_mean.state_dict()}

    def load_state_dict(self, state):
        self.entropy = state["entropy"]
        self.step_mean.load_state_dict(state["step_mean"])
