# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads a recipe: a YAML file whose values must have the types of the fields."""

import dataclasses
from argparse import Action, ArgumentTypeError
from collections.abc import Iterable
from types import NoneType
from typing import Any, get_args, get_origin

import yaml

from ..settings import UNQUOTED, nearest_name


ACCEPTED = {
    "int": "an integer",
    "float": "a number",
    "string_to_bool": "true or false",
    "str": "text",
    "method_name": "text",
}


def nearest(name: Any, known: Iterable[str], prefix: str = "") -> str:
    near = nearest_name(name, known, ignore_case=False)
    return "." if near is None else f": did you mean `{prefix}{near}`?"


def kinds_of(hint: Any) -> set[Any]:
    """The members of a type hint's union (or the hint itself), without type parameters."""
    members = [hint] if get_origin(hint) in (list, dict) or not get_args(hint) else get_args(hint)
    return {get_origin(member) or member for member in members}


def load(path: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ValueError` for anything else."""
    with open(path, encoding="utf-8") as file:
        try:
            config = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a mapping of keys to values, got {config!r}.")
    if not isinstance(config.get("env", {}), dict):
        raise ValueError(f"`env` in {path} must map names of variables to values, got {config['env']!r}.")
    return config


def checked_value(action: Action, hint: Any, value: Any, path: str) -> Any:
    """A value of a YAML file, checked as on the command line. Text is converted to the type of the field.

    Args:
        action: the flag of the field.
        hint: the type hint of the field.
        value: its value in the file.
        path: the file.

    Raises:
        `ValueError`: the value is of a wrong type, or not one of the choices.
    """
    kinds = kinds_of(hint)
    if action.nargs == "+" and not isinstance(value, list | NoneType) and type(value) not in kinds:
        value = [value]
    if type(value) in (NoneType, dict, list) and type(value) not in kinds:
        raise _wrong(action, value, path)
    if isinstance(value, list):
        return [_checked_item(action, item, path) for item in value]
    return value if isinstance(value, dict | NoneType) else _checked_item(action, value, path)


def _checked_item(action: Action, value: Any, path: str) -> Any:
    kind: Any = action.type
    if isinstance(value, dict | list) and not dataclasses.is_dataclass(kind):
        raise _wrong(action, value, path)
    if isinstance(value, dict):  # an entry of `datasets`
        known = [field.name for field in dataclasses.fields(kind)]
        for key in value:
            if key not in known:
                where = f"of `{action.dest}` in {path}"
                raise ValueError(f"Unknown key `{key}` {where}{nearest(key, known)}")
        return value
    try:
        converted = kind(str(value))
    except (ValueError, TypeError, ArgumentTypeError):
        raise _wrong(action, value, path) from None
    if action.choices is not None and converted not in action.choices:
        raise _wrong(action, value, path)
    return converted if isinstance(value, str) else value


def _wrong(action: Action, value: Any, path: str) -> ValueError:
    name = getattr(action.type, "__name__", str(action.type))
    accepted = ACCEPTED.get(name, f"a value of type {name}")
    if action.choices is not None:
        accepted = "one of " + ", ".join(repr(str(choice)) for choice in action.choices)
    accepted = f"a list, each entry {accepted}" if action.nargs == "+" else accepted
    hint = UNQUOTED if isinstance(value, bool) else ""
    return ValueError(f"`{action.dest}` in {path} must be {accepted}, got {value!r}.{hint}")
