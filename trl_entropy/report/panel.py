# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Panels and series: what the charts of a report draw, as numbers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .runs import Run


Kind = Literal["line", "second", "points", "evaluation", "fit", "threshold", "band", "front"]
LINES = ("line", "second", "evaluation", "front")  # kinds with one value after another, which a table can sum up


@dataclass(frozen=True)
class Series:
    """One line, cloud of points or band in a panel.

    Attributes:
        run: index of its run, which sets the color.
        x, y: coordinates of the points; for a band, of its lower edge.
        kind: how to draw it. `second` is the dashed line of a run with two lines; `front` is a path of points whose
            last one is large.
        label: name of the series, if a run has several in the panel.
        upper: upper edge of a band.
        steps: optimizer steps of the points, if x is another quantity.
    """

    run: int
    x: list[float]
    y: list[float]
    kind: Kind = "line"
    label: str = ""
    upper: list[float] | None = None
    steps: list[float] | None = None


@dataclass(frozen=True)
class Panel:
    """A pair of axes.

    Attributes:
        title, x_label: labels of the axes.
        series: lines, points and bands to draw.
        notes: one fact per run that the drawing does not show.
        about: explanation for the reader.
        y_label: name of y, if the title says more.
        from_zero: whether the y axis starts at 0.
        log: whether the y axis is logarithmic, if all values are above 0.
    """

    title: str
    series: list[Series]
    x_label: str = "optimizer step"
    about: str = ""
    notes: dict[int, str] = field(default_factory=dict)
    y_label: str = ""
    from_zero: bool = False
    log: bool = False

    @property
    def heading(self) -> str:
        """The title, with x unless it is the optimizer step or the title says it."""
        return self.title if self.over_steps or self.y_label else f"{self.title} against {self.x_label}"

    @property
    def over_steps(self) -> bool:
        """Whether x is the optimizer step."""
        return self.x_label == "optimizer step"


def metric_panel(runs: list[Run], title: str, key: str, log: bool = False) -> Panel:
    """One metric over steps, with its values in evaluations as points."""
    return Panel(title, [*metric_series(runs, key)], log=log)


def metric_series(runs: list[Run], key: str) -> Iterator[Series]:
    """A metric of each run in training and in evaluation."""
    for index, run in enumerate(runs):
        yield from both_splits(index, run.series("step", key), run.series("step", f"eval_{key}"))


def both_splits(index: int, training: list[list[float]], evaluation: list[list[float]]) -> Iterator[Series]:
    """The series of a run from its steps and values in training and in evaluation, without empty ones."""
    x, y = training
    if x:
        yield Series(index, x, y)
    x, y = evaluation
    if x:
        yield Series(index, x, y, "evaluation", "evaluation")
