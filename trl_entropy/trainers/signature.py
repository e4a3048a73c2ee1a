# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The arguments of our constructors: TRL's, with our config."""

import inspect
from collections.abc import Callable
from typing import Any

from trl.trainer.utils import get_config_model_id


def like(stock: type, config: type) -> Callable[[Callable], Callable]:
    """Decorator that shows an IDE and `help` the signature of `stock`, with `config` as the type of `args`."""

    def show(constructor: Callable) -> Callable:
        signature = inspect.signature(vars(stock)["__init__"])
        parameters = [
            parameter.replace(annotation=config | None) if parameter.name == "args" else parameter
            for parameter in signature.parameters.values()
        ]
        shown = signature.replace(parameters=parameters)
        constructor.__signature__ = shown  # type: ignore[attr-defined]  # mypy knows no attributes of functions
        return constructor

    return show


def args_of(given: dict[str, Any], config: type, suffix: str) -> Any:
    """The config among a trainer's arguments, or one in a folder named after the model if there is none.

    Args:
        given: the arguments by name.
        config: the class of the config.
        suffix: end of the folder's name.

    Raises:
        `TypeError`: `args` is something else.
    """
    model, args = given["model"], given["args"]
    if args is None:
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        return config(f"{name.split('/')[-1]}-{suffix}")
    if not isinstance(args, config):
        raise TypeError(f"`args` must be an `{config.__name__}`, got `{type(args).__name__}`.")
    return args
