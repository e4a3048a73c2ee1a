# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What an analysis shows: a table, JSON, and bars by layer and type."""

import json
import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from .layers import Layer
from .selection import Selection


NUMBER = re.compile(r"(?:^|\.)(\d+)\.")  # of the decoder layer, in the name of a module


def table(layers: Sequence[Layer], chosen: Collection[str], selection: Selection) -> str:
    """A line for each candidate, lowest condition number first, those that are never selected at the end."""
    rows = sorted(filter(selection.candidate, layers), key=lambda layer: (layer.kappa(selection.experts), layer.name))
    cells = [("module", "shape", "kappa", "selected")]
    for layer in rows:
        kappa = layer.kappa(selection.experts)
        shown = f"{kappa:.4g}" if math.isfinite(kappa) else layer.state
        cells.append((layer.name, "x".join(map(str, layer.shape)), shown, "yes" if layer.name in chosen else ""))
    wide = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = [
        f"{name:<{wide[0]}}  {shape:>{wide[1]}}  {kappa:>{wide[2]}}  {mark}".rstrip()
        for name, shape, kappa, mark in cells
    ]
    return "\n".join([*lines, summary(layers, chosen, selection)])


def summary(layers: Sequence[Layer], chosen: Collection[str], selection: Selection) -> str:
    """One line: how many modules and parameters of the candidates are selected."""
    candidates = [layer for layer in layers if selection.candidate(layer)]
    total = sum(layer.size for layer in candidates)
    used = sum(layer.size for layer in candidates if layer.name in chosen)
    share = 100 * used / max(total, 1)
    return f"{len(chosen)} of {len(candidates)} modules, {used} of {total} parameters ({share:.1f} %)"


def as_json(model: str, layers: Sequence[Layer], chosen: Collection[str], selection: Selection) -> dict[str, Any]:
    """Finite numbers only: a `null` is explained by `states`."""
    rows = []
    for layer in filter(selection.candidate, layers):
        kappa = layer.kappa(selection.experts)
        number = kappa if math.isfinite(kappa) else None
        rows.append({"kappa": number, "selected": layer.name in chosen, **layer.as_json()})
    settings = {key: value for key, value in vars(selection).items() if key != "prefix"}
    return {"model": model, "selection": settings, "selected": list(chosen), "layers": rows}


def write_json(path: str | Path, *arguments) -> None:
    """Writes `as_json(*arguments)`."""
    Path(path).write_text(json.dumps(as_json(*arguments), indent=1, allow_nan=False) + "\n")


def by_type(layers: Sequence[Layer]) -> dict[str, dict[int, Layer]]:
    """Weights by type (the last part of their names) and by the number of their decoder layer."""
    found: dict[str, dict[int, Layer]] = {}
    for layer in layers:
        number = NUMBER.search(layer.name)
        rows = found.setdefault(layer.name.rpartition(".")[2], {})
        rows[int(number[1]) if number else len(rows)] = layer
    return found


def plot(path: str | Path, layers: Sequence[Layer], chosen: Collection[str], selection: Selection) -> None:
    """Draws the condition numbers: a panel for each type, a bar for each decoder layer, the selected ones coloured."""
    from matplotlib.figure import Figure  # an extra of the package

    known = [layer for layer in filter(selection.candidate, layers) if math.isfinite(layer.kappa(selection.experts))]
    panels = by_type(known)
    columns = min(4, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(3 * columns, 0.4 + 1.9 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes, (kind, members) in zip(grid, panels.items(), strict=False):
        colors = ["C0" if layer.name in chosen else "0.75" for layer in members.values()]
        axes.bar(list(members), [layer.kappa(selection.experts) for layer in members.values()], color=colors)
        axes.set(title=kind, yscale="log")
        axes.xaxis.get_major_locator().set_params(integer=True)
    grid[0].set_ylim(bottom=1)  # shared
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.supylabel("condition number")
    figure.supxlabel("decoder layer (blue: selected)")
    figure.savefig(path, dpi=110)
