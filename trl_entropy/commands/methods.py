# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy methods`: every method, TIP and KappaTune with paper, where it acts, and its fields."""

import hashlib
import json
import shutil
import sys
import textwrap
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ..settings import did_you_mean
from .names import method_name
from .parser import CommandParser


STORED = Path(__file__).with_name("methods.json")
SOURCES = Path(__file__).parents[1]  # of the methods, below this folder
WIDEST = 110


def known_methods() -> dict[str, dict[str, Any]]:
    """The descriptions of all methods by name.

    They are stored, because the methods import torch, which takes seconds. The methods are asked themselves if another
    package adds some, or if their sources are not those that the descriptions were stored from.
    """
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    loaded = "trl_entropy.methods" in sys.modules or entry_points(group="trl_entropy.methods")
    if loaded or stored["digest"] != digest():
        from .listing import records

        return records()
    return stored["methods"]


def digest() -> str:
    """A hash of the sources that descriptions come from."""
    paths = [*sorted((SOURCES / "methods").glob("*.py")), SOURCES / "kappa" / "config.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def describe(name: str, width: int = WIDEST) -> str:
    """Everything that a user chooses a method by, in lines of at most `width` characters but for long words."""
    method = known_methods()[name]

    def wrap(text: str, indent: int) -> str:
        margin = " " * indent
        return textwrap.fill(
            text,
            width,
            initial_indent=margin,
            subsequent_indent=margin,
            break_long_words=False,
            break_on_hyphens=False,
        )

    lines = [name, wrap(method["summary"], 2)]
    lines += [wrap(f"{key}: {method[key]}", 2) for key in ("paper", "acts on", "checked against") if key in method]
    for field, about in method["fields"].items():
        lines += [wrap(f"{field}: {about['default']}", 2), wrap(about["help"], 6)]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Prints the descriptions, and returns the exit status."""
    parser = CommandParser(
        prog="trl-entropy methods",
        description="Lists the methods with their papers, where they act, and their fields with defaults.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these methods")
    given = parser.parse_args(argv).names
    known = known_methods()
    unknown = [
        f"unknown method {name!r}.{did_you_mean(name, known)}" for name in given if method_name(name) not in known
    ]
    if unknown:
        parser.error(f"{' '.join(unknown)} Known: {', '.join(known)}.")
    width = min(shutil.get_terminal_size().columns, WIDEST)
    chosen = list(dict.fromkeys(map(method_name, given))) or list(known)
    print("\n\n".join(describe(name, width) for name in chosen))  # noqa: T201 (the result of a command)
    return 0
