# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The numbers that a page embeds: rounded, thinned to bound its size, and with ranges of axes that do not magnify
noise."""

from itertools import pairwise
from statistics import fmean, median
from typing import Any

from .panel import LINES, Panel, Series


FEWEST_BENDS = 8  # second differences that tell noise from a bend
DIGITS = 6  # significant
MOST_NUMBERS = 60_000  # about half a megabyte
FEWEST_POINTS = 50  # a series is never thinned to fewer
NOISE_SPANS = 10  # an axis spans at least so many standard deviations of a line's noise,
MOST_WIDENED = 2  # but for that at most so many times the range of the values,
LEAST_SPAN = 0.1  # and at least this share of the largest absolute value


def embedded(panels: list[Panel]) -> dict[str, Any]:
    """The panels as JSON types. `x` and `steps` are places in `axes`, which holds each list once."""
    stride = stride_of(panels)
    axes: dict[tuple[float, ...], int] = {}

    def place(values: list[float]) -> int:
        return axes.setdefault(tuple(map(rounded, values)), len(axes))

    found = []
    for panel in panels:
        series = []
        for item in panel.series:
            thin = thinned(item, stride)
            entry: dict[str, Any] = {"run": item.run, "kind": item.kind, "label": item.label, "x": place(thin.x)}
            entry["y"] = [*map(rounded, thin.y)]
            entry |= {"upper": [*map(rounded, thin.upper)]} if thin.upper is not None else {}
            entry |= {"steps": place(thin.steps)} if thin.steps is not None else {}
            series.append(entry)
        found.append(
            {
                "title": panel.title,
                "x_label": panel.x_label,
                "y_label": panel.y_label or panel.title,
                "over_steps": panel.over_steps,
                "from_zero": panel.from_zero,
                "log": panel.log and is_positive(panel),
                "can_log": is_positive(panel),
                "least_span": rounded(least_span(panel)),
                "series": series,
            }
        )
    return {"stride": stride, "axes": [list(values) for values in axes], "panels": found}


def rounded(value: float) -> float:
    """The value to six significant digits; a whole number without its point, which is shorter."""
    value = float(f"{value:.{DIGITS}g}")
    return int(value) if value.is_integer() else value


def stride_of(panels: list[Panel]) -> int:
    """How many log lines become one point, so that all numbers together are at most `MOST_NUMBERS`."""
    lengths = [len(item.y) * (2 if item.upper else 1) for panel in panels for item in panel.series]
    stride = 1
    while sum(max(-(-length // stride), min(length, FEWEST_POINTS)) for length in lengths) > MOST_NUMBERS:
        stride += 1
        if max(lengths) <= stride * FEWEST_POINTS:
            break
    return stride


def thinned(item: Series, stride: int) -> Series:
    """A series with means over `stride` points where it is a line, otherwise with each `stride`-th point."""
    stride = min(stride, max(1, len(item.y) // FEWEST_POINTS))
    if stride == 1 or item.kind == "fit":
        return item
    if item.kind in ("line", "second"):
        chunks = [slice(start, start + stride) for start in range(0, len(item.y), stride)]
        x, y = ([fmean(values[chunk]) for chunk in chunks] for values in (item.x, item.y))
        return Series(item.run, x, y, item.kind, item.label)
    upper, steps = (values[::stride] if values is not None else None for values in (item.upper, item.steps))
    return Series(item.run, item.x[::stride], item.y[::stride], item.kind, item.label, upper, steps)


def is_positive(panel: Panel) -> bool:
    """Whether a logarithmic axis can show all values."""
    return all(value > 0 for item in panel.series for value in item.y)


def least_span(panel: Panel) -> float:
    """The smallest range of the y axis at which noise does not look like a change.

    A line that only jitters fills at most half of the height, and a change of a few per cent is not magnified.
    """
    values = [value for item in panel.series if item.kind in LINES for value in (min(item.y), max(item.y))]
    if not values:
        return 0.0
    widest = MOST_WIDENED * (max(values) - min(values))
    noise = max(noise_of(item.y) for item in panel.series if item.kind in LINES)
    return max(min(widest, NOISE_SPANS * noise), LEAST_SPAN * max(map(abs, values)))


def noise_of(values: list[float]) -> float:
    """The standard deviation of a line's noise: robust, and 0 for a straight line, from its second differences."""
    bends = [abs(after - before) for before, after in pairwise(after - before for before, after in pairwise(values))]
    return 1.4826 * median(bends) / 6**0.5 if len(bends) >= FEWEST_BENDS else 0.0
