# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`EntropyGRPOConfig`: TRL's `GRPOConfig` and the fields of every method."""

from dataclasses import dataclass, field

import trl
from accelerate.logging import get_logger
from trl import GRPOConfig

from ..diagnosis.config import DiagnosisConfig, check_diagnosis
from ..head.patch import HEAD_STATISTICS
from ..inert import not_listed, one_completion, single_update, unscaled, without_ratio
from ..kappa.config import KappaConfig
from ..methods import REGISTRY, Method, MethodsConfig, build_methods, idle_fields
from ..methods import register as register
from ..monitors.config import MonitorsConfig, check_monitors
from ..runs.provenance import given_settings
from ..settings import checked, flag, one_of
from .checks import check_after, check_before, check_trl_version
from .doses import dose_warnings
from .entropy_bonus import EntropyBonusConfig, bonus_warnings, check_bonus
from .recording import NOT_A_TOKEN_PER_FORWARD
from .refined_schedule import RefinedConfig, check_refined
from .thermostat_config import ThermostatConfig, check_thermostat, for_methods, thermostat_warnings


logger = get_logger(__name__)

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")


check_trl_version(trl.__version__)
REGISTRY.load_entry_points(again=True)


@dataclass
class EntropyGRPOConfig(
    MethodsConfig,
    EntropyBonusConfig,
    ThermostatConfig,
    KappaConfig,
    MonitorsConfig,
    RefinedConfig,
    DiagnosisConfig,
    GRPOConfig,
):
    r"""
    [`~trl.GRPOConfig`] with entropy methods. With `methods` empty it is `GRPOConfig`.

    > Parameters that choose entropy methods

    methods (`list[str]`, *optional*, defaults to `[]`):
        Entropy methods to apply, in this order. Each sees the advantages that those before it left.
    fused_head (`bool`, *optional*, defaults to `True`):
        Use this package's fused LM head, whose backward leaves out tokens without gradient. Without it the head is
        TRL's, to the bit.
    entropy_forecast (`bool`, *optional*, defaults to `False`):
        Log the first-order prediction of each step's entropy change beside the realized change. Always on if a method
        needs the same statistics.
    log_token_entropies (`int`, *optional*, defaults to `0`):
        How many completions of each log to keep below `output_dir/completions`, with the entropy of each token, for
        `trl-entropy report`.
    record_entropies (`bool`, *optional*, defaults to `False`):
        If entropies are needed and TRL does not score its rollouts, record them during generation instead of in one
        more forward. They equal those of a forward up to rounding (about 0.01 nats in bfloat16). Not with vLLM,
        continuous batching, beam search, or a rollout function.

    > Parameters that control TRL's entropy bonus

    entropy_coef_schedule (`str`, *optional*, defaults to `"constant"`):
        How the static `entropy_coef` changes over the run: `"constant"`, or to 0 by `"linear"` or `"cosine"`.
    entropy_controller (`str`, *optional*, defaults to `"step"`):
        What sets `entropy_coef` with `use_adaptive_entropy`: TRL's fixed `"step"`, or a controller, `"pi"` or
        `"band"`.
    entropy_controller_kp (`float`, *optional*, defaults to `0.1`):
        Proportional gain of `"pi"`: coefficient per nat.
    entropy_controller_ki (`float`, *optional*, defaults to `0.01`):
        Integral gain of `"pi"`: coefficient per nat and optimizer step.
    entropy_controller_low (`float`, *optional*, defaults to `0.1`):
        Lower end of the band of `"band"`, in nats.
    entropy_controller_high (`float`, *optional*, defaults to `0.5`):
        Upper end of the band of `"band"`, in nats.
    entropy_controller_lr (`float`, *optional*, defaults to `0.001`):
        Gain of `"band"`: coefficient per nat outside the band and optimizer step.
    entropy_controller_box (`list[float]`, *optional*, defaults to `[1e-5, 0.01]`):
        Smallest and largest coefficient of `"band"`.
    entropy_controller_warmup (`int`, *optional*, defaults to `0`):
        Optimizer steps after which `"band"` starts to move the coefficient.

    > Parameters that hold entropy at a share of its starting value

    entropy_keep (`float`, *optional*):
        Hold mean token entropy at this share of its starting value, by driving the strength of the listed method, or
        `entropy_coef` if no method is listed.
    entropy_keep_end (`float`, *optional*):
        Share to hold at the last step. Defaults to `entropy_keep`.
    entropy_keep_knob (`str`, *optional*):
        Field to drive. Defaults to that of the one listed method that has such a field.
    entropy_keep_range (`list[float]`, *optional*):
        Smallest and largest value of the driven field. Defaults to the range that its method declares.
    entropy_keep_batches (`int`, *optional*, defaults to `4`):
        Generation batches whose mean entropy is the starting value.
    entropy_keep_reference (`float`, *optional*):
        The starting value in nats, instead of a measured one.
    entropy_keep_response (`float`, *optional*, defaults to `3.0`):
        Generation batches that the thermostat takes to respond.

    > Parameters that control which weights are trained

    kappa_mode (`str`, *optional*, defaults to `"none"`):
        `"freeze"` trains only the weights of low condition number. `"lora"` makes them the targets of `peft_config`.
        The other fields of this group are those of `trl_entropy.kappa.config.KappaConfig`.

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

    > Parameters that control the diagnosis

    diagnosis (`str`, *optional*, defaults to `"true"`):
        Check the log for what goes wrong and warn once of each finding; `"stop"` also stops the run on collapse or
        explosion of entropy and on divergence. A method that does nothing is reported after the first three
        generation batches and five log lines. `"false"` checks nothing.

    The fields of a method start with its name. `--help` and the method's module under `trl_entropy.methods` describe
    them.

    Raises:
        `ValueError`: a method is unknown or listed twice, or a field is out of range.
    """

    fused_head: bool = field(
        default=True,
        metadata={
            "help": "Use this package's fused LM head, whose backward leaves out tokens without gradient. Without it "
            "the head is TRL's, to the bit."
        },
    )
    entropy_forecast: bool = field(
        default=False,
        metadata={
            "help": "Log the first-order prediction of each step's entropy change beside the realized change. "
            "Always on if a method needs the same statistics."
        },
    )
    log_token_entropies: int = field(
        default=0,
        metadata={
            "help": "How many completions of each log to keep below `output_dir/completions`, with the entropy of "
            "each token, for `trl-entropy report`."
        },
    )
    record_entropies: bool = field(
        default=False,
        metadata={
            "help": "If entropies are needed and TRL does not score its rollouts, record them during generation "
            "instead of in one more forward."
        },
    )

    def __post_init__(self):
        self.given_settings = given_settings(self)  # for model cards; read before TRL derives values from others
        check_before(self, num_generations=2)
        super().__post_init__()
        one_of(self, "loss_type", *LOSS_TYPES)  # TRL reports it only in the first step
        check_after(self)
        methods = build_methods(for_methods(self))
        self._check_head(methods)
        self._check_recording(methods)
        self._check_branching(methods)
        check_bonus(self)
        check_thermostat(self)
        check_diagnosis(self)
        checked(self, "log_token_entropies", lambda value: type(value) is int and value >= 0, "a whole number >= 0")
        own = [warning for method in methods for warning in method.check(self)]
        self.dose_warnings = dose_warnings(self, methods)  # model cards state them
        own += self.dose_warnings
        found = [
            *self._idle_warnings(),
            *bonus_warnings(self),
            *thermostat_warnings(self),
            *check_monitors(self),
            *check_refined(self),
        ]
        for warning in (*found, *self._inert_warnings(methods), *own):
            logger.warning(warning)

    def _check_head(self, methods: list[Method]) -> None:
        flag(self, "fused_head")
        flag(self, "entropy_forecast")
        askers = [f"method {method.name!r}" for method in methods if set(method.needs).intersection(HEAD_STATISTICS)]
        if self.entropy_forecast:
            askers.append("`entropy_forecast`")
        if askers and not self.fused_head:
            raise ValueError(f"`fused_head` must be true for {' and '.join(askers)}, got {self.fused_head!r}.")

    def _check_recording(self, methods: list[Method]) -> None:
        if not flag(self, "record_entropies"):
            return
        reasons = {f"`{name}`": getattr(self, name) for name in ("use_vllm", "use_transformers_continuous_batching")}
        kwargs = self.generation_kwargs or {}
        reasons |= {f"`{name}` in `generation_kwargs`": name in kwargs for name in NOT_A_TOKEN_PER_FORWARD}
        reasons |= {f"method {method.name!r}": "rollout_logps" in method.needs for method in methods}
        if found := [reason for reason, applies in reasons.items() if applies]:
            raise ValueError(f"`record_entropies` must be false with {found[0]}, got True.")

    def _check_branching(self, methods: list[Method]) -> None:
        kwargs = set(self.generation_kwargs or ()) & set(NOT_A_TOKEN_PER_FORWARD)
        for method in methods:
            if "branched_rollouts" in method.needs and kwargs and not self.use_vllm:
                raise ValueError(
                    f"`generation_kwargs` must not have {min(kwargs)!r} with method {method.name!r}, which reads one "
                    f"entropy per forward, got {self.generation_kwargs!r}."
                )

    def _idle_warnings(self) -> list[str]:
        return [not_listed(name, getattr(self, name), self.methods) for name in idle_fields(self)]

    def _inert_warnings(self, methods: list[Method]) -> list[str]:
        """Warnings about settings under which a method does nothing, or not what its paper intends."""
        found = []
        once = single_update(self)
        found += [without_ratio(method.name, self) for method in methods if once and method.acts_on_ratio]
        if methods and methods[0].compares_completions and methods[0].ratio_rows(self) == 1:
            found.append(one_completion(methods[0].name))  # methods before it may tell tokens apart
        if self.record_entropies and not once:
            found.append(
                "`record_entropies` does nothing: a generation batch serves more than one optimizer step, so TRL "
                "scores its rollouts and entropies are free."
            )
        for place, method in enumerate(methods):
            later = [other.name for other in methods[place + 1 :] if other.overrides("token_advantages")]
            if method.completes_policy_loss and later:
                found.append(
                    f"Method {method.name!r} comes before {later[0]!r} in `methods`, so it does not see the token "
                    "advantages of that method: list it last."
                )
        if self.scale_rewards == "none":
            found += [unscaled(method.name) for method in methods if method.assumes_unit_advantages]
        return found


REGISTRY.check_fields(EntropyGRPOConfig)  # against TRL's fields, which `methods` does not know
