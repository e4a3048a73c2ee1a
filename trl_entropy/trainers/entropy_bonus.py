# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Schedules and a controller for the entropy bonus that TRL ships."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ..functional import StepMean
from ..settings import checked, non_negative, one_of
from ..tokens import TokenBatch


@dataclass
class EntropyBonusConfig:
    """The fields that control TRL's entropy bonus. Their help texts describe them."""

    entropy_coef_schedule: Literal["constant", "linear", "cosine"] = field(
        default="constant",
        metadata={
            "help": "How TRL's static `entropy_coef` changes over the run: not at all, or to 0 along a line or half a "
            "cosine."
        },
    )
    entropy_controller: Literal["step", "pi"] = field(
        default="step",
        metadata={
            "help": "What sets `entropy_coef` with `use_adaptive_entropy`: TRL's fixed `step` up or down, or `pi`, a "
            "proportional-integral controller that holds entropy at `entropy_target`."
        },
    )
    entropy_controller_kp: float = field(
        default=0.1, metadata={"help": "Proportional gain of the `pi` controller: coefficient per nat."}
    )
    entropy_controller_ki: float = field(
        default=0.01,
        metadata={"help": "Integral gain of the `pi` controller: coefficient per nat and optimizer step."},
    )


def check_bonus(config: Any) -> None:
    """Raises `ValueError` if a field of the bonus, ours or TRL's, is out of range."""
    one_of(config, "entropy_coef_schedule", "constant", "linear", "cosine")
    one_of(config, "entropy_controller", "step", "pi")
    non_negative(config, "entropy_controller_kp")
    non_negative(config, "entropy_controller_ki")
    checked(config, "entropy_coef", math.isfinite, "a finite number")
    if config.use_adaptive_entropy:
        if config.entropy_coef_schedule != "constant":
            raise ValueError(
                f"`entropy_coef_schedule` must be 'constant' with `use_adaptive_entropy`, which sets the coefficient "
                f"itself, got {config.entropy_coef_schedule!r}."
            )
        for name in ("entropy_coef_delta", "entropy_coef_max", "entropy_target"):
            checked(config, name, lambda value: -math.inf <= value <= math.inf, "a number")
        high = config.entropy_coef_max
        checked(config, "entropy_coef_min", lambda low: low <= high, f"at most `entropy_coef_max`, which is {high!r}")
        if config.entropy_controller == "pi":
            non_negative(config, "entropy_target")
    elif config.entropy_controller != "step":
        raise ValueError(
            f"`entropy_controller` must be 'step' without `use_adaptive_entropy`, got {config.entropy_controller!r}."
        )


def bonus_warnings(config: Any) -> list[str]:
    """Warnings about fields of the bonus that do nothing or lower entropy."""
    found = []
    if config.entropy_coef < 0:
        found.append(f"`entropy_coef` is {config.entropy_coef!r}: below 0 it lowers entropy.")
    if config.entropy_coef_schedule != "constant" and config.entropy_coef == 0:
        found.append(f"`entropy_coef_schedule` {config.entropy_coef_schedule!r} does nothing, as `entropy_coef` is 0.")
    for name in ("entropy_controller_kp", "entropy_controller_ki"):
        if config.entropy_controller != "pi" and getattr(config, name) != getattr(EntropyBonusConfig, name):
            found.append(
                f"`{name}` is set to {getattr(config, name)!r}, but `entropy_controller` is not 'pi': it does nothing."
            )
    return found


def scheduled_coef(coef: float, schedule: str, step: int, total_steps: int) -> float:
    """`entropy_coef` after `step` of `total_steps` optimizer steps."""
    done = min(step / max(total_steps, 1), 1.0)
    if schedule == "linear":
        return coef * (1 - done)
    if schedule == "cosine":
        return coef * (1 + math.cos(math.pi * done)) / 2
    return coef


class PIController:
    """coef = clip(k_p e + Σ k_i e, low, high), e = target - entropy in nats; the bounds hold for the sum too."""

    def __init__(self, target: float, kp: float, ki: float, start: float, low: float, high: float):
        self.target, self.kp, self.ki, self.low, self.high = target, kp, ki, low, high
        self.integral = min(max(start, low), high)

    def update(self, entropy: float) -> float:
        error = self.target - entropy
        self.integral = min(max(self.integral + self.ki * error, self.low), self.high)
        return min(max(self.kp * error + self.integral, self.low), self.high)


class EntropyBonus:
    """Sets the coefficient of TRL's entropy bonus by the config. TRL computes the bonus itself."""

    def __init__(self, args: Any):
        self.coef, self.schedule = args.entropy_coef, args.entropy_coef_schedule
        self.given = self.coef  # before TRL's own step
        self.window = StepMean()  # entropy of the accumulation window
        self.controller = None
        if args.entropy_controller == "pi":
            self.controller = PIController(
                args.entropy_target,
                args.entropy_controller_kp,
                args.entropy_controller_ki,
                args.entropy_coef,
                args.entropy_coef_min,
                args.entropy_coef_max,
            )

    def before_loss(self, trainer: Any) -> None:
        self.given = trainer.entropy_coef
        if self.schedule != "constant":
            step, total = trainer.state.global_step, trainer.state.max_steps
            trainer.entropy_coef = scheduled_coef(self.coef, self.schedule, step, total)

    def after_loss(self, trainer: Any, tokens: TokenBatch, acts: Tensor) -> None:
        """Measures the entropy of `acts` (B, T), the tokens with a bonus, and moves the coefficient after the last
        micro-batch of an optimizer step, when TRL has made a step of its own."""
        if self.controller is None or not trainer.model.training:
            return
        entropy = tokens.entropy.detach().masked_fill(~acts, 0)
        self.window.add(tokens.step, entropy.sum(), acts.sum(), tokens.world)
        if not trainer.accelerator.sync_gradients:
            return
        measured, self.window = self.window.mean, StepMean()
        # Nothing measured, no token or none that is finite, is not an entropy of 0: the coefficient stays.
        trainer.entropy_coef = self.given if measured is None else self.controller.update(measured)
        trainer._metrics["train"]["entropy_coef"][-1] = trainer.entropy_coef
        # TRL drops the bonus while entropy is above its target, which would make a controller's output jump.
        trainer._last_world_entropy = (
            self.controller.target if measured is None else min(measured, self.controller.target)
        )

    def state_dict(self) -> dict[str, float]:
        return {"integral": self.controller.integral}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.controller.integral = state["integral"]
