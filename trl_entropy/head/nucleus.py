# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The nucleus of each row, found without its sorted logits.

A token belongs to the nucleus iff the mass of all tokens with a logit of at least its own is below `top_p` (the
crossing token stays out), or iff the mass strictly above it is (the crossing token is in). Tied tokens go in or out
together, so the nucleus is the tokens with logits of at least some threshold.

While the tiles go by, the mass of every row is counted into bins of width δ = 2⁻⁷ of the absolute final logits, over a
window of 16 nats below the running maximum. The bins that are full below `top_p` make up the nucleus but for the
boundary bin; rows in which that bin holds different logits and more than a negligible mass are swept once more, over
that bin alone, in bins of 2⁻¹⁸ nats. What shares one of those is a tie for practical purposes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..functional import accumulator_dtype


BIN_WIDTH = 2.0**-7  # nats
BINS = 2048
# Mass of a boundary bin that may be split wrongly: the nucleus is then exact for a `top_p` smaller by at most this
BOUNDARY_TOLERANCE = 1e-3
# Variance, in squared bin widths, below which a bin holds a single logit up to rounding
SINGLE_LOGIT_VARIANCE = 2.0**-20
# Columns whose maximum is looked at first, since nearly all tokens of a peaked distribution are negligible
GROUP = 64
# Rows whose bins are read at once, so that the nucleus of a tile needs little scratch memory
READ_ROWS = 128


@dataclass(frozen=True)
class Nucleus:
    """All (N,): the smallest final logit inside, logarithm of its probability, and its entropy in nats.

    An empty nucleus has threshold inf, log-probability 0 and entropy 0.
    """

    threshold: Tensor
    log_share: Tensor
    entropy: Tensor

    def put(self, rows: slice, values: "Nucleus") -> None:
        """Write the nuclei of some of the rows."""
        for name in vars(self):
            getattr(self, name)[rows] = getattr(values, name)


@dataclass(frozen=True)
class _Bins:
    """Bins of some rows by falling logit, all (n, BINS), with e = exp(d) and d = logit - maximum of the row.

    Attributes:
        mass: Σ e.
        shifted: Σ e·d.
        low, high: bounds of d in a bin, equal where it holds a single logit.
        single: whether it does.
    """

    mass: Tensor
    shifted: Tensor
    low: Tensor
    high: Tensor
    single: Tensor


@dataclass
class Cut:
    """Where bins are cut, all (n,): d and e as in [`_Bins`].

    Attributes:
        mass, shifted: Σ e and Σ e·d of the nucleus.
        threshold: the d that separates the nucleus from the rest.
        full_mass, full_shifted: the same sums over the bins above the boundary bin.
        boundary: index of the boundary bin, by falling logit.
        unresolved: whether the boundary bin holds different logits and more than a negligible mass.
    """

    mass: Tensor
    shifted: Tensor
    threshold: Tensor
    full_mass: Tensor
    full_shifted: Tensor
    boundary: Tensor
    unresolved: Tensor

    def put(self, rows: Tensor, values: "Cut") -> None:
        """Write the cuts of some of the rows."""
        for name in vars(self):
            getattr(self, name)[rows] = getattr(values, name)

    def nucleus(self, row_max: Tensor, sum_exp: Tensor) -> Nucleus:
        empty = self.mass == 0
        mass = self.mass.masked_fill(empty, 1.0)
        log_share = torch.log(mass / sum_exp).masked_fill(empty, 0.0)
        entropy = (torch.log(mass) - self.shifted / mass).clamp(min=0).masked_fill(empty, 0.0)
        values = (self.threshold + row_max, log_share, entropy)
        return Nucleus(*(value.to(row_max.dtype) for value in values))


