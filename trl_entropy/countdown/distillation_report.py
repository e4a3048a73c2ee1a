# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the quickstart for distillation shows: a plot, and the columns of the table."""

from pathlib import Path

import pandas as pd


# Columns of the table, with their digits
COLUMNS = {"divergence": 3, "entropy": 3, "pass@1": 3, "pass@8": 3, "pass@16": 3, "distinct": 2, "seconds": 0}
WARM_STARTED = {"student": "0.75", "teacher": "0.5"}  # grey, in contrast to the runs


def divergence(point: dict[str, float]) -> float | None:
    """Mean divergence of all tokens of a log, from those of kept and of dropped ones; `None` where a run had no use for it."""
    share = point["tip/kept_fraction"]
    kept, dropped = (point.get(f"tip/divergence_{part}_mean") for part in ("kept", "dropped"))
    if share == 1:
        return kept
    return None if kept is None or dropped is None else share * kept + (1 - share) * dropped


def plot(results: dict, path: Path) -> None:
    """Draws divergence and entropy over optimizer steps, one line per run, and what every row finds."""
    from matplotlib.figure import Figure  # an extra of the package

    figure = Figure(figsize=(9.5, 2.9), layout="constrained")
    distance, entropy, found = figure.subplots(1, 3)
    colors = {label: f"C{index}" for index, label in enumerate(results["history"])}
    for label, history in results["history"].items():
        steps = [point["step"] for point in history]
        entropy.plot(
            steps,
            pd.Series([point["entropy"] for point in history]).rolling(7, min_periods=1).mean(),
            color=colors[label],
        )
        values = [divergence(point) for point in history]
        if None not in values:
            distance.plot(steps, pd.Series(values).rolling(7, min_periods=1).mean(), color=colors[label])
    width = 0.8 / len(results["rows"])
    for offset, (label, scores) in enumerate(results["rows"].items()):
        positions = [group + width * offset - 0.4 for group in range(3)]
        heights = [scores[key] for key in ("pass@1", "pass@8", "pass@16")]
        found.bar(positions, heights, width, align="edge", color={**WARM_STARTED, **colors}[label], label=label)
    found.set_xticks(range(3), ["pass@1", "pass@8", "pass@16"])
    distance.set(title="KL(student || teacher), all tokens", xlabel="optimizer step", ylim=(0, None))
    entropy.set(title="student's entropy (nats)", xlabel="optimizer step", ylim=(0, None))
    found.set(title="held-out prompts")
    found.legend(fontsize="x-small")
    for axes in (distance, entropy):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
