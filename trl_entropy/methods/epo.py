# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""EPO: an entropy bonus for multi-turn agents, smoothed by a corridor around past entropy.

How it departs from GRPO:
1. The loss gets a bonus for the mean entropy of the agent's turns.
2. Tokens whose entropy leaves a corridor around the mean entropy of all past steps are penalized by the distance.
3. The weight of the penalty falls from 2 towards 1 over the run.

The default corridor starts at 0, so it only damps spikes. `epo_low: 0.8` and `epo_high: 1.2` bound both sides.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..functional import StepMean
from ..knob import Knob
from ..paper import Paper
from ..settings import checked, non_negative
from ..signs import EntropyBand, Sign
from ..tokens import TokenBatch
from .base import Logs, Method


HISTORY_FLOOR = 1e-3  # nats: around a lower history the corridor would penalize every token


@dataclass
class EpoConfig:
    epo_coef: float = field(default=1e-3, metadata={"help": "EPO: coefficient λ of the whole term."})
    epo_low: float = field(
        default=0.0, metadata={"help": "EPO: lower end of the corridor, as a multiple of past mean entropy."}
    )
    epo_high: float = field(
        default=2.0, metadata={"help": "EPO: upper end of the corridor, as a multiple of past mean entropy."}
    )
    epo_alpha: float = field(
        default=0.1,
        metadata={"help": "EPO: weight α of the smoothing. The paper uses 0.1 on ALFWorld, 0.05 on ScienceWorld."},
    )
    epo_gamma: float = field(default=3.0, metadata={"help": "EPO: how fast the weight of the smoothing falls."})


def corridor_penalty(entropy: Tensor, history: float, low: float, high: float) -> Tensor:
    """(B, T) -> (B, T) hinge [κ_l H̄ - H]₊ + [H - κ_r H̄]₊ in nats, with gradient (eq. 3)."""
    history = max(history, HISTORY_FLOOR)
    return (low * history - entropy).clamp(min=0) + (entropy - high * history).clamp(min=0)


def turn_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T) -> (B,): mean over each sequence's turns of the mean over the turn's tokens, with gradient (eq. 2).

    A turn is a run of valid tokens; tool results or padding separate turns. A sequence without turns gives 0.
    """
    starts = mask & ~torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], 1)
    turn = (starts.cumsum(1) - 1).clamp(min=0)
    shape = (len(mask), int(turn.max()) + 1 if turn.numel() else 1)
    sums = values.new_zeros(shape).scatter_add(1, turn, values.masked_fill(~mask, 0))
    sizes = values.new_zeros(shape).scatter_add(1, turn, mask.to(values.dtype))
    return (sums / sizes.clamp(min=1)).sum(1) / starts.sum(1).clamp(min=1)


def phase_weight(step: int, total_steps: int, gamma: float) -> float:
    """β_k = 1 + exp(-γ k / ⌊K/2⌋) (eq. 5): 2 at the start, 1 + e^(-2γ) at the end."""
    return 1 + math.exp(-gamma * step / max(total_steps // 2, 1))


class Epo(Method):
    """Adds the entropy of turns to the objective and smooths it: L = L_policy - λ (L_H - β_k L_smooth) (eq. 2-5).

        L_H = mean over sequences, turns, tokens of H,   L_smooth = the same mean of α P

    k counts optimizer steps. H̄ is the mean over past steps of token-weighted means over all processes; in the first
    step the smoothing is off. P is the paper's hinge, with gradient. Departs from the released code, whose indicator
    has no gradient.
    """

    name = "epo"
    summary = "adds the entropy of turns to the objective, smoothed by past entropy"
    checked_against = "the paper's formulas"
    config = EpoConfig
    knob = Knob("epo_coef", "coef", low=1e-6, high=10.0, start=0.03)
    entropy_band = EntropyBand("epo_low", "epo_high", times="epo/history_entropy")
    paper = Paper(
        "2509.22576",
        "EPO: Entropy-regularized Policy Optimization for LLM Agents Reinforcement Learning",
        """@article{xu2025epo,
    title   = {EPO: Entropy-regularized Policy Optimization for LLM Agents Reinforcement Learning},
    author  = {Wujiang Xu and Wentian Zhao and Zhenting Wang and Yu-Jhe Li and Can Jin and Mingyu Jin and Kai Mei
               and Kun Wan and Dimitris N. Metaxas},
    journal = {arXiv preprint arXiv:2509.22576},
    year    = {2025}
}""",
    )
    off = ({"epo_coef": 0},)
    strong = (Sign({"outside_fraction": (0.5, 1)}, "raise `epo_high` or lower `epo_low`: most tokens are penalized"),)

    def __init__(self, config):
        self.coef = non_negative(config, "epo_coef")
        self.high = non_negative(config, "epo_high")
        self.low = checked(
            config, "epo_low", lambda low: 0 <= low < self.high, f"in [0, `epo_high`), which is {self.high!r}"
        )
        self.alpha = non_negative(config, "epo_alpha")
        self.gamma = non_negative(config, "epo_gamma")
        self.step_mean = StepMean()
        self.history_total, self.history_steps = 0.0, 0

    def loss(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        finished = self.step_mean.add_tokens(tokens, tokens.entropy) if tokens.training else None
        if finished is not None:
            self.history_total += finished
            self.history_steps += 1
        term = turn_mean(tokens.entropy, tokens.mask).mean()
        penalty, logs = torch.zeros_like(tokens.entropy), {}
        if self.history_steps:
            history = self.history_total / self.history_steps
            penalty = corridor_penalty(tokens.entropy, history, self.low, self.high)
            weight = phase_weight(tokens.step, tokens.total_steps, self.gamma)
            term = term - weight * self.alpha * turn_mean(penalty, tokens.mask).mean()
            logs["history_entropy"] = torch.tensor(history, device=tokens.mask.device)
        return -self.coef * term, {"penalty_mean": penalty.detach(), "outside_fraction": penalty.detach() > 0, **logs}

    def state_dict(self):
        return {
            "history_total": self.history_total,
            "history_steps": self.history_steps,
            "step_mean": self.step_mean.state_dict(),
        }

    def load_state_dict(self, state):
        self.history_total, self.history_steps = state["history_total"], state["history_steps"]
        self.step_mean.load_state_dict(state["step_mean"])
