# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The nucleus of each row, found without its sorted logits.

A token belongs to the nucleus iff the mass of all tokens with a logit of at least its own is below `top_p` (the
crossing token stays out), or iff the mass strictly above it is (the crossing token is in). Tied tokens go in or out
together, so the nucleus is the tokens with logits of at least some threshold.

Where the likeliest token alone crosses, nothing is to be found: the entropy is 0 by either rule. The other rows are
swept once more, and their mass counted into bins of 2⁻⁷ nats. The bins that are full below `top_p` make up the nucleus
but for the boundary bin; rows in which that bin holds different logits, and more than a negligible mass, are swept a
last time, over that bin alone, in bins of 2⁻¹⁸ nats. What shares one of those is a tie for practical purposes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


BIN_WIDTH = 2.0**-7  # nats
BINS = 2048
WINDOW = BINS * BIN_WIDTH  # nats below the largest logit
# Mass of a boundary bin that may be split wrongly: the nucleus is then exact for a `top_p` smaller by at most this
BOUNDARY_TOLERANCE = 1e-3
# Variance, in squared bin widths and rounding errors, up to which a bin holds a single logit
SINGLE_LOGIT_VARIANCE = 32
# Columns whose extreme is looked at first, since nearly all tokens are too unlikely to matter
GROUP = 64
# Rows whose bins are read at once, so that it takes little scratch memory
READ_ROWS = 128


def highest_top_p(vocab: int) -> float:
    """The largest mass whose nucleus is sure not to reach below the window of bins."""
    return 1 - vocab * math.exp(BIN_WIDTH - WINDOW)


def undecided(sum_exp: Tensor, top_p: float, include_crossing: bool) -> Tensor:
    """(N,) bool: rows whose nucleus may have entropy, given Σ exp(z - maximum)."""
    if include_crossing and top_p <= 0.5:  # two equally likely tokens may cross together
        return torch.ones_like(sum_exp, dtype=torch.bool)
    return top_p * sum_exp > 1


@dataclass(frozen=True)
class Nucleus:
    """All (N,): the smallest final logit inside, logarithm of its probability, and its entropy in nats.

    A nucleus of one token or none, on which nothing depends, has threshold inf, log-probability 0 and entropy 0.
    """

    threshold: Tensor
    log_share: Tensor
    entropy: Tensor

    @classmethod
    def empty(cls, like: Tensor) -> "Nucleus":
        return cls(torch.full_like(like, torch.inf), torch.zeros_like(like), torch.zeros_like(like))

    def put(self, rows: slice | Tensor, values: "Nucleus") -> None:
        """Write the nuclei of some of the rows."""
        for name in vars(self):
            getattr(self, name)[rows] = getattr(values, name)


@dataclass(frozen=True)
class Cut:
    """Where bins are cut, all (r,), with d = final logit - maximum of the row and e = exp(d).

    Attributes:
        mass, shifted: Σ e and Σ e·d of the nucleus.
        threshold: the d that separates the nucleus from the rest.
        full_mass, full_shifted: the same sums over the bins above the boundary bin.
        boundary: lower edge of the boundary bin.
        unresolved: whether the boundary bin holds different logits and more than a negligible mass.
    """

    mass: Tensor
    shifted: Tensor
    threshold: Tensor
    full_mass: Tensor
    full_shifted: Tensor
    boundary: Tensor
    unresolved: Tensor

    def of(self, rows: Tensor) -> "Cut":
        return Cut(*(value[rows] for value in vars(self).values()))

    def put(self, rows: Tensor, values: "Cut") -> None:
        """Write the cuts of some of the rows."""
        for name in vars(self):
            getattr(self, name)[rows] = getattr(values, name)

    def nucleus(self, row_max: Tensor, sum_exp: Tensor) -> Nucleus:
        entropy = (torch.log(self.mass) - self.shifted / self.mass).nan_to_num(nan=0.0).clamp(min=0)
        trivial = entropy == 0
        threshold = (self.threshold + row_max).masked_fill(trivial, torch.inf)
        log_share = torch.log(self.mass / sum_exp).masked_fill(trivial, 0.0)
        return Nucleus(*(value.to(row_max.dtype) for value in (threshold, log_share, entropy)))


