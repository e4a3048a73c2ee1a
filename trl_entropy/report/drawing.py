# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Drawing panels with matplotlib: all in one PNG, or each as SVG for the page."""

import colorsys
import io
import math
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .panels import Panel, Series


# Dark enough for lines on white, and distinguishable for color-blind readers (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a900", "#5e3c99", "#000000")
COLUMNS = 3
PANEL_SIZE = (4.3, 2.9)  # inches
LINES, DASHED = ("line", "second", "noisy", "noisy_second"), "--"
# From this many points on, a line gets its running mean: lines known to be noisy, and all others
SHORTEST_NOISY, SHORTEST_CROWDED = 15, 200
MANY_POINTS = 500  # from this many on, points are drawn small
MOST_POINTS = 2000  # above this many, the page holds points as a bitmap
PLAIN_TEXT = {"text.parse_math": False}  # a dollar sign in the name of a run or metric starts no formula
SVG_SETTINGS = {**PLAIN_TEXT, "svg.fonttype": "none", "font.family": "sans-serif"}
GOLDEN = 0.618034  # step on the circle of hues: each color is far from the ones before it


def color_of(run: int) -> str:
    """One of `COLORS`; later runs get further colors, each a different one."""
    beyond = run - len(COLORS)
    if beyond < 0:
        return COLORS[run]
    return to_hex(colorsys.hsv_to_rgb(beyond * GOLDEN % 1, 0.8, (0.75, 0.5)[beyond % 2]))


def draw_series(axes: Axes, item: Series) -> None:
    """Draws one series as its `kind` says."""
    color, x, y = color_of(item.run), item.x, item.y
    if item.kind == "band":
        if item.upper is None or item.upper == y:
            axes.plot(x, y, color=color, linestyle=":", linewidth=1.4)
        else:
            axes.fill_between(x, y, item.upper, color=color, alpha=0.12, linewidth=0)
    elif item.kind == "points":
        filled = color if item.label != "dropped" else "none"
        size, rasterized = 4 if len(x) >= MANY_POINTS else 12, len(x) > MOST_POINTS
        dots = axes.scatter(x, y, s=size, facecolors=filled, edgecolors=color, linewidths=0.6, alpha=0.6)
        dots.set_rasterized(rasterized)
    elif item.kind == "evaluation":
        axes.plot(x, y, color=color, marker="D", markersize=4, linestyle="none")
    elif item.kind == "threshold":
        axes.plot(x, y, color=color, linestyle=":", linewidth=1)
    elif item.kind == "fit":
        axes.plot(x, y, color=color)
    else:
        draw_line(axes, item)


def draw_line(axes: Axes, item: Series) -> None:
    """Draws a line over steps. A noisy or crowded one is pale, with its running mean on top."""
    color, x, y = color_of(item.run), item.x, item.y
    if len(y) >= (SHORTEST_NOISY if item.kind.startswith("noisy") else SHORTEST_CROWDED):
        axes.plot(x, y, color=color, alpha=0.2, linewidth=0.8)
        y = pd.Series(y).rolling(max(7, len(y) // 30), min_periods=1).mean()
    style = DASHED if item.kind in ("second", "noisy_second") else "-"
    axes.plot(x, y, color=color, linestyle=style, marker="." if len(x) == 1 else "")


def draw_panel(axes: Axes, panel: Panel) -> None:
    """Draws all series of a panel, with its labels and a legend of line styles."""
    for item in panel.series:
        draw_series(axes, item)
    axes.set_title(panel.title, fontsize="medium")
    axes.set_xlabel(panel.x_label, fontsize="small")
    axes.tick_params(labelsize="small")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", nbins=6)
    axes.ticklabel_format(scilimits=(-3, 5), useOffset=False)
    styles = {
        DASHED if item.kind.endswith("second") else "-": item.label for item in panel.series if item.kind in LINES
    }
    if any(styles.values()):
        handles = [Line2D([], [], color="0.3", linestyle=style, label=label) for style, label in styles.items()]
        axes.legend(handles=handles, fontsize="x-small", frameon=False)


@rc_context(PLAIN_TEXT)
def draw_png(panels: list[Panel], labels: list[str], path: Path) -> None:
    """Draws all panels in one picture, below a legend of the runs' colors."""
    rows = math.ceil(len(panels) / COLUMNS)
    columns = min(COLUMNS, len(panels))
    figure = Figure(figsize=(PANEL_SIZE[0] * columns, PANEL_SIZE[1] * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        draw_panel(axes, panel)
    for axes in grid[len(panels) :]:
        axes.remove()
    handles = [Line2D([], [], color=color_of(run), linewidth=3, label=label) for run, label in enumerate(labels)]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(labels), 4), frameon=False)
    figure.savefig(path, dpi=110)


def draw_svg(panel: Panel, name: str) -> str:
    """One panel as an SVG element for a page. Its identifiers do not clash with those of another `name`."""
    with rc_context({**SVG_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=PANEL_SIZE, layout="constrained")
        draw_panel(figure.subplots(), panel)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", dpi=150, transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
