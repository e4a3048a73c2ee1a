# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""M2PO: clip only as much as the second moment of the log-ratio demands.

How it departs from GRPO:
1. One bound for each forward, the same in both directions of the log-ratio, replaces `epsilon` and `epsilon_high`.
2. It is read off the tokens whose ratio has moved in the direction of their advantage. Clipped at the bound, their
   squared log-ratios have a mean within a budget.
3. While their mean squared log-ratio is within the budget anyway, no token is clipped.

With one optimizer step per generation batch the log-ratio is 0, and M2PO is GRPO without a clip, which then clips
nothing either.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ..functional import accumulator_dtype
from ..paper import Paper
from ..settings import checked, one_of
from ..signs import Sign
from ..tokens import CLIPPING_LOSSES, TokenBatch
from .base import Bounds, Logs, Method


# Taken off squared log-ratios, as in the released code: the token on which the bound lies is then clipped
MARGIN = 1e-12


@dataclass
class M2poConfig:
    m2po_budget: float = field(
        default=0.04,
        metadata={
            "help": "M2PO: budget of the mean squared log-ratio (nats²) of tokens that have moved in the direction of "
            "their advantage."
        },
    )
    m2po_min_low: float | None = field(
        default=None,
        metadata={"help": "M2PO: the lower bound is at most 1 - this. The released code's scripts set none."},
    )
    m2po_min_high: float | None = field(
        default=None,
        metadata={"help": "M2PO: the upper bound is at least 1 + this. The released code's scripts set none."},
    )
    m2po_scope: Literal["micro_batch", "world"] = field(
        default="micro_batch",
        metadata={
            "help": "M2PO: tokens over which the mean is taken. `micro_batch`: one process' micro-batch. `world`: the "
            "micro-batches of all processes."
        },
    )


def harmful_squares(tokens: TokenBatch) -> Tensor:
    """(N,) squared log-ratios (nats²) of the valid tokens with A > 0, r > 1 or A < 0, r < 1.

    A log-ratio that is not finite counts too, so that it stays visible.
    """
    log_ratio = tokens.logps.detach() - tokens.old_logps
    harmful = log_ratio * tokens.advantages.sign() > 0
    chosen = tokens.mask & (harmful | ~log_ratio.isfinite())
    return log_ratio[chosen].to(accumulator_dtype(log_ratio.device)).square()


def largest_log_ratio(squares: Tensor, budget: float) -> Tensor:
    """(N,) squared log-ratios -> scalar τ: log-ratios beyond ±τ are clipped. inf within budget, NaN if not finite.

    Of the log-ratios in ascending order τ is the last one at which clipping keeps the mean square below the budget.
    """
    count = squares.numel()
    if count == 0:
        return squares.new_full((), torch.inf)
    ordered = squares.sort().values
    later = torch.arange(count - 1, -1, -1, device=squares.device)
    capped = ordered.cumsum(0) + (ordered - MARGIN) * later  # the sum if clipped at each of them; it never falls
    below = (capped < budget * count).sum()
    bound = torch.where(below > 0, ordered[(below - 1).clamp(min=0)] - MARGIN, 0.0).clamp(min=0).sqrt()
    mean = squares.mean()
    return torch.where(mean <= budget, torch.inf, torch.where(mean.isfinite(), bound, torch.nan))


def ratio_bounds(log_ratio: Tensor, min_low: float | None, min_high: float | None) -> tuple[Tensor, Tensor]:
    """Scalar τ -> scalars (low, high): e^-τ, e^τ, or the floors of the bounds if these are wider."""
    low, high = torch.exp(-log_ratio), torch.exp(log_ratio)
    low = low if min_low is None else low.clamp(max=1 - min_low)
    return low, high if min_high is None else high.clamp(min=1 + min_high)


class M2po(Method):
    """Clips at e^±τ, with τ from the tokens of the forward.

        D = {t : A_t > 0, r_t > 1  or  A_t < 0, r_t < 1},   x = (ℓ - ℓ_old)² on D, ascending,   n = |D|
        τ = ∞ if mean x <= budget;   else τ² = x_{k-1}, the last with Σ min(x, x_{k-1}) < budget·n (0 if none)

    Follows the released code's rule, which can undershoot the budget by much. Departs from it: the direction of a
    token is that of its own advantage, not of its sequence's first; squared log-ratios below 1e-12 give τ = 0. If a
    log-ratio is not finite, `epsilon` and `epsilon_high` hold for that forward.
    """

    name = "m2po"
    summary = "clips the ratio only as far as its second moment exceeds a budget"
    checked_against = "the released code's rule"
    config = M2poConfig
    paper = Paper(
        "2510.01161",
        "Prosperity before Collapse: How Far Can Off-Policy RL Reach with Stale Data on LLMs?",
        """@article{zheng2025prosperity,
    title   = {Prosperity before Collapse: How Far Can Off-Policy RL Reach with Stale Data on LLMs?},
    author  = {Haizhong Zheng and Jiawei Zhao and Beidi Chen},
    journal = {arXiv preprint arXiv:2510.01161},
    year    = {2025}
}""",
    )
    acts_on_ratio = True
    idle = (
        Sign({"clip_fraction": (0, 0)}, "lower `m2po_budget`, or set `num_iterations` above 1: no token is clipped"),
    )
    strong = (Sign({"clip_fraction": (0.3, 1)}, "raise `m2po_budget`, or lower `learning_rate`"),)

    def __init__(self, config):
        def positive(name, accepted="a finite number > 0", unset=False):
            return checked(config, name, lambda value: (unset and value is None) or 0 < value < torch.inf, accepted)

        self.budget = positive("m2po_budget")
        self.min_low = positive("m2po_min_low", "a finite number > 0, or none", unset=True)
        self.min_high = positive("m2po_min_high", "a finite number > 0, or none", unset=True)
        self.scope = one_of(config, "m2po_scope", "micro_batch", "world")

    def check(self, config) -> list[str]:
        self.require(config, "loss_type", *CLIPPING_LOSSES, why=", which sets their clip")
        self.require(config, "importance_sampling_level", "token", why=", which clips by token")
        return []

    @torch.no_grad()
    def clip_bounds(self, tokens: TokenBatch) -> tuple[Bounds, Logs]:
        own = harmful_squares(tokens)
        squares = tokens.scope(self.scope).gather(own)
        low, high = ratio_bounds(largest_log_ratio(squares, self.budget), self.min_low, self.min_high)
        bounds = {"clip_low": low, "clip_high": high}
        unclipped = high == torch.inf
        logs = {key: bound.masked_fill(unclipped, torch.nan) for key, bound in bounds.items()}
        clipped = replace(tokens, **bounds).clipped
        logs |= {
            "second_moment": own.masked_fill(~own.isfinite().all(), torch.nan),
            "clip_fraction": clipped,
            "selected_tokens": clipped,
            "unclipped_forwards": unclipped,
        }
        return (low, high), logs
