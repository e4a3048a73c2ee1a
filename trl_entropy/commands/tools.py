# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tools by name: ours, and any function by dotted path."""

from collections.abc import Callable

from ..settings import did_you_mean
from ..tools import calculator
from .rewards import imported


TOOLS: dict[str, Callable] = {"calculator": calculator}


def tool_by_name(name: str) -> Callable:
    """A tool.

    Args:
        name: one of `TOOLS`, or a dotted path. Modules in the current folder are found too.

    Raises:
        `ValueError`: unknown name, the path cannot be imported, or what it names cannot be called.
    """
    if name in TOOLS:
        return TOOLS[name]
    if "." not in name:
        hint = did_you_mean(name, TOOLS, ignore_case=False)
        raise ValueError(f"`tools` has the unknown name {name!r}.{hint} Known: {', '.join(TOOLS)}, or a dotted path.")
    return imported(name, "tools")
