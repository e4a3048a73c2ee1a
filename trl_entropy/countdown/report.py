# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of both quickstarts."""

import math
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..curves.frontier import envelope
from ..curves.logged import entropy_of
from ..tables import text_table


PASSES = ("pass@1", "pass@8", "pass@16")
# Columns of the tables, with their digits
COLUMNS = {
    **dict.fromkeys(("entropy", "reward", *PASSES), 3),
    **{"distinct": 2, "coverage": 3, "length": 1, "seconds": 0},
}
AGENT_COLUMNS = COLUMNS | {"calls": 2, "sampled": 1, "run": 2}
DISTILLATION_COLUMNS = {**dict.fromkeys(("divergence", "entropy", *PASSES), 3), "distinct": 2, "seconds": 0}
GREYS = {"before": "0.6", "student": "0.75", "teacher": "0.5"}  # warm-started models, in contrast to the runs


def columns_of(rows: dict[str, dict[str, float]]) -> dict[str, int]:
    """The columns of the GRPO runs, those of agents included if there are any."""
    return AGENT_COLUMNS if any("calls" in row for row in rows.values()) else COLUMNS


def table(rows: dict[str, dict[str, float]], columns: dict[str, int] = COLUMNS) -> str:
    """The scores in aligned columns, one line per row.

    Args:
        rows: scores by the name of the row. A missing one is shown as `-`.
        columns: digits by the name of the column.
    """
    named = [{"": label} | {column: row.get(column) for column in columns} for label, row in rows.items()]
    return text_table(named, digits=columns, missing="-")


def running_mean(values: list[float]) -> pd.Series:
    """The mean of each value and up to six before it."""
    return pd.Series(values).rolling(7, min_periods=1).mean()


def divergence(point: dict[str, float]) -> float | None:
    """Mean divergence (nats) over all tokens of a log, from those of kept and of dropped tokens.

    `None` if the run did not log both.
    """
    ratio = point["tip/kept_fraction"]
    kept, dropped = (point.get(f"tip/divergence_{part}_mean") for part in ("kept", "dropped"))
    if ratio == 1:
        return kept
    return None if kept is None or dropped is None else ratio * kept + (1 - ratio) * dropped


def entropies(history: list[dict[str, float]]) -> list[float]:
    """Mean entropy (nats) of each log, NaN if there is none."""
    found = [entropy_of(point) for point in history]
    return [math.nan if entropy is None else entropy for entropy in found]


def closing(results: dict) -> str:
    """What each run came to, and how it compares with stock where stock had the same pass@1: one line per run."""
    lines, stock = [], results["rows"]["stock"]
    course = [(point["pass@1"], point["pass@16"]) for point in results["trajectories"]["stock"]]
    for label in results["history"]:
        first, row = results["rows"]["before"], results["rows"][label]
        line = f"{label}: " + ", ".join(
            f"{key} {first[key]:.3f} to {row[key]:.3f}" for key in ("entropy", "pass@1", "pass@16")
        )
        if label != "stock":
            gap = row["pass@16"] - envelope(course, row["pass@1"])[0]
            at_end = f"{row['pass@16'] - stock['pass@16']:+.3f} pass@16 against the end of stock"
            equal = "which never had this pass@1" if math.isnan(gap) else f"{gap:+.3f} where stock had this pass@1"
            line += f" ({at_end}, {equal})"
            if "sampled" in row:
                tokens, tools = row["sampled"] / stock["sampled"], row["run"] / max(stock["run"], 1e-9)
                line += f", for {tokens:.0%} of the tokens and {tools:.0%} of the tools that stock sampled and ran"
        lines.append(line + ".\n")
    return "".join(lines)


def plot(results: dict, path: Path) -> None:
    """Draws entropy and reward of each GRPO run over its steps, and its trajectory of pass@1 and pass@16."""
    figure, (entropy, reward, found) = _figure()
    colors = _colors(results)
    for label, history in results["history"].items():
        steps = [point["step"] for point in history]
        rewards = [point["reward"] for point in history]
        entropy.plot(steps, entropies(history), color=colors[label])
        reward.plot(steps, rewards, color=colors[label], alpha=0.3)
        reward.plot(steps, running_mean(rewards), color=colors[label])
    _draw_trajectories(found, results["trajectories"], colors)
    _finish(figure, {entropy: "token entropy (nats)", reward: "reward"}, path)


def plot_distillation(results: dict, path: Path) -> None:
    """Draws divergence and entropy of each distillation run over its steps, and pass@k of each row of the table."""
    figure, (distance, entropy, found) = _figure()
    colors = _colors(results)
    for label, history in results["history"].items():
        steps = [point["step"] for point in history]
        entropy.plot(steps, running_mean(entropies(history)), color=colors[label])
        values = [value for point in history if (value := divergence(point)) is not None]
        if len(values) == len(steps):
            distance.plot(steps, running_mean(values), color=colors[label])
    _draw_passes(found, results["rows"], colors)
    _finish(figure, {distance: "KL(student || teacher), all tokens", entropy: "student's entropy (nats)"}, path)


def _figure() -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9.5, 2.9), layout="constrained")
    return figure, list(figure.subplots(1, 3))


def _colors(results: dict) -> dict[str, str]:
    return {**GREYS, **{label: f"C{index}" for index, label in enumerate(results["history"])}}


def _draw_trajectories(axes: Axes, trajectories: dict[str, list[dict[str, float]]], colors: dict[str, str]) -> None:
    for label, points in trajectories.items():
        first, second = ([point[key] for point in points] for key in ("pass@1", "pass@16"))
        axes.plot(first, second, ".-", color=colors[label], label=label)
        axes.plot(first[-1], second[-1], "o", color=colors[label])
    axes.plot(first[0], second[0], "x", color=GREYS["before"], label="before")
    axes.set(title="held-out prompts, along training", xlabel="pass@1", ylabel="pass@16")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")


def _draw_passes(axes: Axes, rows: dict[str, dict[str, float]], colors: dict[str, str]) -> None:
    width = 0.8 / len(rows)
    for offset, (label, scores) in enumerate(rows.items()):
        positions = [group + width * offset - 0.4 for group in range(len(PASSES))]
        heights = [scores[key] for key in PASSES]
        axes.bar(positions, heights, width, align="edge", color=colors[label], label=label)
    axes.set_xticks(range(len(PASSES)), PASSES)
    axes.set(title="held-out prompts")
    axes.legend(fontsize="x-small")


def _finish(figure: Figure, titles: dict[Axes, str], path: Path) -> None:
    for axes, title in titles.items():
        axes.set(title=title, xlabel="optimizer step", ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
