# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy monitors`: every monitor with paper, cost, and its fields."""

from typing import Any

from .methods import show, stored
from .parser import CommandParser


def known_monitors() -> dict[str, dict[str, Any]]:
    """The descriptions of all monitors by name."""
    if found := stored():
        return found["monitors"]
    from .listing import monitor_records

    return monitor_records()


def main(argv: list[str]) -> int:
    """Prints the descriptions, and returns the exit status."""
    parser = CommandParser(
        prog="trl-entropy monitors",
        description="Lists the monitors with their papers, what a measurement costs, and their fields with defaults.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these monitors")
    return show(parser.parse_args(argv).names, known_monitors(), "monitor", parser)
