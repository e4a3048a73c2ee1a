# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The tables of a report: a few numbers per run, and the settings in which the runs differ."""

from statistics import fmean
from typing import Any

from ..runs.files import is_private
from .panels import Panel, metric_groups
from .runs import Run


UNKNOWN = "not known"
LAST = {"reward": "reward", "length": "completions/mean_length", "loss": "loss"}
PART = 10  # means are over this fraction (1 / PART) of the log lines at each end


def ends(values: list[float]) -> tuple[float, float]:
    """Means over the first and the last tenth of the values."""
    size = max(1, len(values) // PART)
    return fmean(values[:size]), fmean(values[-size:])


def summarize(runs: list[Run], panels: list[Panel]) -> list[dict[str, str]]:
    """One row per run: means over the last tenth of its log lines; for entropy, over the first tenth too."""
    passes = next((panel for panel in panels if panel.title == "pass@k"), None)
    law = next((panel for panel in panels if panel.title == "reward against entropy"), None)
    rows = []
    for index, run in enumerate(runs):
        row = {"run": run.label, "methods": named_methods(run), "steps": str(run.steps)}
        if entropies := run.entropies()[0]:
            row["entropy (nats)"] = "{:.3f} to {:.3f}".format(*ends(entropies))
        for name, key in LAST.items():
            values = run.series(key)[0]
            if values and not (name == "loss" and "reward" in run.keys):
                row[name] = f"{ends(values)[1]:.4g}"
        for item in passes.series if passes is not None else ():
            if item.run == index:
                row[item.label] = f"{ends(item.y)[1]:.3f}"
        if law is not None and index in law.notes:
            row["R = -a exp(H) + b"] = law.notes[index]
        rows.append(row)
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
