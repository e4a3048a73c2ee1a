# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The nucleus of each row, found without its sorted logits.

A token belongs to the nucleus iff the mass of all tokens with at least its logit is below `top_p` (this excludes the
crossing token), or iff the mass of all tokens with a higher logit is (this includes it). Tied tokens are in or out
together, so the nucleus consists of the tokens with logits of at least some threshold.

The sweep over the vocabulary keeps the few tokens of each row with probability above 2⁻⁹. Unless the model is very
uncertain, these hold `top_p`, and the nucleus follows from them exactly. The other rows are swept once more, and
their mass is counted in bins of 2⁻⁷ nats. The nucleus is then known except for the boundary bin, in which the mass
crosses `top_p`. If that bin holds different logits and more than a negligible mass, the row is swept a last time, over
that bin only, in bins of 2⁻¹⁸ nats. Tokens that share one of these count as ties.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..functional import accumulator_dtype


# Tokens kept of each row: those with probability above `LIKELY`, at most `CAPACITY`. While little of the vocabulary
# has been seen, more tokens pass `LIKELY`; `CAPACITY` leaves room for them in almost every row.
LIKELY = 2.0**-9
CAPACITY = 256
BIN_WIDTH = 2.0**-7  # nats
BINS = 2048
WINDOW = BINS * BIN_WIDTH  # nats below the largest logit
# Mass of a boundary bin that may be assigned wrongly: the nucleus is then exact for a `top_p` lower by at most this
BOUNDARY_TOLERANCE = 1e-3
# A bin counts as holding a single logit up to this variance, in squared bin widths times machine epsilon
SINGLE_LOGIT_VARIANCE = 32
# Columns that are skipped by their maximum, because nearly all tokens are too unlikely to matter
GROUP = 64
# Rows whose bins are read at once, to save scratch memory
READ_ROWS = 128


def highest_top_p(vocab: int) -> float:
    """The largest `top_p` whose nucleus certainly lies within the window of bins."""
    return 1 - vocab * math.exp(BIN_WIDTH - WINDOW)


@dataclass(frozen=True)
class Nucleus:
    """The nucleus of each row. If it has at most one token, threshold is inf, and the others are 0.

    Attributes:
        threshold: (N,) the nucleus is the tokens with final logits of at least this.
        log_share: (N,) logarithm of its probability.
        entropy: (N,) its entropy in nats.
    """

    threshold: Tensor
    log_share: Tensor
    entropy: Tensor

    @classmethod
    def of_sums(cls, mass: Tensor, shifted: Tensor, threshold: Tensor, row_max: Tensor, sum_exp: Tensor) -> "Nucleus":
        """From Σ e and Σ e·d over the nucleus and d at its threshold; d = final logit - maximum, e = exp(d)."""
        entropy = (torch.log(mass) - shifted / mass).nan_to_num(nan=0.0).clamp(min=0)
        trivial = entropy == 0
        threshold = (threshold + row_max).masked_fill(trivial, torch.inf)
        log_share = torch.log(mass / sum_exp).masked_fill(trivial, 0.0)
        return cls(*(value.to(row_max.dtype) for value in (threshold, log_share, entropy)))

    def put(self, rows: slice | Tensor, values: "Nucleus") -> None:
        """Writes the nuclei of some rows."""
        for name in vars(self):
            getattr(self, name)[rows] = getattr(values, name)


