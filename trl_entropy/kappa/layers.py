# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""One weight of a model: name, shape and condition numbers."""

import math
import re
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any


LINEAR, EXPERTS = "linear", "experts"  # candidates by default
EMBEDDING, HEAD, ROUTER, TOWER = "embedding", "head", "router", "tower"
DIRECT = "direct"  # read by the model's code, which never calls the layer
UNREADABLE = "unreadable"  # quantized in a format that cannot be dequantized here
FULL_RANK, RANK_DEFICIENT, ZERO, NOT_FINITE = "full rank", "rank-deficient", "zero", "not finite"
NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")  # the first match is the number of the decoder layer
MAX_SIDE = 16384  # limit for the shorter side of a matrix, at which its Gram matrix takes 2 GiB


@dataclass
class Layer:
    """One weight: a matrix, or a stack of matrices (fused experts).

    Attributes:
        name: name of the module; for fused experts, name of the parameter.
        parameter: name of the parameter.
        shape: (rows, columns), or (experts, rows, columns).
        kind: one of the constants above, from `LINEAR` to `UNREADABLE`.
        states: one of the constants from `FULL_RANK` to `NOT_FINITE` per matrix; empty before the analysis.
        kappas: condition number per matrix, infinite without full rank.
        sigma_max, sigma_min: largest and smallest singular value per matrix.
        method: how the singular values were computed, `gram` or `svd`.
        seconds: time that the analysis took.
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
        """The number of its decoder layer."""
        found = NUMBER.search(self.name)
        return int(found[1]) if found else None

    @property
    def type(self) -> str:
        """The module name without layer numbers, such as `mlp.up_proj`; names in towers keep the path to the layer."""
        found = NUMBER.search(self.name)
        inside = self.name[found.end() + 1 :] if found and self.kind != TOWER else self.name
        return NUMBER.sub("", inside) or self.name

    @property
    def cost(self) -> int:
        """Operations of the analysis, up to a constant factor: Gram matrix and eigenvalues."""
        rows, columns = self.shape[-2:]
        short = min(rows, columns)
        return self.size * short + self.size // (rows * columns) * short**3

    @property
    def measurable(self) -> bool:
        """Whether the condition number can be computed and means something (that of a vector is always 1)."""
        return self.kind != UNREADABLE and 1 < min(self.shape[-2:]) <= MAX_SIDE

    @property
    def state(self) -> str:
        """The state of the matrix; for fused experts, of the first expert without full rank."""
        return next((state for state in self.states if state != FULL_RANK), FULL_RANK if self.states else "")

    def kappa(self, experts: str = "median") -> float:
        """The condition number; for fused experts, the `median` or `mean`. NaN before the analysis."""
        if not self.kappas:
            return math.nan
        return median(self.kappas) if experts == "median" else fmean(self.kappas)

    def as_json(self) -> dict[str, Any]:
        """All attributes as JSON. Numbers that are not finite become `null`; `states` says why a kappa is missing."""
        known = dict(vars(self))
        for key in ("kappas", "sigma_max", "sigma_min"):
            known[key] = [value if math.isfinite(value) else None for value in known[key]]
        return known

    @classmethod
    def from_json(cls, known: dict[str, Any]) -> "Layer":
        """The inverse of `as_json`. Raises `ValueError` or `TypeError` for anything else."""
        layer = cls(**{**known, "shape": tuple(known["shape"])})
        numbers = [*layer.kappas, *layer.sigma_max, *layer.sigma_min]
        if not all(value is None or isinstance(value, float) for value in numbers):
            raise ValueError(f"{layer.parameter} has {numbers}, which are not all numbers.")
        layer.kappas = [math.inf if value is None else value for value in layer.kappas]
        for key in ("sigma_max", "sigma_min"):
            setattr(layer, key, [math.nan if value is None else value for value in getattr(layer, key)])
        lengths = {len(layer.states), len(layer.kappas), len(layer.sigma_max), len(layer.sigma_min)}
        if not lengths <= {0, 1 if len(layer.shape) == 2 else layer.shape[0]} or len(lengths) != 1:
            raise ValueError(f"{layer.parameter} has {lengths} numbers for the shape {layer.shape}.")
        return layer
