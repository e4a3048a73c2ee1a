# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Results of an analysis: a table, JSON, and a bar chart by layer and type."""

import json
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..tables import text_table
from .layers import DIRECT, FULL_RANK, UNREADABLE, Layer
from .selection import Selection


def table(layers: Sequence[Layer], chosen: Collection[str], selection: Selection) -> str:
    """One line per candidate, lowest condition number first; candidates without full rank come last."""
    rows = sorted(filter(selection.candidate, layers), key=lambda layer: (layer.kappa(selection.experts), layer.name))
    cells = [
        {
            "module": layer.name,
            "shape": "x".join(map(str, layer.shape)),
            "kappa": shown_kappa(layer, selection.experts),
            "selected": "yes" if layer.name in chosen else "",
        }
        for layer in rows
    ]
    return f"{text_table(cells)}\n{summary(layers, chosen, selection)}"


def shown_kappa(layer: Layer, experts: str) -> str:
    """The condition number as text, with a note on experts without full rank; the state if it is not finite."""
    kappa = layer.kappa(experts)
    if not math.isfinite(kappa):
        return layer.state
    bad = (
        ""
        if layer.state == FULL_RANK
        else f" ({layer.states.count(layer.state)} of {len(layer.states)} {layer.state})"
    )
    return f"{kappa:.4g}{bad}"


def summary(layers: Sequence[Layer], chosen: Collection[str], selection: Selection) -> str:
    """One line: how many of the candidate modules and parameters are selected."""
    candidates = [layer for layer in layers if selection.candidate(layer)]
    total = sum(layer.size for layer in candidates)
    used = sum(layer.size for layer in candidates if layer.name in chosen)
    share = 100 * used / max(total, 1)
    return f"{len(chosen)} of {len(candidates)} modules, {used} of {total} parameters ({share:.1f} %)"


def notes(layers: Sequence[Layer], chosen: Collection[str], selection: Selection) -> Iterator[str]:
    """Warnings: fewer candidates than `num_modules`, and layers that are not candidates."""
    if selection.num_modules is not None and len(chosen) < selection.num_modules:
        asked = f"`{selection.prefix}num_modules`={selection.num_modules}"
        yield f"{asked} is more than there are: all {len(chosen)} candidates of full rank are selected."
    direct = [layer.name for layer in layers if layer.kind == DIRECT]
    if direct and not selection.include:
        yield (
            f"{len(direct)} modules are not candidates, because the model's code reads their weights directly, so "
            f"that an adapter would never act, the first being `{direct[0]}`. `{selection.prefix}include` makes them "
            "candidates for training without adapters."
        )
    unreadable = [layer.name for layer in layers if layer.kind == UNREADABLE]
    if unreadable:
        yield (
            f"{len(unreadable)} modules are not candidates, because their weights are quantized and cannot be "
            f"dequantized, the first being `{unreadable[0]}`: use a checkpoint that is not quantized."
        )


def as_json(model: str, layers: Sequence[Layer], chosen: Collection[str], selection: Selection) -> dict[str, Any]:
    """The selection and all candidates as JSON. A `kappa` that is not finite becomes `null`; `states` says why."""
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
    """Weights by type and number of the decoder layer. Experts that are not fused share an entry."""
    found: dict[str, dict[int, list[Layer]]] = {}
    for layer in layers:
        rows = found.setdefault(layer.type, {})
        rows.setdefault(len(rows) if layer.number is None else layer.number, []).append(layer)
    return found


def plot(path: str | Path, layers: Sequence[Layer], chosen: Collection[str], selection: Selection) -> None:
    """Draws the condition numbers: one panel per type, one bar per decoder layer, selected layers in color.

    Experts that are not fused share a bar, which shows their median and is in color if one of them is selected.
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
