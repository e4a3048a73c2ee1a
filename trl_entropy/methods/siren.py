# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""SIREN: hold the entropy of the highest-entropy tokens near its starting value.

How it departs from GRPO:
1. Each token gets the entropy of its distribution renormalized on the nucleus (top-p), which ignores the long tail.
2. In each sequence only the tokens above a quantile of that entropy count: the peaks.
3. The squared distance of the peaks' mean from an anchor is added to the loss, with gradient through the nucleus.
4. The anchor is the peaks' mean in the first optimizer step. It never changes.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..functional import StepMean, row_quantiles
from ..knob import Knob
from ..paper import Paper
from ..settings import checked, non_negative, one_of
from ..signs import Sign
from ..tokens import TokenBatch
from .base import Logs, Method


EMA_DECAY = 0.9  # per micro-batch: our choice; the released code has no running mean


@dataclass
class SirenConfig:
    siren_coef: float = field(default=0.005, metadata={"help": "SIREN: coefficient of the squared distance."})
    siren_top_p: float = field(default=0.8, metadata={"help": "SIREN: mass of the nucleus, in (0, 1)."})
    siren_quantile: float = field(
        default=0.8, metadata={"help": "SIREN: quantile of a sequence's nucleus entropies above which a token counts."}
    )
    siren_nucleus: Literal["exclude", "include"] = field(
        default="exclude",
        metadata={
            "help": "SIREN: whether the vocabulary entry that crosses the mass belongs to the nucleus. `exclude` as "
            "in the released code, for which the default coefficient is set."
        },
    )
    siren_square: Literal["micro_batch", "ema"] = field(
        default="micro_batch",
        metadata={
            "help": "SIREN: distance that is squared: of one micro-batch, or of a running mean (`ema`), which "
            "excludes the variance between micro-batches."
        },
    )


def peak_mask(nucleus_entropy: Tensor, mask: Tensor, quantile: float) -> Tensor:
    """(B, T) nucleus entropies -> (B, T) bool: strictly above the quantile of the row's valid tokens."""
    return mask & (nucleus_entropy > row_quantiles(nucleus_entropy, mask, quantile))


def peak_entropy(nucleus_entropy: Tensor, peaks: Tensor) -> Tensor:
    """(B, T) -> (B,) mean nucleus entropy of each row's peaks, with gradient; 0 for a row without peaks."""
    return nucleus_entropy.masked_fill(~peaks, 0).sum(1) / peaks.sum(1).clamp(min=1)


class Siren(Method):
    """Anchors the entropy of the peaks: L = L_policy + β (E - E_anchor)².

        H_S = -Σ_{i∈S} q_i log q_i,  q = π / π(S) on the nucleus S
        E   = mean over sequences of the mean of H_S over {t : H_S > τ-quantile of the sequence}

    Follows the released code. Departs from it: E is the mean over the sequences of all processes; only valid tokens
    can be peaks; the term starts in the second optimizer step, when the anchor is known.
    """

    name = "siren"
    summary = "holds the top-p entropy of high-entropy tokens near its starting value"
    checked_against = "the released code's formulas"
    config = SirenConfig
    knob = Knob("siren_coef", "coef", low=1e-5, high=100.0, start=1.0, most=1.0)
    needs = ("nucleus_entropy",)
    paper = Paper(
        "2509.25133",
        "Rethinking Entropy Regularization in Large Reasoning Models",
        """@article{jiang2025rethinking,
    title   = {Rethinking Entropy Regularization in Large Reasoning Models},
    author  = {Yuxian Jiang and Yafu Li and Guanxu Chen and Dongrui Liu and Yu Cheng and Jing Shao},
    journal = {arXiv preprint arXiv:2509.25133},
    year    = {2025}
}""",
    )
    off = ({"siren_coef": 0},)
    idle = (Sign({"peak_fraction": (0, 0)}, "lower `siren_quantile`: no token counts as a peak"),)

    def __init__(self, config):
        self.coef = non_negative(config, "siren_coef")
        self.top_p = checked(config, "siren_top_p", lambda value: 0 < value < 1, "a mass in (0, 1)")
        self.quantile = checked(config, "siren_quantile", lambda value: 0 <= value < 1, "a quantile in [0, 1)")
        self.nucleus = one_of(config, "siren_nucleus", "exclude", "include")
        self.square = one_of(config, "siren_square", "micro_batch", "ema")
        self.anchor: float | None = None
        self.average: float | None = None
        self.first_step = StepMean()

    def head_settings(self):
        return {"top_p": self.top_p, "nucleus_rule": self.nucleus}

    def loss(self, tokens: TokenBatch) -> tuple[Tensor | None, Logs]:
        peaks = peak_mask(tokens.nucleus_entropy.detach(), tokens.mask, self.quantile)
        rows = peak_entropy(tokens.nucleus_entropy, peaks)
        # A row with an overflow has peaks among its other tokens, but no mean that counts.
        broken = (~(tokens.nucleus_entropy + tokens.entropy).isfinite() & tokens.mask).any(1)
        measured = rows.detach().masked_fill(broken, torch.nan)
        total, count = tokens.world.sum(torch.stack([measured.sum(), rows.new_tensor(len(rows))]))
        entropy = total / count
        if tokens.training:
            self._measure(tokens, measured, entropy.item())
        logs = {
            "peak_fraction": peaks,
            "selected_tokens": peaks,
            "peak_entropy": measured,
            "nucleus_entropy_mean": tokens.nucleus_entropy,
        }
        if self.anchor is None:
            return None, logs
        logs["anchor"] = torch.tensor(self.anchor, device=tokens.mask.device)
        at = self.average if self.square == "ema" and self.average is not None else entropy
        distance = at - self.anchor
        # Gradient of the squared mean over all processes; each process contributes that of its own rows.
        mean = rows.mean()
        return self.coef * (distance**2 + 2 * distance * (mean - mean.detach())), logs

    def _measure(self, tokens: TokenBatch, rows: Tensor, entropy: float) -> None:
        if self.anchor is None:
            self.anchor = self.first_step.add(tokens.step, rows.sum(), len(rows), tokens.world)
        if math.isfinite(entropy):  # one overflowing forward must not stay in the average
            self.average = entropy if self.average is None else EMA_DECAY * self.average + (1 - EMA_DECAY) * entropy

    def state_dict(self):
        return {"anchor": self.anchor, "average": self.average, "first_step": self.first_step.state_dict()}

    def load_state_dict(self, state):
        self.anchor, self.average = state["anchor"], state["average"]
        self.first_step.load_state_dict(state["first_step"])
