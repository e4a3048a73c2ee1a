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
    from .grpo import EntropyGRPOTrainer as EntropyGRPOTrainer
    from .kappa.callback import KappaTuneCallback as KappaTuneCallback
    from .kappa.tuning import kappa_peft_config as kappa_peft_config
    from .methods import METHODS as METHODS
    from .methods import Method as Method

__version__ = "0.1.0"

_PUBLIC = {
    "EntropyGRPOConfig": ".config",
    "EntropyGRPOTrainer": ".grpo",
    "EntropyLawCallback": ".callbacks",
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
