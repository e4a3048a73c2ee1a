# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a report must know of methods and settings, as plain data: the classes themselves take seconds to import."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from typing import Any

from ..signs import EntropyBand, Signs, signs_of


@dataclass(frozen=True)
class Known:
    """The methods and the defaults of the trainer's config.

    Attributes:
        methods: names of all methods, in order.
        bands: by method, the band in which it tries to hold entropy.
        defaults: default of each field.
        signs: by method, what it logs while it does nothing or too much.
        monitors: names of all monitors, in order.
    """

    methods: tuple[str, ...] = ()
    bands: Mapping[str, EntropyBand] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    signs: Mapping[str, Signs] = field(default_factory=dict)
    monitors: tuple[str, ...] = ()


def known_from(*configs: type) -> Known:
    """Asks the methods themselves, and config classes."""
    from ..methods import METHODS
    from ..methods.tip import Tip
    from ..monitors.config import MONITORS

    bands = {name: method.entropy_band for name, method in METHODS.items() if method.entropy_band is not None}
    defaults = {name: value for config in configs for name, value in defaults_of(config).items()}
    signs = {name: signs_of(method) for name, method in {**METHODS, Tip.name: Tip}.items()}
    return Known(tuple(METHODS), bands, defaults, signs, tuple(MONITORS))


def defaults_of(config: type) -> dict[str, Any]:
    """The defaults of the fields that have one, if they are plain values."""
    found = {item.name: item.default for item in fields(config) if item.default is not MISSING}
    found = {name: value.value if isinstance(value, Enum) else value for name, value in found.items()}
    return {name: value for name, value in found.items() if isinstance(value, bool | int | float | str | None)}
