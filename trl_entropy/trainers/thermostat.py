# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The entropy thermostat: holds mean token entropy at a share of its starting value by driving one setting.

It measures the old policy's entropy once per generation batch, over all valid tokens of all processes. If TRL scores
the rollouts, or they are scored for a method or a reward, the entropy is known before the first update. Otherwise each
forward of the loss is the old policy's. Their mean is known when the next generation batch begins, one batch later.
Nothing costs a forward.
"""

import math
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor
from transformers import TrainerCallback

from ..functional import StepMean, accumulator_dtype
from ..tokens import TokenBatch
from .generation import scores_rollouts
from .keep_controller import KeepController
from .thermostat_config import Driven, driven_by, knob_range, start_of
from .window import Mean


logger = get_logger(__name__)

PATIENCE = 20  # saturated generation batches in a row after which it warns


class Thermostat:
    """Measures entropy, and sets the driven field of a method or of the trainer between generation batches.

    Args:
        trainer: the trainer, with its methods.
        driven: what to drive.
    """

    def __init__(self, trainer: Any, driven: Driven):
        args = trainer.args
        self.trainer, (self.knob, name) = trainer, driven
        self.owner = trainer if name is None else next(item for item in trainer.methods if item.name == name)
        if name is not None:
            self.owner.driven = True
        # By log strength: exactly the ends of the range, which logarithms may miss in the last digit.
        self.ends = {self.knob.log_strength(value): value for value in knob_range(args, driven)}
        self.controller = KeepController(
            min(self.ends),
            max(self.ends),
            self.knob.log_strength(start_of(args, driven)),
            args.entropy_keep,
            args.entropy_keep_end,
            args.entropy_keep_batches,
            args.entropy_keep_reference,
            args.entropy_keep_response,
        )
        self.restart()

    @staticmethod
    def of(trainer: Any) -> "Thermostat | None":
        """The thermostat that the trainer's config asks for."""
        driven = driven_by(trainer.args)
        return None if driven is None else Thermostat(trainer, driven)

    def restart(self) -> None:
        """Back to the state before the first generation batch."""
        self.controller.restart()
        self.window = StepMean()  # entropy of the forwards of a generation batch
        self.last: int | None = None  # generation batch that was measured last
        self.warned = False
        self._apply()

    @property
    def strength(self) -> float:
        """The value of the driven field."""
        if self.knob.scale != "target":
            log_strength = self.controller.log_strength
            return self.ends.get(log_strength, self.knob.value(log_strength))
        smoothed = self.controller.smoothed  # until the starting value is known, what keeps entropy as it is
        current = self.knob.start if smoothed is None else math.exp(smoothed)
        return current if self.controller.target is None else self.controller.target

    def _apply(self) -> None:
        setattr(self.owner, self.knob.attribute, self.strength)

    # Measuring

    def after_rollouts(self, entropy: Tensor | None, mask: Tensor, batch: int) -> None:
        """Measures a generation batch whose entropies are known before its first update.

        Args:
            entropy: (B, T) entropies of the old policy in nats; `None` if they are not known yet.
            mask: (B, T) bool, the tokens that the loss counts.
            batch: generation batches made before.
        """
        if entropy is None:
            return
        dtype = accumulator_dtype(entropy.device)
        sums = torch.stack([entropy.masked_fill(~mask, 0).sum(dtype=dtype), mask.sum().to(dtype)])
        total, count = self.trainer._world.sum(sums).tolist()
        self._update(total, count, batch)

    def begin_batch(self, batch: int) -> None:
        """Measures the generation batch before, if `batch` is a new one. Before its rollouts and forwards, as some
        driven settings are read ahead of them."""
        before, total, count = self.window.step, self.window.total, self.window.count
        self.window.begin(batch)
        if before is not None and before != batch:
            self._update(total, count, before)

    def before_methods(self, tokens: TokenBatch, batch: int) -> None:
        """Adds a forward to the mean of its generation batch."""
        if scores_rollouts(self.trainer) or not tokens.training:
            return
        self.begin_batch(batch)
        values = tokens.old_entropy.detach().masked_fill(~tokens.mask, 0)
        self.window.add(batch, values.sum(), tokens.mask.sum(), tokens.world)

    def _update(self, total: float, count: float, batch: int) -> None:
        """Moves the strength. A batch without a finite entropy changes nothing, and none counts twice."""
        if batch == self.last or not count or not math.isfinite(total):
            return
        self.last = batch
        state, controller = self.trainer.state, self.controller
        controller.update(total / count, min(state.global_step / max(state.max_steps, 1), 1.0))
        self._apply()
        found = {"entropy": Mean(total, count)}
        if self.knob.scale != "target":
            found |= {"strength": Mean(self.strength), "saturated": Mean(float(self.saturated))}
            found |= {"fall": Mean(controller.fall), "gain": Mean(controller.gain)}
        if controller.target is not None:
            found |= {"target": Mean(controller.target), "error": Mean(controller.error)}
        for key, value in found.items():
            self.trainer._metrics["train"][f"entropy_keep/{key}"].append(value)
        if self.saturated and controller.saturated_for >= PATIENCE and not self.warned:
            self.warned = True
            logger.warning(self._saturation())

    @property
    def saturated(self) -> bool:
        return self.controller.saturated and self.knob.scale != "target"

    # Messages

    def _saturation(self) -> str:
        knob, controller = self.knob, self.controller
        entropy = math.exp(controller.smoothed)
        help_ = [f"`{knob.limited_by}` below its {self._setting(knob.limited_by)!r}"] if knob.limited_by else []
        help_ += ["a method that can raise entropy"] if knob.brake else []
        help_ += ["a wider `entropy_keep_range`", "a lower `entropy_keep`"]
        return (
            f"`{knob.field}` has been at {self.strength:g}, the end of its range, for {PATIENCE} generation batches, "
            f"but entropy is {entropy:.4g} nats, below the target of {controller.target:.4g}. What may help: "
            f"{', or '.join(help_)}."
        )

    def _setting(self, name: str) -> Any:
        return getattr(self.trainer.args, name)

    def finish(self) -> None:
        """Says so if entropy never came down to the target."""
        controller = self.controller
        if self.knob.scale == "target" or controller.reference is None or controller.reached or not controller.count:
            return
        share = math.exp(controller.smoothed) / controller.reference
        logger.warning(
            f"The thermostat has had nothing to do: entropy ended at {share:.2f} of its start, above `entropy_keep` "
            f"{self._setting('entropy_keep')!r}."
        )

    # State

    @property
    def _settings(self) -> list[Any]:
        return [self.controller.keep, self.controller.keep_end]

    def state_dict(self) -> dict[str, Any]:
        return {
            "controller": self.controller.state_dict(),
            "window": self.window.state_dict(),
            "last": self.last,
            "warned": self.warned,
            "shares": self._settings,
            "knob": self.knob.field,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.controller.load_state_dict(state["controller"])
        self.window.load_state_dict(state["window"])
        self.last, self.warned = state["last"], bool(state["warned"])
        if state["knob"] != self.knob.field or state["shares"] != self._settings:
            self.controller.forget_strength()
            self.warned = False
            logger.warning(
                f"The checkpoint was written with `entropy_keep` {state['shares'][0]!r} driving `{state['knob']}`, "
                f"this run has {self._setting('entropy_keep')!r} driving `{self.knob.field}`: the strength starts "
                "again, the measured entropies stay."
            )
        self._apply()


class ThermostatCallback(TrainerCallback):
    """Starts the thermostat again with a run that is not resumed, and says at the end if it had nothing to do."""

    def __init__(self, thermostat: Thermostat):
        self.thermostat = thermostat

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.thermostat.restart()

    def on_train_end(self, args, state, control, **kwargs):
        self.thermostat.finish()
