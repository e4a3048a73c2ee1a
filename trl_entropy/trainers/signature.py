# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Signatures of our constructors for IDEs and `help`: TRL's, with our config."""

import inspect
from collections.abc import Callable


def like(stock: type, config: type) -> Callable[[Callable], Callable]:
    """Decorator that gives a constructor the signature of `stock`'s, with `config` as the type of `args`."""

    def show(constructor: Callable) -> Callable:
        signature = inspect.signature(vars(stock)["__init__"])
        parameters = [
            parameter.replace(annotation=config | None) if parameter.name == "args" else parameter
            for parameter in signature.parameters.values()
        ]
        setattr(constructor, "__signature__", signature.replace(parameters=parameters))  # noqa: B010 (mypy knows no attributes of functions)
        return constructor

    return show
