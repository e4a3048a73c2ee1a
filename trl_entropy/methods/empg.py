# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""EMPG, entropy-modulated policy gradients: reinforce most the steps of an agent in which it was confident.

How it departs from GRPO:
1. A completion is a sequence of steps. A step is the text that the policy writes between two tool results. Its entropy
   is the mean over its tokens, min-max normalized over all steps of the generation batch.
2. The advantage of a step is multiplied by a factor that falls with its entropy. The mean factor over steps is 1.
3. A step gets a bonus that falls with the entropy of the next step.
4. The mean over all steps is subtracted.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..collectives import SINGLE_PROCESS, Collectives
from ..functional import masked_max, masked_mean
from ..paper import Paper
from ..settings import checked, flag, non_negative
from ..signs import Sign
from ..tokens import Rollouts
from .base import Logs, Method
from .pieces import Pieces


@dataclass
class EmpgConfig:
    empg_k: float = field(
        default=1.0, metadata={"help": "EMPG: how fast a step's weight falls with its normalized entropy."}
    )
    empg_k_future: float = field(
        default=1.0, metadata={"help": "EMPG: how fast the bonus falls with the normalized entropy of the next step."}
    )
    empg_zeta: float = field(
        default=0.05, metadata={"help": "EMPG: coefficient of the bonus for a confident next step."}
    )
    empg_splitter: str | None = field(
        default=None,
        metadata={
            "help": "EMPG: text that also ends a step, such as a blank line, to split completions of a single turn. "
            "Not in the paper."
        },
    )
    empg_skip_uniform: bool = field(
        default=False,
        metadata={
            "help": "EMPG: set advantages to 0 in groups whose rewards are all equal. In the paper the bonus remains."
        },
    )


def ends_of(pieces: list[str], splitter: str) -> list[int]:
    """Texts of the tokens -> indices of the tokens in which an occurrence of `splitter` ends."""
    ends: list[int] = []
    text, found, at = "".join(pieces), [], 0
    for piece in pieces:
        ends.append((ends[-1] if ends else 0) + len(piece))
    while (at := text.find(splitter, at)) >= 0:
        at += len(splitter)
        found.append(next(index for index, end in enumerate(ends) if end >= at))
    return found


def step_index(mask: Tensor, breaks: Tensor) -> Tensor:
    """(B, T) mask, (B, T) bool "a step ends here" -> (B, T) index of the step in its row, valid inside `mask`."""
    before = torch.zeros_like(mask)
    before[:, 1:] = mask[:, :-1] & ~breaks[:, :-1]
    return ((mask & ~before).cumsum(1) - 1).clamp(min=0)


