# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""A schedule of the learning rate from the gradient norms of a finished run.

[Optimal Linear Decay Learning Rate Schedules and Further Refinements](https://huggingface.co/papers/2310.07831). With
the smoothed gradient norm G of each step:

1. w_t = 1 / G_t for Adam, from L1 norms, or 1 / G_t² for SGD, from L2 norms;
2. η_t ∝ w_t Σ_{p>t} w_p, divided by its maximum; the last value is 0.

G is smoothed by a running median over a tenth of the run: reflected at the end, and held at its first value before the
beginning. A constant G gives linear decay.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


EXPONENTS = {"l1": 1, "l2": 2}  # of 1 / G, by norm
POINTS = 1000  # of a schedule
FEWEST = 100  # gradient norms
EDGE = 2  # norms left out at each end
WIDTH = 0.1  # of the running median, relative to the run
NORMS_FILE = "gradient_norms.csv"  # in the folder of a run


def refined_rates(norms: np.ndarray, exponent: int) -> np.ndarray:
    """(T,) gradient norms -> (T,) learning rates with maximum 1.

    Args:
        norms: smoothed, above 0.
        exponent: 1 for Adam, 2 for SGD.
    """
    weights = norms.min() / norms  # relative, so that no power is out of range
    weights = weights**exponent
    after = np.concatenate([weights[:0:-1].cumsum()[::-1], [0.0]])
    rates = weights * after
    return rates / rates.max()


def running_median(values: np.ndarray, width: int) -> np.ndarray:
    """(T,) medians over an odd `width`: reflected at the end, and held at its first value before the beginning."""
    import pandas as pd  # not at the top: it takes half a second to import

    half = width // 2
    tail = np.pad(values, (0, 2 * width), mode="reflect")
    padded = np.concatenate([np.full(half, values[0]), tail])
    return pd.Series(padded).rolling(width, center=True).median().to_numpy()[half : half + len(values)]


def smoothed(norms: np.ndarray) -> np.ndarray:
    """Gradient norms of a run -> smoothed ones, fewer by those that are not finite and by two at each end.

    Raises:
        `ValueError`: there are fewer than 100 finite ones, or none above 0.
    """
    norms = norms[np.isfinite(norms)]
    if len(norms) < FEWEST:
        raise ValueError(f"A schedule needs at least {FEWEST} finite gradient norms, got {len(norms)}.")
    if not (norms > 0).any():
        raise ValueError("A schedule needs gradient norms above 0, and all are 0.")
    norms = np.where(norms > 0, norms, np.median(norms[norms > 0]))[EDGE:-EDGE]
    return running_median(norms, math.ceil(WIDTH * len(norms)) // 2 * 2 + 1)


@dataclass(frozen=True)
class RefinedSchedule:
    """Learning rates relative to their peak.

    Attributes:
        factors: at equal distances, from the beginning of training to its end.
        norm: `l1` or `l2`, of the gradients.
        steps: gradient norms that it is made of.
    """

    factors: list[float]
    norm: str
    steps: int

    @classmethod
    def of(cls, norms: Sequence[float] | np.ndarray, norm: str) -> "RefinedSchedule":
        """The schedule of a run with these gradient norms."""
        smooth = smoothed(np.asarray(norms, dtype=float))
        rates = refined_rates(smooth, EXPONENTS[norm])
        at = np.interp(np.linspace(0, 1, POINTS), np.linspace(0, 1, len(rates)), rates)
        return cls([float(value) for value in at / at.max()], norm, len(norms))

    @classmethod
    def load(cls, path: str | Path) -> "RefinedSchedule":
        """The schedule in a file. Raises `ValueError` if it holds none, and `OSError` if it cannot be read."""
        try:
            found: Any = json.loads(Path(path).read_text(encoding="utf-8"))
            schedule = cls(list(map(float, found["factors"])), found["norm"], found["steps"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError):
            raise ValueError(f"{path} must hold a schedule that `trl-entropy curves refine` wrote.") from None
        if len(schedule.factors) < 2 or not all(0 <= factor <= 1 for factor in schedule.factors):
            raise ValueError(f"{path} must hold at least two factors, each from 0 to 1.")
        return schedule

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    def over(self, steps: int) -> Callable[[int], float]:
        """The factor of a step from 0 of `steps`, for `LambdaLR`."""
        places = np.linspace(0, 1, len(self.factors))

        def factor(step: int) -> float:
            return float(np.interp(step / max(steps, 1), places, self.factors))

        return factor


def refined_schedule(path: str | Path, steps: int) -> Callable[[int], float]:
    """The factors of a schedule's file over a run of `steps`, for `torch.optim.lr_scheduler.LambdaLR`.

    Example:

    ```python
    scheduler = LambdaLR(optimizer, refined_schedule("schedule.json", steps=1000))
    ```
    """
    return RefinedSchedule.load(path).over(steps)


def read_norms(path: Path, norm: str) -> np.ndarray:
    """A column of the file that the monitor `gradient_norms` writes.

    Raises:
        `ValueError`: the file has no such column.
    """
    import pandas as pd

    try:
        return pd.read_csv(path)[norm].to_numpy(dtype=float)
    except (KeyError, ValueError):
        raise ValueError(f"{path} must have a column `{norm}` of numbers, as `gradient_norms` writes it.") from None
