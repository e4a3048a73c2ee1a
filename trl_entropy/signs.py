# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a log says of a method, as plain data: that it does nothing or too much, and its entropy target.

Imports nothing slow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class EntropyBand:
    """The band in which a method tries to hold mean token entropy, for plots.

    Attributes:
        low, high: its ends in nats, as numbers or as fields of the config.
        times: key of a logged value by which both are multiplied.
    """

    low: float | str
    high: float | str
    times: str | None = None

    def ends(self, settings: Mapping[str, Any], logged: Mapping[str, float]) -> tuple[float, float] | None:
        """The band (nats) at a log line; `None` if the line lacks `times`."""
        factor = 1.0 if self.times is None else logged.get(self.times)
        if factor is None:
            return None
        low, high = (settings[end] if isinstance(end, str) else end for end in (self.low, self.high))
        return factor * low, factor * high


@dataclass(frozen=True)
class Sign:
    """Ranges of logged values, and which field to change if the values are inside.

    Attributes:
        ranges: lowest and highest value by key, without the method's prefix.
        turn: which field to change, and how: an imperative sentence without its full stop.
    """

    ranges: Mapping[str, tuple[float, float]]
    turn: str

    def holds(self, name: str, line: Mapping[str, float]) -> bool | None:
        """Whether a log line of the method `name` shows the sign; `None` if it has none of the keys."""
        found = [
            low <= line[f"{name}/{key}"] <= high for key, (low, high) in self.ranges.items() if f"{name}/{key}" in line
        ]
        return all(found) if found else None


class Signs(NamedTuple):
    """What a method logs while it does nothing, and while it does too much."""

    idle: tuple[Sign, ...] = ()
    strong: tuple[Sign, ...] = ()


def signs_of(method: Any) -> Signs:
    """The signs that a method's class declares."""
    return Signs(tuple(getattr(method, "idle", ())), tuple(getattr(method, "strong", ())))


def as_plain(signs: Signs) -> dict[str, Any]:
    """Signs as data for JSON."""
    return {
        key: [
            {"ranges": {name: list(ends) for name, ends in sign.ranges.items()}, "turn": sign.turn} for sign in found
        ]
        for key, found in signs._asdict().items()
    }


def from_plain(plain: Mapping[str, Any]) -> Signs:
    """The inverse of `as_plain`."""
    return Signs(**{key: tuple(map(read_sign, found)) for key, found in plain.items()})


def read_sign(plain: Mapping[str, Any]) -> Sign:
    return Sign({key: (low, high) for key, (low, high) in plain["ranges"].items()}, plain["turn"])
