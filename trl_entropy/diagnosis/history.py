# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The log of a run as the rules read it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from ..signs import Signs


TRAINING = {"loss", "reward", "entropy", "entropy/mean", "grad_norm"}  # a line of training has one of these


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a log line. `None`, which transformers writes for NaN, is NaN again."""
    known = {key: math.nan if value is None else value for key, value in line.items()}
    return {key: value for key, value in known.items() if type(value) in (int, float)}


def training_lines(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The log lines of training as numbers, without evaluations and the summary at the end."""
    found = (numbers_of(line) for line in lines)
    return [line for line in found if "step" in line and TRAINING & line.keys()]


@dataclass(frozen=True)
class History:
    """What the rules know of a run.

    Attributes:
        lines: log lines of training, each with a `step`. Numbers may be NaN or infinite.
        settings: settings of the run, as far as they are known.
        signs: signs by the name of the method.
    """

    lines: list[dict[str, float]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    signs: Mapping[str, Signs] = field(default_factory=dict)

    def series(self, *keys: str) -> list[list[float]]:
        """Steps, and the values of each of `keys`, from the lines in which all of them are finite."""
        kept = [line for line in self.lines if all(math.isfinite(line.get(key, math.nan)) for key in keys)]
        return [[line[key] for line in kept] for key in ("step", *keys)]

    @property
    def entropy(self) -> str:
        """The key of the mean token entropy: ours, or else TRL's."""
        return "entropy/mean" if any("entropy/mean" in line for line in self.lines) else "entropy"

    def generation_batches(self) -> float:
        """Generation batches that training has used, from the settings. An unknown setting has TRL's default."""
        forwards = self.settings.get("gradient_accumulation_steps") or 1
        held = (self.settings.get("steps_per_generation") or forwards) * (self.settings.get("num_iterations") or 1)
        return self.lines[-1]["step"] * forwards / held if self.lines else 0.0


def ends(values: list[float], lines: int) -> tuple[float, float] | None:
    """Means of the first and of the last `lines` values; `None` if these overlap."""
    return (fmean(values[:lines]), fmean(values[-lines:])) if len(values) >= 2 * lines else None


def last(values: list[float], lines: int) -> float | None:
    """Mean of the last `lines` values; `None` if there are fewer."""
    return fmean(values[-lines:]) if len(values) >= lines else None
