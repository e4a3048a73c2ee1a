# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The setting of a method that `entropy_keep` may drive."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Knob:
    """A setting whose strength moves entropy in one direction, as a method declares it.

    A controller drives the log of the strength. On the `log` scale that is the log of the value. On the `linear` scale
    it is `per_unit` times the value. A `target` is not driven: it is a target entropy, set to that of `entropy_keep`.

    Args:
        field: field of the config.
        attribute: attribute of the method that holds its value, which the method reads whenever it acts.
        low, high: the range, in the unit of the field; nats for a `target`.
        start: where the controller begins if the user leaves the field at its default.
        scale: `log`, `linear` or `target`.
        per_unit: log strength per unit of the field, on the `linear` scale.
        rises: whether entropy is higher the larger the value is.
        brake: it slows the fall of entropy, but cannot make it rise.
        most: largest `entropy_keep` that it can hold.
        limited_by: field that limits what the largest strength does.

    Raises:
        `ValueError`: the range is not one, or `start` lies outside.
    """

    field: str
    attribute: str
    low: float
    high: float
    start: float
    scale: Literal["log", "linear", "target"] = "log"
    per_unit: float = 1.0
    rises: bool = True
    brake: bool = False
    most: float = 2.0
    limited_by: str | None = None

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf or (self.scale == "log" and self.low <= 0):
            raise ValueError(
                f"`low` and `high` of the knob `{self.field}` must be finite numbers in order, above 0 on the log "
                f"scale, got {self.low!r} and {self.high!r}."
            )
        if not self.low <= self.start <= self.high:
            raise ValueError(
                f"`start` of the knob `{self.field}` must be in [{self.low!r}, {self.high!r}], got {self.start!r}."
            )

    def log_strength(self, value: float) -> float:
        """The log of the strength at a value of the field."""
        size = math.log(value) if self.scale == "log" else self.per_unit * value
        return size if self.rises else -size

    def value(self, log_strength: float) -> float:
        """The value of the field at a log strength."""
        size = log_strength if self.rises else -log_strength
        return math.exp(size) if self.scale == "log" else size / self.per_unit

    def describe(self) -> str:
        """The knob in words."""
        if self.scale == "target":
            return f"`{self.field}`, which becomes its target entropy"
        ends = f"{self.low:g} to {self.high:g}" if self.rises else f"{self.high:g} down to {self.low:g}"
        kind = ", a brake: it slows the fall of entropy, but cannot raise it" if self.brake else ""
        return f"`{self.field}` from {ends} ({self.scale} scale), beginning at {self.start:g}{kind}"
