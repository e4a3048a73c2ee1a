# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The loss curve of a run, as its log has it. Imports neither torch nor transformers: commands start quickly.

A logged loss is the mean over the steps since the line before it: a window. It belongs to the middle of its window.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


TOKEN_COUNTS = ("num_input_tokens_seen", "num_tokens")  # of transformers and TRL, from the beginning of the run
REWARDED = "the run logs rewards, so its loss is no likelihood"


@dataclass(frozen=True)
class Curve:
    """Losses of a run in N windows of its log.

    Attributes:
        start, end: (N,) optimizer steps: a window is the steps start + 1 to end. In evaluations both are equal.
        loss: (N,) mean losses in nats.
        rates: (end of the log,) learning rate of each step, linear between log lines. Empty if it was not logged.
        tokens_start, tokens_end: (N,) tokens before and after each window; `None` if they are not known.
        epochs: passes over the data.
        rewarded: whether the run logs rewards, as in reinforcement learning.
        dropped: windows left out because their loss is not finite.
    """

    start: np.ndarray
    end: np.ndarray
    loss: np.ndarray
    rates: np.ndarray
    tokens_start: np.ndarray | None = None
    tokens_end: np.ndarray | None = None
    epochs: float = 0.0
    rewarded: bool = False
    dropped: int = 0

    @classmethod
    def of(
        cls, lines: Iterable[Mapping[str, Any]], tokens_per_step: float | None = None, evaluation: bool = False
    ) -> "Curve":
        """The curve in the log lines of a run. If a step was logged twice, as in a resumed run, the last line counts.

        Args:
            lines: `log_history` of the run's `trainer_state.json`.
            tokens_per_step: tokens of an optimizer step, for a log without their number.
            evaluation: whether to read the losses of evaluations instead of those of training.

        Raises:
            `ValueError`: there are fewer than two losses.
        """
        lines = list(lines)
        training = _by_step(lines, "loss")
        rows = _by_step(lines, "eval_loss") if evaluation else training
        end = np.array([*rows], dtype=float)
        start = end if evaluation else np.concatenate([[0.0], end])[:-1]
        loss = _column(rows, "eval_loss" if evaluation else "loss")
        after = _tokens_at(training, end, tokens_per_step)
        before = None if after is None else after if evaluation else np.concatenate([[0.0], after])[:-1]
        finite = np.isfinite(loss)
        if finite.sum() < 2:
            what = "`eval_loss`" if evaluation else "`loss`"
            raise ValueError(f"The log must have at least two lines with a finite {what}, got {finite.sum()}.")
        return cls(
            start[finite],
            end[finite],
            loss[finite],
            _rates(training),
            None if before is None else before[finite],
            None if after is None else after[finite],
            max((float(line.get("epoch") or 0.0) for line in lines), default=0.0),
            any(key == "reward" or key.startswith("rewards/") for line in lines for key in line),
            int((~finite).sum()),
        )

    @property
    def middle(self) -> np.ndarray:
        """(N,) the middle step of each window."""
        return np.where(self.end > self.start, (self.start + 1 + self.end) / 2, self.end)


def _by_step(lines: Iterable[Mapping[str, Any]], key: str) -> dict[float, Mapping[str, Any]]:
    """The lines with `key`, in the order of their steps."""
    found = {line["step"]: line for line in lines if key in line and "step" in line}
    return {step: found[step] for step in sorted(found)}


def _column(rows: Mapping[float, Mapping[str, Any]], key: str) -> np.ndarray:
    """A number of each line. `None`, which transformers writes for NaN, is NaN again."""
    return np.array([math.nan if row.get(key) is None else row[key] for row in rows.values()], dtype=float)


def _rates(rows: Mapping[float, Mapping[str, Any]]) -> np.ndarray:
    rates = _column(rows, "learning_rate")
    known = np.isfinite(rates)
    if not known.any():
        return np.zeros(0)
    steps = np.array([*rows], dtype=float)
    return np.interp(np.arange(1, steps[-1] + 1), steps[known], rates[known])


def _tokens_at(
    rows: Mapping[float, Mapping[str, Any]], steps: np.ndarray, tokens_per_step: float | None
) -> np.ndarray | None:
    """(N,) tokens that training has seen after each of `steps`; `None` if they are not known."""
    if tokens_per_step is not None:
        return steps * tokens_per_step
    for key in TOKEN_COUNTS:
        counts = _column(rows, key)
        if len(counts) and np.isfinite(counts).all() and counts[-1] > 0:
            # TRL counts from 0 again in a resumed run.
            grown = np.diff(counts, prepend=0.0)
            total = np.where(grown < 0, counts, grown).cumsum()
            return np.interp(steps, [0.0, *rows], np.concatenate([[0.0], total]))
    return None