@dataclass(frozen=True)
class Cut:
    """The cut between nucleus and rest, all (r,), with d = final logit - maximum of the row and e = exp(d).

    Attributes:
        mass, shifted: Σ e and Σ e·d of the nucleus.
        threshold: d that separates the nucleus from the rest.
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

    def __getitem__(self, rows: Tensor) -> "Cut":
        return Cut(*(value[rows] for value in vars(self).values()))

    def put(self, rows: Tensor, values: "Cut") -> None:
        """Writes the cuts of some rows."""
        for name in vars(self):
            getattr(self, name)[rows] = getattr(values, name)


class Candidates:
    """The likely tokens of each row found so far.

    Attributes:
        z: (N, CAPACITY) their final logits, in any order, padded with -inf.
        found: (N,) their number, which can exceed `CAPACITY`.
    """

    def __init__(self, z: Tensor, found: Tensor):
        self.z, self.found = z, found

    @classmethod
    def none(cls, like: Tensor) -> "Candidates":
        found = torch.zeros(like.shape, dtype=torch.int32, device=like.device)
        return cls(like.new_full((len(like), CAPACITY), -torch.inf), found)

    def __getitem__(self, rows: slice) -> "Candidates":
        return Candidates(self.z[rows], self.found[rows])

    def add(self, z: Tensor, e: Tensor, total: Tensor) -> None:
        """Keep what is likely in a block (n, w) of final logits, given exp(z - maximum) and its sum so far (n,)."""
        # Where all tokens so far have probability 0, none of them is likely
        row, chosen = _at_least(e, (LIKELY * total).clamp_(min=torch.finfo(e.dtype).tiny))
        found = torch.bincount(row, minlength=len(z))
        place = torch.arange(len(row), device=row.device) - (found.cumsum(0) - found - self.found)[row]
        fits = place < CAPACITY
        self.z[row[fits], place[fits]] = z.reshape(-1)[chosen[fits]]
        self.found += found

    def settle(self, row_max: Tensor, sum_exp: Tensor, top_p: float, include_crossing: bool) -> tuple[Nucleus, Tensor]:
        """The nuclei (N,), and (N,) bool: whether the likely tokens sufficed to find them."""
        total = sum_exp.to(accumulator_dtype(sum_exp.device)).unsqueeze(-1)
        d = self.z.sort(-1, descending=True).values.to(total.dtype) - row_max.unsqueeze(-1)
        likely = d.exp() > LIKELY * total
        e = d.exp() * likely
        at_least, target = e.cumsum(-1), top_p * total
        # Tied tokens share the mass down to the last of them, and the mass above the first of them
        next_differs = pad(d[:, :-1] != d[:, 1:], (0, 1), value=True)
        above = torch.where(pad(next_differs[:, :-1], (1, 0), value=True), at_least - e, 0.0).cummax(-1).values
        at_least = torch.where(next_differs, at_least, torch.inf).flip(-1).cummin(-1).values.flip(-1)
        # If the likeliest token alone crosses, the entropy is 0, in or out. Several equal tokens may cross together.
        decided = (target <= 1) & (top_p > 0.5 or not include_crossing)
        settled = decided | ((e.sum(-1, keepdim=True) >= target) & (self.found <= CAPACITY).unsqueeze(-1))
        inside = likely & ((above if include_crossing else at_least) < target) & ~decided
        # Tokens that were not kept lie below the likely ones
        lowest = torch.where(inside, d, torch.inf).amin(-1)
        highest = torch.maximum(torch.where(inside, -torch.inf, d).amax(-1), torch.log(LIKELY * total).squeeze(-1))
        mass, shifted = (e * inside).sum(-1), (e * d.nan_to_num(neginf=0.0) * inside).sum(-1)
        return Nucleus.of_sums(mass, shifted, _between(lowest, highest), row_max, sum_exp), settled.squeeze(-1)


class Histogram:
    """Mass of rows by d = final logit - maximum of the row, in `BINS` bins of `width` nats, starting at `low` (r,).

    Attributes:
        row_max: (r,) maximum of the final logits.
        lowest, highest: (r,) bounds of d to count, the upper bound exclusive.
        planes: (3, r, BINS) sums of e = exp(d), of e·f and of e·f², where f in [0, 1] is the place within the bin.
    """

    def __init__(self, row_max: Tensor, low: Tensor, lowest: Tensor, highest: Tensor, width: float):
        self.row_max, self.low, self.lowest, self.highest, self.width = row_max, low, lowest, highest, width
        self.planes = row_max.new_zeros((3, len(row_max), BINS))

    @classmethod
    def of_window(cls, row_max: Tensor, sum_exp: Tensor, top_p: float, vocab: int) -> "Histogram":
        """Bins the window below the maximum. Tokens likelier than (1 - top_p)/vocab suffice to cross `top_p`."""
        likely = torch.log(sum_exp * ((1 - top_p) / vocab)) - BIN_WIDTH  # with a margin for rounding
        low = torch.full_like(row_max, -WINDOW)
        return cls(row_max, low, torch.maximum(likely, low), torch.full_like(low, torch.inf), BIN_WIDTH)

    def refined(self, rows: Tensor, cut: "Cut") -> "Histogram":
        """Bins the boundary bins of some rows more finely."""
        low = cut.boundary[rows].to(self.row_max.dtype)
        return Histogram(self.row_max[rows], low, low, low + self.width, self.width / BINS)

    def count(self, rows: slice, z: Tensor) -> None:
        """Counts a block (r, w) of final logits."""
        d = z - self.row_max[rows].unsqueeze(-1)
        row, chosen = _at_least(d, self.lowest[rows])
        d = d.view(-1)[chosen]
        counted = (d < self.highest[rows][row]).nonzero().squeeze(-1)
        row, d = row[counted], d[counted]
        position = (d - self.low[rows][row]).div_(self.width)
        slot = position.long().clamp_(0, BINS - 1)
        place = position.sub_(slot)
        slot.add_(row * BINS)
        weight = d.exp_()
        for plane in self.planes[:, rows]:
            plane.view(-1).scatter_add_(0, slot, weight)
            weight = weight * place

    def cut(self, target: Tensor, above: "Cut | None", include_crossing: bool) -> "Cut":
        """The cut at `target` mass (r,). If these bins refine the boundary bin of `above`, its full bins count too."""
        parts = []
        for rows in torch.arange(len(target), device=target.device).split(READ_ROWS):
            none = torch.zeros_like(target[rows])
            mass = none if above is None else above.full_mass[rows]
            shifted = none if above is None else above.full_shifted[rows]
            parts.append(self._cut(rows, target[rows], mass, shifted, include_crossing))
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
        value = edge + self.width * place
        lowest = _last(torch.where(single, value, edge), inside & (mass > 0), low + BINS * self.width)
        highest = _last(torch.where(single, value, edge + self.width).flip(-1), (~inside & (mass > 0)).flip(-1), low)
        at_boundary = [values.gather(1, boundary).squeeze(-1) for values in (edge, mass, single)]
        return Cut(
            mass=above_mass + (mass * inside).sum(-1),
            shifted=above_shifted + (shifted * inside).sum(-1),
            threshold=_between(lowest, highest),
            full_mass=above_mass + (mass * full).sum(-1),
            full_shifted=above_shifted + (shifted * full).sum(-1),
            boundary=at_boundary[0],
            unresolved=(at_boundary[1] > BOUNDARY_TOLERANCE * target) & ~at_boundary[2],
        )


def _last(values: Tensor, mask: Tensor, otherwise: Tensor) -> Tensor:
    """(r,) the last of `values` (r, BINS) under `mask`; `otherwise` (r,) if the mask is empty."""
    index = torch.where(mask, torch.arange(BINS, device=mask.device), -1).amax(-1)
    return values.gather(1, index.clamp(min=0).unsqueeze(-1)).squeeze(-1).where(index >= 0, otherwise)


def _between(lowest: Tensor, highest: Tensor) -> Tensor:
    """A threshold between the lowest logit inside and the highest outside, away from both.

    The backward recomputes logits, which may then differ in their last digit.
    """
    return lowest - ((lowest - highest) / 2).clamp(max=BIN_WIDTH / 2)


def _at_least(values: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Row and flat index in the block (n, w), both (M,), of the values not below the floor (n,) of their row."""
    width = values.shape[1]
    padding = -width % GROUP
    if padding:
        values = pad(values, (0, padding), value=-torch.inf)
    groups = values.shape[1] // GROUP
    hot = (values.view(-1, groups, GROUP).amax(-1) >= floor.unsqueeze(-1)).view(-1).nonzero().squeeze(-1)
    row = hot // groups
    chosen = values.view(-1, GROUP).index_select(0, hot) >= floor[row].unsqueeze(-1)
    at, column = chosen.nonzero(as_tuple=True)
    row = row[at]
    return row, row * width + (hot[at] % groups) * GROUP + column
