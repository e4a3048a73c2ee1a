# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Configs of TRL's experimental distillation trainers with the fields of TIP."""

from dataclasses import dataclass
from typing import Any

import trl
from accelerate.logging import get_logger
from trl.experimental.gkd import GKDConfig
from trl.experimental.sdft import SDFTConfig
from trl.experimental.sdpo import SDPOConfig

from ..diagnosis.config import DiagnosisConfig, check_diagnosis
from ..methods.tip import Tip, TipConfig
from ..monitors.config import MonitorsConfig, check_monitors
from .checks import check_after, check_before, check_trl_version
from .distillation_config import inert_settings
from .refined_schedule import RefinedConfig, check_refined


logger = get_logger(__name__)

check_trl_version(trl.__version__)


def refuse(config: TipConfig, name: str, why: str) -> None:
    """Raises `ValueError` if the field `name` is set, which must be false."""
    if getattr(config, name):
        raise ValueError(
            f"`{name}` must be false with `tip_rule` {config.tip_rule!r}, got {getattr(config, name)!r}: {why}"
        )


@dataclass
class EntropyGKDConfig(TipConfig, MonitorsConfig, RefinedConfig, DiagnosisConfig, GKDConfig):
    r"""
    [`~trl.experimental.gkd.GKDConfig`] that trains on selected tokens. With `tip_rule="none"` it is `GKDConfig`. The
    fields `tip_*` are those of [`EntropyDistillationConfig`]; scores are at temperature 1, as GKD's loss is.

    Raises:
        `ValueError`: a field is out of range, or `packing` or `padding_free` packs several rollouts into a row.
    """

    def __post_init__(self):
        check_before(self)
        super().__post_init__()
        check_after(self)
        check_diagnosis(self)
        tip = Tip(self)
        if tip.selects:
            for name in ("packing", "padding_free"):
                refuse(self, name, "tokens are chosen within each rollout, and a packed row holds several.")
        for warning in (*inert_settings(self, tip, None), *check_monitors(self), *check_refined(self)):
            logger.warning(warning)


class SelfDistillationChecks:
    """Mixin that checks the fields of TIP in a config of self-distillation. List it first."""

    def __post_init__(self):
        check_before(self)
        super().__post_init__()
        check_after(self)
        check_diagnosis(self)
        tip = Tip(self)
        if tip.selects:
            refuse(
                self,
                "use_teacher_server",
                "a server returns the teacher's highest log-probabilities, not the logits that tokens are chosen by.",
            )
        config: Any = self  # of the trainer, as the classes that this is mixed into
        for warning in (*self._inert_warnings(tip), *check_monitors(config), *check_refined(config)):
            logger.warning(warning)

    def _inert_warnings(self, tip: Tip) -> list[str]:
        config: Any = self  # of TIP, as the classes that this is mixed into
        return inert_settings(config, tip, config.max_completion_length)


@dataclass
class EntropySDFTConfig(SelfDistillationChecks, TipConfig, MonitorsConfig, RefinedConfig, DiagnosisConfig, SDFTConfig):
    r"""
    [`~trl.experimental.sdft.SDFTConfig`] that trains on selected tokens. With `tip_rule="none"` it is `SDFTConfig`.
    The fields `tip_*` are those of [`EntropyDistillationConfig`].

    Raises:
        `ValueError`: a field is out of range, or `use_teacher_server` is set, which returns no logits of the teacher.
    """


@dataclass
class EntropySDPOConfig(SelfDistillationChecks, TipConfig, MonitorsConfig, RefinedConfig, DiagnosisConfig, SDPOConfig):
    r"""
    [`~trl.experimental.sdpo.SDPOConfig`] that distills on selected tokens. With `tip_rule="none"` it is `SDPOConfig`.
    The fields `tip_*` are those of [`EntropyDistillationConfig`].

    Raises:
        `ValueError`: a field is out of range, or `use_teacher_server` is set, which returns no logits of the teacher.
    """

    def _inert_warnings(self, tip: Tip) -> list[str]:
        if tip.selects and self.distillation_weight == 0:
            return [f"`tip_rule` {tip.rule!r} does nothing, since `distillation_weight` is 0: nothing is distilled."]
        return super()._inert_warnings(tip)
