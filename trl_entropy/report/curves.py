# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Loss curves of runs: read from their folders, and drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..curves.base import Curve
from .colors import color_of
from .diagnosis import history_and_folder


def read_curve(path: str | Path, tokens_per_step: float | None = None, evaluation: bool = False) -> Curve:
    """The curve of a run, from its folder or a trainer state.

    Args:
        path: folder of the run, or its `trainer_state.json`.
        tokens_per_step, evaluation: as in [`Curve.of`].

    Raises:
        `ValueError`: there is no readable run, or fewer than two losses.
    """
    return Curve.of(history_and_folder(Path(path))[0], tokens_per_step, evaluation)


def draw_lengths(path: Path, curves: Mapping[str, Curve], end_losses: Sequence[float]) -> None:
    """Losses over tokens, with the area that each run's code length is."""
    figure, axes = _axes("tokens", "loss (nats)")
    for index, ((label, curve), end) in enumerate(zip(curves.items(), end_losses, strict=True)):
        assert curve.tokens_start is not None and curve.tokens_end is not None
        middle = (curve.tokens_start + curve.tokens_end) / 2
        axes.plot(middle, curve.loss, color=color_of(index), label=label)
        axes.fill_between(middle, curve.loss, end, color=color_of(index), alpha=0.15, linewidth=0)
    axes.legend()
    figure.savefig(path, dpi=110)


def draw_annealing(
    path: Path, curves: Mapping[str, Curve], fits: Sequence[np.ndarray], predictions: Mapping[str, np.ndarray]
) -> None:
    """Losses of runs with the fitted law, and the losses that it predicts for other schedules."""
    figure, axes = _axes("optimizer step", "loss (nats)")
    for index, ((label, curve), fit) in enumerate(zip(curves.items(), fits, strict=True)):
        axes.plot(curve.middle, curve.loss, color=color_of(index), alpha=0.35, label=label)
        axes.plot(np.arange(1, len(fit) + 1), fit, color=color_of(index), label=f"{label}: law")
    for index, (name, losses) in enumerate(predictions.items(), len(curves)):
        axes.plot(np.arange(1, len(losses) + 1), losses, "--", color=color_of(index), label=f"{name}: predicted")
    seen = np.concatenate([curve.loss[len(curve.loss) // 50 :] for curve in curves.values()])
    low = min([float(seen.min()), *(float(losses.min()) for losses in predictions.values())])
    margin = 0.05 * (float(seen.max()) - low)
    axes.set_ylim(low - margin, float(seen.max()) + margin)  # the law is infinite at the beginning
    axes.legend()
    figure.savefig(path, dpi=110)


def draw_refined(path: Path, norms: np.ndarray, smooth: np.ndarray, factors: np.ndarray) -> None:
    """Gradient norms with their smoothed values, and the schedule made from them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(np.linspace(0, 1, len(norms)), norms, color=color_of(0), alpha=0.35, label="logged")
    left.plot(np.linspace(0, 1, len(smooth)), smooth, color=color_of(0), label="smoothed")
    left.set(xlabel="share of training", ylabel="gradient norm", yscale="log")
    left.legend()
    right.plot(np.linspace(0, 1, len(factors)), factors, color=color_of(1), label="refined")
    right.plot([0, 1], [1, 0], ":", color="0.5", label="linear decay")
    right.set(xlabel="share of training", ylabel="learning rate / peak")
    right.legend()
    figure.savefig(path, dpi=110)


def _axes(x_label: str, y_label: str):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure, axes
