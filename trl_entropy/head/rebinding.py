# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A function of another package with some of the names that it looks up standing for other objects."""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


def rebound(function: Callable, names: dict[str, Any]) -> Callable:
    """A copy of `function` for which some global names that it uses stand for other objects.

    Raises `RuntimeError` where it no longer uses one of them.
    """
    missing = [name for name in names if name not in function.__code__.co_names]
    if missing:
        raise RuntimeError(
            f"`{function.__module__}.{function.__qualname__}` no longer uses {missing}: this release is not supported."
        )
    copy = types.FunctionType(
        function.__code__.replace(),  # a copy: Dynamo caches by code, and what it caches belongs to these globals
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


@contextmanager
def swapped(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Within the context `module.name` is `value`."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
