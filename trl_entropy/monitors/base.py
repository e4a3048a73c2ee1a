# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a monitor is: it looks at the model while it trains, and changes nothing."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..paper import Paper


@dataclass(frozen=True)
class ProbeBatch:
    """Sequences of the probe in one forward, padded on the right.

    Attributes:
        input_ids: (B, T) token ids.
        lengths: (B,) tokens of each sequence.
    """

    input_ids: Tensor
    lengths: Tensor


class Monitor:
    """One paper's measurement of a model.

    The probe is a fixed set of sequences. In a measurement, each forward over the first `samples` of them runs inside
    `collecting`. Then `collected` returns what was kept, one row per sequence, and `measure` gets the rows of all
    processes.

    Class attributes:
        name: in `monitors`, and the prefix of the monitor's fields and of what it logs.
        paper: the paper.
        summary: what the numbers tell, in a few words.
        cost: of a measurement, in a few words.
        headline: the key of its logs that says most.

    Args:
        config: object with the monitor's fields.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper]
    summary: ClassVar[str]
    cost: ClassVar[str]
    headline: ClassVar[str]
    samples: int

    def __init__(self, config: Any):
        raise NotImplementedError

    def check_model(self, model: nn.Module) -> None:
        """Raises `ValueError` if the monitor cannot work with this model."""

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
