# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`EntropyDistillationConfig`: TRL's `DistillationConfig` and the fields of TIP."""

from dataclasses import dataclass, field, fields

import trl
from accelerate.logging import get_logger
from trl import DistillationConfig

from ..diagnosis.config import DiagnosisConfig, check_diagnosis
from ..inert import idle_selection
from ..kappa.config import KappaConfig
from ..methods.tip import Tip, TipConfig
from ..monitors.config import MonitorsConfig, check_monitors
from ..runs.provenance import given_settings
from ..settings import checked
from .checks import check_after, check_before, check_trl_version
from .refined_schedule import RefinedConfig, check_refined


logger = get_logger(__name__)

check_trl_version(trl.__version__)


def inert_settings(config: TipConfig, tip: Tip, longest: int | None) -> list[str]:
    """Warnings about fields of TIP that have no effect.

    Args:
        config: the config with the fields.
        tip: TIP with these settings.
        longest: most tokens of a rollout, if known.
    """
    if tip.rule == "none":
        return [
            f"`{item.name}` is set to {getattr(config, item.name)!r}, but `tip_rule` is 'none': it does nothing."
            for item in fields(TipConfig)
            if item.name != "tip_rule" and getattr(config, item.name) != item.default
        ]
    warning = idle_selection(tip.rule, tip.ratio, tip.min_tokens, longest)
    return [] if warning is None else [warning]


@dataclass
class EntropyDistillationConfig(
    TipConfig, KappaConfig, MonitorsConfig, RefinedConfig, DiagnosisConfig, DistillationConfig
):
    r"""
    [`~trl.DistillationConfig`] that trains on selected tokens. With `tip_rule="none"` it is `DistillationConfig`.

    > Parameters that select tokens

    tip_rule (`str`, *optional*, defaults to `"soft_or"`):
        Score by which tokens are kept: `"soft_or"` of entropy and divergence, `"entropy"`, `"entropy_sample"`, `"q3"`,
        `"divergence"`, `"random"`, `"bottom"`. `"none"` keeps all tokens.
    tip_ratio (`float`, *optional*, defaults to `0.5`):
        Share of each rollout's tokens to keep.
    tip_entropy_clip_quantile (`float`, *optional*, defaults to `0.98`):
        Quantile at which entropies are clipped before they are normalized.
    tip_divergence_clip_quantile (`float`, *optional*):
        The same for divergences. Not in the paper. Use `0.98` if `tip_ratio` is below 0.5.
    tip_min_tokens (`int`, *optional*, defaults to `1`):
        Minimum number of tokens to keep of each rollout.
    tip_scope (`str`, *optional*, defaults to `"micro_batch"`):
        Tokens over which scores are normalized: one process' micro-batch, the micro-batches of all processes
        (`"world"`), or a running mean of the extremes of the latter (`"ema"`).

    > Parameters that choose the weights to train

    kappa_mode (`str`, *optional*, defaults to `"none"`):
        `"freeze"` or `"lora"`: train only the weights of low condition number, or adapters on them. The other
        fields of this group are those of `trl_entropy.kappa.config.KappaConfig`.

    > Parameters that control monitors

    monitors (`list[str]`, *optional*, defaults to `[]`):
        Monitors, which look at the model while it trains and change nothing. `trl-entropy monitors` lists them.
    monitor_steps (`int`, *optional*, defaults to `50`):
        Optimizer steps between two measurements.
    monitor_max_length (`int`, *optional*, defaults to `512`):
        Tokens of a sequence that monitors look at.

    > Parameters that control the schedule

    lr_refined (`str`, *optional*):
        File of a schedule that `trl-entropy curves refine` wrote. It replaces `lr_scheduler_type` and warm-up.

    > Parameters that control the logging

    tip_scatter_steps (`int`, *optional*):
        Every this many optimizer steps, write entropies and divergences of one micro-batch and which tokens were kept
        to `tip_scatter.json` in `output_dir`. These steps run the teacher's head on all tokens under any rule.
    diagnosis (`str`, *optional*, defaults to `"true"`):
        Check the log for what goes wrong and warn once of each finding; `"stop"` also stops the run on collapse or
        explosion of entropy and on divergence. `"false"` checks nothing.

    Raises:
        `ValueError`: a field is out of range.
    """

    tip_scatter_steps: int | None = field(
        default=None,
        metadata={
            "help": "Every this many optimizer steps, write entropies and divergences of one micro-batch and which "
            "tokens were kept to `tip_scatter.json` in `output_dir`."
        },
    )

    def __post_init__(self):
        self.given_settings = given_settings(self)  # for model cards; read before TRL derives values from others
        check_before(self)
        super().__post_init__()
        check_after(self)
        check_diagnosis(self)
        tip = Tip(self)
        checked(
            self,
            "tip_scatter_steps",
            lambda value: value is None or (type(value) is int and value > 0),
            "an integer > 0 or null",
        )
        for warning in (*self._inert_warnings(tip), *check_monitors(self), *check_refined(self)):
            logger.warning(warning)

    def _inert_warnings(self, tip: Tip) -> list[str]:
        return inert_settings(self, tip, self.max_completion_length)