class Histogram:
    """Mass of `rows` rows by final logit, counted tile by tile while the maximum is still moving.

    Raises `ValueError` where so much mass is asked for that the nucleus may reach below the window of bins.
    """

    def __init__(self, rows: int, vocab: int, top_p: float, include_crossing: bool, device: torch.device):
        highest = 1 - vocab * math.exp(-(BINS - 1) * BIN_WIDTH)
        if top_p > highest:
            raise ValueError(f"`top_p` must be at most {highest:.4f} for a vocabulary of {vocab}, got {top_p}.")
        self.top_p = top_p
        self.include_crossing = include_crossing
        # Tokens less likely than (1 - top_p)/vocab are all together too few to cross; the half is for rounding
        self.negligible = 0.5 * (1 - top_p) / vocab
        # Planes: Σ e, Σ e·f, Σ e·f², with f in [0, 1) the place within the bin. Slot = absolute bin modulo BINS.
        self.planes = torch.zeros((3, rows, BINS), dtype=accumulator_dtype(device), device=device)
        self.top = torch.zeros(rows, dtype=torch.int64, device=device)
        self._slots = torch.arange(BINS, device=device)

    def advance(self, rows: slice, old_max: Tensor, new_max: Tensor) -> None:
        """Move the window of `rows` up with their maximum: rescale the mass, and empty the slots it enters."""
        new_top = torch.floor(new_max / BIN_WIDTH).long()
        moved = ((new_max > old_max) & (old_max > -torch.inf)).nonzero().squeeze(-1)
        if len(moved):
            at = moved + rows.start
            absolute = new_top[moved, None] - ((new_top[moved, None] - self._slots) % BINS)
            rescale = torch.exp((old_max - new_max)[moved]).to(self.planes.dtype).unsqueeze(-1)
            self.planes[:, at] = (self.planes[:, at] * rescale).masked_fill_(absolute > self.top[at, None], 0.0)
        self.top[rows] = new_top

    def add(self, rows: slice, z: Tensor, e: Tensor, floor: Tensor) -> None:
        """Count the tokens of a block (r, w) whose e = exp(z - running maximum) is above `floor` (r,)."""
        row, z, e = _above(z, e, floor)
        position = z.div_(BIN_WIDTH)
        absolute = torch.floor(position)
        slot = absolute.long().bitwise_and_(BINS - 1).add_((row * BINS).unsqueeze(-1))
        _count(self.planes[:, rows], slot, position.sub_(absolute), e)

    def cut(self, row_max: Tensor, sum_exp: Tensor) -> Cut:
        """Cut at `top_p` of `sum_exp` (N,), the mass of the whole vocabulary."""
        total = sum_exp.to(self.planes.dtype)
        zero = torch.zeros_like(total)
        cut = Cut(
            zero.clone(),
            zero.clone(),
            zero + torch.inf,
            zero.clone(),
            zero.clone(),
            torch.zeros_like(self.top),
            zero > 0,
        )
        # Where the largest logit alone crosses, the nucleus has entropy 0 and no gradient, be it in or out
        undecided = self.top_p * total > 1
        if self.include_crossing and self.top_p <= 0.5:  # two equal ones may cross together
            undecided = torch.ones_like(undecided)
        for rows in undecided.nonzero().squeeze(-1).split(READ_ROWS):
            bins = self._read(rows, row_max[rows])
            none = zero[rows]
            part = _cut(
                bins, self.top_p * total[rows], none, none, none + torch.inf, none - torch.inf, self.include_crossing
            )
            boundary = part.boundary.unsqueeze(-1)
            heavy = bins.mass.gather(1, boundary).squeeze(-1) > BOUNDARY_TOLERANCE * total[rows]
            part.unresolved = heavy & ~bins.single.gather(1, boundary).squeeze(-1)
            cut.put(rows, part)
        return cut

    def _read(self, rows: Tensor, row_max: Tensor) -> _Bins:
        absolute = self.top[rows, None] - self._slots
        mass, first, second = (plane[rows].gather(1, absolute % BINS) for plane in self.planes)
        low = absolute * BIN_WIDTH - row_max.to(mass.dtype).unsqueeze(-1)
        place = first / mass
        single = second / mass - place.square() < SINGLE_LOGIT_VARIANCE
        value = low + BIN_WIDTH * place
        return _Bins(
            mass=mass,
            shifted=mass * low + BIN_WIDTH * first,
            low=torch.where(single, value, low),
            high=torch.where(single, value, low + BIN_WIDTH),
            single=single,
        )


