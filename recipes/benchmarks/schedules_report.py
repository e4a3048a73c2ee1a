# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Report of `schedules.py`: the law's predictions against the runs, the refined schedule, and a picture."""

from pathlib import Path
from statistics import fmean

import numpy as np
from trajectories_report import cell

from trl_entropy.curves.annealing_fit import fit_annealing_law
from trl_entropy.curves.base import Curve


DECAYING = ("wsd", "cosine", "linear")
REFINED = "refined"
Line = dict[str, float]
Runs = dict[int, dict[str, list[Line]]]  # log lines by seed and schedule


def end_of(lines: list[Line]) -> float:
    """The loss on held-out prompts at the end of training."""
    return next(line["eval_loss"] for line in reversed(lines) if "eval_loss" in line)


def predictions(runs: Runs) -> list[dict]:
    """For each seed, pair and triple of schedules that decay: the end that the law predicts, and the one seen.

    `misses` and `baseline` are predicted minus seen.
    """
    rows = []
    for seed, logs in runs.items():
        curves = {name: Curve.of(logs[name], evaluation=True) for name in DECAYING if name in logs}
        for target in curves:
            others = [name for name in curves if name != target]
            for fitted in [[name] for name in others] + ([others] if len(others) > 1 else []):
                law = fit_annealing_law([curves[name] for name in fitted], draws=0)
                predicted, seen = float(law.predict(curves[target].rates)[-1]), end_of(logs[target])
                baseline = fmean(end_of(logs[name]) for name in fitted)
                row = {"fitted": " + ".join(fitted), "predicted": target, "seed": seed, "value": predicted}
                rows.append(row | {"seen": seen, "misses": predicted - seen, "baseline": baseline - seen})
    return rows


def prediction_table(rows: list[dict]) -> str:
    """In Markdown: for each pair, predicted minus seen of the law and of the baseline, over seeds."""
    head = ["fitted to", "predicts", "seen", "law's error", "baseline's error", "mean size", "baseline's", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for pair in dict.fromkeys((row["fitted"], row["predicted"]) for row in rows):
        own = [row for row in rows if (row["fitted"], row["predicted"]) == pair]
        errors = [[row[key] for row in own] for key in ("misses", "baseline")]
        seen = f"{fmean(row['seen'] for row in own):.4f}"
        sizes = [f"{fmean(map(abs, values)):.4f}" for values in errors]
        cells = [*pair, seen, *(cell(values, 4) for values in errors), *sizes, str(len(own))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def refined_table(runs: Runs) -> str:
    """In Markdown: the loss on held-out prompts at the end of each schedule, and its difference to linear decay."""
    lines = ["| schedule | end loss | minus linear | seeds |", "|---|---|---|---|"]
    for name in (*DECAYING, REFINED):
        ends = {seed: end_of(logs[name]) for seed, logs in runs.items() if name in logs}
        gains = [end - end_of(runs[seed]["linear"]) for seed, end in ends.items() if "linear" in runs[seed]]
        if ends:
            shown = cell(gains, 4) if name != "linear" else ""
            lines.append(f"| {name} | {cell([*ends.values()], 4, paired=False)} | {shown} | {len(ends)} |")
    return "\n".join(lines)


def draw(runs: Runs, path: Path) -> None:
    """Learning rates, and losses on held-out prompts with the fit of each schedule, of the first seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    rate, loss = figure.subplots(1, 2)
    for number, (name, lines) in enumerate(next(iter(runs.values())).items()):
        curve, color = Curve.of(lines, evaluation=True), f"C{number}"
        rate.plot(np.arange(1, len(curve.rates) + 1), curve.rates, color=color, label=name)
        loss.plot(curve.end, curve.loss, ".", color=color, markersize=3, label=name)
        if name in DECAYING:
            law = fit_annealing_law([curve], draws=0)
            loss.plot(curve.end, law.predict(curve.rates)[curve.end.astype(int) - 1], color=color, linewidth=0.8)
    rate.set(title="learning rate", xlabel="step")
    loss.set(title="loss on held-out prompts; lines: law", xlabel="step")
    last = [end_of(lines) for lines in next(iter(runs.values())).values()]
    loss.set_ylim(min(last) * 0.97, max(last) * 1.8)  # the beginning is far above
    for panel in (rate, loss):
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    figure.savefig(path, dpi=100)


def report(runs: Runs, output: Path) -> None:
    """Prints the tables, and draws the picture."""
    print(prediction_table(predictions(runs)), refined_table(runs), sep="\n\n")
    draw(runs, output / "schedules.png")
