# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Entropy control for TRL: published methods against policy entropy collapse, as drop-in trainers.

Names load on first use, so importing the package alone is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__ as __version__


if TYPE_CHECKING:
    from .curves.entropy_law import EntropyLawCallback as EntropyLawCallback
    from .curves.refinement import refined_schedule as refined_schedule
    from .kappa.callback import KappaTuneCallback as KappaTuneCallback
    from .kappa.tuning import kappa_peft_config as kappa_peft_config
    from .methods import METHODS as METHODS
    from .methods import Method as Method
    from .monitors.callback import MonitorCallback as MonitorCallback
    from .trainers.distillation import EntropyDistillationTrainer as EntropyDistillationTrainer
    from .trainers.distillation_config import EntropyDistillationConfig as EntropyDistillationConfig
    from .trainers.experimental import EntropyGKDTrainer as EntropyGKDTrainer
    from .trainers.experimental import EntropySDFTTrainer as EntropySDFTTrainer
    from .trainers.experimental import EntropySDPOTrainer as EntropySDPOTrainer
    from .trainers.experimental_config import EntropyGKDConfig as EntropyGKDConfig
    from .trainers.experimental_config import EntropySDFTConfig as EntropySDFTConfig
    from .trainers.experimental_config import EntropySDPOConfig as EntropySDPOConfig
    from .trainers.grpo import EntropyGRPOTrainer as EntropyGRPOTrainer
    from .trainers.grpo_config import EntropyGRPOConfig as EntropyGRPOConfig
    from .trainers.grpo_config import register as register
    from .uncertainty.callback import HallucinationCallback as HallucinationCallback


_PUBLIC = {
    "EntropyDistillationConfig": ".trainers.distillation_config",
    "EntropyDistillationTrainer": ".trainers.distillation",
    "EntropyGKDConfig": ".trainers.experimental_config",
    "EntropyGKDTrainer": ".trainers.experimental",
    "EntropyGRPOConfig": ".trainers.grpo_config",
    "EntropyGRPOTrainer": ".trainers.grpo",
    "EntropyLawCallback": ".curves.entropy_law",
    "EntropySDFTConfig": ".trainers.experimental_config",
    "EntropySDFTTrainer": ".trainers.experimental",
    "EntropySDPOConfig": ".trainers.experimental_config",
    "EntropySDPOTrainer": ".trainers.experimental",
    "HallucinationCallback": ".uncertainty.callback",
    "KappaTuneCallback": ".kappa.callback",
    "METHODS": ".methods",
    "Method": ".methods",
    "MonitorCallback": ".monitors.callback",
    "kappa_peft_config": ".kappa.tuning",
    "refined_schedule": ".curves.refinement",
    "register": ".trainers.grpo_config",  # from there, so that TRL's own fields are known too
}


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
