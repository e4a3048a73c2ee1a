# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""PEAR, phase entropy aware reward: reward correct answers less the more entropy their thinking has.

How it departs from GRPO:
1. A completion has two phases, before and after `</think>`. The penalty is the mean entropy of the first minus that of
   the second, at least 0.
2. The reward is 1 minus the penalty for a correct answer, and a fixed format reward for a wrong one.
3. From the reward on, training is GRPO. High-entropy thinking is penalized, so completions get shorter.
"""

import math
import warnings
from dataclasses import dataclass, field

import torch

from ..paper import Paper
from ..settings import checked, name_or_none
from ..signs import Sign
from .base import Logs, Method
from .pieces import Pieces


PROMPT_TAIL = 16  # last tokens of a prompt in which to look for a tag that a template closes


@dataclass
class PearConfig:
    pear_alpha: float = field(
        default=1.0,
        metadata={"help": "PEAR: weight of the answer's entropy, which is subtracted from that of the thinking."},
    )
    pear_scale: float = field(
        default=1.0, metadata={"help": "PEAR: reward of a correct answer without penalty, in (0, 1]."}
    )
    pear_format_reward: float = field(default=0.0, metadata={"help": "PEAR: reward of a wrong answer, in [0, 1)."})
    pear_floor: float | None = field(
        default=None,
        metadata={"help": "PEAR: smallest reward of a correct answer. None: no bound, as in the paper."},
    )
    pear_think_end: str = field(
        default="</think>", metadata={"help": "PEAR: tag that ends the thinking phase; one token or several."}
    )
    pear_reward: str | None = field(
        default=None,
        metadata={
            "help": "PEAR: reward function that says whether an answer is correct (at least 0.5). Its reward is "
            "replaced. None: the only one."
        },
    )


def tag_span(pieces: list[str], tag: str) -> tuple[int, int] | None:
    """Texts of the tokens -> index of the first token of the first `tag` and of the token after it, or `None`."""
    at = "".join(pieces).find(tag)
    if at < 0:
        return None
    ends, end = [], 0
    for piece in pieces:
        end += len(piece)
        ends.append(end)
    first = next(index for index, end in enumerate(ends) if end > at)
    return first, next(index for index, end in enumerate(ends) if end >= at + len(tag)) + 1


def mean(values: list[float], kept: list[bool]) -> float:
    own = [value for value, keep in zip(values, kept, strict=True) if keep]
    return math.fsum(own) / len(own) if own else 0.0


def phase_entropies(values: list[float], kept: list[bool], span: tuple[int, int] | None) -> tuple[float, float]:
    """Token entropies (nats) -> means over the kept tokens before and after the tag (eq. 6); 0 for an empty phase.

    Without a tag, k = T: all tokens but the last are thinking, and the answer is empty.
    """
    start, stop = (len(values) - 1, len(values)) if span is None else span
    start = max(start, 0)
    return mean(values[:start], kept[:start]), mean(values[stop:], kept[stop:])


def pear_penalty(think: float, answer: float, alpha: float) -> float:
    """P = max(0, H_think - α H_answer) (eq. 7)."""
    return max(0.0, think - alpha * answer)


def pear_reward(correct: bool, penalty: float, scale: float, format_reward: float, floor: float | None) -> float:
    """min(1, s - P), but at least the floor, for a correct answer, else the format reward (eq. 8)."""
    if not correct:
        return format_reward
    reward = min(1.0, scale - penalty)
    return reward if floor is None else max(reward, floor)


class Pear(Method):
    """Shapes the accuracy reward by the entropies of the thinking and answer phases.

        r = min(1, s - P) if the answer is correct, else r_format;   P = max(0, H_think - α H_answer)    (eqs. 6-8)

    Entropies are those of the old policy at the sampling temperature; tool results count in neither phase. Written
    from two independent accounts of the paper; we do not know s and r_format of the authors' code. Extensions:
    `pear_floor`, and prompts that end in the tag (a template without thinking): there the whole completion is the
    answer and the penalty is 0.
    """

    name = "pear"
    summary = "rewards correct answers less the more entropy their thinking has"
    checked_against = "formulas from paper notes"
    config = PearConfig
    no_knob = "it acts on rewards and on completion length"
    paper = Paper(
        "2510.08026",
        "PEAR: Phase Entropy Aware Reward for Efficient Reasoning",
        """@article{huang2025pear,
    title   = {PEAR: Phase Entropy Aware Reward for Efficient Reasoning},
    author  = {Chen Huang and Wei Lu and Wenxuan Zhang},
    journal = {arXiv preprint arXiv:2510.08026},
    year    = {2025}
}""",
    )
    shapes_reward = True
    idle = (
        Sign(
            {"penalty": (0, 0)},
            "lower `pear_alpha`, or check `pear_think_end`: thinking never has more entropy than the answer",
        ),
    )
    strong = (Sign({"below_format_fraction": (0.5, 1)}, "set `pear_floor`: right answers get less than wrong ones"),)

    def __init__(self, config):
        self.alpha = checked(config, "pear_alpha", math.isfinite, "a finite number")
        self.scale = checked(config, "pear_scale", lambda value: 0 < value <= 1, "a reward in (0, 1]")
        self.format_reward = checked(config, "pear_format_reward", lambda value: 0 <= value < 1, "a reward in [0, 1)")
        self.floor = checked(
            config,
            "pear_floor",
            lambda value: value is None or value <= self.scale,
            f"at most `pear_scale` ({self.scale})",
        )
        self.tag = checked(config, "pear_think_end", lambda value: isinstance(value, str) and value != "", "a text")
        self.shaped_reward = name_or_none(config, "pear_reward")
        self._warned = False

    def check(self, config) -> list[str]:
        whitens = config.multi_objective_aggregation == "normalize_then_sum"  # also with `scale_rewards: none`
        if config.scale_rewards == "none" and not whitens:
            return []
        setting = "multi_objective_aggregation" if whitens else "scale_rewards"
        return [
            f"With `{setting}` {getattr(config, setting)!r}, method 'pear' turns entropy differences of 0.001 nats "
            "into advantages of order 1 if all completions are correct. Such differences are below the noise of "
            "bfloat16. `scale_rewards: none` with `sum_then_normalize` keeps these advantages small."
        ]

    def setup(self, decode):
        self._decode, self._pieces = decode, Pieces(decode)

    def _closes(self, prompt: list[int]) -> bool:
        """Whether a prompt ends in the tag."""
        closes = self._decode(list(prompt[-PROMPT_TAIL:])).rstrip().endswith(self.tag)
        if closes and not self._warned:
            warnings.warn(
                f"A prompt ends in `pear_think_end` ({self.tag!r}): method 'pear' takes the whole completion as the "
                "answer, with penalty 0.",
                stacklevel=2,
            )
            self._warned = True
        return closes

    def reward(  # type: ignore[override] # it names the columns that it takes
        self, rewards, prompt_ids, completion_ids, token_entropies, token_mask, **columns
    ) -> tuple[list[float | None], Logs]:
        names = ("think_entropy", "answer_entropy", "penalty", "accuracy", "below_format_fraction")
        found: dict[str, list[float]] = {name: [] for name in names}
        shaped = []
        for given, prompt, ids, values, kept in zip(
            rewards, prompt_ids, completion_ids, token_entropies, token_mask, strict=True
        ):
            closed = self._closes(prompt)
            span = (0, 0) if closed else tag_span(self._pieces(ids, kept), self.tag)
            think, answer = phase_entropies(values, kept, span)
            penalty = 0.0 if closed else pear_penalty(think, answer, self.alpha)
            right = given >= 0.5
            reward = pear_reward(right, penalty, self.scale, self.format_reward, self.floor)
            shaped.append(None if math.isnan(given) else reward)
            below = float(reward < self.format_reward) if right else math.nan
            for key, value in zip(found, (think, answer, penalty, given, below), strict=True):
                found[key].append(value)
        return shaped, {key: torch.tensor(values) for key, values in found.items()}
