# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Branching rollouts of agentic AEPO and ARPO: sample again after tool results that leave the policy uncertain.

How it departs from GRPO:
1. Only some of the G completions of a prompt begin at the prompt.
2. After a tool result, a completion may branch: a new one shares its tokens up to there. How much the entropy of the
   turn that called the tool exceeds that of the path's first turn decides, together with a random draw.
3. Places that no branch has taken when all completions of a prompt have ended are sampled from the prompt. Each prompt
   has G completions, as before, and the loss does not change.

With `methods: [agentic_aepo, branching]` this is agentic AEPO, with `branching_rule: arpo` it is ARPO.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from ..paper import Paper
from ..settings import checked, flag, non_negative, one_of
from ..signs import Sign
from ..turns import BranchPlan, Turn
from .base import Method


ENGINE_LOGPROBS = 20  # of a token: vLLM's `max_logprobs`, which TRL leaves at its default


@dataclass
class BranchingConfig:
    branching_rule: Literal["aepo", "arpo"] = field(
        default="aepo",
        metadata={
            "help": "Branching: the rule. `aepo` penalizes consecutive branchings, `arpo` is the rule that it "
            "developed from."
        },
    )
    branching_initial: int | None = field(
        default=None,
        metadata={"help": "Branching: completions per prompt that begin at the prompt. None: half of them."},
    )
    branching_dynamic: bool = field(
        default=False,
        metadata={
            "help": "Branching: let the entropies of a first completion of each prompt decide how many begin at the "
            "prompt. Costs the time of one completion per generation batch."
        },
    )
    branching_weight: float = field(
        default=0.2, metadata={"help": "Branching: weight of the entropy difference in the branching probability."}
    )
    branching_probability: float = field(
        default=0.5,
        metadata={
            "help": "Branching: threshold of the rule, in (0, 1). At equal entropies `arpo` branches with this "
            "probability, and `aepo` with 1 minus this."
        },
    )
    branching_penalty: float = field(
        default=0.05,
        metadata={"help": "Branching: with rule `aepo`, reduction for each consecutive branching, in [0, 1]."},
    )
    branching_scope: Literal["path", "prompt"] = field(
        default="path",
        metadata={
            "help": "Branching: what consecutive branchings are counted along. `path`: the turns of a completion. "
            "`prompt`: the rounds of a prompt, as in the released code."
        },
    )
    branching_width: int = field(
        default=2,
        metadata={"help": "Branching: completions that a branching turn continues in, its own included."},
    )
    branching_tokens: int = field(
        default=20, metadata={"help": "Branching: how many tokens at the beginning of a turn its entropy sums."}
    )
    branching_slope: float = field(
        default=0.5,
        metadata={"help": "Branching: with `branching_dynamic`, how strongly entropies move the number of roots."},
    )
    branching_logprobs: int = field(
        default=10,
        metadata={"help": "Branching: with vLLM, how many of the likeliest tokens give the entropy of a token."},
    )


def turn_entropy(entropies: Sequence[float], tokens: int, vocabulary: int) -> float:
    """H̃ = (1 / ln V) Σ H_j over the first `tokens` entropies (nats) of a turn. A sum, so it can exceed 1."""
    return math.fsum(entropies[:tokens]) / math.log(vocabulary)


def aepo_branches(
    draw: float, delta: float, consecutive: int, weight: float, probability: float, penalty: float
) -> bool:
    """Whether clip((u + w ΔH) max(0, 1 - ρ l), 0, 1) >= τ."""
    score = (draw + weight * delta) * max(0.0, 1 - penalty * consecutive)
    return min(max(score, 0.0), 1.0) >= probability


def arpo_branches(draw: float, delta: float, weight: float, probability: float) -> bool:
    """Whether clip(u - w ΔH, 0, 1) <= τ."""
    return min(max(draw - weight * delta, 0.0), 1.0) <= probability


def initial_rollouts(root: float, turns: float, group: int, slope: float) -> int:
    """m = clip(int(G σ(β (H̃_root - mean H̃_turns))) + 1, 1, G) rollouts that begin at the prompt."""
    gap = slope * (root - turns)
    share = 1 / (1 + math.exp(-gap)) if gap >= 0 else math.exp(gap) / (1 + math.exp(gap))
    return min(max(int(group * share) + 1, 1), group)


