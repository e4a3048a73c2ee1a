# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading config fields: a valid value, or one error that names the field, the value and what is accepted."""

import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from typing import Any


UNQUOTED = " YAML reads unquoted yes, no, on and off as true and false."


def checked(config: Any, name: str, accepts: Callable[[Any], bool], accepted: str, switch: bool = False) -> Any:
    """The value of the field `name` of `config`.

    Args:
        config: object with the field.
        name: name of the field.
        accepts: tells whether a value is valid.
        accepted: describes valid values in the error message.
        switch: whether the field is boolean. Other fields refuse true and false, which Python counts as numbers.

    Raises:
        `ValueError`: the value is not valid.
    """
    value = getattr(config, name)
    try:
        fits = (switch or not isinstance(value, bool)) and accepts(value)
    except TypeError:  # a value of the wrong type, such as a string instead of a number
        fits = False
    if not fits:
        hint = UNQUOTED if isinstance(value, bool) else ""
        raise ValueError(f"`{name}` must be {accepted}, got {value!r}.{hint}")
    return value


def one_of(config: Any, name: str, *choices: str, renamed: dict[str, str] | None = None) -> str:
    """The value of a field that takes one of `choices`.

    Args:
        renamed: new value by old value. An old value is replaced in `config`, with a warning.
    """
    old = getattr(config, name)
    if renamed and isinstance(old, str) and old in renamed:
        setattr(config, name, renamed[old])
        warnings.warn(f"`{name}: {old}` is deprecated: use `{name}: {renamed[old]}`.", FutureWarning, stacklevel=3)
    return checked(config, name, lambda value: value in choices, "one of " + ", ".join(map(repr, choices)))


def names_of(config: Any, name: str, known: Collection[str]) -> list[str]:
    """The value of a field that lists names, each of them one of `known`, and once."""
    listed = getattr(config, name)
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise ValueError(f"`{name}` must be a list of names, got {listed!r}.")
    for position, item in enumerate(listed):
        if item not in known:
            hint = did_you_mean(item, known)
            raise ValueError(f"`{name}` has the unknown name {item!r}.{hint} Known: {', '.join(known)}.")
        if item in listed[:position]:
            raise ValueError(f"`{name}` must list each name once, got {item!r} twice.")
    return listed


def ratio(config: Any, name: str, was: str | None = None) -> float:
    """The value of a field that takes a ratio above 0, at most 1. `was` is the field's deprecated old name."""
    if was is not None and getattr(config, was) is not None:
        ratio(config, was)
        _move_old_field(config, was, name)
    return checked(config, name, lambda value: 0 < value <= 1, "a ratio in (0, 1]")


def _move_old_field(config: Any, old: str, new: str) -> None:
    """Moves a value given under a field's old name to the new name, with a warning. The old field is then `None`.

    Raises:
        `ValueError`: both fields are given.
    """
    value = getattr(config, old)
    if getattr(config, new) != getattr(type(config), new):
        raise ValueError(f"`{old}` must be none with `{new}`, which is its new name, got {value!r}.")
    setattr(config, new, value)
    setattr(config, old, None)
    warnings.warn(f"`{old}` is deprecated: use `{new}`.", FutureWarning, stacklevel=4)


def non_negative(config: Any, name: str) -> float:
    """The value of a field that takes a finite number, 0 or above."""
    return checked(config, name, lambda value: 0 <= value < float("inf"), "a finite number >= 0")


def whole(config: Any, name: str, least: int, optional: bool = False) -> int:
    """The value of a field that takes an integer of at least `least`; with `optional` it may be `None`."""
    accepted = f"an integer >= {least}" + (", or none" if optional else "")
    return checked(
        config, name, lambda value: (optional and value is None) or (type(value) is int and value >= least), accepted
    )


def flag(config: Any, name: str) -> bool:
    """The value of a boolean field."""
    return checked(config, name, lambda value: value is True or value is False, "true or false", switch=True)


def name_or_none(config: Any, name: str) -> str | None:
    """The value of a field that takes the name of a reward function, or `None`."""
    accepted = "the name of a reward function, or none"
    return checked(config, name, lambda value: value is None or (isinstance(value, str) and value != ""), accepted)


def one_reward(name: str | None, field_name: str, names: list[str]) -> str:
    """`name`, or the only entry of `names` if `name` is `None`.

    Raises:
        `ValueError`: `name` is not in `names`, or it is `None` and `names` has several entries.
    """
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        known = ", ".join(map(repr, names))
        raise ValueError(f"`{field_name}` must be one of the reward functions {known}, got {name!r}.")
    return name


def nearest_name(name: Any, known: Iterable[str], ignore_case: bool = True) -> str | None:
    """The known name closest to `name`; `None` if none is close.

    Args:
        name: the misspelt name. A - in it counts as _.
        known: the names to choose from.
        ignore_case: whether `name` is compared in lower case.
    """
    text = str(name).lower() if ignore_case else str(name)
    near = get_close_matches(text.replace("-", "_"), known, n=1)
    return near[0] if near else None


def did_you_mean(name: Any, known: Iterable[str], ignore_case: bool = True) -> str:
    """The end of an error message, " Did you mean 'x'?", for the closest known name; "" if none is close.

    Takes the arguments of `nearest_name`.

    >>> did_you_mean("Clip-Cof", ["clip_cov", "kl_cov"])
    " Did you mean 'clip_cov'?"
    """
    near = nearest_name(name, known, ignore_case)
    return "" if near is None else f" Did you mean {near!r}?"


def default_of(field: Field) -> Any:
    """The default of a dataclass field, made by its factory if it has one; `MISSING` for a required field."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def fields_of(prefix: str, config: Any) -> list[Field]:
    """The fields of a dataclass or an instance whose names start with `<prefix>_`, in their order."""
    return [field for field in fields(config) if field.name.startswith(f"{prefix}_")]
