# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is known about one weight of a model: its place, its shape and its condition numbers."""

import math
import re
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any


LINEAR, EXPERTS = "linear", "experts"  # what is a candidate unless asked otherwise
EMBEDDING, HEAD, ROUTER, TOWER = "embedding", "head", "router", "tower"
UNREADABLE = "unreadable"  # quantised, in a form that no weight can be had from
FULL_RANK, RANK_DEFICIENT, ZERO, NOT_FINITE = "full rank", "rank-deficient", "zero", "not finite"
NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")  # the first is that of the decoder layer
MAX_SIDE = 16384  # of the shorter side: its Gram matrix takes 2 GiB


@dataclass
class Layer:
    """One weight: a matrix, or a stack of them where experts are fused.

    Attributes:
        name: of the module; of the parameter where experts are fused.
        parameter: name of the parameter.
        shape: (rows, columns), or (experts, rows, columns).
        kind: one of the constants of this module.
        states: for each matrix, what it is; empty before it is analysed.
        kappas: for each matrix its condition number, infinite where it has not full rank.
        sigma_max, sigma_min: for each matrix its largest and its smallest singular value.
        method: what the singular values came from, `gram` or `svd`.
        seconds: that it took.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    kind: str
    states: list[str] = field(default_factory=list)
    kappas: list[float] = field(default_factory=list)
    sigma_max: list[float] = field(default_factory=list)
    sigma_min: list[float] = field(default_factory=list)
    method: str = ""
    seconds: float = 0.0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def number(self) -> int | None:
        """That of its decoder layer."""
        found = NUMBER.search(self.name)
        return int(found[1]) if found else None

    @property
    def type(self) -> str:
        """What it shares with those of other decoder layers: its name within the layer; of a tower, where this is."""
        found = NUMBER.search(self.name)
        inside = self.name[found.end() + 1 :] if found and self.kind != TOWER else self.name
        return NUMBER.sub("", inside) or self.name

    @property
    def cost(self) -> int:
        """Of the analysis, in operations up to a factor: the Gram matrix and its eigenvalues."""
        rows, columns = self.shape[-2:]
        short = min(rows, columns)
        return self.size * short + self.size // (rows * columns) * short**3

    @property
    def measurable(self) -> bool:
        """Whether a condition number says something (a vector's is 1) and can be had."""
        return self.kind != UNREADABLE and 1 < min(self.shape[-2:]) <= MAX_SIDE

    @property
    def state(self) -> str:
        """That of the matrix, or of the first expert that has not full rank."""
        return next((state for state in self.states if state != FULL_RANK), FULL_RANK if self.states else "")

    def kappa(self, experts: str = "median") -> float:
        """The condition number; of fused experts their `median` or `mean`. NaN before the analysis."""
        if not self.kappas:
            return math.nan
        return median(self.kappas) if experts == "median" else fmean(self.kappas)

    def as_json(self) -> dict[str, Any]:
        """Finite numbers only: `null` in `kappas` is explained by `states`."""
        known = dict(vars(self))
        for key in ("kappas", "sigma_max", "sigma_min"):
            known[key] = [value if math.isfinite(value) else None for value in known[key]]
        return known

    @classmethod
    def from_json(cls, known: dict[str, Any]) -> "Layer":
        """The inverse of `as_json`. Raises `ValueError` or `TypeError` where it is none."""
        layer = cls(**{**known, "shape": tuple(known["shape"])})
        numbers = [*layer.kappas, *layer.sigma_max, *layer.sigma_min]
        if not all(value is None or isinstance(value, float) for value in numbers):
            raise ValueError(f"{layer.parameter} has {numbers}, which are no numbers.")
        layer.kappas = [math.inf if value is None else value for value in layer.kappas]
        for key in ("sigma_max", "sigma_min"):
            setattr(layer, key, [math.nan if value is None else value for value in getattr(layer, key)])
        lengths = {len(layer.states), len(layer.kappas), len(layer.sigma_max), len(layer.sigma_min)}
        if not lengths <= {0, 1 if len(layer.shape) == 2 else layer.shape[0]} or len(lengths) != 1:
            raise ValueError(f"{layer.parameter} has {lengths} numbers for the shape {layer.shape}.")
        return layer
