# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The controller behind `entropy_keep`: mean token entropies of generation batches -> the log of a strength.

A strength acts on the rate at which log entropy falls. Near the strength that holds entropy, the loop gain of its log
is the natural fall a per batch times an exponent near 1, whatever the method and its units. So the only number that
the controller needs is a, which it measures.
"""

import math
from typing import Any


LEAST_ENTROPY = 1e-4  # nats: the log of a lower entropy is that of this one
WINDOW = 10  # generation batches over which the slope of log entropy is measured
FIRST_FALL, LEAST_FALL, FALL_MEMORY = 0.01, 0.002, 0.998  # per generation batch
LEAST_GAIN, LARGEST_GAIN = 2.0, 60.0
LARGEST_CHANGE = math.log(3)  # of log strength from one generation batch to the next
SATURATED = 0.05  # error at the strongest end from which a batch counts as saturated


def slope(values: list[float]) -> float:
    """Least-squares slope of values at the places 0, 1, 2, ..."""
    middle = (len(values) - 1) / 2
    places = [place - middle for place in range(len(values))]
    return sum(x * y for x, y in zip(places, values, strict=True)) / sum(x * x for x in places)


class KeepController:
    """Holds entropy at T = R keep^(1 - d) keep_end^d, where R is the mean entropy of the first batches.

        x <- x + (ln H - x) / 2,   e = ln T - x,   a = max(0.998 a, -slope, 0.002),   K = clip(1 / (τ a), 2, 60)
        p = K e,   step = clip(p, -2, 2) / (8τ/3) + max(p - 2, 0) / τ
        c <- clip(c + step, low, high),   ln u = clip(c + p, low, high), within ln 3 of the last one

    d is the share of the run that is over. c stays where it is while entropy is above the target and falls by itself,
    and while the output is at a bound and `step` points outwards. Until R is known, ln u is `low`.

    Args:
        low, high, start: log strengths: the bounds, and c at first.
        keep, keep_end: the share of R to hold at the start and at the end of the run.
        batches: generation batches that R is the mean of.
        reference: R in nats, if it is given.
        response: τ, in generation batches.
    """

    def __init__(
        self,
        low: float,
        high: float,
        start: float,
        keep: float,
        keep_end: float | None = None,
        batches: int = 4,
        reference: float | None = None,
        response: float = 3.0,
    ):
        self.low, self.high, self.start = low, high, start
        self.keep, self.keep_end = keep, keep if keep_end is None else keep_end
        self.batches, self.given, self.response = batches, reference, response
        self.restart()

    def restart(self) -> None:
        """Back to the state before the first batch."""
        self.count, self.total = 0, 0.0
        self.smoothed: float | None = None
        self.recent: list[float] = []
        self.fall, self.memory = FIRST_FALL, self.start
        self.output: float | None = None
        self.saturated_for = 0
        self.reached = False
        self.target: float | None = None  # nats; this and the next two are those of the last batch
        self.error: float | None = None
        self.gain: float | None = None

    def forget_strength(self) -> None:
        """Keeps what was measured of entropy, and starts again with the strength."""
        self.memory, self.output, self.saturated_for, self.reached = self.start, None, 0, False

    @property
    def reference(self) -> float | None:
        """R in nats; `None` until it is known."""
        if self.given is not None:
            return self.given
        return self.total / self.batches if self.count >= self.batches else None

    @property
    def log_strength(self) -> float:
        return self.low if self.output is None else self.output

    @property
    def saturated(self) -> bool:
        """Whether the strongest setting left the last batch's entropy below the target."""
        return self.saturated_for > 0

    def update(self, entropy: float, done: float) -> float:
        """The log strength after a batch.

        Args:
            entropy: mean token entropy of the batch, in nats.
            done: the share of the run that is over.
        """
        steepness = self._measure(max(entropy, LEAST_ENTROPY))
        self.gain = min(max(1 / (self.response * self.fall), LEAST_GAIN), LARGEST_GAIN)
        if (reference := self.reference) is None:
            return self.low
        self.target = reference * self.keep ** (1 - done) * self.keep_end**done
        self.error = math.log(self.target) - self.smoothed
        self._drive(self.error, self.gain * self.error, steepness)
        self.reached |= self.error >= 0
        at_end = self.output >= self.high - 1e-9 and self.error > SATURATED
        self.saturated_for = self.saturated_for + 1 if at_end else 0
        return self.output

    def _measure(self, entropy: float) -> float | None:
        """Adds a batch to x, R and a. Returns the slope of log entropy, if there are enough batches."""
        self.count += 1
        self.total += entropy if self.count <= self.batches else 0.0
        log = math.log(entropy)
        self.smoothed = log if self.smoothed is None else self.smoothed + (log - self.smoothed) / 2
        self.recent = [*self.recent, log][-WINDOW:]
        if len(self.recent) < WINDOW:
            return None
        steepness = slope(self.recent)
        self.fall = max(FALL_MEMORY * self.fall, -steepness, LEAST_FALL)
        return steepness

    def _drive(self, error: float, push: float, steepness: float | None) -> None:
        """Moves c and the output; `push` is p."""
        step = min(max(push, -2), 2) / (8 * self.response / 3) + max(push - 2, 0) / self.response
        waits = error < 0 and (steepness is None or -steepness > self.fall / 5)
        sought = self.memory + push
        stuck = (sought >= self.high and step > 0) or (sought <= self.low and step < 0)
        if not (waits or stuck):
            self.memory = min(max(self.memory + step, self.low), self.high)
        wanted = min(max(self.memory + push, self.low), self.high)
        if self.output is not None:
            wanted = min(max(wanted, self.output - LARGEST_CHANGE), self.output + LARGEST_CHANGE)
        self.output = wanted

    def state_dict(self) -> dict[str, Any]:
        measured = ("count", "total", "smoothed", "recent", "fall", "target", "reached")
        names = (*measured, "memory", "output", "saturated_for")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.state_dict():
            setattr(self, name, state[name])
