# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""ERC, entropy-ratio clipping: leave out tokens whose entropy moved too far since the rollout.

How it departs from GRPO:
1. One more mask: a token learns only if the ratio of its current to its old entropy lies between two bounds.
2. The mask is two-sided and does not depend on the sign of the advantage.
3. It comes on top of PPO's clip, which still applies.

Rounding alone can drop tokens. Two candidates 10 nats apart have an entropy of 0.0005 nats; half a bfloat16 step of
one logit (0.0625 at logits of 16 to 32) changes it by 5.5 %, beyond the default bounds. Most tokens of a trained model
are of this kind. In the first update of a generation batch `erc/dropped_fraction` should be 0: what it shows there is
rounding noise. Compare later updates with that number.
"""

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..paper import Paper
from ..settings import checked
from ..signs import Sign
from ..tokens import TokenBatch
from .base import Logs, Method


SMALLEST_ENTROPY = 1e-8  # nats, added to both entropies (released code)
MANY = 0.9  # ratio of dropped tokens above which a forward gives a warning


@dataclass
class ErcConfig:
    erc_low: float = field(
        default=0.95, metadata={"help": "ERC: ratio of current to old entropy above which a token learns, in (0, 1)."}
    )
    erc_high: float = field(
        default=1.05, metadata={"help": "ERC: ratio of current to old entropy below which a token learns, above 1."}
    )


def entropy_ratio(entropy: Tensor, old_entropy: Tensor) -> Tensor:
    """(B, T) H, (B, T) H_old in nats -> (B, T) ρ = (H + 1e-8) / (H_old + 1e-8), in float32 at least."""
    current, old = (
        value.to(torch.promote_types(value.dtype, torch.float32)).clamp(min=0) for value in (entropy, old_entropy)
    )
    return (current + SMALLEST_ENTROPY) / (old + SMALLEST_ENTROPY)


class Erc(Method):
    """Sets the advantage to 0 where the entropy ratio leaves its bounds.

        A_t <- A_t · 1[low < ρ_t < high],   ρ_t = (sg(H_t) + 1e-8) / (H_old,t + 1e-8)

    The released code detaches the loss of these tokens: the same gradient and denominators, another logged value.
    TRL's KL term stays. The authors also use it on top of CE-GPPO: `methods: [erc, ce_gppo]`.
    """

    name = "erc"
    summary = "skips tokens whose entropy moved too far since the rollout"
    checked_against = "the released code's formulas"
    config = ErcConfig
    paper = Paper(
        "2512.05591",
        "Entropy Ratio Clipping as a Soft Global Constraint for Stable Reinforcement Learning",
        """@article{su2025entropy,
    title   = {Entropy Ratio Clipping as a Soft Global Constraint for Stable Reinforcement Learning},
    author  = {Zhenpeng Su and Leiyu Pan and Minxuan Lv and Tiehua Mei and Zijia Lin and Yuntao Li and Wenping Hu
               and Ruiming Tang and Kun Gai and Guorui Zhou},
    journal = {arXiv preprint arXiv:2512.05591},
    year    = {2025}
}""",
    )
    needs = ("rollout_entropy", "rollout_logps")  # the latter: entropies recorded during generation round differently
    acts_on_ratio = True
    idle = (
        Sign(
            {"dropped_fraction": (0, 0)},
            "bring `erc_low` and `erc_high` closer to 1, or set `num_iterations` above 1: no entropy leaves them",
        ),
    )
    strong = (Sign({"dropped_fraction": (0.5, 1)}, "lower `erc_low` and raise `erc_high`"),)

    def __init__(self, config):
        self.low = checked(config, "erc_low", lambda low: 0 < low < 1, "a ratio of entropies in (0, 1)")
        self.high = checked(config, "erc_high", lambda high: 1 < high < float("inf"), "a finite ratio above 1")
        self.warned = False

    def check(self, config) -> list[str]:
        self.require(config, "importance_sampling_level", "token")
        return []

    @torch.no_grad()
    def token_advantages(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        ratio = entropy_ratio(tokens.entropy, tokens.old_entropy)
        kept = (ratio > self.low) & (ratio < self.high)
        dropped = ~kept & tokens.mask
        if not self.warned and tokens.training and dropped.sum() > MANY * tokens.mask.sum():
            self.warned = True
            warnings.warn(
                f"Method 'erc' drops {dropped.sum() / tokens.mask.sum():.0%} of the tokens of a forward: see "
                "`erc/dropped_fraction`, and widen `erc_low` and `erc_high` if it stays there.",
                stacklevel=2,
            )
        logs = {"dropped_fraction": dropped, "selected_tokens": dropped, "ratio": ratio}
        return torch.where(kept, tokens.advantages, 0), logs
