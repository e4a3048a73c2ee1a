# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a method sees of rollouts with tools while they are made, turn by turn.

A turn is what the policy writes between two tool results. A branch starts after a tool result: it has the tokens of
its parent up to there, and then a sample of its own.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """A turn that called a tool, whose result has come: a place at which the rollout may branch.

    Attributes:
        entropy: entropy of this turn, as the method's `turn_entropy` gives it.
        reference: the same of the first turn of the path.
        consecutive: how many turns before this one branched without a break, on the path or in the prompt's rounds.
        draw: a number in [0, 1), the same in a resumed run.
    """

    entropy: float
    reference: float
    consecutive: int
    draw: float


@dataclass(frozen=True)
class BranchPlan:
    """How rollouts branch.

    Attributes:
        width: rollouts that a branching turn continues in, its own included.
        per_prompt: `consecutive` counts rounds of a prompt, not turns of a path.
        top_logprobs: with vLLM, how many of the likeliest tokens give the entropy of a token.
    """

    width: int = 2
    per_prompt: bool = False
    top_logprobs: int = 10
