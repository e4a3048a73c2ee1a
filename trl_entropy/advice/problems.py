# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What in a recipe does nothing, in the words of the warnings that its config gives."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from .. import inert


Facts = Mapping[str, Mapping[str, Any]]


def owner_of(field: str, methods: Facts) -> str | None:
    """The method whose field it is; `None` if it belongs to none."""
    return next((name for name, facts in methods.items() if field in facts["fields"]), None)


def idle_keys(recipe: Mapping[str, Any], setup: SimpleNamespace, methods: Facts) -> list[str]:
    """The keys of a recipe that are fields of methods which it does not list."""
    owners = {key: owner_of(key, methods) for key in recipe}
    return [key for key, owner in owners.items() if owner is not None and owner not in setup.methods]


def dose(name: str, setup: SimpleNamespace, methods: Facts) -> tuple[str, float, int] | None:
    """The field of a method's ratio of tokens, its value, and the completions of which it is taken, if it has one."""
    field = methods[name]["token_ratio"]
    if field is None or setup.entropy_keep is not None:  # the thermostat may drive it
        return None
    scope = methods[name]["ratio_scope"] or getattr(setup, f"{name}_scope", "micro_batch")
    scored = getattr(setup, f"{name}_renormalize", False)
    return field, getattr(setup, field), inert.ratio_rows(scope, setup, scored)


def reasons_of_nothing(place: int, name: str, setup: SimpleNamespace, methods: Facts) -> Iterator[str]:
    """Why the method at this place of `methods` does nothing at all, if so."""
    facts = methods[name]
    if facts["acts_on_ratio"] and inert.single_update(setup):
        yield inert.without_ratio(name, setup)
    found = dose(name, setup, methods)
    if place == 0 and facts["compares_completions"] and found is not None and found[2] == 1:
        yield inert.one_completion(name)
    warning = inert.switched_off(name, facts["off"], setup)
    yield from [] if warning is None else [warning]


def problems(
    recipe: Mapping[str, Any], setup: SimpleNamespace, methods: Facts, defaults: Mapping[str, Any]
) -> Iterator[str]:
    """Each setting of a GRPO recipe that does nothing, or each method that does nothing with it."""
    for key in idle_keys(recipe, setup, methods):
        if getattr(setup, key) != defaults[key]:
            yield inert.not_listed(key, recipe[key], setup.methods)
    if inert.single_update(setup) and setup.epsilon_high is not None:
        yield inert.without_clip(setup)
    for place, name in enumerate(setup.methods):
        yield from reasons_of_nothing(place, name, setup, methods)
        found = dose(name, setup, methods)
        if found is not None and setup.max_completion_length is not None:
            warning = inert.below_one_token(name, *found, setup.max_completion_length)
            yield from [] if warning is None else [warning]
        if setup.scale_rewards == "none" and methods[name]["assumes_unit_advantages"]:
            yield inert.unscaled(name)


def problems_of_selection(setup: SimpleNamespace) -> Iterator[str]:
    """What does nothing in a recipe of distillation."""
    if setup.tip_rule != "none":
        longest = setup.max_completion_length
        warning = inert.idle_selection(setup.tip_rule, setup.tip_ratio, setup.tip_min_tokens, longest)
        yield from [] if warning is None else [warning]
