# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy methods`: every method with its paper, where it acts, and its fields."""

import shutil
import textwrap
from dataclasses import Field, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .commands import CommandParser
from .methods import METHODS, Method, MethodsConfig


# What a method acts on, by the hook that it overrides, in the order in which training comes to them.
STAGES = {
    "prompts": "prompts, before generation",
    "reward": "rewards",
    "group_advantages": "advantages, once per generation batch",
    "group_mask": "the tokens that the loss counts, once per generation batch",
    "token_advantages": "advantages, in every forward",
    "clip_range": "the ratios at which the loss clips",
    "loss": "the loss, by a term",
    "auxiliary_loss": "the loss, by a term on completions of its own",
}
WIDEST = 110


def stages(method: type[Method]) -> list[str]:
    """Where in training a method acts, in words."""
    return [words for hook, words in STAGES.items() if method.overrides(hook)]


def fields_of(method: type[Method]) -> list[Field]:
    return [field for field in fields(MethodsConfig) if field.name.startswith(f"{method.name}_")]


def accepted(hint: Any) -> str:
    """The type of a field in words."""
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    members = [member for member in get_args(hint) if member is not type(None)]
    return " or ".join(accepted(member) for member in members) if members else getattr(hint, "__name__", str(hint))


def describe(method: type[Method], width: int = WIDEST) -> str:
    """Everything that a user chooses a method by, in lines of at most `width` characters but for long words."""
    hints = get_type_hints(MethodsConfig)

    def wrap(text: str, indent: int) -> str:
        margin = " " * indent
        options = dict(break_long_words=False, break_on_hyphens=False)
        return textwrap.fill(text, width, initial_indent=margin, subsequent_indent=margin, **options)

    lines = [method.name, wrap(" ".join(method.__doc__.split("\n\n")[0].split()), 2)]
    lines += [wrap(f"paper: {method.paper.title}, {method.paper.url}", 2)]
    lines += [wrap(f"acts on: {'; '.join(stages(method))}", 2)]
    for field in fields_of(method):
        lines += [wrap(f"{field.name}: {accepted(hints[field.name])} = {field.default!r}", 2)]
        lines += [wrap(field.metadata["help"], 6)]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = CommandParser(
        prog="trl-entropy methods",
        description="Lists the methods with their papers, where they act, and their fields with defaults.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this method")
    name = parser.parse_args(argv).name
    if name is not None and name not in METHODS:
        near = get_close_matches(name, METHODS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        parser.error(f"unknown method {name!r}.{hint} Known: {', '.join(METHODS)}.")
    width = min(shutil.get_terminal_size().columns, WIDEST)
    chosen = METHODS.values() if name is None else [METHODS[name]]
    print("\n\n".join(describe(method, width) for method in chosen))  # noqa: T201 (the result of a command)
    return 0
