# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The nucleus of each row, found without its sorted logits.

A token belongs to the nucleus iff the mass of all tokens with a logit of at least its own is below `top_p` (the
crossing token stays out), or iff the mass strictly above it is (the crossing token is in). Tied tokens go in or out
together, so the nucleus is the tokens with logits of at least some threshold.

The sweep over the vocabulary keeps the few tokens of each row that are likelier than 2⁻⁹. Where they hold `top_p`, as
they do unless the model is at a loss, the nucleus is read off them exactly. The other rows are swept once more, and
their mass counted into bins of 2⁻⁷ nats: the bins that are full below `top_p` make up the nucleus but for the boundary
bin. Rows in which that bin holds different logits, and more than a negligible mass, are swept a last time, over that
bin alone, in bins of 2⁻¹⁸ nats. What shares one of those is a tie for practical purposes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..functional import accumulator_dtype


# Tokens kept of each row: those likelier than this, and so many that even before much of the vocabulary has been seen
# hardly a row has more
LIKELY = 2.0**-9
CAPACITY = 256
BIN_WIDTH = 2.0**-7  # nats
BINS = 2048
WINDOW = BINS * BIN_WIDTH  # nats below the largest logit
# Mass of a boundary bin that may be split wrongly: the nucleus is then exact for a `top_p` smaller by at most this
BOUNDARY_TOLERANCE = 1e-3
# Variance, in squared bin widths and rounding errors, up to which a bin holds a single logit
SINGLE_LOGIT_VARIANCE = 32
# Columns whose maximum is looked at first, since nearly all tokens are too unlikely to matter
GROUP = 64
# Rows whose bins are read at once, so that it takes little scratch memory
READ_ROWS = 128


def highest_top_p(vocab: int) -> float:
    """The largest mass whose nucleus is sure not to reach below the window of bins."""
    return 1 - vocab * math.exp(BIN_WIDTH - WINDOW)


@dataclass(frozen=True)
class Nucleus:
    """All (N,): the smallest final logit inside, logarithm of its probability, and its entropy in nats.

    A nucleus of one token or none, on which nothing depends, has threshold inf, log-probability 0 and entropy 0.
    """

    threshold: Tensor
    log_share: Tensor
    entropy: Tensor

    @classmethod
    def of_sums(cls, mass: Tensor, shifted: Tensor, threshold: Tensor, row_max: Tensor, sum_exp: Tensor) -> "Nucleus":
        """From Σ e and Σ e·d inside, and the d at the threshold, with d = final logit - maximum and e = exp(d)."""
        entropy = (torch.log(mass) - shifted / mass).nan_to_num(nan=0.0).clamp(min=0)
        trivial = entropy == 0
        threshold = (threshold + row_max).masked_fill(trivial, torch.inf)
        log_share = torch.log(mass / sum_exp).masked_fill(trivial, 0.0)
        return cls(*(value.to(row_max.dtype) for value in (threshold, log_share, entropy)))

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

    def __getitem__(self, rows: Tensor) -> "Cut":
        return Cut(*(value[rows] for value in vars(self).values()))

    def put(self, rows: Tensor, values: "Cut") -> None:
        """Write the cuts of some of the rows."""
        for name in vars(self):
            getattr(self, name)[rows] = getattr(values, name)


class Candidates:
    """The likely tokens of rows, as they turn up.

    Attributes:
        z: (N, CAPACITY) their final logits, in any order; -inf where there are fewer.
        found: (N,) how many there were.
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
        """The nuclei (N,), and (N,) bool: whether the likely tokens were enough to find them."""
        total = sum_exp.to(accumulator_dtype(sum_exp.device)).unsqueeze(-1)
        d = self.z.sort(-1, descending=True).values.to(total.dtype) - row_max.unsqueeze(-1)
        likely = d.exp() > LIKELY * total
        e = d.exp() * likely
        at_least, target = e.cumsum(-1), top_p * total
        # Tied tokens share the mass at the last of them, and the mass above the first
        next_differs = pad(d[:, :-1] != d[:, 1:], (0, 1), value=True)
        above = torch.where(pad(next_differs[:, :-1], (1, 0), value=True), at_least - e, 0.0).cummax(-1).values
        at_least = torch.where(next_differs, at_least, torch.inf).flip(-1).cummin(-1).values.flip(-1)
        # Where the likeliest token alone crosses, there is no entropy, be it in or out; but equals may cross together
        decided = (target <= 1) & (top_p > 0.5 or not include_crossing)
        settled = decided | ((e.sum(-1, keepdim=True) >= target) & (self.found <= CAPACITY).unsqueeze(-1))
        inside = likely & ((above if include_crossing else at_least) < target) & ~decided
        # Tokens that are not kept are below the likely ones
        lowest = torch.where(inside, d, torch.inf).amin(-1)
        highest = torch.maximum(torch.where(inside, -torch.inf, d).amax(-1), torch.log(LIKELY * total).squeeze(-1))
        mass, shifted = (e * inside).sum(-1), (e * d.nan_to_num(neginf=0.0) * inside).sum(-1)
        return Nucleus.of_sums(mass, shifted, _between(lowest, highest), row_max, sum_exp), settled.squeeze(-1)


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
        """Cut where the bins hold `target` mass (r,), with the full bins of `above`, of which these refine one."""
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
    """(r,) the last of `values` (r, BINS) under `mask`, or `otherwise` (r,) where there is none."""
    index = torch.where(mask, torch.arange(BINS, device=mask.device), -1).amax(-1)
    return values.gather(1, index.clamp(min=0).unsqueeze(-1)).squeeze(-1).where(index >= 0, otherwise)


def _between(lowest: Tensor, highest: Tensor) -> Tensor:
    """A threshold between the lowest logit inside and the highest outside.

    No logit is near it, since logits that are recomputed in another product may differ in their last digit.
    """
    return lowest - ((lowest - highest) / 2).clamp(max=BIN_WIDTH / 2)


def _at_least(values: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Row and place in the flattened block (n, w), both (M,), of the values not below the floor (n,) of their row."""
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
