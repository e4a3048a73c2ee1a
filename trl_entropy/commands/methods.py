# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy methods`: every method, TIP and KappaTune with paper, where it acts, and its fields."""

import shutil
import textwrap
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..kappa.config import KappaConfig, KappaTune
from ..methods import METHODS, Method
from ..methods.tip import Tip
from ..settings import default_of, did_you_mean
from .parser import CommandParser


# What a method acts on, by the hook that it overrides. Training calls the hooks in this order.
STAGES = {
    "prompts": "prompts, before generation",
    "reward": "rewards",
    "group_advantages": "advantages, once per generation batch",
    "group_mask": "the tokens that the loss counts, once per generation batch",
    "token_advantages": "advantages, in every forward",
    "clip_bounds": "the ratios at which the loss clips",
    "loss": "the loss, by a term",
    "auxiliary_loss": "the loss, by a term on completions of its own",
}
# What the two act on that `methods` does not list.
OTHERS = {
    Tip: "which tokens distillation trains on; set by `tip_*` in `trl-entropy distillation`, not listed in `methods`",
    KappaTune: "which weights are trained; set by `kappa_mode` of either trainer, not listed in `methods`",
}
WIDEST = 110


def listed() -> dict[str, type]:
    """Every method by name, including those of other packages, then TIP and KappaTune."""
    return METHODS | {other.name: other for other in OTHERS}


def stages(method: type[Method]) -> list[str]:
    """What a method acts on, in words."""
    if method in OTHERS:
        return [OTHERS[method]]
    return [words for hook, words in STAGES.items() if method.overrides(hook)]


def accepted(hint: Any) -> str:
    """The type of a field in words."""
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if hint is type(None):
        return "none"
    members = get_args(hint)
    if members and get_origin(hint) is not list:
        return " or ".join(map(accepted, members))
    return f"list of {accepted(members[0])}" if members else getattr(hint, "__name__", str(hint))


def describe(name: str, width: int = WIDEST) -> str:
    """The description of a method that the command prints.

    Args:
        name: the name of a method, "tip" or "kappa".
        width: longest line, in characters. A longer word gets a line of its own.
    """
    method = listed()[name]
    config = KappaConfig if method is KappaTune else method.config
    hints = get_type_hints(config)

    def wrap(text: str, indent: int) -> str:
        margin = " " * indent
        options = dict(break_long_words=False, break_on_hyphens=False)
        return textwrap.fill(text, width, initial_indent=margin, subsequent_indent=margin, **options)

    lines = [method.name, wrap(method.summary, 2)]
    lines += [wrap(f"paper: {method.paper.title}, {method.paper.url}", 2)]
    lines += [wrap(f"acts on: {'; '.join(stages(method))}", 2)]
    if checked_against := getattr(method, "checked_against", None):  # methods of other packages need not say it
        lines += [wrap(f"checked against: {checked_against}", 2)]
    for field in fields(config):
        lines += [wrap(f"{field.name}: {accepted(hints[field.name])} = {default_of(field)!r}", 2)]
        lines += [wrap(field.metadata["help"], 6)]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = CommandParser(
        prog="trl-entropy methods",
        description="Lists the methods with their papers, where they act, and their fields with defaults.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this method")
    given = parser.parse_args(argv).name
    name = None if given is None else given.lower().replace("-", "_")
    known = listed()
    if name is not None and name not in known:
        parser.error(f"unknown method {given!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    width = min(shutil.get_terminal_size().columns, WIDEST)
    chosen = known if name is None else [name]
    print("\n\n".join(describe(one, width) for one in chosen))  # noqa: T201 (the result of a command)
    return 0
