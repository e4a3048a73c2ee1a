# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The fields of `entropy_keep`, and the setting that it drives."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..knob import Knob
from ..methods import METHODS
from ..settings import checked, default_of, fields_of


BONUS = Knob("entropy_coef", "entropy_coef", low=1e-6, high=10.0, start=0.03)
FEW_BATCHES = 40  # generation batches below which a run hardly finds the strength
LARGEST_SHARE = 2.0


@dataclass
class ThermostatConfig:
    """The fields of the entropy thermostat. Their help texts describe them."""

    entropy_keep: float | None = field(
        default=None,
        metadata={
            "help": "Hold mean token entropy at this share of its starting value, in (0, 2], by driving the strength "
            "of the listed method, or TRL's `entropy_coef` if no method is listed. None: no thermostat."
        },
    )
    entropy_keep_end: float | None = field(
        default=None,
        metadata={"help": "Share to hold at the last step, reached in equal ratios. None: `entropy_keep` throughout."},
    )
    entropy_keep_knob: str | None = field(
        default=None,
        metadata={
            "help": "Field that `entropy_keep` drives. None: that of the one method listed that has such a field, or "
            "`entropy_coef` if no method is listed."
        },
    )
    entropy_keep_range: list[float] | None = field(
        default=None,
        metadata={"help": "Smallest and largest value of the driven field. None: the range that its method declares."},
    )
    entropy_keep_batches: int = field(
        default=4, metadata={"help": "Generation batches whose mean entropy is the starting value."}
    )
    entropy_keep_reference: float | None = field(
        default=None,
        metadata={
            "help": "The starting value in nats, instead of a measured one: for a second stage of training, or for "
            "one target in several runs."
        },
    )
    entropy_keep_response: float = field(
        default=3.0,
        metadata={
            "help": "Generation batches that the thermostat takes to respond, at least 1. A larger number swings the "
            "strength less, but undershoots more."
        },
    )


class Driven(NamedTuple):
    """The setting that is driven, and the name of its method; `None` for the trainer's own."""

    knob: Knob
    method: str | None


def listed_knobs(names: list[str]) -> dict[str, Driven]:
    """The knobs of the listed methods, by field."""
    return {METHODS[name].knob.field: Driven(METHODS[name].knob, name) for name in names if METHODS[name].knob}


def driven_by(config: Any) -> Driven | None:
    """What `entropy_keep` drives; `None` without it.

    Raises:
        `ValueError`: no listed method has a knob, several have one and none is named, or the named one is of none.
    """
    if config.entropy_keep is None:
        return None
    known, bonus = listed_knobs(config.methods), Driven(BONUS, None)
    if config.entropy_keep_knob is not None:
        choices = {**known, BONUS.field: bonus}
        accepted = "one of " + ", ".join(map(repr, choices)) + f" with `methods` {config.methods!r}"
        return choices[checked(config, "entropy_keep_knob", lambda name: name in choices, accepted)]
    if not config.methods:
        return bonus
    if not known:
        reasons = "; ".join(f"{name!r} cannot be driven, because {METHODS[name].no_knob}" for name in config.methods)
        raise ValueError(
            f"`entropy_keep` must be none with `methods` {config.methods!r}, got {config.entropy_keep!r}: {reasons}. "
            "`entropy_keep_knob: entropy_coef` drives TRL's entropy bonus instead."
        )
    if len(known) > 1:
        names = ", ".join(map(repr, [*known, BONUS.field]))
        raise ValueError(f"`entropy_keep_knob` must be one of {names} with `methods` {config.methods!r}, got None.")
    return next(iter(known.values()))


def is_default(config: Any, name: str) -> bool:
    return getattr(config, name) == default_of(config.__dataclass_fields__[name])


def for_methods(config: Any) -> Any:
    """The config as methods read it: a target that the thermostat sets later is no longer missing."""
    known = isinstance(config.methods, list) and all(name in [*METHODS] for name in config.methods)
    driven = driven_by(config) if known else None  # `build_methods` says what is wrong with `methods`
    if driven is None or driven.knob.scale != "target" or getattr(config, driven.knob.field) is not None:
        return config
    config = copy.copy(config)
    setattr(config, driven.knob.field, driven.knob.start)
    return config


def knob_range(config: Any, driven: Driven) -> tuple[float, float]:
    """The smallest and largest value of the driven field."""
    given = config.entropy_keep_range
    return (driven.knob.low, driven.knob.high) if given is None else (float(given[0]), float(given[1]))


def start_of(config: Any, driven: Driven) -> float:
    """The value of the driven field with which the controller begins."""
    low, high = knob_range(config, driven)
    value = driven.knob.start if is_default(config, driven.knob.field) else getattr(config, driven.knob.field)
    return min(max(value, low), high)


