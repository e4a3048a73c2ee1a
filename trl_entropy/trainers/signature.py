# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What an IDE shows of our constructors: TRL's signature, with our config."""

import inspect
from collections.abc import Callable


def like(stock: type, config: type) -> Callable[[Callable], Callable]:
    """Gives a constructor the signature of that of `stock`, whose `args` is a `config` here."""

    def show(constructor: Callable) -> Callable:
        signature = inspect.signature(vars(stock)["__init__"])
        parameters = [
            parameter.replace(annotation=config | None) if parameter.name == "args" else parameter
            for parameter in signature.parameters.values()
        ]
        setattr(constructor, "__signature__", signature.replace(parameters=parameters))  # noqa: B010 (mypy knows no attributes of functions)
        return constructor

    return show
