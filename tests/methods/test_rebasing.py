# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Existing dataclasses get other bases in place: fields, constructors and what was written by hand."""

from dataclasses import dataclass, field, fields

import pytest

from trl_entropy.methods.rebasing import family, is_generated, set_bases


@pytest.fixture
def kinds():
    @dataclass
    class First:
        first: int = 1

    @dataclass
    class Second:
        second: list = field(default_factory=lambda: [2])

    @dataclass
    class Whole(First):
        whole: str = "w"

    @dataclass(repr=False)
    class Part(Whole):
        part: float = 0.5

        def __repr__(self):
            return "by hand"

    class Plain(Part):
        pass

    return First, Second, Whole, Part, Plain


def names(kind):
    return [item.name for item in fields(kind)]


def test_family_is_a_class_and_its_subclasses_bases_first(kinds):
    First, _, Whole, Part, Plain = kinds
    assert family(First) == [First, Whole, Part, Plain] and family(Plain) == [Plain]


def test_subclasses_get_the_fields_of_a_new_base(kinds):
    First, Second, Whole, Part, Plain = kinds
    set_bases(Whole, (First, Second))
    assert names(Whole) == ["second", "first", "whole"] and names(Part) == names(Plain) == [*names(Whole), "part"]
    for kind in (Part, Plain):
        made = kind(second=[3], part=0.25)
        assert (made.second, made.first, made.whole, made.part) == ([3], 1, "w", 0.25)
        assert kind().second == [2] and kind().second is not kind().second
        assert made == kind(second=[3], part=0.25) and made != kind()
        assert repr(made) == "by hand"
    assert repr(Whole()).endswith("Whole(second=[2], first=1, whole='w')")


def test_a_base_that_goes_takes_its_fields_along(kinds):
    First, Second, Whole, Part, Plain = kinds
    before = [names(kind) for kind in kinds]
    set_bases(Whole, (First, Second))
    set_bases(Whole, (First,))
    assert [names(kind) for kind in kinds] == before
    with pytest.raises(TypeError, match="unexpected keyword argument 'second'"):
        Plain(second=[3])


def test_what_dataclass_made_is_told_from_what_was_written(kinds):
    _, _, Whole, Part, _ = kinds
    assert is_generated(vars(Whole)["__init__"]) and is_generated(vars(Whole)["__repr__"])
    assert is_generated(vars(Whole)["__match_args__"]) and is_generated(vars(Whole)["__hash__"])
    assert not is_generated(vars(Part)["__repr__"]) and not is_generated(3)
