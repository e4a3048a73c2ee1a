# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy methods`: every method, TIP and KappaTune with paper, where it acts, and its fields."""

import hashlib
import json
import shutil
import sys
import textwrap
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

from ..report.known import Known, known_from
from ..settings import did_you_mean
from ..signs import EntropyBand, from_plain
from .names import method_name
from .parser import CommandParser


STORED = Path(__file__).with_name("methods.json")
SOURCES = Path(__file__).parents[1]  # of the methods, below this folder
WIDEST = 110


def stored() -> dict[str, Any] | None:
    """What is stored of the methods and of the trainer's config, whose modules take seconds to import.

    `None` if another package adds methods, if they are loaded anyway, or if it was stored from other sources.
    """
    if "trl_entropy.methods" in sys.modules or entry_points(group="trl_entropy.methods"):
        return None
    found = json.loads(STORED.read_text(encoding="utf-8"))
    return found if found["digest"] == digest() else None


def known_methods() -> dict[str, dict[str, Any]]:
    """The descriptions of all methods by name."""
    if found := stored():
        return found["methods"]
    from .listing import records

    return records()


def known_to_reports() -> Known:
    """What a report must know of the methods, and of the trainer's config."""
    if found := stored():
        known = found["known"]
        signs = {name: from_plain(plain) for name, plain in known["signs"].items()}
        bands = {name: EntropyBand(**plain) for name, plain in known["bands"].items()}
        return Known(tuple(known["methods"]), bands, known["defaults"], signs, tuple(found["monitors"]))
    from ..trainers.grpo_config import EntropyGRPOConfig

    return known_from(EntropyGRPOConfig)


def known_to_advice() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Facts of the methods by name, and by training command the defaults of its config."""
    if found := stored():
        descriptions, known = found["methods"], found["known"]
        defaults = {"grpo": known["defaults"], "distillation": known["distillation"]}
    else:
        from ..report.known import defaults_of
        from ..trainers.distillation_config import EntropyDistillationConfig
        from ..trainers.grpo_config import EntropyGRPOConfig

        descriptions = known_methods()
        configs = {"grpo": EntropyGRPOConfig, "distillation": EntropyDistillationConfig}
        defaults = {command: defaults_of(config) for command, config in configs.items()}
    facts = {
        name: {**method["facts"], "fields": [*method["fields"]]}
        for name, method in descriptions.items()
        if "facts" in method
    }
    return facts, defaults


def digest() -> str:
    """A hash of the sources that descriptions come from."""
    trainers = (
        f"trainers/{name}.py"
        for name in ("grpo_config", "distillation_config", "entropy_bonus", "thermostat_config", "refined_schedule")
    )
    others = ("knob.py", "signs.py", "diagnosis/config.py", "kappa/config.py", *trainers)
    rooms = [path for room in ("methods", "monitors") for path in sorted((SOURCES / room).glob("*.py"))]
    paths = [*rooms, *(SOURCES / name for name in others)]
    parts = [*(path.read_bytes() for path in paths), version("trl").encode()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def describe(name: str, method: dict[str, Any], width: int = WIDEST) -> str:
    """Everything that a user chooses a method by, in lines of at most `width` characters but for long words.

    Args:
        name: the method.
        method: its entry of [`known_methods`].
        width: of the lines.
    """

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
    facts = ("paper", "acts on", "checked against", "entropy_keep", "cost")
    lines += [wrap(f"{key}: {method[key]}", 2) for key in facts if key in method]
    for field, about in method["fields"].items():
        lines += [wrap(f"{field}: {about['default']}", 2), wrap(about["help"], 6)]
    return "\n".join(lines)


def show(given: list[str], known: dict[str, dict[str, Any]], kind: str, parser: CommandParser) -> int:
    """Prints the descriptions of the given entries, or of all, and returns the exit status.

    Args:
        given: names, as the user writes them.
        known: descriptions by name.
        kind: of the entries, for errors.
        parser: of the command.
    """
    unknown = [
        f"unknown {kind} {name!r}.{did_you_mean(name, known)}" for name in given if method_name(name) not in known
    ]
    if unknown:
        parser.error(f"{' '.join(unknown)} Known: {', '.join(known)}.")
    width = min(shutil.get_terminal_size().columns, WIDEST)
    chosen = list(dict.fromkeys(map(method_name, given))) or list(known)
    print("\n\n".join(describe(name, known[name], width) for name in chosen))  # noqa: T201 (the result of a command)
    return 0


def main(argv: list[str]) -> int:
    """Prints the descriptions, and returns the exit status."""
    parser = CommandParser(
        prog="trl-entropy methods",
        description="Lists the methods with their papers, where they act, and their fields with defaults.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these methods")
    return show(parser.parse_args(argv).names, known_methods(), "method", parser)
