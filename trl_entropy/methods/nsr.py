# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""NSR, negative sample reinforcement, and W-REINFORCE: learn mostly from wrong answers.

How it departs from GRPO:
1. There is no baseline and no division: the advantage of a completion depends on its own reward alone.
2. Right completions weigh λ, wrong ones 1.
3. Groups of equal rewards count.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..paper import Paper
from ..settings import non_negative
from ..signs import Sign
from ..tokens import Rollouts
from .base import Logs
from .groups import Correctness, GroupMethod, LastingCondition


RARE = 0.05  # share of right completions


@dataclass
class NsrConfig:
    nsr_positive_weight: float = field(
        default=0.1,
        metadata={
            "help": "NSR: advantage of a right completion. 0 learns from wrong completions only; the paper recommends "
            "0.1, W-REINFORCE; 1 is REINFORCE with ±1."
        },
    )
    nsr_negative_weight: float = field(
        default=1.0,
        metadata={
            "help": "NSR: minus the advantage of a wrong completion. 0, with a positive weight of 1, is the paper's "
            "control, which learns from right completions only."
        },
    )
    nsr_threshold: float = field(
        default=0.5, metadata={"help": "NSR: a completion is right if its reward is above this."}
    )


class Nsr(GroupMethod):
    """Advantages by correctness alone.

        A = λ if right, -1 if wrong

    λ = 0 is NSR, 0.1 W-REINFORCE, 1 REINFORCE with ±1. Departs from the released code for NSR, which removes the right
    completions from the batch: here all completions stay in the denominators of the loss, so NSR's step is smaller by
    the share of wrong ones. W-REINFORCE keeps all of them there too. If few completions are right, almost all of the
    gradient is negative and entropy can explode. The clip at 1 - `epsilon` bounds it; the losses cispo and vespo bound
    negative advantages in other ways.
    """

    name = "nsr"
    summary = "wrong answers weigh 1, right ones little, without a group baseline"
    checked_against = "the paper's formulas"
    config = NsrConfig
    paper = Paper(
        "2506.01347",
        "The Surprising Effectiveness of Negative Reinforcement in LLM Reasoning",
        """@article{zhu2025surprising,
    title   = {The Surprising Effectiveness of Negative Reinforcement in LLM Reasoning},
    author  = {Xinyu Zhu and Mengzhou Xia and Zhepei Wei and Wei-Lin Chen and Danqi Chen and Yu Meng},
    journal = {arXiv preprint arXiv:2506.01347},
    year    = {2025}
}""",
    )
    idle = (Sign({"advantage_abs": (0, 0)}, "raise `nsr_positive_weight`: all advantages are 0"),)

    def __init__(self, config):
        self.positive = non_negative(config, "nsr_positive_weight")
        self.negative = non_negative(config, "nsr_negative_weight")
        if self.positive == 0 and self.negative == 0:
            raise ValueError(
                f"`nsr_negative_weight` must be above 0 if `nsr_positive_weight` is 0, got {self.negative!r}."
            )
        self.correct = Correctness(config, self.name)
        self._rare = LastingCondition(
            f"Fewer than {RARE:.0%} of the completions were right in 20 generation batches in a row, so method 'nsr' "
            "has almost only negative advantages and entropy can explode: set `beta` above 0, or a lower "
            "`learning_rate`."
        )

    def advantages(self, rewards: Tensor, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        right = self.correct(rewards, rollouts)
        found = torch.full_like(rewards, -self.negative).masked_fill(right, self.positive)
        fraction = right.double().masked_fill(rewards.isnan(), torch.nan).flatten()
        self._rare.update(fraction.nanmean().item() < RARE, rollouts)
        return found, {"correct_fraction": fraction}