def step_means(values: Tensor, mask: Tensor, index: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(B, T) values, mask and step indices -> (B, S) mean of each step, (B, S) bool: the step has a token."""
    counts = values.new_zeros(len(values), steps).scatter_add(1, index, mask.to(values))
    sums = values.new_zeros(len(values), steps).scatter_add(1, index, values.masked_fill(~mask, 0))
    return sums / counts.clamp(min=1), counts > 0


def modulated(
    advantages: Tensor,
    entropy: Tensor,
    valid: Tensor,
    k: float,
    k_future: float,
    zeta: float,
    world: Collectives = SINGLE_PROCESS,
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, S) advantages and entropies of steps -> (B, S) factor g, (B, S) bonus ζ f, mean of A g + ζ f over steps."""
    smallest, largest = -masked_max(-entropy, valid, world), masked_max(entropy, valid, world)
    normalized = ((entropy - smallest) / (largest - smallest + 1e-8)).masked_fill(~valid, 0)
    confidence = torch.exp(-k * normalized)
    factor = confidence / (masked_mean(confidence, valid, world) + 1e-8)
    bonus = torch.zeros_like(entropy)
    bonus[:, :-1] = zeta * torch.exp(-k_future * normalized[:, 1:]) * valid[:, 1:]
    return factor, bonus, masked_mean(advantages * factor + bonus, valid, world)


class Empg(Method):
    """Weights steps by the policy's confidence and adds a bonus for a confident next step.

        A_t = A g(H_t) + ζ f(H_t+1) - mean over all steps
        g(H_t) = exp(-k Ĥ_t) / mean exp(-k Ĥ),  f(H_t+1) = exp(-k' Ĥ_t+1), 0 for the last step
        Ĥ = (H - min) / (max - min)

    Entropies are those of the old policy. Extremes and means run over steps, not tokens, and over the generation batch
    of all processes. A public port takes them over single tokens, padding included; we follow the equations.
    Completions without a reward are excluded from them and get advantage 0. `empg_splitter` and `empg_skip_uniform`
    are extensions.
    """

    name = "empg"
    summary = "scales the advantage of an agent's steps by its certainty"
    checked_against = "formulas from paper notes and code"
    config = EmpgConfig
    no_knob = "its settings hardly move entropy"
    paper = Paper(
        "2509.09265",
        "Harnessing Uncertainty: Entropy-Modulated Policy Gradients for Long-Horizon LLM Agents",
        """@article{wang2025harnessing,
    title   = {Harnessing Uncertainty: Entropy-Modulated Policy Gradients for Long-Horizon LLM Agents},
    author  = {Jiawei Wang and Jiacai Liu and Yuqian Fu and Yingru Li and Xintao Wang and Yuan Lin and Yu Yue
               and Lin Zhang and Yang Wang and Ke Wang},
    journal = {arXiv preprint arXiv:2509.09265},
    year    = {2025}
}""",
    )
    needs = ("rollout_entropy",)
    excludes = {"agentic_aepo": "EMPG damps steps of high entropy and agentic AEPO amplifies tokens of high entropy"}
    idle = (
        Sign(
            {"weight_min": (1, 1), "weight_max": (1, 1)},
            "raise `empg_k`, or set `empg_splitter`: all steps have one weight",
        ),
    )

    def __init__(self, config):
        self.k = non_negative(config, "empg_k")
        self.k_future = non_negative(config, "empg_k_future")
        self.zeta = non_negative(config, "empg_zeta")
        self.splitter = checked(
            config, "empg_splitter", lambda value: value is None or (isinstance(value, str) and value != ""), "a text"
        )
        self.skip_uniform = flag(config, "empg_skip_uniform")

    def check(self, config) -> list[str]:
        if self.k or self.zeta:
            return []
        return ["Method 'empg' only subtracts the mean over steps, since `empg_k` and `empg_zeta` are 0."]

    def setup(self, decode):
        self._pieces = Pieces(decode)

    def _breaks(self, rollouts: Rollouts) -> Tensor:
        """(B, T) bool: tokens that end a step inside a turn."""
        breaks = torch.zeros_like(rollouts.mask)
        if self.splitter is None:
            return breaks
        for row, (ids, kept) in enumerate(zip(rollouts.completion_ids.tolist(), rollouts.mask.tolist(), strict=True)):
            breaks[row, ends_of(self._pieces(ids, kept), self.splitter)] = True
        return breaks

    def group_advantages(self, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        mask = rollouts.mask
        if rollouts.rewards is not None:  # completions without a reward do not count
            mask = mask & ~rollouts.rewards.isnan().unsqueeze(1)
        index = step_index(mask, self._breaks(rollouts))
        steps = int(index.max()) + 2  # one extra, so that every step has a next one
        entropy, valid = step_means(rollouts.entropy, mask, index, steps)
        advantages, _ = step_means(rollouts.advantages, mask, index, steps)
        factor, bonus, mean = modulated(advantages, entropy, valid, self.k, self.k_future, self.zeta, rollouts.world)
        factor = factor.gather(1, index).masked_fill(~mask, torch.nan)
        step_entropy = entropy.masked_select(valid)
        logs = {
            "steps": valid.sum(1),
            "step_entropy": step_entropy,
            "step_entropy_min": step_entropy,
            "step_entropy_max": step_entropy,
            "weight_max": factor,
            "weight_min": factor,
        }
        found = rollouts.advantages * factor + bonus.gather(1, index) - mean
        found = found.masked_fill(~mask, 0).to(rollouts.advantages.dtype)
        if self.skip_uniform:
            found = found.masked_fill(rollouts.uniform_groups().unsqueeze(1), 0)
        return found, logs
