# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The panels of a report."""

import math
from collections.abc import Sequence

from ..curves.law import fit_entropy_law
from .evaluations import Evaluation
from .panel import Panel, Series, both_splits, metric_panel
from .passes import all_passes, front_panel, pass_at_k_panel
from .runs import Run
from .samples import tip_scatter
from .u_curve import u_curve_panel


LAW = "reward against entropy"
LEAST_R_SQUARED = 0.3  # below this, a fit is not shown
LOGARITHMIC = {"entropy_keep/strength"}


def metric_groups(runs: list[Run]) -> tuple[str, ...]:
    """The groups of metrics of methods, thermostat and monitors: the part of their names before the slash."""
    methods = dict.fromkeys(name for run in runs for name in run.known.methods)
    monitors = dict.fromkeys(name for run in runs for name in run.known.monitors)
    return (*methods, "entropy_keep", "tip", "kappa", *monitors)


def build_panels(runs: list[Run], evaluations: Sequence[Evaluation] = ()) -> list[Panel]:
    """Every panel for which at least one run has data."""
    passes = all_passes(runs)
    candidates = [
        entropy_panel(runs),
        metric_panel(runs, "reward", "reward"),
        pass_at_k_panel(passes),
        front_panel(passes, [*evaluations]),
        metric_panel(runs, "mean completion length (tokens)", "completions/mean_length"),
        law_panel(runs),
        u_curve_panel(runs),
        forecast_panel(runs),
        advantage_panel(runs),
        tip_panel(runs),
    ]
    if not all("reward" in run.keys for run in runs):
        candidates.append(metric_panel(runs, "loss", "loss"))
    panels = [panel for panel in candidates if panel.series]
    return panels + [metric_panel(runs, key, key, key in LOGARITHMIC) for key in method_metrics(runs)]


def method_metrics(runs: list[Run]) -> list[str]:
    """The metrics of these groups that any run has logged, in the order of the groups."""
    keys = sorted(set().union(*(run.keys for run in runs)))
    return [key for group in metric_groups(runs) for key in keys if key.startswith(f"{group}/")]


def entropy_panel(runs: list[Run]) -> Panel:
    """Entropy over steps, with the targets of methods that have one."""
    series = []
    for index, run in enumerate(runs):
        target = run.target()
        if target is not None:
            series.append(Series(index, target[0], target[1], "band", "target", target[2]))
    for index, run in enumerate(runs):
        series += both_splits(index, run.entropies("step"), run.entropies("step", split="eval_"))
    about = "Mean over completion tokens."
    if any(item.kind == "band" for item in series):
        about += " Shaded (dotted if it is a single value): the target of a run."
    return Panel("token entropy (nats)", series, about=about, from_zero=True)


def law_panel(runs: list[Run]) -> Panel:
    """Reward against entropy, with the law R = -a exp(H) + b fitted to each run. Empty if the law holds in no run."""
    series, notes, holds = [], {}, False
    for index, run in enumerate(runs):
        steps, rewards, entropies = run.entropies("step", "reward")
        if len(entropies) < 3:
            continue
        series.append(Series(index, entropies, rewards, "points", steps=steps))
        a, b, explained = fit_entropy_law(entropies, rewards)
        if not explained >= LEAST_R_SQUARED:
            notes[index] = f"no law: R² = {explained:.2f}" if math.isfinite(explained) else "no law"
            continue
        holds = True
        low, high = min(entropies), max(entropies)
        grid = [low + (high - low) * step / 40 for step in range(41)]
        series.append(Series(index, grid, [b - a * math.exp(entropy) for entropy in grid], "fit"))
        notes[index] = f"a = {a:.3f}, b = {b:.3f}, R² = {explained:.2f}, at entropy 0: {b - a:.3f}"
    about = f"One point per log line. The line is the law R = -a exp(H) + b, if its R² is at least {LEAST_R_SQUARED}."
    return Panel(LAW, series if holds else [], "token entropy (nats)", about, notes, "reward")


def forecast_panel(runs: list[Run]) -> Panel:
    """Realized against predicted entropy change, paired by step if every step was logged."""
    series, notes = [], {}
    for index, run in enumerate(runs):
        predicted, realized = paired_changes(run)
        if predicted:
            series.append(Series(index, predicted, realized, "points"))
            correlation = run.series("entropy/change_correlation")[0]
            if correlation:
                notes[index] = f"correlation over all steps: {correlation[-1]:.2f}"
    about = "Predicted to first order for a learning rate of 1: look at sign and correlation, not at size."
    return Panel("realized entropy change (nats)", series, "predicted entropy change", about, notes)


def paired_changes(run: Run) -> tuple[list[float], list[float]]:
    """Predicted and realized entropy changes in pairs.

    The log line of a step holds the prediction for this step, and the realized change that the line before predicted.
    A line for several steps holds means over them; all terms of both means but one belong to the same steps.
    """
    steps, predicted = run.series("step", "entropy/predicted_change")
    before = dict(zip(steps, predicted, strict=True))
    each = any(step + 1 in before for step in steps)
    steps, realized = run.series("step", "entropy/realized_change")
    changes = zip(steps, realized, strict=True)
    pairs = [(before[step - each], change) for step, change in changes if step - each in before]
    return [x for x, _ in pairs], [y for _, y in pairs]


def advantage_panel(runs: list[Run]) -> Panel:
    """Mean entropy of tokens by the sign of their advantage."""
    series = []
    for index, run in enumerate(runs):
        for sign in ("positive", "negative"):
            x, y = run.series("step", f"entropy/{sign}_advantage_mean")
            if x:
                series.append(Series(index, x, y, "line" if sign == "positive" else "second", f"{sign} advantage"))
    return Panel("entropy by sign of the advantage (nats)", series, from_zero=True)


def tip_panel(runs: list[Run]) -> Panel:
    """Entropy and divergence of tokens that TIP kept or dropped, with the borders of its quadrants."""
    series = []
    for index, run in enumerate(runs):
        found = tip_scatter(run)
        if found is None:
            continue
        points = [*zip(found["entropy"], found["divergence"], found["kept"], strict=True)]
        for kept, label in ((False, "dropped"), (True, "kept")):
            x, y = ([point[axis] for point in points if point[2] is kept] for axis in (0, 1))
            series += [Series(index, x, y, "points", label)] if x else []
        if points and "entropy_threshold" in found:
            entropy, divergence = found["entropy_threshold"], found["divergence_threshold"]
            far, uncertain = max(found["divergence"]), max(found["entropy"])
            series.append(Series(index, [entropy, entropy], [0.0, far], "threshold"))
            series.append(Series(index, [0.0, uncertain], [divergence, divergence], "threshold"))
    about = "Tokens of one batch. Filled: kept by TIP. Dotted lines: borders of the quadrants."
    return Panel("divergence from the teacher (nats)", series, "student entropy (nats)", about)