class Histogram:
    """Mass of rows by d = final logit - maximum of the row, in `BINS` bins of `width` nats from `low` (r,) on.

    Attributes:
        row_max: (r,) maximum of the final logits.
        lowest, highest: (r,) bounds of the d to count, the upper one exclusive.
        planes: (3, r, BINS) sums of e = exp(d), of e·f and of e·f², with f in [0, 1] the place within the bin.
    """

    def __init__(self, row_max: Tensor, low: Tensor, lowest: Tensor, highest: Tensor, width: float):
        self.row_max, self.low, self.lowest, self.highest, self.width = row_max, low, lowest, highest, width
        self.planes = row_max.new_zeros((3, len(row_max), BINS))

    @classmethod
    def of_window(cls, row_max: Tensor, sum_exp: Tensor, top_p: float, vocab: int) -> "Histogram":
        """Over the window below the maximum. Tokens likelier than (1 - top_p)/vocab suffice to cross `top_p`."""
        likely = torch.log(sum_exp * ((1 - top_p) / vocab)) - BIN_WIDTH  # less a margin for rounding
        low = torch.full_like(row_max, -WINDOW)
        return cls(row_max, low, torch.maximum(likely, low), torch.full_like(low, torch.inf), BIN_WIDTH)

    def refined(self, rows: Tensor, cut: "Cut") -> "Histogram":
        """Over the boundary bins of some of the rows."""
        low = cut.boundary[rows].to(self.row_max.dtype)
        return Histogram(self.row_max[rows], low, low, low + self.width, self.width / BINS)

    def count(self, rows: slice, z: Tensor) -> None:
        """Count a block (r, w) of final logits."""
        row, d = _between(z - self.row_max[rows].unsqueeze(-1), self.lowest[rows], self.highest[rows])
        position = (d - self.low[rows][row]).div_(self.width)
        slot = position.long().clamp_(0, BINS - 1)
        place = position.sub_(slot)
        slot.add_(row * BINS)
        weight = d.exp_()
        for plane in self.planes[:, rows]:
            plane.view(-1).scatter_add_(0, slot, weight)
            weight = weight * place

    def cut(self, target: Tensor, above: "Cut | None", include_crossing: bool) -> "Cut":
        """Cut where the bins hold `target` mass (r,), together with the full bins of `above`, of which these refine one."""
        parts = []
        for rows in torch.arange(len(target), device=target.device).split(READ_ROWS):
            full = (torch.zeros_like(target),) * 2 if above is None else (above.full_mass, above.full_shifted)
            parts.append(self._cut(rows, target[rows], *(values[rows] for values in full), include_crossing))
        return Cut(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))

    def _cut(
        self, rows: Tensor, target: Tensor, above_mass: Tensor, above_shifted: Tensor, include_crossing: bool
    ) -> "Cut":
        mass, first, second = (plane[rows].flip(-1).to(target.dtype) for plane in self.planes)
        low = self.low[rows].to(target.dtype)
        edge = low.unsqueeze(-1) + self.width * torch.arange(BINS - 1, -1, -1, device=low.device)
        shifted = mass * edge + self.width * first
        full = above_mass.unsqueeze(-1) + mass.cumsum(-1) < target.unsqueeze(-1)
        boundary = full.sum(-1, keepdim=True).clamp(max=BINS - 1)
        inside = full.scatter(1, boundary, True) if include_crossing else full

        place = first / mass
        single = second / mass - place.square() < SINGLE_LOGIT_VARIANCE * torch.finfo(self.planes.dtype).eps
        # The threshold lies between the lowest logit inside and the highest outside, where no logit is: recomputed
        # logits may differ in their last digit
        value = edge + self.width * place
        ceiling = torch.where(above_mass > 0, low + BINS * self.width, torch.inf)
        lowest = _last(torch.where(single, value, edge), inside & (mass > 0), ceiling)
        highest = _last(torch.where(single, value, edge + self.width).flip(-1), (~inside & (mass > 0)).flip(-1), low)
        at_boundary = [values.gather(1, boundary).squeeze(-1) for values in (edge, mass, single)]
        return Cut(
            mass=above_mass + (mass * inside).sum(-1),
            shifted=above_shifted + (shifted * inside).sum(-1),
            threshold=lowest - ((lowest - highest) / 2).clamp(max=BIN_WIDTH / 2),
            full_mass=above_mass + (mass * full).sum(-1),
            full_shifted=above_shifted + (shifted * full).sum(-1),
            boundary=at_boundary[0],
            unresolved=(at_boundary[1] > BOUNDARY_TOLERANCE * target) & ~at_boundary[2],
        )


def _last(values: Tensor, mask: Tensor, otherwise: Tensor) -> Tensor:
    """(r,) the last of `values` (r, BINS) under `mask`, or `otherwise` (r,) where there is none."""
    index = torch.where(mask, torch.arange(BINS, device=mask.device), -1).amax(-1)
    return values.gather(1, index.clamp(min=0).unsqueeze(-1)).squeeze(-1).where(index >= 0, otherwise)


def _between(d: Tensor, lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """Row and value, each (M,), of the elements of a block (r, w) within the bounds (r,) of their row: copies."""
    padding = -d.shape[1] % GROUP
    if padding:
        d = pad(d, (0, padding), value=-torch.inf)
    groups = d.shape[1] // GROUP
    hot = (d.view(-1, groups, GROUP).amax(-1) >= lowest.unsqueeze(-1)).view(-1).nonzero().squeeze(-1)
    d, row = d.view(-1, GROUP).index_select(0, hot), hot // groups
    chosen = (d >= lowest[row].unsqueeze(-1)) & (d < highest[row].unsqueeze(-1))
    chosen = chosen.view(-1).nonzero().squeeze(-1)
    return row.index_select(0, chosen // GROUP), d.view(-1).index_select(0, chosen)
