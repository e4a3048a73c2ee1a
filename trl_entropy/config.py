# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`EntropyGRPOConfig`: TRL's `GRPOConfig` and the fields of every method."""

from dataclasses import dataclass

import trl
from accelerate.logging import get_logger
from packaging.version import Version
from trl import GRPOConfig

from .methods import Method, MethodsConfig, build_methods, idle_fields


logger = get_logger(__name__)

TRL_FROM, TRL_BELOW = "1.16", "1.17"


def check_trl_version(version: str) -> None:
    """Raises `ImportError` where the installed TRL is not the one whose private parts this package stands on."""
    if not Version(TRL_FROM) <= Version(version) < Version(TRL_BELOW):
        raise ImportError(
            f"trl-entropy needs trl>={TRL_FROM},<{TRL_BELOW}, but trl {version} is installed. "
            f"Run `pip install 'trl>={TRL_FROM},<{TRL_BELOW}'`."
        )


check_trl_version(trl.__version__)


@dataclass
class EntropyGRPOConfig(MethodsConfig, GRPOConfig):
    r"""
    [`~trl.GRPOConfig`] with entropy methods. With `methods` empty it is `GRPOConfig`.

    > Parameters that choose entropy methods

    methods (`list[str]`, *optional*, defaults to `[]`):
        Entropy methods to apply, in this order, each seeing the advantages that those before it left.

    The fields of a method start with its name and are described by `--help` and in the method's module under
    `trl_entropy.methods`.

    Raises:
        `ValueError`: an unknown or repeated method, or a field of a method that is out of range.
    """

    def __post_init__(self):
        super().__post_init__()
        methods = build_methods(self)
        for warning in (*self._idle_warnings(), *self._inert_warnings(methods)):
            logger.warning(warning)

    def _idle_warnings(self) -> list[str]:
        return [
            f"`{name}` is set to {getattr(self, name)!r}, but its method is not in `methods` ({self.methods}): it does "
            "nothing."
            for name in idle_fields(self)
        ]

    def _inert_warnings(self, methods: list[Method]) -> list[str]:
        """Settings under which a method changes nothing, or not what its paper means."""
        found = []
        single_update = self.gradient_accumulation_steps % (self.steps_per_generation * self.num_iterations) == 0
        if single_update:
            for method in methods:
                if method.acts_on_ratio:
                    effect = "amplifies numerical noise" if self.use_vllm else "does nothing"
                    found.append(
                        f"Method {method.name!r} acts on the ratio between the current and the generating policy, "
                        "which is 1 when each generation batch is used for one optimizer step, so that it "
                        f"{effect}. Set `num_iterations` (now {self.num_iterations}) above 1 or `steps_per_generation` "
                        f"(now {self.steps_per_generation}) above `gradient_accumulation_steps` (now "
                        f"{self.gradient_accumulation_steps})."
                    )
        if self.scale_rewards == "none":
            for method in methods:
                if method.assumes_unit_advantages:
                    found.append(
                        f"The thresholds of method {method.name!r} presuppose advantages divided by their standard "
                        "deviation, but `scale_rewards` is 'none': scale the thresholds with the rewards, or set "
                        "`scale_rewards` to 'group' or 'batch'."
                    )
        return found
