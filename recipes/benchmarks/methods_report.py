# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Report of `methods.py` on finished runs: a file of scores, two tables, and a plot."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev


SCORES = ("entropy", "pass@1", "pass@8", "pass@16", "distinct", "coverage", "length")
SPREAD = ("entropy", "pass@1", "pass@16", "coverage")  # shown with their interval
DIGITS = {"distinct": 2, "length": 1}  # the others have 3
# Settings of a run that do not affect training: where it is, and what it logs
APART = ("seed", "model_name_or_path", "dataset_name", "output_dir", "report_to", "save_strategy")


@dataclass
class Scores:
    """Scores by arm and seed and before training, step time relative to stock, and runs with other settings."""

    runs: dict[str, dict[int, dict[str, float]]]
    before: dict[str, float]
    timing: dict[str, float]
    left_out: int = 0


def fingerprint(settings: dict) -> str:
    """A hash of the settings that affect training, without the seed."""
    kept = {key: value for key, value in settings.items() if key not in APART and not key.startswith("log")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def run_file(output: Path, arm: str, seed: int) -> Path:
    return output / "runs" / arm.replace("/", "-") / f"{seed}.json"


def collect(output: Path, arms: dict[str, dict], seeds: list[int], before: dict[str, float]) -> Scores:
    """The finished runs of each arm with its current settings."""
    runs, left_out = {}, 0
    for arm, settings in arms.items():
        paths = {seed: run_file(output, arm, seed) for seed in seeds}
        results = {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}
        current = {s: r["scores"] for s, r in results.items() if fingerprint(r["settings"]) == fingerprint(settings)}
        left_out += len(results) - len(current)
        runs |= {arm: current} if current else {}
    times = output / "timing.json"
    return Scores(runs, before, json.loads(times.read_text()) if times.exists() else {}, left_out)


def write_scores(scores: Scores, arms: dict[str, dict], path: Path) -> None:
    """One line per run, its scores in the order of `columns`."""
    parts = [
        f'"{arm}": {{"settings": "{fingerprint(arms[arm])}", "seeds": {{\n'
        + ",\n".join(f'  "{seed}": {json.dumps([row[key] for key in SCORES])}' for seed, row in rows.items())
        + "}}"
        for arm, rows in scores.runs.items()
    ]
    head = {"columns": SCORES, "before": [scores.before[key] for key in SCORES], "timing": scores.timing}
    path.write_text(json.dumps(head)[:-1] + ', "runs": {\n' + ",\n".join(parts) + "}}\n")


def read_scores(path: Path, arms: dict[str, dict], seeds: list[int]) -> Scores:
    """Reads the file of `write_scores`, and keeps the runs with current settings."""
    found, runs, left_out = json.loads(path.read_text()), {}, 0
    for arm in filter(found["runs"].get, arms):
        rows = {
            int(seed): dict(zip(found["columns"], row, strict=True))
            for seed, row in found["runs"][arm]["seeds"].items()
        }
        rows = {seed: row for seed, row in rows.items() if seed in seeds}
        if found["runs"][arm]["settings"] != fingerprint(arms[arm]):
            left_out += len(rows)
        elif rows:
            runs[arm] = rows
    before = dict(zip(found["columns"], found["before"], strict=True))
    return Scores(runs, before, found["timing"], left_out)


def student(freedom: int) -> float:
    """97.5 % quantile of Student's t distribution, from the closed form of its two-sided probability."""

    def within(t: float) -> float:
        angle = math.atan(t / math.sqrt(freedom))
        total, term = 0.0, math.cos(angle) ** (freedom % 2)
        for power in range(freedom % 2, freedom - 1, 2):
            total += term
            term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
        total *= math.sin(angle)
        return (angle + total) * 2 / math.pi if freedom % 2 else total

    low, high = 1.9, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 0.95 else (low, middle)
    return middle


def interval(values: list[float]) -> tuple[float, float]:
    """Mean over seeds and half-width of its 95 % interval, which is NaN for one seed."""
    if len(values) < 2:
        return fmean(values), math.nan
    return fmean(values), student(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def cell(values: list[float], key: str, paired: bool = False) -> str:
    mean, half = interval(values)
    digits, sign = DIGITS.get(key, 3), "+" if paired else ""
    text = f"{mean:{sign}.{digits}f}"
    text += f" ± {half:.{digits}f}" if key in SPREAD and not math.isnan(half) else ""
    return f"**{text}**" if paired and abs(mean) > half else text


def table(scores: Scores, arms: dict[str, dict], paired: bool = False) -> str:
    """A table in Markdown: one line per arm, means over seeds ± half-width of the 95 % interval.

    With `paired`, the table shows differences to stock with the same seed.
    """
    columns = SPREAD if paired else SCORES
    head = ["", "setting", *columns, *([] if paired else ["step time"]), "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    if not paired:
        start = [f"{scores.before[key]:.{DIGITS.get(key, 3)}f}" for key in SCORES]
        lines.append("| " + " | ".join(["before", "", *start, "", ""]) + " |")
    for name, rows in scores.runs.items():
        entry, _, strength = name.partition("/")
        line = [f"`{entry}`", varied(name, arms)]
        if paired:
            stock = scores.runs["stock"]
            seeds = [seed for seed in rows if seed in stock]
            if name == "stock" or not seeds:
                continue
            line += [cell([rows[seed][key] - stock[seed][key] for seed in seeds], key, True) for key in columns]
        else:
            seeds = list(rows)
            line += [cell([row[key] for row in rows.values()], key) for key in columns]
            timed = strength in ("", "2") and entry in scores.timing
            line.append(f"{scores.timing[entry]:.2f}" if timed else "")
        lines.append("| " + " | ".join([*line, str(len(seeds))]) + " |")
    return "\n".join(lines)


def varied(name: str, arms: dict[str, dict]) -> str:
    """The settings in which a strength differs from the others of its entry."""
    entry, _, strength = name.partition("/")
    siblings = [settings for other, settings in arms.items() if other.startswith(f"{entry}/")]
    changed = [key for key, value in arms[name].items() if any(other.get(key) != value for other in siblings)]
    values = [arms[name][key] for key in changed]
    return ", ".join(f"{len(value)} templates" if isinstance(value, dict) else f"{value:g}" for value in values)


def plot(scores: Scores, path: Path) -> None:
    """Draws pass@1 against pass@16 for each entry: a line through its strengths, with 95 % intervals."""
    from matplotlib.figure import Figure

    found, before = {name: list(rows.values()) for name, rows in scores.runs.items()}, scores.before
    entries = list(dict.fromkeys(name.partition("/")[0] for name in found if name != "stock"))
    columns = 5
    figure = Figure(figsize=(13, 2.5 * math.ceil(len(entries) / columns)), layout="constrained")
    panels = list(figure.subplots(math.ceil(len(entries) / columns), columns, sharex=True, sharey=True).flat)
    everything = [[fmean(row[key] for row in rows) for rows in found.values()] for key in ("pass@1", "pass@16")]
    for panel, entry in zip(panels, entries, strict=False):
        panel.scatter(*everything, s=6, color="0.8")
        panel.plot(before["pass@1"], before["pass@16"], "x", color="0.4")
        for name, color in (("stock", "k"), (entry, "C3")):
            arms = [rows for arm, rows in found.items() if arm == name or arm.startswith(f"{name}/")]
            x, y = ([interval([row[key] for row in rows]) for rows in arms] for key in ("pass@1", "pass@16"))
            panel.errorbar(
                [mean for mean, _ in x], [mean for mean, _ in y],
                [half for _, half in y], [half for _, half in x],
                fmt="o-", markersize=4, linewidth=1, elinewidth=0.6, color=color,
            )  # fmt: skip
        panel.set_title(entry, fontsize="medium")
        panel.grid(alpha=0.3)
    for panel in panels[len(entries) :]:
        panel.remove()
    figure.supxlabel("pass@1")
    figure.supylabel("pass@16")
    figure.savefig(path, dpi=110)
