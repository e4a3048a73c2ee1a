# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""RL-ZVP: prompts whose completions are all right or all wrong teach by the entropy of their tokens.

How it departs from GRPO:
1. If all completions of a prompt are right, each token gets an advantage in proportion to its entropy.
2. If all are wrong, each token gets a negative advantage, in proportion to how far its entropy is below the largest of
   its completion.
3. All other groups are as before.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..paper import Paper
from ..settings import checked
from ..signs import Sign
from ..tokens import Rollouts
from .base import Logs, Method
from .groups import Correctness, LastingCondition


BROKEN = 0.8  # share of groups that are all wrong
WEIGHING = ("empg", "agentic_aepo")  # methods that weigh the advantages of a generation batch


@dataclass
class RlZvpConfig:
    rl_zvp_coef: float = field(
        default=0.1,
        metadata={"help": "RL-ZVP: α, above 0: advantage per nat of entropy in groups of equal rewards."},
    )
    rl_zvp_threshold: float = field(
        default=0.5,
        metadata={"help": "RL-ZVP: a group of equal rewards is right if its reward is above this, else wrong."},
    )


def uniform_signs(rewards: Tensor, right: Tensor) -> Tensor:
    """(P, G) rewards, NaN if missing, and bool -> (P, G) 1 in groups that are all right, -1 all wrong, 0 in others.

    Groups of different rewards or of fewer than two are others, and so are completions without a reward.
    """
    given = ~rewards.isnan()
    lowest = rewards.masked_fill(~given, torch.inf).amin(1, keepdim=True)
    highest = rewards.masked_fill(~given, -torch.inf).amax(1, keepdim=True)
    uniform = given & (lowest == highest) & (given.sum(1, keepdim=True) > 1)
    return torch.where(right, 1, -1).masked_fill(~uniform, 0)


def entropy_advantages(entropy: Tensor, mask: Tensor, signs: Tensor, coef: float) -> Tensor:
    """(B, T) entropies and mask, (B,) signs -> (B, T) α H at 1, -α (max H - H) at -1, 0 at 0 and outside the mask."""
    entropy = entropy.masked_fill(~mask, 0)
    largest = entropy.amax(1, keepdim=True)  # entropies are not negative
    signs = signs.unsqueeze(1)
    found = torch.where(signs > 0, coef * entropy, -coef * (largest - entropy))
    return found.masked_fill(~mask | (signs == 0), 0)


class RlZvp(Method):
    """Adds an advantage where the rewards of a group are all equal, and GRPO learns nothing.

        all right:  A_t += α H_t
        all wrong:  A_t -= α (max H - H_t),   the maximum over the tokens of the same completion

    The tokens of high entropy in solved prompts are reinforced, which lowers entropy there; in failed prompts they are
    spared and confident tokens are blamed, which raises it. H is the entropy of the old policy, fixed for the
    generation batch: our reading, since the paper may measure it again in each update. The default of α is that of
    public re-implementations. If a verifier is broken and all answers are wrong, the method trains on that. List it
    after methods that replace advantages and before those that weigh steps or tokens.
    """

    name = "rl_zvp"
    summary = "learns from prompts with equal rewards, by the entropy of their tokens"
    checked_against = "formulas from re-implementations"
    config = RlZvpConfig
    needs = ("rollout_entropy",)
    excludes = {"nsr": "NSR learns from groups of equal rewards already"}
    paper = Paper(
        "2509.21880",
        "No Prompt Left Behind: Exploiting Zero-Variance Prompts in LLM Reinforcement Learning via Entropy-Guided "
        "Advantage Shaping",
        """@article{le2025prompt,
    title   = {No Prompt Left Behind: Exploiting Zero-Variance Prompts in LLM Reinforcement Learning via
               Entropy-Guided Advantage Shaping},
    author  = {Thanh-Long V. Le and Myeongho Jeon and Kim Vu and Viet Lai and Eunho Yang},
    journal = {arXiv preprint arXiv:2509.21880},
    year    = {2025}
}""",
    )
    idle = (
        Sign(
            {"right_fraction": (0, 0), "wrong_fraction": (0, 0)},
            "leave 'rl_zvp' out of `methods`, or check `reward_funcs`: no group has equal rewards",
        ),
    )

    def __init__(self, config):
        self.coef = checked(config, "rl_zvp_coef", lambda value: 0 < value < float("inf"), "a finite number above 0")
        self.correct = Correctness(config, self.name)
        self._failed = LastingCondition(
            f"All completions of more than {BROKEN:.0%} of the prompts were wrong in 20 generation batches in a row, "
            "and method 'rl_zvp' trains on them: check the reward functions, or use easier prompts."
        )

    def check(self, config) -> list[str]:
        before = config.methods[: config.methods.index(self.name)]
        return [
            f"Method 'rl_zvp' adds to advantages that {name!r} has weighed already: list 'rl_zvp' before {name!r}."
            for name in before
            if name in WEIGHING
        ]

    @torch.no_grad()
    def group_advantages(self, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        rewards = rollouts.groups(rollouts.rewards)
        signs = uniform_signs(rewards, self.correct(rewards, rollouts))
        solved, failed = (signs > 0).any(1), (signs < 0).any(1)
        self._failed.update(failed.double().mean().item() > BROKEN, rollouts)
        own = rollouts.world.own(signs.flatten(), len(rollouts.mask))
        added = entropy_advantages(rollouts.entropy, rollouts.mask, own, self.coef).to(rollouts.advantages)
        uniform = (own != 0).unsqueeze(1)
        return torch.where(uniform, rollouts.advantages + added, rollouts.advantages), {
            "right_fraction": solved,
            "wrong_fraction": failed,
            "advantage_abs": added.abs().masked_fill(~uniform, torch.nan),
        }
