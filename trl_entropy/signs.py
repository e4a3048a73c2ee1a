# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Signs in a log that a method does nothing, or too much, as plain data. Imports nothing slow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


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
