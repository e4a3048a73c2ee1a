# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Panels of pass@k: over steps, and pass@1 against pass@k."""

import re
from collections import Counter
from dataclasses import dataclass
from statistics import fmean

from .evaluations import Evaluation
from .panel import Panel, Series
from .runs import Run
from .samples import pass_at_k_points


PASS_AT_K = re.compile(r"(.*/)?(eval_)?pass@\d+$")
PARTS = 10  # of a run: a point of the front is a mean over one of them
LOGGED = "As logged: of the completions of each generation batch, or as evaluated."


@dataclass(frozen=True)
class Passes:
    """A pass@k of one run over its steps: that of the largest k first, then that of the smallest.

    Attributes:
        run: index of the run.
        keys: names of the two; one if there is no second.
        x: steps by key.
        y: values by key.
        source: where the numbers come from.
    """

    run: int
    keys: list[str]
    x: dict[str, list[float]]
    y: dict[str, list[float]]
    source: str


def all_passes(runs: list[Run]) -> list[Passes]:
    """The pass@k of each run, from the tables of completions or, without them, as logged."""
    found = []
    for index, run in enumerate(runs):
        tables = pass_at_k_points(run)
        if tables is not None:
            name, points = tables
            one, many = (key for key in points[0] if key != "step")
            steps = [point["step"] for point in points]
            values = {key: [point[key] for point in points] for key in (many, one)}
            source = f"Of the completions trained on; right means that `{name}` returned 1."
            found.append(Passes(index, [many, one], {many: steps, one: steps}, values, source))
            continue
        for keys in logged_passes(run):
            series = {key: run.series("step", key) for key in keys}
            steps_of = {key: both[0] for key, both in series.items()}
            found.append(Passes(index, keys, steps_of, {key: both[1] for key, both in series.items()}, LOGGED))
    return found


def logged_passes(run: Run) -> list[list[str]]:
    """The logged pass@k of largest and of smallest k, of training and then of each evaluation."""
    keys = sorted(filter(PASS_AT_K.match, run.keys), key=k_of, reverse=True)
    by_prefix = {
        prefix: [key for key in keys if key.rpartition("pass@")[0] == prefix]
        for prefix in sorted({key.rpartition("pass@")[0] for key in keys})
    }
    return [list(dict.fromkeys((own[0], own[-1]))) for own in by_prefix.values()]


def k_of(key: str) -> int:
    """The k of a metric `...pass@k`."""
    return int(key.rpartition("@")[2])


def pass_at_k_panel(passes: list[Passes]) -> Panel:
    """pass@k over steps."""
    series = [
        Series(found.run, found.x[key], found.y[key], "second" if place else "line", key)
        for found in passes
        for place, key in enumerate(found.keys)
    ]
    return Panel("pass@k", series, about=" ".join(sorted({found.source for found in passes})))


def front_panel(passes: list[Passes], evaluations: list[Evaluation]) -> Panel:
    """pass@1 against pass@k as means over tenths of each run; and as evaluated by a quickstart.

    A run's evaluations are shown if it has logged them twice or more, otherwise its training. Of several k, that of
    most runs is shown.
    """
    pairs = [found for found in passes if len(found.keys) == 2 and k_of(found.keys[1]) == 1]
    evaluated = {found.run for found in pairs if "eval_" in found.keys[0] and len(found.x[found.keys[0]]) > 1}
    pairs = [found for found in pairs if ("eval_" in found.keys[0]) == (found.run in evaluated)]
    if not pairs:
        return Panel("front", [])
    k = Counter(k_of(found.keys[0]) for found in pairs).most_common(1)[0][0]
    series, one, many = [], "pass@1", f"pass@{k}"
    for found in pairs:
        steps, points = front_points(found)
        if points and k_of(found.keys[0]) == k:
            label = "evaluation" if found.run in evaluated else ""
            x, y = ([point[axis] for point in points] for axis in (0, 1))
            series.append(Series(found.run, x, y, "front", label, steps=steps))
    scored = [found for found in evaluations if found.run is not None and {one, many} <= found.scores.keys()]
    series += [
        Series(found.run or 0, [found.scores[one]], [found.scores[many]], "evaluation", "evaluation at the end")
        for found in scored
    ]
    about = "Each point is a mean over a tenth of a run; the large one is its end. Up and to the right is better."
    about += " Diamonds: results of a quickstart's evaluation." if scored else ""
    return Panel(many, series, one, about)


def front_points(found: Passes) -> tuple[list[float], list[tuple[float, float]]]:
    """Steps, and (pass@1, pass@k), as means over equal parts of the lines that have both."""
    many, one = found.keys
    first = dict(zip(found.x[one], found.y[one], strict=True))
    both = [(step, first[step], y) for step, y in zip(found.x[many], found.y[many], strict=True) if step in first]
    parts = min(PARTS, len(both))
    chunks = [both[len(both) * part // parts : len(both) * (part + 1) // parts] for part in range(parts)]
    means = [[fmean(values) for values in zip(*chunk, strict=True)] for chunk in chunks]
    return [chunk[-1][0] for chunk in chunks], [(x, y) for _, x, y in means]
