# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy recommend`: what to try first, as a recipe."""

import json
import textwrap
from pathlib import Path
from typing import Any

import yaml

from ..advice.cases import CASES
from ..advice.recommend import Recommendation, recommend
from ..advice.setup import case_of
from .methods import known_to_advice
from .parser import CommandParser
from .recipes import recipe_path
from .yaml_values import load


WIDTH = 110


def build_parser() -> CommandParser:
    tasks = ", ".join(f"{name}: {case.title}" for name, case in CASES.items())
    parser = CommandParser(
        prog="trl-entropy recommend",
        description="Says which method to try first, why, and with which settings for the batch of a recipe. The "
        "output is a recipe itself, with the reasons as comments. docs/which_method.md has the whole table.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="your recipe, or the name of one of ours (that of the task)",
    )
    parser.add_argument("--task", choices=CASES, help=f"{tasks}. By default as the recipe says, else math")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    return parser


def main(argv: list[str]) -> int:
    """Prints the first choice and the recipe with it, and returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    with parser.reporting():
        found = describe(arguments.task, arguments.config, arguments.json)
    print(found)  # noqa: T201 (the result of a command)
    return 0


def describe(task: str | None, config: Path | None, as_json: bool) -> str:
    """The recommendation as a recipe with comments, or as JSON.

    Raises:
        `ValueError`, `FileNotFoundError`: the recipe cannot be read, or is for another task.
    """
    own = config is None
    path = recipe_path(CASES[task or "math"].recipe if config is None else config)
    recipe = load(str(path))
    task = task or ("math" if own else case_of(recipe))
    found = recommend(task, recipe, *known_to_advice())
    return json.dumps(as_record(found, path.name), indent=1) if as_json else as_recipe(found, path.name)


def as_record(found: Recommendation, name: str) -> dict[str, Any]:
    """A recommendation as plain data for JSON."""
    return {
        "task": found.task,
        "command": found.case.command,
        "based_on": name,
        "first": {
            "choice": found.choice.name.replace("`", ""),
            "in_place": found.in_place,
            "why": found.choice.why,
            "evidence": found.choice.evidence,
            "cost": found.choice.cost,
        },
        "then": found.case.then,
        "note": found.case.note,
        "batch": found.batch,
        "watch": found.watch,
        "does_nothing": found.problems,
        "changed": found.changed,
        "removed": found.removed,
        "recipe": found.recipe,
    }


def as_recipe(found: Recommendation, name: str) -> str:
    """A recommendation as a recipe: reasons as comments, the lines that change, and the others."""
    case, choice = found.case, found.choice
    facts = {
        "Why": choice.why,
        "Evidence": f"{choice.evidence.rstrip('.')}. Grades: docs/which_method.md.",
        "Cost": f"{choice.cost}.",
        "Batch": " ".join(found.batch),
        "Watch": " ".join(found.watch),
        "Note": case.note,
        "Then": f"{case.then}.",
    }
    has = "has" if found.in_place else "does not have"
    comments = [f"Task {found.task}: {case.title}. First choice: {choice.name}, which {name} {has}."]
    comments += [f"{key}: {text}" for key, text in facts.items() if text]
    comments += [f"Does nothing in {name}: {problem}" for problem in found.problems]
    comments += [f"Removed: {', '.join(found.removed)}"] if found.removed else []
    comments += [f"Check: trl-entropy {case.command} --config FILE --dry_run"]
    kept = {key: value for key, value in found.recipe.items() if key not in found.changed}
    parts = ["\n".join(map(comment, comments))]
    parts += [f"# Changed\n{dumped(found.changed)}"] if found.changed else []
    parts.append(f"# As in {name}\n{dumped(kept)}")
    return "\n\n".join(parts)


def comment(text: str) -> str:
    """Text as lines of comment."""
    wrapped = textwrap.wrap(text, WIDTH - 2, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"# {line}" for line in wrapped)


def dumped(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=119).strip()
