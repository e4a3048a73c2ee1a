# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Recognizes a recipe that was written for another command."""

from collections.abc import Collection, Iterator
from dataclasses import fields


def _others() -> Iterator[tuple[str, str, tuple[type, ...]]]:
    """Each training command: its name, how to run it, and the dataclasses of its arguments."""
    from trl import SFTConfig

    from ..kappa.config import KappaConfig
    from . import distillation, grpo

    yield "grpo", "`trl-entropy grpo`", grpo.KINDS
    yield "distillation", "`trl-entropy distillation`", distillation.KINDS
    yield "kappa_sft", "`accelerate launch recipes/kappa_sft.py`", (*distillation.KINDS[::2], SFTConfig, KappaConfig)


def command_of(unknown: Collection[str], prog: str) -> str | None:
    """How to run the command that knows all the keys which `prog` does not know; `None` if there is none.

    Args:
        unknown: the unknown keys of a recipe.
        prog: the command that the recipe was given to, such as `trl-entropy grpo`.
    """
    for name, how, kinds in _others():
        known = {field.name for kind in kinds for field in fields(kind)}
        if name != prog.rpartition(" ")[2] and unknown and known.issuperset(unknown):
            return how
    return None
