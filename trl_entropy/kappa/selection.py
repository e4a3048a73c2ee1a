# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The choice of the weights to train: candidates, ranking, budget."""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .layers import EXPERTS, LINEAR, MAX_SIDE, Layer


ORDERS = ("ascending", "descending", "random")
TOP_P = 0.2  # share of the parameters if no budget is given


@dataclass(frozen=True)
class Selection:
    """A selection of weights.

    Args:
        top_p, num_modules, include, exclude, order, experts: described by the fields `kappa_*` of
            [`~trl_entropy.kappa.config.KappaConfig`]. Expressions match anywhere in a name.
        seed: seed of the random order.
        prefix: what the names of the fields start with in error messages.

    Raises:
        `ValueError`: an argument is out of range.
    """

    top_p: float | None = None
    num_modules: int | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    order: str = "ascending"
    experts: str = "median"
    seed: int = 0
    prefix: str = ""

    def __post_init__(self):
        self._check("order", self.order in ORDERS, "one of " + ", ".join(map(repr, ORDERS)))
        self._check("experts", self.experts in ("median", "mean"), "one of 'median', 'mean'")
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            whole = isinstance(patterns, (list, tuple)) and all(isinstance(pattern, str) for pattern in patterns)
            self._check(name, whole, "a list of regular expressions")
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(
                        f"`{self.prefix}{name}` must be a list of regular expressions, got {pattern!r}: {error}."
                    ) from None
        if self.top_p is not None:
            number = type(self.top_p) in (int, float) and 0 < self.top_p <= 1
            self._check("top_p", number, "a share of the parameters in (0, 1]")
        if self.num_modules is not None:
            self._check("num_modules", type(self.num_modules) is int and self.num_modules > 0, "an integer above 0")
            if self.top_p is not None:
                raise ValueError(
                    f"One of `{self.prefix}top_p` and `{self.prefix}num_modules` may be given, got {self.top_p!r} and "
                    f"{self.num_modules!r}."
                )

    def _check(self, name: str, fits: bool, accepted: str) -> None:
        if not fits:
            raise ValueError(f"`{self.prefix}{name}` must be {accepted}, got {getattr(self, name)!r}.")

    def candidate(self, layer: Layer) -> bool:
        """Whether a weight may be selected, judging by its name, shape and kind."""
        if not layer.measurable or any(re.search(pattern, layer.name) for pattern in self.exclude):
            return False
        if self.include:
            return any(re.search(pattern, layer.name) for pattern in self.include)
        return layer.kind in (LINEAR, EXPERTS)

    def _check_include(self, layers: Sequence[Layer]) -> None:
        """Raises `ValueError` if a pattern of `include` matches only weights that have no condition number."""
        for pattern in self.include:
            found = [layer for layer in layers if re.search(pattern, layer.name)]
            if found and not any(layer.measurable for layer in found):
                shape = "x".join(map(str, found[0].shape))
                raise ValueError(
                    f"`{self.prefix}include` asks with {pattern!r} for `{found[0].name}` of shape {shape}, which has "
                    "no condition number. It is not defined for vectors, and not computed for quantized weights that "
                    f"cannot be dequantized or if the shorter side is above {MAX_SIDE}."
                )

    def ranked(self, layers: Sequence[Layer]) -> list[Layer]:
        """The candidates of full rank, best first. Depends on names and condition numbers only, not on their order."""
        known = sorted(filter(self.candidate, layers), key=lambda layer: layer.name)
        known = [layer for layer in known if math.isfinite(layer.kappa(self.experts))]
        if self.order == "random":
            random.Random(self.seed).shuffle(known)
        else:
            sign = 1 if self.order == "ascending" else -1
            known.sort(key=lambda layer: sign * layer.kappa(self.experts))  # stable: ties stay sorted by name
        return known

    def select(self, layers: Sequence[Layer]) -> list[Layer]:
        """As many weights from the top of the ranking as the budget allows. Raises `ValueError` if it allows none."""
        self._check_include(layers)
        ranked = self.ranked(layers)
        if not ranked:
            asked = f"`{self.prefix}include`={list(self.include)}, `{self.prefix}exclude`={list(self.exclude)}"
            raise ValueError(f"No weight of full rank is a candidate with {asked}.")
        if self.num_modules is not None:
            return ranked[: self.num_modules]
        top_p = TOP_P if self.top_p is None else self.top_p
        total = sum(layer.size for layer in layers if self.candidate(layer))
        chosen, used = [], 0
        for layer in ranked:
            used += layer.size
            if used > top_p * total * (1 + 1e-9):
                break
            chosen.append(layer)
        if not chosen:
            raise ValueError(
                f"`{self.prefix}top_p`={top_p} selects nothing: {top_p:.4g} of {total} parameters is less than the "
                f"{ranked[0].size} of `{ranked[0].name}`, the first in the ranking."
            )
        return chosen
