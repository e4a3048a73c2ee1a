# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading the fields of a config: a value that fits, or one error that names field, value and what is accepted."""

from collections.abc import Callable
from typing import Any


UNQUOTED = " YAML reads unquoted yes, no, on and off as true and false."


def checked(config: Any, name: str, accepts: Callable[[Any], bool], accepted: str, switch: bool = False) -> Any:
    """The field `name` of `config`, or a `ValueError` that says what it was and what is accepted.

    True and False, which Python takes for numbers, are values of a `switch` alone.
    """
    value = getattr(config, name)
    try:
        fits = (switch or not isinstance(value, bool)) and accepts(value)
    except TypeError:  # a value of another type, such as a string where a number belongs
        fits = False
    if not fits:
        hint = UNQUOTED if isinstance(value, bool) else ""
        raise ValueError(f"`{name}` must be {accepted}, got {value!r}.{hint}")
    return value


def one_of(config: Any, name: str, *choices: str) -> str:
    return checked(config, name, lambda value: value in choices, "one of " + ", ".join(map(repr, choices)))


def share(config: Any, name: str) -> float:
    return checked(config, name, lambda value: 0 < value <= 1, "a share in (0, 1]")


def non_negative(config: Any, name: str) -> float:
    return checked(config, name, lambda value: 0 <= value < float("inf"), "a finite number >= 0")


def flag(config: Any, name: str) -> bool:
    return checked(config, name, lambda value: value is True or value is False, "true or false", switch=True)


def name_or_none(config: Any, name: str) -> str | None:
    accepted = "the name of a reward function, or none"
    return checked(config, name, lambda value: value is None or (isinstance(value, str) and value != ""), accepted)


def one_reward(name: str | None, field_name: str, names: list[str]) -> str:
    """`name`, or the only one of `names` where it is `None`. Raises `ValueError` for an unknown one or a choice."""
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        known = ", ".join(map(repr, names))
        raise ValueError(f"`{field_name}` must be one of the reward functions {known}, got {name!r}.")
    return name
