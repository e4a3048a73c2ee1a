# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Schedules and controllers for the entropy bonus that TRL ships."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ..functional import StepMean
from ..settings import checked, default_of, non_negative, one_of
from ..tokens import TokenBatch


CONTROLLED_BY = {  # fields by the controller that reads them
    "pi": ("entropy_controller_kp", "entropy_controller_ki"),
    "band": tuple(f"entropy_controller_{name}" for name in ("low", "high", "lr", "box", "warmup")),
}
UNUSED_BY_BAND = ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target")  # TRL's


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
    entropy_controller: Literal["step", "pi", "band"] = field(
        default="step",
        metadata={
            "help": "What sets `entropy_coef` with `use_adaptive_entropy`: TRL's fixed `step` up or down, `pi`, a "
            "proportional-integral controller that holds entropy at `entropy_target`, or `band`, an integral "
            "controller that moves only while entropy is outside a band (from AEnt, huggingface.co/papers/2509.03493)."
        },
    )
    entropy_controller_kp: float = field(
        default=0.1, metadata={"help": "Proportional gain of the `pi` controller: coefficient per nat."}
    )
    entropy_controller_ki: float = field(
        default=0.01,
        metadata={"help": "Integral gain of the `pi` controller: coefficient per nat and optimizer step."},
    )
    entropy_controller_low: float = field(
        default=0.1, metadata={"help": "Lower end of the `band` controller's band, in nats."}
    )
    entropy_controller_high: float = field(
        default=0.5, metadata={"help": "Upper end of the `band` controller's band, in nats."}
    )
    entropy_controller_lr: float = field(
        default=1e-3,
        metadata={"help": "Gain of the `band` controller: coefficient per nat outside the band and optimizer step."},
    )
    entropy_controller_box: list[float] = field(
        default_factory=lambda: [1e-5, 0.01],
        metadata={"help": "Smallest and largest coefficient of the `band` controller."},
    )
    entropy_controller_warmup: int = field(
        default=0,
        metadata={"help": "Optimizer steps after which the `band` controller starts to move the coefficient."},
    )


def check_bonus(config: Any) -> None:
    """Raises `ValueError` if a field of the bonus, ours or TRL's, is out of range."""
    one_of(config, "entropy_coef_schedule", "constant", "linear", "cosine")
    one_of(config, "entropy_controller", "step", "pi", "band")
    for name in ("kp", "ki", "low", "lr"):
        non_negative(config, f"entropy_controller_{name}")
    low = config.entropy_controller_low
    accepted = f"a finite number of at least `entropy_controller_low`, which is {low!r}"
    checked(config, "entropy_controller_high", lambda high: low <= high < math.inf, accepted)
    checked(config, "entropy_controller_box", is_box, "two finite numbers, the smaller one first")
    checked(config, "entropy_controller_warmup", lambda value: type(value) is int and value >= 0, "an integer >= 0")
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


def is_box(value: Any) -> bool:
    """Whether a value is a list of two finite numbers in order."""
    numbers = isinstance(value, (list, tuple)) and not any(isinstance(bound, bool) for bound in value)
    return numbers and len(value) == 2 and all(map(math.isfinite, value)) and value[0] <= value[1]


def bonus_warnings(config: Any) -> list[str]:
    """Warnings about fields of the bonus that do nothing or lower entropy."""
    found = []
    if config.entropy_coef < 0:
        found.append(f"`entropy_coef` is {config.entropy_coef!r}: below 0 it lowers entropy.")
    if config.entropy_coef_schedule != "constant" and config.entropy_coef == 0:
        found.append(f"`entropy_coef_schedule` {config.entropy_coef_schedule!r} does nothing, as `entropy_coef` is 0.")
    defaults = EntropyBonusConfig()
    for controller, names in CONTROLLED_BY.items():
        for name in names:
            if config.entropy_controller != controller and getattr(config, name) != getattr(defaults, name):
                found.append(
                    f"`{name}` is set to {getattr(config, name)!r}, but `entropy_controller` is not {controller!r}: "
                    "it does nothing."
                )
    if config.entropy_controller == "band":
        for name in UNUSED_BY_BAND:
            if getattr(config, name) != default_of(config.__dataclass_fields__[name]):
                found.append(
                    f"`{name}` is set to {getattr(config, name)!r}, but `entropy_controller` is 'band': it "
                    "does nothing."
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

    def state_dict(self) -> dict[str, float]:
        return {"integral": self.integral}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.integral = state["integral"]


class BandController:
    """coef <- clip(coef - lr (min(0, H - low) + max(0, H - high)), box) after each optimizer step, H in nats.

    The first `warmup` steps leave it as it is (our reading of the recipes). `target` is TRL's, above which TRL would
    drop the bonus.
    """

    def __init__(
        self, band: tuple[float, float], lr: float, start: float, box: tuple[float, float], warmup: int, target: float
    ):
        self.band, self.lr, self.box, self.warmup, self.target = band, lr, box, warmup, target
        self.coef = min(max(start, box[0]), box[1])
        self.steps = 0

    def update(self, entropy: float) -> float:
        self.steps += 1
        if self.steps > self.warmup:
            outside = min(0.0, entropy - self.band[0]) + max(0.0, entropy - self.band[1])
            self.coef = min(max(self.coef - self.lr * outside, self.box[0]), self.box[1])
        return self.coef

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef, "steps": self.steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef, self.steps = state["coef"], int(state["steps"])


def controller_of(args: Any) -> PIController | BandController | None:
    """The controller that the config names; `None` for TRL's own steps."""
    if args.entropy_controller == "pi":
        gains = args.entropy_controller_kp, args.entropy_controller_ki
        return PIController(
            args.entropy_target, *gains, args.entropy_coef, args.entropy_coef_min, args.entropy_coef_max
        )
    if args.entropy_controller == "band":
        band = args.entropy_controller_low, args.entropy_controller_high
        return BandController(
            band,
            args.entropy_controller_lr,
            args.entropy_coef,
            args.entropy_controller_box,
            args.entropy_controller_warmup,
            args.entropy_target,
        )
    return None


class EntropyBonus:
    """Sets the coefficient of TRL's entropy bonus by the config. TRL computes the bonus itself."""

    def __init__(self, args: Any):
        self.coef, self.schedule = args.entropy_coef, args.entropy_coef_schedule
        self.given = self.coef  # before TRL's own step
        self.window = StepMean()  # entropy of the accumulation window
        self.controller = controller_of(args)

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
        return self.controller.state_dict()

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.controller.load_state_dict(state)
