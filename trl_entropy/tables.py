# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any


def text_table(rows: Sequence[Mapping[str, Any]], digits: Mapping[str, int] | None = None, missing: str = "") -> str:
    """Rows as text: the first column is aligned to the left, the others to the right.

    Args:
        rows: one mapping from column to value each. The first row's first column labels the rows.
        digits: decimals of columns that hold numbers.
        missing: shown if a row lacks a column, or its value is `None` or NaN.
    """
    import pandas as pd  # not at the top: it takes half a second to import

    table = pd.DataFrame(rows)
    for column, count in (digits or {}).items():
        table[column] = table[column].map(f"{{:.{count}f}}".format, na_action="ignore")
    label = table.columns[0]
    table = table.astype(object).fillna(missing).set_index(label).rename_axis(index=None, columns=label)
    text = table.to_string(header=[f" {column}" for column in table.columns])  # at least two spaces between columns
    return "\n".join(line.rstrip() for line in text.splitlines())
