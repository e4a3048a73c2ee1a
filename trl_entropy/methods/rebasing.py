# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Dataclasses that get other bases after they were made, and keep their identity."""

import inspect
from dataclasses import Field, dataclass
from typing import Any


GENERATED = ("__init__", "__repr__", "__eq__", "__hash__", "__match_args__")  # those that list the fields


def family(kind: type) -> list[type]:
    """A class and its subclasses, bases first."""
    found = {kind}
    for subclass in kind.__subclasses__():
        found.update(family(subclass))
    return sorted(found, key=lambda one: len(one.__mro__))


def set_bases(kind: type, bases: tuple[type, ...]) -> None:
    """Gives a dataclass other bases, and it and its subclasses the fields that follow from them."""
    kind.__bases__ = bases
    for one in family(kind):
        if "__dataclass_fields__" in vars(one):
            regenerate(one)


def regenerate(kind: type) -> None:
    """Runs `dataclass` again on a dataclass, in place. Methods that its author wrote stay."""
    for name in inspect.get_annotations(kind):
        setattr(kind, name, field_of(kind, name))  # `dataclass` has put the default in the place of the field
    for name in GENERATED:
        if name in vars(kind) and is_generated(vars(kind)[name]):
            delattr(kind, name)
    dataclass(kind)


def field_of(kind: type, name: str) -> Field:
    return vars(kind)["__dataclass_fields__"][name]


def is_generated(value: Any) -> bool:
    """Whether `dataclass` has made a class attribute: a function from text, `__match_args__`, or `__hash__ = None`."""
    code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
    return code.co_filename == "<string>" if code is not None else value is None or isinstance(value, tuple)