class Refinement:
    """The boundary bins of `rows` (r,) of a histogram, counted in a second sweep over these rows in finer bins."""

    def __init__(self, histogram: Histogram, cut: Cut, rows: Tensor, row_max: Tensor, sum_exp: Tensor):
        self.rows = rows
        self.row_max = row_max[rows]
        self.low = ((histogram.top[rows] - cut.boundary[rows]) * BIN_WIDTH).to(row_max.dtype)
        self.planes = histogram.planes.new_zeros((2, len(rows), BINS))
        self._target = histogram.top_p * sum_exp[rows].to(cut.mass.dtype)
        self._full = cut.full_mass[rows], cut.full_shifted[rows]
        self._include_crossing = histogram.include_crossing

    def add(self, rows: slice, z: Tensor) -> None:
        """Count what a block (r, w) of final logits has in the boundary bins."""
        low = self.low[rows].unsqueeze(-1)
        row, column = ((z - (low + BIN_WIDTH / 2)).abs_() <= BIN_WIDTH / 2).nonzero(as_tuple=True)
        position = (z[row, column] - low[row, 0]) * (BINS / BIN_WIDTH)
        inside = (position >= 0) & (position < BINS)  # the bin is open above
        row, column, position = row[inside], column[inside], position[inside]
        e = torch.exp(z[row, column] - self.row_max[rows][row])
        slot = position.long()
        _count(self.planes[:, rows], row * BINS + slot, position - slot, e)

    def resolve(self, cut: Cut) -> None:
        """Put the finer cuts in the place of the coarse ones."""
        mass, first = self.planes.flip(-1)
        low = (self.low.to(mass.dtype) - self.row_max.to(mass.dtype)).unsqueeze(-1)
        width = BIN_WIDTH / BINS
        edges = low + width * torch.arange(BINS - 1, -1, -1, device=mass.device)
        value = edges + width * (first / mass).nan_to_num_()
        bins = _Bins(mass, mass * edges + width * first, value, value, mass > 0)
        full_mass, full_shifted = self._full
        low = low.squeeze(-1)
        ceiling = torch.where(full_mass > 0, low + BIN_WIDTH, torch.inf)
        finer = _cut(bins, self._target, full_mass, full_shifted, ceiling, low, self._include_crossing)
        for name in ("mass", "shifted", "threshold"):
            getattr(cut, name)[self.rows] = getattr(finer, name)


def _above(z: Tensor, e: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row (M,), z and e (M, GROUP) of the groups of a block (r, w) with an e above the floor (r,) of their row.

    An e that is not above it reads 0. The results are copies.
    """
    padding = -e.shape[1] % GROUP
    if padding:
        z, e = pad(z, (0, padding)), pad(e, (0, padding))
    groups = e.shape[1] // GROUP
    hot = (e.view(-1, groups, GROUP).amax(-1) > floor.unsqueeze(-1)).view(-1).nonzero().squeeze(-1)
    row = hot // groups
    z, e = (x.reshape(-1, GROUP).index_select(0, hot) for x in (z, e))
    # Two passes of arithmetic, since comparing into a mask costs several times as much on a CPU
    return row, z, e.mul_((e - floor[row].unsqueeze(-1)).sign_().clamp_(min=0))


def _count(planes: Tensor, slot: Tensor, place: Tensor, e: Tensor) -> None:
    """Add Σ e, Σ e·place, ... of elements to `planes` (moments, r, BINS); `slot` counts through rows and bins."""
    slot = slot.reshape(-1)
    weight, place = e.reshape(-1).to(planes.dtype), place.reshape(-1).to(planes.dtype)
    for i, plane in enumerate(planes):
        if i:
            weight = weight.mul_(place)
        plane.view(-1).scatter_add_(0, slot, weight)


def _cut(
    bins: _Bins,
    target: Tensor,
    above_mass: Tensor,
    above_shifted: Tensor,
    ceiling: Tensor,
    bottom: Tensor,
    include_crossing: bool,
) -> Cut:
    """Cut `bins` where they, and what lies above them, hold `target` mass.

    The threshold lies between the lowest logit inside and the highest outside, where no logit is: recomputed logits may
    differ in their last digit. `ceiling` and `bottom` bound these two where the bins hold none. All but `bins` are (n,).
    """
    full = above_mass.unsqueeze(-1) + bins.mass.cumsum(-1) < target.unsqueeze(-1)
    boundary = full.sum(-1, keepdim=True).clamp(max=BINS - 1)
    full_mass = above_mass + (bins.mass * full).sum(-1)
    full_shifted = above_shifted + (bins.shifted * full).sum(-1)
    mass, shifted, inside = full_mass, full_shifted, full
    if include_crossing:
        mass = mass + bins.mass.gather(1, boundary).squeeze(-1)
        shifted = shifted + bins.shifted.gather(1, boundary).squeeze(-1)
        inside = full.scatter(1, boundary, True)

    index = torch.arange(BINS, device=full.device)
    occupied = bins.mass > 0
    last = torch.where(inside & occupied, index, -1).amax(-1, keepdim=True)
    first = torch.where(~inside & occupied, index, BINS).amin(-1, keepdim=True)
    lowest = bins.low.gather(1, last.clamp(min=0)).where(last >= 0, ceiling.unsqueeze(-1))
    highest = bins.high.gather(1, first.clamp(max=BINS - 1)).where(first < BINS, bottom.unsqueeze(-1))
    threshold = lowest - ((lowest - highest) / 2).clamp(max=BIN_WIDTH / 2)
    boundary = boundary.squeeze(-1)
    return Cut(
        mass, shifted, threshold.squeeze(-1), full_mass, full_shifted, boundary, torch.zeros_like(boundary).bool()
    )
