# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Passes statistics of the fused head to the methods."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..head.patch import HEAD_STATISTICS, EntropyHead, Recorded
from ..methods import Method


class HeadStatistics:
    """The statistics of the fused head that the methods need.

    TRL's forward returns log-probabilities and entropies only, so the head keeps its other outputs.

    Args:
        head: the fused head, or `None` with TRL's head.
        methods: the active methods, whose `head_settings` apply.
        needs: what the methods need; statistics of the head among it are computed.
        temperature: of sampling.
    """

    def __init__(self, head: EntropyHead | None, methods: list[Method], needs: set[str], temperature: float):
        self.head, self.methods, self.temperature = head, methods, temperature
        self.wanted = tuple(sorted(needs.intersection(HEAD_STATISTICS))) if head is not None else ()

    @contextmanager
    def recorded(self) -> Iterator[Recorded]:
        """Collects the statistics of the forwards made within the context."""
        if not self.wanted:
            yield Recorded()
            return
        settings = {name: value for method in self.methods for name, value in method.head_settings().items()}
        if "second_temperature" in settings:  # methods give it relative to the sampling temperature
            settings["second_temperature"] *= self.temperature
        with self.head.recording(*self.wanted, **settings) as recorded:
            yield recorded
