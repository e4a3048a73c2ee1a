# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""The law of losses under a learning rate that anneals: what another schedule would have given.

[Scaling Law with Learning Rate Annealing](https://huggingface.co/papers/2408.11029). With the learning rate η of each
step:

1. S1_i = Σ_{j<=i} η_j;
2. m_i = λ m_{i-1} + (η_{i-1} - η_i), S2_i = Σ_{j<=i} m_j;
3. L = L0 + A S1^-α - C S2, with L0, A, C >= 0.

In warm-up η counts as its peak, as in the authors' code.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


logger = logging.getLogger(__name__)

FARTHEST = 3.0  # times the fitted S1, beyond which a prediction warns


def annealing_sums(rates: np.ndarray, momentum: float) -> tuple[np.ndarray, np.ndarray]:
    """S1 and S2 after each step.

    Args:
        rates: (S,) learning rate of each step.
        momentum: λ.
    """
    drops = np.concatenate([[0.0], rates[:-1] - rates[1:]])
    carried, moments = 0.0, np.empty(len(rates))
    for step, drop in enumerate(drops):
        carried = momentum * carried + drop
        moments[step] = carried
    return rates.cumsum(), moments.cumsum()


def warmup_steps(rates: np.ndarray) -> int:
    """Steps before the peak, if the learning rate only rises until there."""
    peak = int(rates.argmax())
    return peak if (np.diff(rates[: peak + 1]) >= 0).all() else 0


def without_warmup(rates: np.ndarray) -> np.ndarray:
    """The learning rates, in warm-up the peak."""
    return np.where(np.arange(len(rates)) < warmup_steps(rates), rates.max(), rates)


@dataclass(frozen=True)
class Law:
    """A fitted law.

    Attributes:
        floor: L0 in nats.
        scale: A.
        alpha: α.
        gain: C; `None` if the learning rate was constant, so that nothing is known of it.
        momentum: λ.
        reach: the greatest S1 of the fit.
        points: of the fit.
        error: median relative residual.
        intervals: 95 % intervals by name of the parameter.
    """

    floor: float
    scale: float
    alpha: float
    gain: float | None
    momentum: float
    reach: float = math.inf
    points: int = 0
    error: float = 0.0
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def at(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Losses at S1 and S2."""
        return self.floor + self.scale * first**-self.alpha - (self.gain or 0.0) * second

    def predict(self, rates: Sequence[float] | np.ndarray) -> np.ndarray:
        """(S,) learning rate of each step -> (S,) losses.

        Raises:
            `ValueError`: the learning rate decays, and the law was fitted to constant ones.
        """
        first, second = annealing_sums(without_warmup(np.asarray(rates, dtype=float)), self.momentum)
        if self.gain is None and np.abs(second).max() > negligible(first):
            raise ValueError(
                "The schedule must be constant: the law was fitted to a constant learning rate, which says nothing of "
                "the gain from its decay."
            )
        if first[-1] > FARTHEST * self.reach:
            logger.warning(
                f"The prediction is for {first[-1] / self.reach:.1f} times the summed learning rate of the fit: it "
                "extrapolates."
            )
        return self.at(first, second)


def negligible(first: np.ndarray) -> float:
    """S2 up to which the learning rate is constant."""
    return 1e-9 * float(first[-1])
