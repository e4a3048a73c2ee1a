# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Changes the bases of existing dataclasses in place."""

import inspect
from dataclasses import Field, dataclass
from typing import Any


GENERATED = ("__init__", "__repr__", "__eq__", "__hash__", "__match_args__")  # depend on the fields


def family(kind: type) -> list[type]:
    """A class and its subclasses, bases first."""
    found = {kind}
    subclasses: list[type] = kind.__subclasses__()
    for subclass in subclasses:
        found.update(family(subclass))
    return sorted(found, key=lambda one: len(one.__mro__))


def set_bases(kind: type, bases: tuple[type, ...]) -> None:
    """Changes the bases of a dataclass and updates its fields and those of its subclasses."""
    kind.__bases__ = bases
    for one in family(kind):
        if "__dataclass_fields__" in vars(one):
            regenerate(one)


def regenerate(kind: type) -> None:
    """Runs `dataclass` again on a dataclass, in place. Hand-written methods are kept."""
    for name in inspect.get_annotations(kind):
        setattr(kind, name, field_of(kind, name))  # `dataclass` replaced the field by its default
    for name in GENERATED:
        if name in vars(kind) and is_generated(vars(kind)[name]):
            delattr(kind, name)
    dataclass(kind)


def field_of(kind: type, name: str) -> Field:
    return vars(kind)["__dataclass_fields__"][name]


def is_generated(value: Any) -> bool:
    """Whether `dataclass` made this attribute: a generated function, `__match_args__`, or `__hash__ = None`."""
    code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
    return code.co_filename == "<string>" if code is not None else value is None or isinstance(value, tuple)
