# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The contents of a report as numbers: panels of series, for both the picture and the page."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ..curves.law import fit_entropy_law
from .runs import Run
from .samples import pass_at_k_points, tip_scatter


PASS_AT_K = re.compile(r"(.*/)?(eval_)?pass@\d+$")


Kind = Literal["line", "second", "noisy", "noisy_second", "points", "evaluation", "fit", "threshold", "band"]


@dataclass(frozen=True)
class Series:
    """One line, cloud of points or band in a panel.

    Attributes:
        run: index of its run, which sets the color.
        x, y: coordinates of the points; for a band, of its lower edge.
        kind: how to draw it. `second` is the dashed line of a run with two lines; `noisy` kinds are drawn pale, with
            their running mean on top.
        label: name of the series, if a run has several in the panel.
        upper: upper edge of a band.
    """

    run: int
    x: list[float]
    y: list[float]
    kind: Kind = "line"
    label: str = ""
    upper: list[float] | None = None


@dataclass(frozen=True)
class Panel:
    """A pair of axes.

    Attributes:
        title, x_label: labels of the axes.
        series: lines, points and bands to draw.
        notes: one fact per run that the drawing does not show.
        about: explanation for the reader.
        from_zero: whether the y axis starts at 0.
    """

    title: str
    series: list[Series]
    x_label: str = "optimizer step"
    about: str = ""
    notes: dict[int, str] = field(default_factory=dict)
    from_zero: bool = False


def metric_groups(runs: list[Run]) -> tuple[str, ...]:
    """The groups of metrics that belong to a method or the thermostat: the part of their names before the slash."""
    return (*dict.fromkeys(name for run in runs for name in run.known.methods), "entropy_keep", "tip", "kappa")


def build_panels(runs: list[Run]) -> list[Panel]:
    """Every panel for which at least one run has data."""
    candidates = [
        entropy_panel(runs),
        metric_panel(runs, "reward", "reward", kind="noisy"),
        pass_at_k_panel(runs),
        metric_panel(runs, "mean completion length (tokens)", "completions/mean_length"),
        law_panel(runs),
        forecast_panel(runs),
        advantage_panel(runs),
        tip_panel(runs),
    ]
    if not all("reward" in run.keys for run in runs):
        candidates.append(metric_panel(runs, "loss", "loss"))
    panels = [panel for panel in candidates if panel.series]
    return panels + [metric_panel(runs, key, key) for key in method_metrics(runs)]


def method_metrics(runs: list[Run]) -> list[str]:
    """The methods' metrics that any run has logged, in the order of the methods."""
    keys = sorted(set().union(*(run.keys for run in runs)))
    return [key for group in metric_groups(runs) for key in keys if key.startswith(f"{group}/")]


def metric_panel(runs: list[Run], title: str, key: str, kind: Kind = "line") -> Panel:
    """One metric over steps, with its values in evaluations as points."""
    return Panel(title, [*metric_series(runs, key, kind)])


def metric_series(runs: list[Run], key: str, kind: Kind = "line") -> Iterator[Series]:
    """A metric of each run in training and in evaluation."""
    for index, run in enumerate(runs):
        yield from both_splits(index, run.series("step", key), run.series("step", f"eval_{key}"), kind)


def both_splits(
    index: int, training: list[list[float]], evaluation: list[list[float]], kind: Kind = "line"
) -> Iterator[Series]:
    """The series of a run from its steps and values in training and in evaluation, without empty ones."""
    x, y = training
    if x:
        yield Series(index, x, y, kind)
    x, y = evaluation
    if x:
        yield Series(index, x, y, "evaluation", "evaluation")


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


def pass_at_k_panel(runs: list[Run]) -> Panel:
    """pass@k from the tables of completions or, without them, as logged."""
    series, sources = [], set()
    for index, run in enumerate(runs):
        found = pass_at_k_points(run)
        if found is not None:
            sources.add(f"Of the completions trained on; right means that `{found[0]}` returned 1.")
            x = [point["step"] for point in found[1]]
            one, many = (key for key in found[1][0] if key != "step")
            series.append(Series(index, x, [point[many] for point in found[1]], "noisy", many))
            series.append(Series(index, x, [point[one] for point in found[1]], "noisy_second", one))
            continue
        for key, position in logged_passes(run):
            x, y = run.series("step", key)
            kinds: tuple[Kind, Kind] = ("noisy", "noisy_second") if key.startswith("pass@") else ("line", "second")
            series.append(Series(index, x, y, kinds[position], key))
            sources.add("As logged: of the completions of each generation batch, or as evaluated.")
    return Panel("pass@k", series, about=" ".join(sorted(sources)))


def logged_passes(run: Run) -> list[tuple[str, int]]:
    """The logged pass@k of largest and of smallest k, with 0 and 1; first of training, then of each evaluation."""
    found = []
    keys = sorted(filter(PASS_AT_K.match, run.keys), key=k_of, reverse=True)
    for prefix in sorted({key.rpartition("pass@")[0] for key in keys}):
        own = [key for key in keys if key.rpartition("pass@")[0] == prefix]
        found += [(key, position) for position, key in enumerate(dict.fromkeys((own[0], own[-1])))]
    return found


def k_of(key: str) -> int:
    """The k of a metric `...pass@k`."""
    return int(key.rpartition("@")[2])


def law_panel(runs: list[Run]) -> Panel:
    """Reward against entropy, with the law R = -a exp(H) + b fitted to each run."""
    series, notes = [], {}
    for index, run in enumerate(runs):
        rewards, entropies = run.entropies("reward")
        if len(entropies) < 3:
            continue
        series.append(Series(index, entropies, rewards, "points"))
        a, b, explained = fit_entropy_law(entropies, rewards)
        if math.isfinite(a):
            low, high = min(entropies), max(entropies)
            grid = [low + (high - low) * step / 40 for step in range(41)]
            series.append(Series(index, grid, [b - a * math.exp(entropy) for entropy in grid], "fit"))
            r_squared = f", R² = {explained:.2f}" if math.isfinite(explained) else ""
            notes[index] = f"a = {a:.3f}, b = {b:.3f}{r_squared}, at entropy 0: {b - a:.3f}"
    about = "One point per log line. The line is the fitted law R = -a exp(H) + b."
    return Panel("reward against entropy", series, "token entropy (nats)", about, notes)


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
