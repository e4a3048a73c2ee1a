# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""TIP: distill on the tokens where the student is uncertain or far from the teacher.

How it departs from on-policy distillation:
1. Each token of a rollout gets a score from the student's entropy H and its divergence from the teacher.
2. The loss is the mean over the tokens of highest score, a ratio `tip_ratio` of each rollout. The other tokens have no
   gradient.
"""

import random
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..collectives import SINGLE_PROCESS, Collectives
from ..functional import accumulator_dtype, quantiles, row_top_mask
from ..paper import Paper
from ..settings import checked, one_of, ratio
from ..signs import Sign


# The statistics of `TipTokens` that each rule reads besides the entropy
NEEDS = {
    **dict.fromkeys(("none", "entropy", "entropy_sample", "random"), ()),
    **dict.fromkeys(("soft_or", "divergence", "bottom"), ("divergence",)),
    "q3": ("forward_divergence",),
}
EMA_DECAY = 0.9  # per micro-batch


@dataclass
class TipConfig:
    tip_rule: Literal["none", "soft_or", "entropy", "entropy_sample", "q3", "divergence", "random", "bottom"] = field(
        default="soft_or",
        metadata={
            "help": "TIP: score by which tokens are kept. `soft_or`: the paper's combination of entropy and "
            "divergence. `entropy`, `divergence`: one of the two. `q3`: confident errors. `entropy_sample`: drawn in "
            "proportion to entropy. `random`: drawn uniformly. `bottom`: the lowest of `soft_or`. `none`: all "
            "tokens, as TRL does."
        },
    )
    tip_ratio: float = field(default=0.5, metadata={"help": "TIP: ratio of each rollout's tokens to keep, in (0, 1]."})
    tip_entropy_clip_quantile: float | None = field(
        default=0.98, metadata={"help": "TIP: quantile at which entropies are clipped before they are normalized."}
    )
    tip_divergence_clip_quantile: float | None = field(
        default=None,
        metadata={
            "help": "TIP: the same for divergences. Not in the paper. Use 0.98 if `tip_ratio` is below 0.5, since a "
            "single outlier makes all other normalized divergences small."
        },
    )
    tip_min_tokens: int = field(
        default=1,
        metadata={"help": "TIP: smallest number of tokens to keep of each rollout. The paper's formula has 0."},
    )
    tip_scope: Literal["micro_batch", "world", "ema", "global"] = field(
        default="micro_batch",
        metadata={
            "help": "TIP: tokens over which scores are normalized. `micro_batch`: one process' micro-batch. `world`: "
            "the micro-batches of all processes. `ema`: a running mean of the extremes of `world`. `global`: "
            "deprecated, use `world`."
        },
    )


@dataclass(frozen=True)
class TipTokens:
    """The completion tokens of one forward of a distillation loss. Statistics are in nats, without gradient.

    Attributes:
        entropy: (B, T) entropy H of the student.
        mask: (B, T) bool, tokens of the loss: no padding, no tool results.
        divergence: (B, T) reverse KL(student || teacher); may be `None` if the rule does not read it.
        forward_divergence: (B, T) forward KL(teacher || student); may be `None` if the rule does not read it.
        draw: integers that identify this forward in the run (seed, optimizer step, micro-batch).
        world: collectives over all processes.
    """

    entropy: Tensor
    mask: Tensor
    divergence: Tensor | None = None
    forward_divergence: Tensor | None = None
    draw: tuple[int, int, int] = (0, 0, 0)
    world: Collectives = SINGLE_PROCESS

    @property
    def finite(self) -> Tensor:
        """(B, T) bool: valid tokens whose statistics are all finite."""
        statistics = [self.entropy, self.divergence, self.forward_divergence]
        return self.mask & torch.stack([x.isfinite() for x in statistics if x is not None]).all(0)


def quantile_or_none(config: Any, name: str) -> float | None:
    return checked(config, name, lambda value: value is None or 0 < value <= 1, "a quantile in (0, 1] or null")


def kept_counts(mask: Tensor, ratio: float, min_tokens: int = 1) -> Tensor:
    """(B, T) bool -> (B,) tokens to keep of each rollout: max(min_tokens, ⌊ρ m⌋), at most its m tokens; Eq. 8."""
    lengths = mask.sum(1)
    exact = lengths.to(accumulator_dtype(mask.device)) * ratio * (1 + 1e-12)  # 0.29 of 100 is 29, not 28
    return exact.floor().long().clamp(min=min_tokens).minimum(lengths)


def rescale(values: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """(B, T) -> (B, T) in [0, 1]: clipped to [low, high] and min-max normalized; 0 if low = high."""
    width = torch.as_tensor(high, dtype=values.dtype, device=values.device) - low
    return torch.where(width > 0, (values - low) / width, 0).clamp(0, 1)


def soft_or(entropy: Tensor, divergence: Tensor) -> Tensor:
    """(B, T) ĥ and d̂ in [0, 1] -> (B, T) s = ĥ + d̂ - ĥ d̂ = 1 - (1 - ĥ)(1 - d̂); Eq. 7."""
    return entropy + (1 - entropy) * divergence


def draws(tokens: TipTokens, shared: bool) -> Tensor:
    """(B, T) independent exponential variables that depend only on `tokens.draw` and the number of tokens.

    `shared`: one draw over the tokens of all processes, independent of how the batch is split among them.
    """
    own = int(tokens.mask.sum())
    world = tokens.world if shared else SINGLE_PROCESS
    total = int(world.sum(torch.tensor(own, device=tokens.mask.device)))
    seed = tokens.draw if shared else (*tokens.draw, tokens.world.rank)
    generator = torch.Generator().manual_seed(random.Random(repr(seed)).getrandbits(63))
    drawn = torch.empty(total, dtype=torch.float32).exponential_(generator=generator)
    drawn = world.own(drawn.to(tokens.mask.device), own).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.ones_like(tokens.mask, dtype=torch.float32).masked_scatter(tokens.mask, drawn)


class Tip:
    """Keeps in each rollout the tokens of highest score, a ratio `tip_ratio` of them.

        soft_or         s = ĥ + d̂ - ĥ d̂                      (Eq. 7)
        q3              s = KL(P_T || P_S) (1 - ĥ)             (Sec. 7.3)
        divergence      s = d = KL(P_S || P_T)                 (Eq. 3)
        bottom          s = -(ĥ + d̂ - ĥ d̂)
        entropy         s = H                                  (Eq. 7 with d̂ = 0, without the clip)
        entropy_sample  drawn without replacement, p ∝ H       (Table 3)

    ĥ and d̂ are H and d, clipped at their quantiles and min-max normalized over the tokens of `tip_scope`; the paper's
    division of H by ln V cancels. The paper's "entropy-only" is `entropy_sample`; it has no top-k by entropy.

    Departs from the paper: at least `tip_min_tokens` of each rollout are kept, since ⌊ρ m⌋ is 0 for short ones;
    divergences can be clipped like entropies. A token whose statistics are not finite is never kept.

    Attributes:
        selects: False with the rule `none`, or if every token is kept.
        needs: the fields among `TipTokens.divergence` and `TipTokens.forward_divergence` that the rule reads.
    """

    name = "tip"
    summary = "distills on tokens where the student is uncertain or far from the teacher"
    config = TipConfig
    paper = Paper(
        arxiv="2604.14084",
        title="TIP: Token Importance in On-Policy Distillation",
        bibtex="""@article{xu2026tip,
    title   = {TIP: Token Importance in On-Policy Distillation},
    author  = {Yuanda Xu and Hejian Sang and Zhengze Zhou and Ran He and Zhipeng Wang and Alborz Geramifard},
    journal = {arXiv preprint arXiv:2604.14084},
    year    = {2026}
}""",
    )
    idle = (Sign({"kept_fraction": (1, 1)}, "lower `tip_ratio` or `tip_min_tokens`: all tokens are kept"),)
    strong: tuple[Sign, ...] = ()

    def __init__(self, config: Any):
        """Raises `ValueError` for a field out of range."""
        self.rule = one_of(config, "tip_rule", *NEEDS)
        self.ratio = ratio(config, "tip_ratio")
        self.entropy_quantile = quantile_or_none(config, "tip_entropy_clip_quantile")
        self.divergence_quantile = quantile_or_none(config, "tip_divergence_clip_quantile")
        self.min_tokens = checked(config, "tip_min_tokens", lambda x: type(x) is int and x >= 0, "an integer >= 0")
        self.scope = one_of(config, "tip_scope", "micro_batch", "world", "ema", renamed={"global": "world"})
        self.selects = self.rule != "none" and self.ratio < 1
        self.needs = NEEDS[self.rule]
        self.ranges: dict[str, list[float]] = {}  # running extremes of both axes, in nats, with the scope `ema`

    def counts(self, mask: Tensor) -> Tensor:
        """(B, T) bool -> (B,) number of tokens that `keep` keeps of each rollout, if all statistics are finite."""
        return kept_counts(mask, self.ratio, self.min_tokens) if self.selects else mask.sum(1)

    @torch.no_grad()
    def keep(self, tokens: TipTokens) -> Tensor:
        """(B, T) bool: the tokens that stay in the loss. Every process must call it."""
        if not self.selects:
            return tokens.mask
        return row_top_mask(self.scores(tokens), tokens.finite, self.counts(tokens.mask))

    def scores(self, tokens: TipTokens) -> Tensor:
        """(B, T) the rule's score, undefined for tokens that are not finite."""
        entropy = tokens.entropy.clamp(min=0)  # rounding can leave -1e-7, and TRL's sum -4e-5
        if self.rule == "entropy":
            return entropy
        if self.rule == "divergence":
            return tokens.divergence
        if self.rule in ("random", "entropy_sample"):  # sorting by it draws without replacement
            positive = entropy.clamp(min=torch.finfo(entropy.dtype).tiny)
            speed = positive.log() if self.rule == "entropy_sample" else 0.0
            return speed - draws(tokens, self.scope != "micro_batch").log()
        entropy = rescale(entropy, *self._range("entropy", entropy, self.entropy_quantile, tokens))
        if self.rule == "q3":
            return tokens.forward_divergence.clamp(min=0) * (1 - entropy)
        divergence = tokens.divergence.clamp(min=0)
        divergence = rescale(divergence, *self._range("divergence", divergence, self.divergence_quantile, tokens))
        score = soft_or(entropy, divergence)
        return -score if self.rule == "bottom" else score

    def _range(self, axis: str, values: Tensor, quantile: float | None, tokens: TipTokens) -> list[Tensor | float]:
        """Minimum and (clipped) maximum of an axis over the scope."""
        local = values[tokens.finite]
        gathered = local if self.scope == "micro_batch" else tokens.world.gather(local)
        found = quantiles(gathered, (0.0, quantile or 1.0))
        if self.scope != "ema":
            return found
        if gathered.numel():
            new = torch.stack(found).tolist()
            old = self.ranges.get(axis, new)
            self.ranges[axis] = [EMA_DECAY * a + (1 - EMA_DECAY) * b for a, b in zip(old, new, strict=True)]
        return self.ranges.get(axis, [0.0, 0.0])

    def state_dict(self) -> dict[str, Any]:
        return {"ranges": self.ranges}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ranges = dict(state["ranges"])
