# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The tables of a report: a few numbers per run and per group of seeds, and the settings in which the runs differ."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from ..runs.files import is_private
from .evaluations import Evaluation
from .groups import Group
from .panel import LINES, Panel
from .panels import LAW, metric_groups
from .runs import Run


UNKNOWN = "not known"
LAST = {"reward": "reward", "length": "completions/mean_length", "loss": "loss"}
PART = 10  # means are over this fraction (1 / PART) of the log lines at each end


def ends(values: list[float]) -> tuple[float, float]:
    """Means over the first and the last tenth of the values."""
    size = max(1, len(values) // PART)
    return fmean(values[:size]), fmean(values[-size:])


def last_values(run: Run, index: int, panels: list[Panel]) -> dict[str, tuple[float, str]]:
    """Means over the last tenth of a run's log lines by column, each with its format."""
    found = {}
    if entropies := run.entropies()[0]:
        found["entropy (nats)"] = (ends(entropies)[1], ".3f")
    for name, key in LAST.items():
        values = run.series(key)[0]
        if values and not (name == "loss" and "reward" in run.keys):
            found[name] = (ends(values)[1], ".4g")
    passes = next((panel for panel in panels if panel.title == "pass@k"), None)
    for item in passes.series if passes is not None else ():
        if item.run == index:
            found[item.label] = (ends(item.y)[1], ".3f")
    return found


def summarize(runs: list[Run], panels: list[Panel], baseline: int | None = None) -> list[dict[str, str]]:
    """One row per run: means over the last tenth of its log lines; for entropy, over the first tenth too.

    Args:
        runs, panels: of the report.
        baseline: index of the run whose values are subtracted, in parentheses.
    """
    law = next((panel for panel in panels if panel.title == LAW), None)
    values = [last_values(run, index, panels) for index, run in enumerate(runs)]
    rows = []
    for index, run in enumerate(runs):
        row = {"run": run.label, "methods": named_methods(run), "steps": str(run.steps)}
        for name, (value, form) in values[index].items():
            row[name] = f"{value:{form}}"
            if name == "entropy (nats)":
                row[name] = f"{ends(run.entropies()[0])[0]:{form}} to {row[name]}"
            if baseline is not None and index != baseline and name in values[baseline]:
                row[name] += f" ({value - values[baseline][name][0]:+.3g})"
        if law is not None and index in law.notes:
            row["R = -a exp(H) + b"] = law.notes[index]
        rows.append(row)
    return filled(rows)


def summarize_groups(runs: list[Run], panels: list[Panel], groups: list[Group]) -> list[dict[str, str]]:
    """One row per group of seeds: means over its runs, with the standard deviation; empty without such a group."""
    if all(len(group.runs) == 1 for group in groups):
        return []
    rows = []
    for group in groups:
        values = [last_values(runs[index], index, panels) for index in group.runs]
        row = {"runs": group.label, "seeds": str(len(group.runs))}
        for name in dict.fromkeys(name for found in values for name in found):
            kept, form = [found[name][0] for found in values if name in found], values[0].get(name, (0, ".4g"))[1]
            row[name] = f"{fmean(kept):{form}}" + (f" ± {stdev(kept):.2g}" if len(kept) > 1 else "")
        rows.append(row)
    return filled(rows)


def score_rows(evaluations: Sequence[Evaluation]) -> list[dict[str, str]]:
    """One row per evaluation, with its scores."""
    return filled(
        [
            {"model": found.label} | {name: f"{value:.4g}" for name, value in found.scores.items()}
            for found in evaluations
        ]
    )


def panel_rows(runs: list[Run], panel: Panel, baseline: int | None = None) -> list[dict[str, str]]:
    """The lines of a panel in numbers: first and last value as means over tenths, range, and number of points."""
    rows = []
    lasts = {(item.run, item.label): ends(item.y)[1] for item in panel.series if item.kind in LINES}
    for item in panel.series:
        if item.kind not in LINES:
            continue
        first, last = ends(item.y)
        numbers = {"first": first, "last": last, "lowest": min(item.y), "highest": max(item.y)}
        name = runs[item.run].label + (f", {item.label}" if item.label else "")
        row = {"run": name} | {column: f"{value:.4g}" for column, value in numbers.items()}
        if baseline is not None and item.run != baseline and (baseline, item.label) in lasts:
            row["last − baseline"] = f"{last - lasts[baseline, item.label]:+.4g}"
        rows.append(row | {"points": str(len(item.y))})
    return filled(rows)


def filled(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows with the same columns; "" where one has no value."""
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column, "") for column in columns} for row in rows]


def named_methods(run: Run) -> str:
    """The methods in the run's settings or, if they name none, the methods with metrics in the log."""
    off = ("tip",) if run.settings.get("tip_rule") == "none" else ()  # it logs quadrants even if it is off
    names = run.methods or [
        group
        for group in metric_groups([run])
        if group not in off and any(key.startswith(f"{group}/") for key in run.keys)
    ]
    return ", ".join(names) or ("none" if run.settings else UNKNOWN)


def differing_settings(runs: list[Run]) -> dict[str, list[str]]:
    """Settings in which runs differ, with each run's value; "" for settings of methods that a run does not use."""
    known = [run.with_defaults() for run in runs]
    names = sorted(name for name in set().union(*(run.settings for run in runs)) if not is_private(name))
    values = {
        name: [
            in_words(settings.get(name, "")) if run.settings else UNKNOWN
            for run, settings in zip(runs, known, strict=True)
        ]
        for name in names
    }
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def in_words(value: Any) -> str:
    """The value of a setting as text; lists without brackets."""
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
