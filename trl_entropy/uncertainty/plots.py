# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures: reliability and risk over coverage of scores, and entropy over the difficulty of questions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .quality import calibration_bins, risk_coverage
from .u_curve import Bin, Question


BINS = 15


def plot_reliability(path: Path, probabilities: Mapping[str, Tensor], wrong: Tensor) -> None:
    """Share of wrong answers over the mean probability of it, by bin; the area of a point is its number of answers."""
    from matplotlib.figure import Figure  # slow to load

    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, zorder=0)
    for name, values in probabilities.items():
        count, mean, share = calibration_bins(values, wrong, BINS)
        there = count > 0
        sizes = 20 + 300 * count[there] / count.sum()
        axes.plot(mean[there].tolist(), share[there].tolist(), linewidth=1)
        axes.scatter(mean[there].tolist(), share[there].tolist(), s=sizes.tolist(), label=name, alpha=0.7)
    axes.set(
        xlabel="probability of a wrong answer", ylabel="share of wrong answers", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
    )
    axes.legend(markerscale=0.5)
    figure.savefig(path, dpi=150)


def plot_risk_coverage(path: Path, scores: Mapping[str, Tensor], wrong: Tensor) -> None:
    """Share of wrong answers among those with the lowest scores, over how many of the answers these are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4), layout="constrained")
    axes = figure.subplots()
    coverage = (torch.arange(1, len(wrong) + 1) / len(wrong)).tolist()
    for name, values in scores.items():
        axes.plot(coverage, risk_coverage(-values.double(), 1 - wrong.double()).tolist(), label=name)
    axes.axhline(float(wrong.double().mean()), color="0.6", linewidth=1, zorder=0)
    axes.set(xlabel="coverage: share of answers kept", ylabel="risk: share of wrong among them", xlim=(0, 1.01))
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=150)


def plot_u_curve(path: Path, questions: Sequence[Question], labels: Sequence[str], curve: Sequence[Bin]) -> None:
    """Entropy over accuracy: a point per question, colored by its label, and the means of bins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(labels):
        chosen = [question for question, label in zip(questions, labels, strict=True) if label == name]
        x, y = [question.accuracy for question in chosen], [question.entropy for question in chosen]
        axes.scatter(x, y, s=12, alpha=0.6, label=f"{name} ({len(chosen)})")
    axes.plot([part.accuracy for part in curve], [part.entropy for part in curve], "o-", color="0.2", label="bins")
    axes.set(xlabel="share of right answers", ylabel="token entropy (nats)", xlim=(-0.02, 1.02))
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=150)
