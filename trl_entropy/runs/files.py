# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names and values in the files that a run leaves for `trl-entropy report`.

This module must not import torch: the report checks its paths before it loads anything slow.
"""

import math
from pathlib import Path


SETTINGS_FILE = "run_settings.json"
COMPLETIONS, TOKEN_FILE = "completions", "token_entropies_"  # a folder, and the prefix of the token logs in it
PRIVATE_WORDS = {"path", "name", "repo", "url", "host", "port", "dir", "hub", "kwargs", "funcs"}


def is_private(name: str) -> bool:
    """Whether a setting names a place, such as a path or a repository, and says nothing about how a run learns."""
    return not PRIVATE_WORDS.isdisjoint(name.split("_"))


def number_of(path: Path) -> int | None:
    """The step at the end of a file name; `None` if it does not end in a number."""
    number = path.stem.rpartition("_")[2]
    return int(number) if number.isdecimal() else None


def finite(value: float | None, digits: int | None = None) -> float | None:
    """The value, rounded if `digits` is given; `None` if it is not finite, because JSON has no NaN."""
    if value is None or not math.isfinite(value):
        return None
    return value if digits is None else round(value, digits)
