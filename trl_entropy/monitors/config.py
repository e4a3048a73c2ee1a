# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every monitor by its name in `monitors`, and their fields in a trainer's config."""

from dataclasses import dataclass, field, fields
from typing import Any

from ..paper import Paper
from ..settings import checked, default_of, names_of
from . import diffusion
from .attention import Attention, AttentionConfig
from .base import Monitor
from .effective_features import EffectiveFeatures, EffectiveFeaturesConfig
from .geometry import Geometry, GeometryConfig
from .gradient_norms import GradientNorms
from .step_radius import StepRadius, StepRadiusConfig
from .weight_norms import WeightNorms, WeightNormsConfig


MONITORS: dict[str, type[Monitor]] = {
    monitor.name: monitor
    for monitor in (Geometry, Attention, GradientNorms, StepRadius, WeightNorms, EffectiveFeatures)
}


@dataclass
class MonitorFields(GeometryConfig, AttentionConfig, StepRadiusConfig, WeightNormsConfig, EffectiveFeaturesConfig):
    """The fields of every monitor."""


@dataclass
class MonitorsConfig(MonitorFields):
    """The settings of monitors: a mixin of the trainer's config."""

    monitors: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Monitors, which look at the model while it trains and change nothing. Known: "
            + ", ".join(MONITORS)
            + "."
        },
    )
    monitor_steps: int = field(
        default=50,
        metadata={
            "help": "Optimizer steps between two measurements. One more is made before the first step, or of it."
        },
    )
    monitor_max_length: int = field(
        default=512, metadata={"help": "Tokens of a sequence of the probe. Of a longer one, the last are kept."}
    )

    @property
    def watching(self) -> list[type[Monitor]]:
        """The listed monitors, which a model card cites."""
        return [MONITORS[name] for name in self.monitors]

    @property
    def watching_papers(self) -> list[Paper]:
        """Papers of what their fields ask for."""
        return [diffusion.PAPER] if Geometry.name in self.monitors and self.geometry_dse else []


def build_monitors(config: Any) -> list[Monitor]:
    """The monitors that `config.monitors` lists.

    Raises:
        `ValueError`: a name is unknown or repeated, or a field is out of range.
    """
    names = names_of(config, "monitors", MONITORS)
    for name in ("monitor_steps", "monitor_max_length"):
        checked(config, name, lambda value: type(value) is int and value >= 1, "a whole number >= 1")
    return [MONITORS[name](config) for name in names]


def check_monitors(config: MonitorsConfig) -> list[str]:
    """Checks all fields, and returns a warning for each that is set although its monitor is not listed.

    Raises:
        `ValueError`: as [`build_monitors`].
    """
    build_monitors(config)
    for name in MONITORS.keys() - config.monitors:  # fields of the others too
        MONITORS[name](config)
    used = {name for monitor in config.monitors for name in MONITORS[monitor].shared}
    changed = [item.name for item in fields(MonitorsConfig) if getattr(config, item.name) != default_of(item)]
    idle = {name: next((monitor for monitor in MONITORS if name.startswith(f"{monitor}_")), "") for name in changed}
    idle.pop("monitors", None)
    return [
        f"`{name}` is set to {getattr(config, name)!r}, but its monitor is not in `monitors` ({config.monitors}): it "
        "does nothing."
        for name, monitor in idle.items()
        if (monitor not in config.monitors if monitor else name not in used)
    ]
