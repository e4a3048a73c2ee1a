# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every method by the name under which `methods` lists it, and all their fields in one flat namespace."""

from dataclasses import dataclass, field, fields
from difflib import get_close_matches

from .aepo import Aepo, AepoConfig
from .base import Method, Paper
from .clip_cov import ClipCov, ClipCovConfig
from .discriminator import ClipB, ClipBConfig, ClipV, ClipVConfig
from .epo import Epo, EpoConfig
from .kl_cov import KlCov, KlCovConfig
from .siren import Siren, SirenConfig
from .steer import Steer, SteerConfig


__all__ = ["METHODS", "Method", "MethodsConfig", "Paper", "build_methods", "idle_fields"]

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (ClipCov, KlCov, Steer, ClipB, ClipV, Siren, Aepo, Epo)
}


@dataclass
class MethodsConfig(
    ClipCovConfig, KlCovConfig, SteerConfig, ClipBConfig, ClipVConfig, SirenConfig, AepoConfig, EpoConfig
):
    methods: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Entropy methods to apply, in this order, each seeing the advantages that those before it left. "
            "Empty: stock behaviour. Known: " + ", ".join(METHODS) + "."
        },
    )


def build_methods(config: MethodsConfig) -> list[Method]:
    """The methods that `config.methods` lists. Raises `ValueError` for an unknown or repeated name or a bad field."""
    if not isinstance(config.methods, list) or not all(isinstance(name, str) for name in config.methods):
        raise ValueError(f"`methods` must be a list of names, got {config.methods!r}.")
    for position, name in enumerate(config.methods):
        if name not in METHODS:
            near = get_close_matches(name, METHODS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"`methods` has the unknown name {name!r}.{hint} Known: {', '.join(METHODS)}.")
        if name in config.methods[:position]:
            raise ValueError(f"`methods` must list each method once, got {name!r} twice.")
    return [METHODS[name](config) for name in config.methods]


def idle_fields(config: MethodsConfig) -> list[str]:
    """Fields set to something else than their default although their method is not in `methods`."""
    idle = tuple(f"{name}_" for name in METHODS if name not in config.methods)
    active = tuple(f"{name}_" for name in config.methods)
    return [
        item.name
        for item in fields(MethodsConfig)
        if item.name.startswith(idle)
        and not item.name.startswith(active)
        and getattr(config, item.name) != item.default
    ]
