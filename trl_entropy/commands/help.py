# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The help of the training commands: our fields first, by method. `--help-all` lists those of TRL too."""

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from ..methods import METHODS


THEIRS = ("trl.", "transformers.")  # modules of dataclasses whose fields `--help-all` shows
GROUPS = {"tip": "tip (tokens that distillation trains on)", "kappa": "kappa (weights that are trained)"}


class HelpAll(argparse.Action):
    """`--help-all`: prints every field and exits."""

    def __init__(self, option_strings, dest, **options):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser, namespace, values, option_string=None):
        parser.print_help_all()
        parser.exit()


def our_fields(kinds: Iterable[Any]) -> list[str]:
    """The fields that this package adds, in their order: `methods` first."""
    found = {
        name: None
        for kind in kinds
        for base in kind.__mro__
        if not base.__module__.startswith(THEIRS)
        for name in vars(base).get("__annotations__", {})
        if name in kind.__dataclass_fields__
    }
    return sorted(found, key=lambda name: name != "methods")


def groups(names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Titles and fields: what belongs to no method, then the fields of each method, TIP and KappaTune."""
    names = list(names)
    titles = {name: f"{name}: {method.summary}" for name, method in METHODS.items()} | GROUPS
    of = {name: next((prefix for prefix in titles if name.startswith(f"{prefix}_")), "") for name in names}
    for prefix, title in {"": "entropy", **titles}.items():
        if members := [name for name in names if of[name] == prefix]:
            yield title, members


def short_help(parser) -> str:
    """The help of a [`StrictParser`] with our fields only."""
    formatter = parser.formatter_class(prog=parser.prog)
    formatter.add_text(f"usage: {parser.prog} --config FILE [--FIELD VALUE ...]")
    formatter.add_text(parser.epilog)
    formatter.add_text("`--help-all` lists the fields of TRL and transformers too, `--dry_run` only checks.")
    for title, members in groups(our_fields(parser.dataclass_types)):
        formatter.start_section(title)
        formatter.add_arguments([parser.fields[name] for name in members if name in parser.fields])
        formatter.end_section()
    return formatter.format_help()
