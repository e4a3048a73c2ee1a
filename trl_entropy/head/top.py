# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The likeliest tokens of each row, kept while the vocabulary is swept.

Of equal logits the lower token id goes first, however the vocabulary is cut into tiles. `torch.topk` does not promise
that, so its ties are settled here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .nucleus import GROUP


@dataclass(frozen=True)
class TopTokens:
    """The K tokens of each row with the largest logits so far. The torch backend keeps them in descending order.

    Attributes:
        z: (N, K) their final logits, at least the lowest number of their dtype. -inf where no token was seen.
        ids: (N, K) their token ids; negative where no token was seen.
    """

    z: Tensor
    ids: Tensor

    @classmethod
    def none(cls, rows: int, count: int, dtype: torch.dtype, device: torch.device) -> "TopTokens":
        empty = -1 - torch.arange(count, device=device)  # each its own, so that a kernel can replace a single one
        return cls(torch.full((rows, count), -torch.inf, dtype=dtype, device=device), empty.repeat(rows, 1))

    def __getitem__(self, rows: slice) -> "TopTokens":
        return TopTokens(self.z[rows], self.ids[rows])

    def add(self, z: Tensor, start: int) -> None:
        """Adds a block (n, w) of final logits of the vocabulary from `start` on."""
        count = self.z.shape[1]
        columns = largest_columns(z, min(count, z.shape[1]))
        # So that a token of probability 0 goes before an empty place
        found = z.gather(-1, columns).clamp(min=torch.finfo(z.dtype).min)
        merged, ids = torch.cat([self.z, found], -1), torch.cat([self.ids, columns + start], -1)
        order = merged.argsort(dim=-1, descending=True, stable=True)[:, :count]
        self.z.copy_(merged.gather(-1, order))
        self.ids.copy_(ids.gather(-1, order))

    def ordered(self) -> "TopTokens":
        """In descending order; of equal logits the lower id goes first."""
        by_id = self.ids.argsort(dim=-1)
        z = self.z.gather(-1, by_id)
        order = z.argsort(dim=-1, descending=True, stable=True)
        return TopTokens(z.gather(-1, order), self.ids.gather(-1, by_id).gather(-1, order))

    def log_probs(self, log_z: Tensor) -> Tensor:
        """(N, K) log-probabilities from log Z (N,); -inf at tokens of probability 0."""
        masked = self.z <= torch.finfo(self.z.dtype).min
        return (self.z - log_z.unsqueeze(-1)).masked_fill(masked, -torch.inf)


def largest_columns(z: Tensor, count: int) -> Tensor:
    """(n, w) -> (n, count) columns of the largest values in descending order, lower columns first if equal.

    The K largest values lie in the K groups of columns with the largest maxima, which are found in one cheap pass.
    """
    if z.shape[1] <= 4 * count * GROUP:
        return _largest(z, count)
    padding = -z.shape[1] % GROUP
    grouped = (pad(z, (0, padding), value=-torch.inf) if padding else z).reshape(len(z), -1, GROUP)
    groups = _largest(grouped.amax(-1), count).sort(dim=-1).values
    chosen = grouped.gather(1, groups.unsqueeze(-1).expand(-1, -1, GROUP))
    columns = groups.unsqueeze(-1) * GROUP + torch.arange(GROUP, device=z.device)
    return columns.flatten(1).gather(-1, _largest(chosen.flatten(1), count))


def _largest(z: Tensor, count: int) -> Tensor:
    """As `largest_columns`, among all columns at once."""
    values, columns = z.topk(min(count + 1, z.shape[1]), dim=-1)
    if values.shape[1] > count:  # which of the tokens equal to the last one are in?
        tied = (values[:, count - 1] == values[:, count]).nonzero().squeeze(-1)
        columns = columns[:, :count]
        if len(tied):
            columns[tied] = _with_lowest_ties(z[tied], values[tied, :count], columns[tied])
    columns = columns.sort(dim=-1).values
    order = z.gather(-1, columns).argsort(dim=-1, descending=True, stable=True)
    return columns.gather(-1, order)


def _with_lowest_ties(z: Tensor, values: Tensor, columns: Tensor) -> Tensor:
    """`columns` (r, count) of the largest `values` (r, count) of `z` (r, w), at the last value its lowest columns."""
    width, last = z.shape[1], values[:, -1:]
    places = torch.where(z == last, torch.arange(width, device=z.device), width)
    lowest = places.topk(values.shape[1], dim=-1, largest=False, sorted=True).values
    above = (values > last).sum(-1, keepdim=True)
    rank = torch.arange(values.shape[1], device=z.device) - above
    return torch.where(rank < 0, columns, lowest.gather(-1, rank.clamp(min=0)))
