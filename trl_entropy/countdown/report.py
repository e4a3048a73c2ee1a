# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the quickstart shows: a table and a plot."""

from pathlib import Path

import pandas as pd


# Columns of the table, with their digits
COLUMNS = {
    **dict.fromkeys(("entropy", "reward", "pass@1", "pass@8", "pass@16"), 3),
    **{"distinct": 2, "coverage": 3, "length": 1, "seconds": 0},
}


def table(rows: dict[str, dict[str, float]], columns: dict[str, int] = COLUMNS) -> str:
    """The scores of each row in aligned columns, by name with their digits; `-` where a row has none."""
    width = 2 + max(map(len, rows))
    lines = [" " * width + "".join(f"{column:>11}" for column in columns)]
    for label, scores in rows.items():
        cells = (f"{scores[column]:.{n}f}" if column in scores else "-" for column, n in columns.items())
        lines.append(f"{label:<{width}}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def plot(results: dict, path: Path) -> None:
    """Draws entropy and reward over optimizer steps, one line per run, and pass@1 against pass@16 of every row."""
    from matplotlib.figure import Figure  # an extra of the package

    figure = Figure(figsize=(9.5, 2.9), layout="constrained")
    entropy, reward, found = figure.subplots(1, 3)
    for label, history in results["history"].items():
        steps = [point["step"] for point in history]
        (line,) = entropy.plot(steps, [point["entropy"] for point in history], label=label)
        rewards = [point["reward"] for point in history]
        reward.plot(steps, rewards, color=line.get_color(), alpha=0.3)
        reward.plot(steps, pd.Series(rewards).rolling(7, min_periods=1).mean(), color=line.get_color())
    pitch = 0.81 / len(results["rows"])  # of the bars, which leave room between groups
    for offset, (label, scores) in enumerate(results["rows"].items()):
        color = "0.6" if label == "before" else f"C{offset - 1}"
        positions = [group + pitch * (offset - 1) for group in range(3)]
        heights = [scores[key] for key in ("pass@1", "pass@8", "pass@16")]
        found.bar(positions, heights, pitch - 0.02, color=color, label=label)
    found.set_xticks(range(3), ["pass@1", "pass@8", "pass@16"])
    entropy.set(title="token entropy (nats)", xlabel="optimizer step", ylim=(0, None))
    reward.set(title="reward", xlabel="optimizer step", ylim=(0, None))
    found.set(title="held-out prompts")
    found.legend(fontsize="small")
    for axes in (entropy, reward):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
