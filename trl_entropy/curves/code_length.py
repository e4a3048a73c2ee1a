# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""How many bits a model has learned from its data, by its loss curve.

[From Entropy to Epiplexity: Rethinking Information for Computationally Bounded
Intelligence](https://huggingface.co/papers/2601.03220). With the loss L in nats over the number of tokens t:

1. K = ∫ (L(t) - L_end) dt, by trapezoids: bits of the model, in a prequential code of the data;
2. K_teacher = Σ tokens · KL(teacher ‖ student), in distillation with the forward divergence;
3. K + L_end · tokens is the length of the whole code of the data.

Departs from the paper: epiplexity is the model's part of the best code over model sizes and durations, and this is the
code of one run. L_end is the mean of the last 5 % of the log, where the authors' code takes the loss at the end.
"""

import math
from dataclasses import dataclass

import numpy as np

from .base import REWARDED, Curve


LAST = 0.05  # of the windows, whose mean is the loss at the end
DRAWS = 1000


@dataclass(frozen=True)
class CodeLength:
    """Lengths in nats.

    Attributes:
        nats: K of the model.
        interval: its 95 % interval, from the noise of the windows.
        teacher_nats: K_teacher; `None` unless the loss is KL(teacher ‖ student).
        end_loss: L_end, per token.
        tokens: of the run.
        rising: whether the loss rises at the end, by more than its noise.
    """

    nats: float
    interval: tuple[float, float]
    teacher_nats: float | None
    end_loss: float
    tokens: float
    rising: bool

    @property
    def bits(self) -> float:
        return self.nats / math.log(2)

    @property
    def bits_per_token(self) -> float:
        return self.bits / self.tokens

    @property
    def megabytes(self) -> float:
        return self.bits / 8e6

    @property
    def data_nats(self) -> float:
        """The whole code of the data, model and rest."""
        return self.nats + self.end_loss * self.tokens


def learned_nats(tokens: np.ndarray, loss: np.ndarray, end_loss: float | np.ndarray) -> np.ndarray:
    """∫ (L - L_end) dt by trapezoids.

    Args:
        tokens: (N,) at which the losses are.
        loss: (..., N).
        end_loss: (...,) L_end.
    """
    return np.trapezoid(loss - np.asarray(end_loss)[..., None], tokens, axis=-1)


def last_mean(loss: np.ndarray) -> np.ndarray:
    """(..., N) -> (...,) mean of the last 5 %, at least one."""
    return loss[..., -_last(loss.shape[-1]) :].mean(-1)


def _last(windows: int) -> int:
    return max(1, round(LAST * windows))


def noise(loss: np.ndarray) -> np.ndarray:
    """(N,) losses -> (N - 2,) what each departs from the mean of its neighbors, scaled to the noise of one window."""
    return (loss[1:-1] - (loss[:-2] + loss[2:]) / 2) * math.sqrt(2 / 3)


def code_length(curve: Curve, teacher: bool = False, draws: int = DRAWS, seed: int = 0) -> CodeLength:
    """What a run has learned, with an interval by bootstrap of the windows' noise.

    Each loss is at the middle of its window; the first and the last window reach to the ends of the run.

    Args:
        curve: of the run.
        teacher: whether the loss is KL(teacher ‖ student).
        draws, seed: of the bootstrap.

    Raises:
        `ValueError`: the run is no supervised one, or its tokens are not known.
    """
    if curve.rewarded:
        raise ValueError(f"RUN must be a run of supervised training or distillation: {REWARDED}.")
    if curve.tokens_start is None or curve.tokens_end is None:
        raise ValueError(
            "The log must have `num_tokens` or `num_input_tokens_seen`, and has neither: `--tokens-per-step` says how "
            "many tokens an optimizer step has."
        )
    total = curve.tokens_end[-1]
    places = np.concatenate([[0.0], (curve.tokens_start + curve.tokens_end) / 2, [total]])

    def length(loss: np.ndarray) -> np.ndarray:
        return learned_nats(places, np.concatenate([loss[..., :1], loss, loss[..., -1:]], axis=-1), last_mean(loss))

    residuals = noise(curve.loss)
    interval = (math.nan, math.nan)
    if len(residuals):
        drawn = np.random.default_rng(seed).choice(residuals, (draws, len(curve.loss)))
        low, high = np.quantile(length(curve.loss + drawn), (0.025, 0.975))
        interval = (float(low), float(high))
    return CodeLength(
        float(length(curve.loss)),
        interval,
        float((curve.loss * (curve.tokens_end - curve.tokens_start)).sum()) if teacher else None,
        float(last_mean(curve.loss)),
        float(total),
        _rises(curve.loss, residuals),
    )


def _rises(loss: np.ndarray, residuals: np.ndarray) -> bool:
    """Whether the last 5 % lie above another 5 % before them by three standard errors."""
    size = _last(len(loss))
    blocks = loss[len(loss) % size :].reshape(-1, size).mean(1)
    error = np.std(residuals) * math.sqrt(2 / size) if len(residuals) else 0.0
    return bool(blocks[-1] > blocks.min() + 3 * error)
