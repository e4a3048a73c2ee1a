# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a monitor is: it looks at the model while it trains, and changes nothing."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ..paper import Paper


if TYPE_CHECKING:
    from .probe import Probe


@dataclass(frozen=True)
class ProbeBatch:
    """Sequences of the probe in one forward, padded on the right.

    Attributes:
        input_ids: (B, T) token ids.
        lengths: (B,) tokens of each sequence.
    """

    input_ids: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Run:
    """What monitors of steps are told before the first step.

    Attributes:
        folder: of the run.
        step: optimizer steps of a resumed run, else 0.
        writes: whether this process writes the run's files.
        probe: the sequences, if a monitor looks at any.
    """

    folder: Path
    step: int
    writes: bool
    probe: "Probe | None" = None


class Monitor:
    """One paper's measurement of a model: a [`ProbeMonitor`] or a [`StepMonitor`].

    Class attributes:
        name: in `monitors`, and the prefix of the monitor's fields and of what it logs.
        paper: the paper.
        summary: what the numbers tell, in a few words.
        cost: of a measurement, in a few words.
        headline: the key of its logs that says most.
        shared: the fields of all monitors that matter to this one.

    Attributes:
        samples: how many sequences of the probe it looks at.

    Args:
        config: object with the monitor's fields.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper]
    summary: ClassVar[str]
    cost: ClassVar[str]
    headline: ClassVar[str]
    shared: ClassVar[tuple[str, ...]] = ("monitor_steps", "monitor_max_length")

    samples: int = 0

    def __init__(self, config: Any):
        raise NotImplementedError

    def check_model(self, model: nn.Module) -> None:
        """Raises `ValueError` if the monitor cannot work with this model."""


class ProbeMonitor(Monitor):
    """A monitor that looks at the probe every few steps.

    The probe is a fixed set of sequences. In a measurement, each forward over the first `samples` of them runs inside
    `collecting`. Then `collected` returns what was kept, one row per sequence, and `measure` gets the rows of all
    processes.
    """

    def collecting(self, model: nn.Module, batch: ProbeBatch) -> AbstractContextManager[None]:
        """Around one forward of the probe."""
        raise NotImplementedError

    def collected(self) -> dict[str, Tensor]:
        """What the forwards since the last call have left: (N, K) tensors, a row for each of N sequences."""
        raise NotImplementedError

    def measure(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """The numbers to log, from the rows of all processes in the order of the probe.

        A number that is not defined is NaN.
        """
        raise NotImplementedError

    def arrays(self) -> dict[str, Tensor]:
        """What the last measurement leaves for a picture."""
        return {}


class StepMonitor(Monitor):
    """A monitor that looks at every optimizer step. All processes call its hooks alike."""

    def begin(self, model: nn.Module, run: Run) -> None:
        """Before the first step."""

    def before_gradients(self) -> None:
        """Before the forward and backward passes of a step."""

    def before_step(self, model: nn.Module, step: int) -> None:
        """With the gradients of a step, clipped, before the optimizer uses them. `step` counts from 1."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """With the new weights, before gradients are zeroed."""

    def numbers(self) -> dict[str, float]:
        """The numbers to log: of the last step, or of a measurement since the last log line.

        Called for each log line of training.
        """
        raise NotImplementedError

    def save(self) -> None:
        """Brings the monitor's files up to date: at each log line, at each checkpoint, and at the end."""

    def end(self) -> None:
        """After training."""
