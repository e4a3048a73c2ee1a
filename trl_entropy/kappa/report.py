# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What an analysis shows: a table, JSON, and bars by layer and type."""

import json
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .layers import FULL_RANK, UNREADABLE, Layer
from .selection import Selection


def table(layers: Sequence[Layer], chosen: Collection[str], selection: Selection) -> str:
    """A line for each candidate, lowest condition number first, those that are never selected at the end."""
    rows = sorted(filter(selection.candidate, layers), key=lambda layer: (layer.kappa(selection.experts), layer.name))
    cells = [("module", "shape", "kappa", "selected")]
    for layer in rows:
        kappa = layer.kappa(selection.experts)
        shown = f"{kappa:.4g}" if math.isfinite(kappa) else layer.state
        if math.isfinite(kappa) and layer.state != FULL_RANK:
            shown += f" ({layer.states.count(layer.state)} of {len(layer.states)} {layer.state})"
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


def notes(layers: Sequence[Layer], chosen: Collection[str], selection: Selection) -> Iterator[str]:
    """What a user should know of a selection: that fewer modules were there than asked for, and which do not count."""
    if selection.num_modules is not None and len(chosen) < selection.num_modules:
        asked = f"`{selection.prefix}num_modules`={selection.num_modules}"
        yield f"{asked} is more than there are: all {len(chosen)} candidates of full rank are selected."
    unreadable = [layer.name for layer in layers if layer.kind == UNREADABLE]
    if unreadable:
        yield (
            f"{len(unreadable)} modules are no candidates, since their weights are quantised and cannot be restored, first "
            f"`{unreadable[0]}`: compute the condition numbers on the checkpoint that is not quantised."
        )


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


def by_type(layers: Sequence[Layer]) -> dict[str, dict[int, list[Layer]]]:
    """Weights by type and by the number of their decoder layer; several where experts are not fused."""
    found: dict[str, dict[int, list[Layer]]] = {}
    for layer in layers:
        rows = found.setdefault(layer.type, {})
        rows.setdefault(len(rows) if layer.number is None else layer.number, []).append(layer)
    return found


def plot(path: str | Path, layers: Sequence[Layer], chosen: Collection[str], selection: Selection) -> None:
    """Draws the condition numbers: a panel for each type, a bar for each decoder layer, the selected ones coloured.

    Experts that are not fused share a bar, the median of theirs, which is coloured where one is selected.
    """
    from matplotlib.figure import Figure  # an extra of the package

    known = [layer for layer in filter(selection.candidate, layers) if math.isfinite(layer.kappa(selection.experts))]
    panels = by_type(known)
    columns = min(4, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(3 * columns, 0.4 + 1.9 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes, (kind, members) in zip(grid, panels.items(), strict=False):
        colors = ["C0" if any(layer.name in chosen for layer in found) else "0.75" for found in members.values()]
        heights = [median(layer.kappa(selection.experts) for layer in found) for found in members.values()]
        axes.bar(list(members), heights, color=colors)
        axes.set_title(kind, fontsize="medium")
        axes.set_yscale("log")
        axes.xaxis.get_major_locator().set_params(integer=True)
    grid[0].set_ylim(bottom=1)  # shared
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.supylabel("condition number")
    figure.supxlabel("decoder layer (blue: selected)")
    figure.savefig(path, dpi=110)
