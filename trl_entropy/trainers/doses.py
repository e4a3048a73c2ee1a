# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Warnings about ratios of tokens that are less than one token."""

from typing import Any

from ..inert import below_one_token
from ..methods import Method
from .thermostat_config import driven_by


def dose_warnings(config: Any, methods: list[Method]) -> list[str]:
    """One warning for each method whose `token_ratio` is less than one token, however long completions are.

    Not for a ratio that `entropy_keep` drives: it changes, and its tokens are rounded at random.

    Args:
        config: of the trainer. Without `max_completion_length` nothing is known.
        methods: the active methods.
    """
    found, driven = [], driven_by(config)
    for method in methods if config.max_completion_length else ():
        if method.token_ratio is not None and (driven is None or driven.knob.field != method.token_ratio):
            rows, ratio = method.ratio_rows(config), getattr(config, method.token_ratio)
            found.append(below_one_token(method.name, method.token_ratio, ratio, rows, config.max_completion_length))
    return [warning for warning in found if warning is not None]