def check_thermostat(config: Any) -> None:
    """Checks the fields of the thermostat, once the methods' own fields are valid.

    Gives `entropy_coef` its first value if it is driven: TRL leaves a bonus out that is 0 when the trainer is built.

    Raises:
        `ValueError`: a field is out of range, there is nothing to drive, or something else drives entropy too.
    """
    accepted = f"none, or a share in (0, {LARGEST_SHARE:g}]"
    for name in ("entropy_keep", "entropy_keep_end"):
        checked(config, name, lambda value: value is None or 0 < value <= LARGEST_SHARE, accepted)
    checked(config, "entropy_keep_batches", lambda value: type(value) is int and value >= 1, "an integer >= 1")
    checked(
        config,
        "entropy_keep_reference",
        lambda value: value is None or 0 < value < math.inf,
        "none, or an entropy in nats > 0",
    )
    checked(config, "entropy_keep_response", lambda value: 1 <= value < math.inf, "a finite number >= 1")
    checked(
        config,
        "entropy_keep_knob",
        lambda name: name is None or isinstance(name, str),
        "none, or the name of a field",
    )
    checked(config, "entropy_keep_range", is_range, "none, or two finite numbers, the smaller one first")
    driven = driven_by(config)
    if driven is None:
        return
    _check_other_hands(config, driven)
    knob = driven.knob
    accepted = f"in (0, {knob.most:g}] with `{knob.field}`, which cannot raise entropy above its starting value"
    for name in ("entropy_keep", "entropy_keep_end"):
        checked(config, name, lambda share: share is None or share <= knob.most, accepted)
    _check_range(config, driven)
    if driven.method is None:
        config.entropy_coef = start_of(config, driven)


def is_range(value: Any) -> bool:
    """Whether a value is `None` or a list of two finite numbers in order."""
    if value is None:
        return True
    numbers = isinstance(value, (list, tuple)) and not any(isinstance(bound, bool) for bound in value)
    return numbers and len(value) == 2 and all(map(math.isfinite, value)) and value[0] < value[1]


def _check_other_hands(config: Any, driven: Driven) -> None:
    """Raises `ValueError` if another controller or schedule moves entropy or the driven field."""
    if config.use_adaptive_entropy:
        raise ValueError("`use_adaptive_entropy` must be false with `entropy_keep`, which holds entropy, got True.")
    if driven.method is None:
        accepted = "'constant' with `entropy_keep`, which drives `entropy_coef`"
        checked(config, "entropy_coef_schedule", lambda value: value == "constant", accepted)


def _check_range(config: Any, driven: Driven) -> None:
    """Raises `ValueError` for a range that the field does not accept, or a start outside of it."""
    knob, given = driven.knob, config.entropy_keep_range
    value, default = getattr(config, knob.field), default_of(config.__dataclass_fields__[knob.field])
    if knob.scale == "target":
        if value != default:
            raise ValueError(
                f"`{knob.field}` must be {default!r}, its default, with `entropy_keep`, which sets it, got {value!r}."
            )
        accepted = f"none with `{knob.field}`, which is a target"
        checked(config, "entropy_keep_range", lambda value: value is None, accepted)
        return
    for bound in given or ():
        if knob.scale == "log" and bound <= 0:
            raise ValueError(f"`entropy_keep_range` must hold values > 0 for `{knob.field}`, got {given!r}.")
        if driven.method is not None:
            trial = copy.copy(config)
            setattr(trial, knob.field, bound)
            try:
                METHODS[driven.method](trial)
            except ValueError as error:
                raise ValueError(
                    f"`entropy_keep_range` must hold values that `{knob.field}` accepts, got {given!r}: {error}"
                ) from None
    low, high = knob_range(config, driven)
    if value != default and not low <= value <= high:
        raise ValueError(
            f"`{knob.field}`, where `entropy_keep` starts, must be in [{low!r}, {high!r}], the range that it may use "
            f"(`entropy_keep_range`), got {value!r}."
        )


def thermostat_warnings(config: Any) -> list[str]:
    """Warnings about fields of the thermostat that do nothing, and about runs in which it can do little."""
    if config.entropy_keep is None:
        return [
            f"`{item.name}` is set to {getattr(config, item.name)!r}, but `entropy_keep` is none: it does nothing."
            for item in fields_of("entropy_keep", config)
            if not is_default(config, item.name)
        ]
    found, (knob, _) = [], driven_by(config)
    batches = config.max_steps * config.gradient_accumulation_steps
    batches = batches / (config.steps_per_generation * config.num_iterations)
    if 0 < batches < FEW_BATCHES:
        found.append(
            f"`entropy_keep` hardly finds the right strength in a run of {batches:.0f} generation batches: give it at "
            f"least {FEW_BATCHES}, by `max_steps` or a smaller `steps_per_generation`."
        )
    if knob.brake:
        found.append(
            f"`{knob.field}` slows the fall of entropy, but cannot raise it: `entropy_keep` may not get back what is "
            "lost."
        )
    if knob.limited_by is not None and is_default(config, knob.limited_by):
        found.append(
            f"`{knob.limited_by}` is at its default {getattr(config, knob.limited_by)!r}, which may leave "
            f"`entropy_keep` too few tokens: `{knob.field}` chooses only among those that it admits. Lower it."
        )
    return found
