# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Replaces names that a function of another package looks up."""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


def rebound(function: Callable, names: dict[str, Any]) -> Callable:
    """A copy of `function` that finds other objects under some of its global names.

    Args:
        function: function of another package.
        names: the objects by global name.

    Raises:
        `RuntimeError`: the function does not use one of the names.
    """
    missing = [name for name in names if name not in function.__code__.co_names]
    if missing:
        raise RuntimeError(
            f"`{function.__module__}.{function.__qualname__}` no longer uses {missing}: this release is not supported."
        )
    copy = types.FunctionType(
        function.__code__.replace(),  # Dynamo caches by code object, and these globals need their own cache
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


@contextmanager
def swapped(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Within the context, `module.name` is `value`."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
