# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads the rows of a data file, for commands that do not train."""

import json
from pathlib import Path
from typing import Any


def read_rows(path: str) -> list[dict[str, Any]]:
    """The rows of a data file. Raises `ValueError` if it has none, or cannot be read."""
    if Path(path).suffix == ".jsonl":  # not by `datasets`: log-probabilities by token would be columns of all tokens
        rows = []
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except ValueError as error:
                raise ValueError(f"`--data` must have one JSON object a line, got another line {number}.") from error
    else:
        from .data import load_problems

        rows = next(iter(load_problems(path).values())).to_list()
    if not rows:
        raise ValueError(f"`--data` must have rows, got none in {path!r}.")
    return rows
