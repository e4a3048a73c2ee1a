# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""How `trl-entropy geometry` shows its numbers: a table and a picture."""

import math
from pathlib import Path
from typing import Any


SHOWN = 12  # classes in the table
HEADS = {
    "rankme": "RankMe", "alpha": "alpha", "alpha_r2": "R2", "participation": "participation", "top_share": "top share",
    "dse": "DSE (bits)", "dsmi": "DSMI (bits)", "dsmi_pair": "DSMI of pairs",
}  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """A row for each layer."""
    from ..tables import text_table

    lines = [
        {"layer": name, **{HEADS[key]: "-" if value is None else f"{value:.4f}" for key, value in found.items()}}
        for name, found in record["layers"].items()
    ]
    text = f"{record['samples']} texts\n\n{text_table(lines)}"
    for name, found in record["classes"].items():
        what = "Classes" if name == "dsmi" else "Clusters of pairs"
        shown = [f"{label} ({count})" for label, count in found.items()][:SHOWN]
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        text += f"\n\n{what}: {', '.join(shown)}{more}"
    return text


def plot(path: Path, record: dict[str, Any]) -> None:
    """Each number over the layers."""
    from matplotlib.figure import Figure  # an extra of the package

    names = [*record["layers"]["last"]]
    figure = Figure(figsize=(3 * 4, 2.4 * -(-len(names) // 4)), layout="constrained")
    grid = list(figure.subplots(-(-len(names) // 4), 4, squeeze=False).flat)
    for axes, name in zip(grid, names, strict=False):
        values = [math.nan if found[name] is None else found[name] for found in record["layers"].values()]
        axes.plot([*record["layers"]], values, marker=".")
        axes.set_title(HEADS[name], fontsize="medium")
        axes.locator_params(axis="y", nbins=5)
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("decoder layer (last: after the final norm)")
    figure.savefig(path, dpi=110)
