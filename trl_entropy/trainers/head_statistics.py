# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Statistics of the fused head on their way to the methods: asked for before a forward, read after it."""

import torch
from torch import Tensor

from ..head import EXTRA_OUTPUTS, EntropyHead
from ..head.patch import HEAD_STATISTICS
from ..methods import Method


class HeadStatistics:
    """What `methods` need of `head`, among `needs`; nothing without a head or a need.

    TRL's forward hands on log-probabilities and entropies only, so that the head keeps its other outputs for us.
    """

    def __init__(self, head: EntropyHead | None, methods: list[Method], needs: set[str], temperature: float):
        self.head, self.methods, self.temperature = head, methods, temperature
        self.wanted = tuple(sorted(needs.intersection(HEAD_STATISTICS)))

    def ask(self) -> None:
        """Before a forward: which statistics it is to compute, and what they depend on."""
        if not self.wanted:
            return
        self.head.statistics = self.wanted
        for method in self.methods:
            for name, value in method.head_settings().items():
                setattr(self.head, name, value * self.temperature if name == "second_temperature" else value)
        self.head.record = []

    def read(self, length: int) -> dict[str, Tensor]:
        """After a forward: (B, T) statistics of the last `length` tokens of each row, in however many chunks."""
        if not self.wanted:
            return {}
        outputs, self.head.record = self.head.record, None
        names = [name for name in EXTRA_OUTPUTS if outputs and getattr(outputs[0], name) is not None]
        return {name: torch.cat([getattr(output, name)[:, -length:] for output in outputs]) for name in names}
