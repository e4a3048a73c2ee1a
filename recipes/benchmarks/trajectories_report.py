# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Report of `trajectories.py`: a file of scores, tables of differences at equal pass@1, and plots."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from methods_report import interval, varied

from trl_entropy.curves.frontier import area, envelope, finite, lead, matched, matched_end, reach


TEMPERATURE = "evaluation_temperature"  # arms made of stock's checkpoints, evaluated at other temperatures
OTHER_SEED = "stock, another seed"  # a line of the tables: what chance alone does
SCORES = {"pass@16": 3, "distinct": 2}  # compared at equal pass@1, with their digits
PLOTTED = "pass@16"
DIGITS = 5  # of stored scores
Points = list[dict[str, float]]


@dataclass
class Trajectories:
    """Evaluations by arm and seed, fingerprints of the arms' settings, and the number of runs with other settings."""

    runs: dict[str, dict[int, Points]]
    settings: dict[str, str]
    left_out: int = 0


def owner(arm: str) -> str:
    """The arm whose runs an arm is read from: stock for its other temperatures, else itself."""
    return "stock" if arm.startswith(TEMPERATURE) else arm


def write_scores(found: Trajectories, path: Path) -> None:
    """One line per run: its evaluations, each with its values in the order of `columns`."""
    every = [point for runs in found.runs.values() for points in runs.values() for point in points]
    columns = list(dict.fromkeys(key for point in every for key in point))
    parts = []
    for arm, runs in found.runs.items():
        lines = []
        for seed, points in sorted(runs.items()):
            values = [[point[key] for key in columns] for point in points]
            lines.append(f'  "{seed}": {json.dumps(values)}')
        settings = found.settings[owner(arm)]
        parts.append(f'"{arm}": {{"settings": "{settings}", "seeds": {{\n' + ",\n".join(lines) + "}}")
    path.write_text(f'{{"columns": {json.dumps(columns)}, "runs": {{\n' + ",\n".join(parts) + "}}\n")


def read_scores(path: Path, settings: dict[str, str]) -> Trajectories:
    """Reads the file of `write_scores`, and keeps runs of arms whose settings have these fingerprints."""
    content, found = json.loads(path.read_text()), Trajectories({}, {})
    for arm, entry in content["runs"].items():
        if settings.get(owner(arm)) != entry["settings"]:
            found.left_out += len(entry["seeds"])
            continue
        found.settings[owner(arm)] = entry["settings"]
        found.runs[arm] = {
            int(seed): [dict(zip(content["columns"], values, strict=True)) for values in rows]
            for seed, rows in entry["seeds"].items()
        }
    return found


def curve(points: Points, score: str) -> np.ndarray:
    """(N, 2) pass@1 and a score, in the order of steps."""
    return np.array([[point["pass@1"], point[score]] for point in points])


def pairs(runs: dict[str, dict[int, Points]], arm: str, score: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The trajectories of an arm, each with that of stock with the same seed."""
    stock = runs["stock"]
    if arm == OTHER_SEED:
        seeds = sorted(stock)
        if len(seeds) < 2:
            return []
        others = zip(seeds, [*seeds[1:], *seeds[:1]], strict=True)
        return [(curve(stock[other], score), curve(stock[seed], score)) for seed, other in others]
    return [(curve(runs[arm][seed], score), curve(stock[seed], score)) for seed in runs[arm] if seed in stock]


def cell(values: list[float], digits: int, paired: bool = True) -> str:
    """Mean ± half-width of the 95 % interval; in bold if a difference's interval excludes 0.

    Values that are NaN are left out; if there are any, the number of the others follows in parentheses.
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    mean, half = interval(known)
    text = f"{mean:{'+' if paired else ''}.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")
    text = f"**{text}**" if paired and abs(mean) > half else text
    return text if len(known) == len(values) else f"{text} ({len(known)})"


def columns_of(levels: list[float], start: float, digits: int) -> dict[str, Callable]:
    """The table's columns of differences: each takes the pairs of an arm and returns a cell."""

    def difference(measure: Callable[..., float], digits: int) -> Callable:
        return lambda found: cell([measure(own, stock) for own, stock in found], digits)

    columns = {
        "best pass@1": lambda found: cell([reach(own) for own, _ in found], 3, paired=False),
        "to stock's": difference(lambda own, stock: reach(own) - reach(stock), 3),
    }
    for level in levels:
        columns[f"at {level:g}"] = difference(lambda own, stock, at=level: matched(own, stock, at)[0], digits)
    columns["at its end"] = difference(matched_end, digits)
    columns["mean"] = difference(lambda own, stock: lead(own, stock, start), digits)
    columns["area"] = difference(lambda own, stock: area(own, stock, start), digits + 1)
    return columns


