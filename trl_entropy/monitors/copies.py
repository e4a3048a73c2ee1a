# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The trained weights before an optimizer step, beside those after it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class WeightCopies:
    """Copies of weights, with which a model can be put between old and new weights.

    Args:
        weights: before the step, without gradient. They share the model's memory.
        cpu: whether to copy them to the CPU.
        twice: whether [`shorten`] follows [`between`], which takes a second copy.
    """

    def __init__(self, weights: list[Tensor], cpu: bool, twice: bool):
        self.weights, self._twice = weights, twice
        self._old = [weight.to("cpu", copy=True) if cpu else weight.clone() for weight in weights]

    @contextmanager
    def between(self, share: float) -> Iterator[None]:
        """The weights a share of the way from old to new; afterwards the new ones, to the bit.

        Meanwhile the copies hold the new weights, unless there are two.
        """
        kept, changed = [old.clone() for old in self._old] if self._twice else self._old, 0
        try:
            for weight, old, new in zip(self.weights, self._old, kept, strict=True):
                moved = old.to(weight.device).lerp(weight, share)
                new.copy_(weight)
                changed += 1
                weight.copy_(moved)
            yield
        finally:
            for weight, new in zip(self.weights[:changed], kept, strict=False):
                weight.copy_(new)

    def shorten(self, scale: float) -> None:
        """Takes only this share of the update."""
        for weight, old in zip(self.weights, self._old, strict=True):
            weight.copy_(old.to(weight.device).lerp(weight, scale))
