# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Statistics of the fused head on their way to the methods."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..head.patch import HEAD_STATISTICS, EntropyHead, Recorded
from ..methods import Method


class HeadStatistics:
    """What `methods` need of `head`, among `needs`; nothing without a head or a need.

    TRL's forward hands on log-probabilities and entropies only, so the head keeps its other outputs for us.
    """

    def __init__(self, head: EntropyHead | None, methods: list[Method], needs: set[str], temperature: float):
        self.head, self.methods, self.temperature = head, methods, temperature
        self.wanted = tuple(sorted(needs.intersection(HEAD_STATISTICS))) if head is not None else ()

    @contextmanager
    def recorded(self) -> Iterator[Recorded]:
        """The statistics of the forwards that are made while the context lasts."""
        if not self.wanted:
            yield Recorded()
            return
        settings = {name: value for method in self.methods for name, value in method.head_settings().items()}
        if "second_temperature" in settings:  # of methods: relative to that of sampling
            settings["second_temperature"] *= self.temperature
        with self.head.recording(*self.wanted, **settings) as recorded:
            yield recorded
