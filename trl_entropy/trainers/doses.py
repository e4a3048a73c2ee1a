# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Warnings about ratios of tokens that are less than one token."""

from typing import Any

from ..functional import smallest_ratio
from ..methods import Method


def dose_warnings(config: Any, methods: list[Method]) -> list[str]:
    """One warning for each method whose `token_ratio` is less than one token, however long completions are.

    Args:
        config: of the trainer. Without `max_completion_length` nothing is known.
        methods: the active methods.
    """
    found = []
    for method in methods if config.max_completion_length else ():
        if method.token_ratio is None:
            continue
        rows, ratio = method.ratio_rows(config), getattr(config, method.token_ratio)
        most = rows * config.max_completion_length
        if ratio * most < 1:
            found.append(
                f"`{method.token_ratio}` {ratio:g} of at most {most} tokens ({rows} completions of "
                f"`max_completion_length` {config.max_completion_length}) is {ratio * most:.3g}, less than one token. "
                f"Method {method.name!r} takes one token all the same, whatever the ratio is. The smallest ratio that "
                f"acts is {smallest_ratio(most):g}."
            )
    return found