class Branching(Method):
    """Branches rollouts after tool results.

        AEPO: branch if clip((u + w ΔH) max(0, 1 - 0.05 l), 0, 1) >= τ,   u ~ U(0, 1)
        ARPO: branch if clip(u - w ΔH, 0, 1) <= τ

    ΔH is the normalized entropy of the turn that called the tool minus that of the first turn of the path, and l the
    number of consecutive branchings before it. Departs from the released code:
    1. l is counted along the path, because the paper motivates it by branches that gather on one to three paths.
       `branching_scope: prompt` counts rounds of a prompt. In the code l changes only in rounds with a branch.
    2. The reference turn of a branch is its parent's first turn. In the code it is the branch's own first turn.
    3. Places left over are filled at once; the code adds one completion per round.
    4. No completion is ever duplicated; the code copies the last one until there are G.
    5. With `branching_dynamic` the first completion stays; the code throws it away.
    6. The draw depends on seed, generation batch, row and turn alone, so a resumed run repeats it.

    The paper's printed rule has constants that we could not read; the forms above are the released code's.
    """

    name = "branching"
    summary = "branches rollouts with tools after uncertain turns"
    checked_against = "formulas from public copies of the released codes"
    config = BranchingConfig
    needs = ("branched_rollouts",)
    no_knob = "it acts on which completions exist"
    paper = Paper(
        "2507.19849",
        "Agentic Reinforced Policy Optimization",
        """@article{dong2025agenticreinforced,
    title   = {Agentic Reinforced Policy Optimization},
    author  = {Guanting Dong and Hangyu Mao and Kai Ma and Licheng Bao and Yifei Chen and Zhongyuan Wang
               and Zhongxia Chen and Jiazhen Du and Huiyang Wang and Fuzheng Zhang and Guorui Zhou and Yutao Zhu
               and Ji-Rong Wen and Zhicheng Dou},
    journal = {arXiv preprint arXiv:2507.19849},
    year    = {2025}
}""",
    )
    idle = (
        Sign({"branches": (0, 0)}, "lower `branching_initial`, or check that completions call tools: none branches"),
    )

    def __init__(self, config):
        self.rule = one_of(config, "branching_rule", "aepo", "arpo")
        whole = "a whole number >= 1"
        self.initial = checked(
            config, "branching_initial", lambda value: value is None or is_count(value, 1), f"{whole}, or none"
        )
        self.dynamic = flag(config, "branching_dynamic")
        self.weight = non_negative(config, "branching_weight")
        self.probability = checked(config, "branching_probability", lambda value: 0 < value < 1, "a number in (0, 1)")
        self.penalty = checked(config, "branching_penalty", lambda value: 0 <= value <= 1, "a number in [0, 1]")
        self.tokens = checked(config, "branching_tokens", lambda value: is_count(value, 1), whole)
        self.slope = non_negative(config, "branching_slope")
        scope = one_of(config, "branching_scope", "path", "prompt")
        width = checked(config, "branching_width", lambda value: is_count(value, 2), "a whole number >= 2")
        logprobs = checked(config, "branching_logprobs", lambda value: is_count(value, 1), whole)
        self.plan = BranchPlan(width=width, per_prompt=scope == "prompt", top_logprobs=logprobs)

    def check(self, config) -> list[str]:
        group = config.num_generations
        for name in ("branching_initial", "branching_width"):
            accepted = f"at most `num_generations` ({group})"
            checked(config, name, lambda value: value is None or value <= group, accepted)
        self._check_engine(config)
        rows = config.per_device_train_batch_size * config.steps_per_generation
        if rows % group:
            raise ValueError(
                "`per_device_train_batch_size` times `steps_per_generation` must be divisible by `num_generations` "
                f"({group}) with method 'branching', so that no group spans processes, got {rows}."
            )
        return self._warnings(config)

    def _check_engine(self, config) -> None:
        """Raises `ValueError` for an engine whose calls the processes must make together, or without entropies."""
        kwargs = config.generation_kwargs or {}
        if kwargs.get("do_sample") is False or kwargs.get("temperature") == 0:
            raise ValueError(
                "`generation_kwargs` must sample with method 'branching', because greedy branches of a completion are "
                f"identical, got {config.generation_kwargs!r}."
            )
        if config.use_transformers_continuous_batching:
            raise ValueError(
                "`use_transformers_continuous_batching` must be false with method 'branching', which records "
                "entropies during generation, got True."
            )
        if not config.use_vllm:
            return
        together = "because processes make different numbers of calls"
        if config.vllm_mode == "server" and config.world_size > 1:
            raise ValueError(
                f"`vllm_mode` must be 'colocate' with method 'branching' and {config.world_size} processes, "
                f"{together}, got 'server'."
            )
        if config.vllm_mode == "colocate" and config.vllm_tensor_parallel_size > 1:
            raise ValueError(
                f"`vllm_tensor_parallel_size` must be 1 with method 'branching', {together}, got "
                f"{config.vllm_tensor_parallel_size}."
            )
        if config.vllm_mode == "colocate" and self.plan.top_logprobs > ENGINE_LOGPROBS:
            raise ValueError(
                f"`branching_logprobs` must be at most {ENGINE_LOGPROBS} with `vllm_mode` 'colocate', whose engine "
                f"gives no more, got {self.plan.top_logprobs}."
            )

    def _warnings(self, config) -> list[str]:
        found = []
        if config.max_tool_calling_iterations == 1:
            found.append(
                "`max_tool_calling_iterations` is 1: with method 'branching', a branch then has no further tool turn."
            )
        if not self.dynamic and self.initial == config.num_generations:
            found.append(
                "`branching_initial` is `num_generations`: method 'branching' does nothing, because no place is free."
            )
        idle = {
            "branching_penalty": self.rule == "arpo" and "`branching_rule` is 'arpo'",
            "branching_initial": self.dynamic and "`branching_dynamic` decides how many completions begin at a prompt",
            "branching_slope": not self.dynamic and "`branching_dynamic` is false",
            "branching_logprobs": not config.use_vllm and "`use_vllm` is false",
        }
        for name, reason in idle.items():
            value = getattr(config, name)
            if reason and value != getattr(BranchingConfig, name):
                found.append(f"`{name}` is set to {value!r}, but {reason}: it does nothing.")
        return found

    def turn_entropy(self, entropies: Sequence[float], vocabulary: int) -> float:
        return turn_entropy(entropies, self.tokens, vocabulary)

    def roots(self, group: int, turns: Sequence[float] | None) -> int | None:
        if self.dynamic:
            return None if turns is None else initial_rollouts(turns[0], fmean(turns), group, self.slope)
        return max(group // 2, 1) if self.initial is None else self.initial

    def branches(self, turn: Turn) -> bool:
        delta = turn.entropy - turn.reference
        if self.rule == "arpo":
            return arpo_branches(turn.draw, delta, self.weight, self.probability)
        return aepo_branches(turn.draw, delta, turn.consecutive, self.weight, self.probability, self.penalty)


def is_count(value: object, least: int) -> bool:
    return type(value) is int and value >= least