def table(found: Trajectories, arms: dict[str, dict[str, Any]], levels: list[float], score: str) -> str:
    """A table in Markdown: for each arm, the differences of a score to stock's trajectory at equal pass@1."""
    start = float(np.mean([points[0]["pass@1"] for points in found.runs["stock"].values()]))
    columns = columns_of(levels, start, SCORES[score])
    head = ["", "setting", *columns, "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm in ("stock", OTHER_SEED, *(name for name in found.runs if name != "stock")):
        paired = pairs(found.runs, arm, score)
        if not paired:
            continue
        entry, _, strength = arm.partition("/")
        setting = strength if entry == TEMPERATURE else varied(arm, arms) if arm in arms else ""
        if arm == "stock":
            cells = [columns["best pass@1"](paired), *[""] * (len(columns) - 1)]
        else:
            cells = [column(paired) for column in columns.values()]
        name = arm if arm == OTHER_SEED else f"`{entry}`"
        lines.append("| " + " | ".join([name, setting, *cells, str(len(paired))]) + " |")
    return "\n".join(lines)


def at_tokens(points: Points, score: str, tokens: float) -> float:
    """A score once so many tokens were sampled: on the straight line between two evaluations."""
    return float(np.interp(tokens, [point["tokens"] for point in points], [point[score] for point in points]))


def table_of_costs(found: Trajectories, arms: dict[str, dict[str, Any]]) -> str:
    """A table in Markdown, for runs with tools: what an arm spends relative to stock, and scores minus stock's.

    Scores are compared at the end, and at the tokens that both runs of a seed have sampled.
    """
    head = ["", "setting", "tokens", "calls", "pass@1 at the end", "pass@1, equal tokens", "pass@16, equal tokens"]
    lines = ["| " + " | ".join([*head, "seeds"]) + " |", "|" + "---|" * (len(head) + 1)]
    for arm in (name for name in found.runs if name in arms and name != "stock"):
        pairs = [
            (own, found.runs["stock"][seed]) for seed, own in found.runs[arm].items() if seed in found.runs["stock"]
        ]
        ends = [(own[-1], stock[-1]) for own, stock in pairs]
        ratios = [cell([own[key] / stock[key] for own, stock in ends], 2, paired=False) for key in ("tokens", "calls")]
        gains = [cell([own["pass@1"] - stock["pass@1"] for own, stock in ends], 3)]
        for score in ("pass@1", "pass@16"):
            found_here = []
            for own, stock in pairs:
                tokens = min(own[-1]["tokens"], stock[-1]["tokens"])
                found_here.append(at_tokens(own, score, tokens) - at_tokens(stock, score, tokens))
            gains.append(cell(found_here, 3))
        name = f"`{arm.partition('/')[0]}`"
        lines.append("| " + " | ".join([name, varied(arm, arms), *ratios, *gains, str(len(pairs))]) + " |")
    return "\n".join(lines)


def band(curves: list[np.ndarray], at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where all curves reach: x, mean envelope, and half-width of the 95 % interval (0 for one curve)."""
    reached = at[at <= min(map(reach, curves))]
    heights = np.array([envelope(one, reached) for one in curves])
    half = [interval(list(column))[1] for column in heights.T]
    return reached, heights.mean(axis=0), np.nan_to_num(half)


def draw(panel: Any, curves: list[np.ndarray], at: np.ndarray, color: Any, label: str) -> None:
    """Each run's evaluations as dots on a thin line, and the mean envelope with its band."""
    for one in curves:
        panel.plot(*finite(one).T, ".-", color=color, alpha=0.25, linewidth=0.6, markersize=3)
    x, mean, half = band(curves, at)
    panel.plot(x, mean, color=color, linewidth=1.6, label=label)
    panel.fill_between(x, mean - half, mean + half, color=color, alpha=0.2, linewidth=0)


def plot(found: Trajectories, arms: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws pass@16 against pass@1 in training: one panel per entry, stock in black."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    curves = {arm: [curve(points, PLOTTED) for points in runs.values()] for arm, runs in found.runs.items()}
    curves = {arm: [one for one in own if len(finite(one))] for arm, own in curves.items()}
    curves = {arm: own for arm, own in curves.items() if own}
    entries = list(dict.fromkeys(arm.partition("/")[0] for arm in curves if arm != "stock")) or ["stock"]
    everything = np.concatenate([finite(one) for own in curves.values() for one in own])
    at = np.linspace(everything[:, 0].min(), everything[:, 0].max(), 200)
    width = min(4, len(entries))
    height = math.ceil(len(entries) / width)
    figure = Figure(figsize=(1 + 3.4 * width, 0.8 + 3 * height), layout="constrained")
    panels = list(np.ravel(figure.subplots(height, width, sharex=True, sharey=True)))
    for panel, entry in zip(panels, entries, strict=False):
        draw(panel, curves["stock"], at, "black", "stock")
        own = [arm for arm in curves if arm.startswith(f"{entry}/")]
        for number, arm in enumerate(own):
            setting = arm.partition("/")[2] if entry == TEMPERATURE else varied(arm, arms) or entry
            draw(panel, curves[arm], at, colormaps["plasma"](0.15 + 0.6 * number / max(1, len(own) - 1)), setting)
        panel.set_title(entry, fontsize="medium")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="x-small")
    for panel in panels[len(entries) :]:
        panel.remove()
    low, high = everything[:, 1].min(), everything[:, 1].max()
    margin = 0.1 * (high - low)  # of the points: with two seeds, a band may be many times as high
    panels[0].set_ylim(low - margin, high + margin)
    figure.supxlabel("pass@1")
    figure.supylabel(PLOTTED)
    figure.savefig(path, dpi=110)


def report(found: Trajectories, arms: dict[str, dict[str, Any]], levels: list[float], output: Path) -> None:
    """Prints and writes the tables, and draws the plot."""
    if found.left_out:
        print(f"{found.left_out} runs of other settings than the plan's of today are left out.")
    if "stock" not in found.runs:
        print("There is no run of stock to compare with.")
        return
    first = next(iter(found.runs["stock"].values()))[0]
    parts = []
    for score in filter(first.get, SCORES):
        parts.append(f"`{score}` at equal pass@1, minus that of stock with the same seed\n")
        parts.append(table(found, arms, levels, score) + "\n")
    if "tokens" in first:
        parts.append("Tokens sampled and tools run relative to stock with the same seed, and scores minus its own\n")
        parts.append(table_of_costs(found, arms) + "\n")
    text = "\n".join(parts)
    (output / "trajectories.md").write_text(text)
    print(text)
    plot(found, arms, output / "trajectories.png")
