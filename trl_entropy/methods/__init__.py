# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every method by its name in `methods`, and the fields of all methods in one flat namespace."""

from dataclasses import dataclass, field, fields

from ..knob import Knob
from ..paper import Paper
from ..settings import names_of
from .aepo import Aepo, AepoConfig
from .agentic_aepo import AgenticAepo, AgenticAepoConfig
from .base import Method
from .branching import Branching, BranchingConfig
from .canon import Canon, CanonConfig
from .ce_gppo import CeGppo, CeGppoConfig
from .clip_cov import ClipCov, ClipCovConfig
from .discriminator import ClipB, ClipBConfig, ClipV, ClipVConfig
from .empg import Empg, EmpgConfig
from .entropic import Entropic, EntropicConfig
from .entropy_advantage import EntropyAdvantage, EntropyAdvantageConfig
from .epo import Epo, EpoConfig
from .erc import Erc, ErcConfig
from .kl_cov import KlCov, KlCovConfig
from .m2po import M2po, M2poConfig
from .maxrl import Maxrl, MaxrlConfig
from .nsr import Nsr, NsrConfig
from .pass_at_k import PassAtK, PassAtKConfig
from .pear import Pear, PearConfig
from .prompt_augmentation import PromptAugmentation, PromptAugmentationConfig
from .qae import Qae, QaeConfig
from .registry import Registry
from .rl_zvp import RlZvp, RlZvpConfig
from .simko import Simko, SimkoConfig
from .siren import Siren, SirenConfig
from .spear import Spear, SpearConfig
from .steer import Steer, SteerConfig
from .unlikeliness import Unlikeliness, UnlikelinessConfig


__all__ = ["METHODS", "Knob", "Method", "MethodsConfig", "Paper", "build_methods", "idle_fields", "register"]

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        ClipCov,
        KlCov,
        Steer,
        ClipB,
        ClipV,
        Siren,
        Aepo,
        Epo,
        Pear,
        Canon,
        PassAtK,
        Nsr,
        Qae,
        Maxrl,
        Unlikeliness,
        RlZvp,
        Empg,
        AgenticAepo,
        Branching,
        PromptAugmentation,
        EntropyAdvantage,
        CeGppo,
        Entropic,
        Erc,
        M2po,
        Simko,
        Spear,
    )
}
ABOUT_METHODS: dict[str, str] = {}  # the metadata of `methods`


def describe_methods() -> None:
    ABOUT_METHODS["help"] = (
        "Entropy methods to apply, in this order. Each sees the advantages as the methods before it left them. "
        "Empty: stock GRPO. Known: " + ", ".join(METHODS) + "."
    )


describe_methods()


@dataclass
class MethodsConfig(
    ClipCovConfig,
    KlCovConfig,
    SteerConfig,
    ClipBConfig,
    ClipVConfig,
    SirenConfig,
    AepoConfig,
    EpoConfig,
    PearConfig,
    CanonConfig,
    PassAtKConfig,
    NsrConfig,
    QaeConfig,
    MaxrlConfig,
    UnlikelinessConfig,
    RlZvpConfig,
    EmpgConfig,
    AgenticAepoConfig,
    BranchingConfig,
    PromptAugmentationConfig,
    EntropyAdvantageConfig,
    CeGppoConfig,
    EntropicConfig,
    ErcConfig,
    M2poConfig,
    SimkoConfig,
    SpearConfig,
):
    """The settings of every method: a mixin of the trainer's config."""

    methods: list[str] = field(default_factory=list, metadata=ABOUT_METHODS)


REGISTRY = Registry(METHODS, MethodsConfig, describe_methods)
register = REGISTRY.register


def build_methods(config: MethodsConfig) -> list[Method]:
    """The methods that `config.methods` lists. Raises `ValueError` for an unknown or repeated name or a bad field."""
    names = names_of(config, "methods", METHODS)
    check_together(names)
    return [METHODS[name](config) for name in names]


def check_together(names: list[str]) -> None:
    """Raises `ValueError` for methods that exclude each other, or if one would undo another listed before it."""
    replacing = [name for name in names if METHODS[name].replaces_advantages]
    if len(replacing) > 1:
        first, second = replacing[:2]
        raise ValueError(f"`methods` must not list both {first!r} and {second!r}: both define the group's advantage.")
    setters = [name for name in names if METHODS[name].overrides("clip_bounds")]
    if len(setters) > 1:
        raise ValueError(
            f"`methods` must not list both {setters[0]!r} and {setters[1]!r}: both set the ratios at which the loss "
            "clips."
        )
    branching = [name for name in names if METHODS[name].overrides("branches")]
    if len(branching) > 1:
        raise ValueError(f"`methods` must not list both {branching[0]!r} and {branching[1]!r}: both branch rollouts.")
    for position, name in enumerate(names):
        method = METHODS[name]
        for other, reason in method.excludes.items():
            if other in names:
                raise ValueError(f"`methods` must not list both {name!r} and {other!r}: {reason}.")
        before = [other for other in names[:position] if METHODS[other].overrides("group_advantages")]
        if method.replaces_advantages and before:
            raise ValueError(
                f"`methods` must list {name!r}, which makes advantages from rewards alone, before {before[0]!r}, "
                f"whose advantages it would replace; got {names!r}."
            )


def idle_fields(config: MethodsConfig) -> list[str]:
    """Fields that differ from their default although their method is not in `methods`."""
    defaults = MethodsConfig()
    idle = [item.name for name in METHODS if name not in config.methods for item in fields(METHODS[name].config)]
    return [name for name in idle if getattr(config, name) != getattr(defaults, name)]


REGISTRY.load_entry_points()  # last: the modules that it imports may import this one
