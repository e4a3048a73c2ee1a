# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Entropy control for TRL: published methods against policy entropy collapse, as drop-in trainers.

Names load on first use, so that importing the package costs nothing before a trainer is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .callbacks import EntropyLawCallback as EntropyLawCallback
    from .config import EntropyGRPOConfig as EntropyGRPOConfig
    from .distillation import EntropyDistillationTrainer as EntropyDistillationTrainer
    from .distillation_config import EntropyDistillationConfig as EntropyDistillationConfig
    from .experimental import EntropyGKDTrainer as EntropyGKDTrainer
    from .experimental import EntropySDFTTrainer as EntropySDFTTrainer
    from .experimental import EntropySDPOTrainer as EntropySDPOTrainer
    from .experimental_config import EntropyGKDConfig as EntropyGKDConfig
    from .experimental_config import EntropySDFTConfig as EntropySDFTConfig
    from .experimental_config import EntropySDPOConfig as EntropySDPOConfig
    from .grpo import EntropyGRPOTrainer as EntropyGRPOTrainer
    from .kappa.callback import KappaTuneCallback as KappaTuneCallback
    from .kappa.tuning import kappa_peft_config as kappa_peft_config
    from .methods import METHODS as METHODS
    from .methods import Method as Method

__version__ = "0.1.0"

_PUBLIC = {
    "EntropyDistillationConfig": ".distillation_config",
    "EntropyDistillationTrainer": ".distillation",
    "EntropyGKDConfig": ".experimental_config",
    "EntropyGKDTrainer": ".experimental",
    "EntropyGRPOConfig": ".config",
    "EntropyGRPOTrainer": ".grpo",
    "EntropyLawCallback": ".callbacks",
    "EntropySDFTConfig": ".experimental_config",
    "EntropySDFTTrainer": ".experimental",
    "EntropySDPOConfig": ".experimental_config",
    "EntropySDPOTrainer": ".experimental",
    "KappaTuneCallback": ".kappa.callback",
    "METHODS": ".methods",
    "Method": ".methods",
    "kappa_peft_config": ".kappa.tuning",
}


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
