# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The evaluations that a quickstart writes beside its runs, in `results.json`."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .runs import STATE, Run, read_json


logger = logging.getLogger(__name__)

RESULTS = "results.json"


@dataclass(frozen=True)
class Evaluation:
    """A row of a quickstart's table.

    Attributes:
        label: of the row.
        run: index of its run; `None` for a model that was not trained in one of the runs.
        scores: values by name.
    """

    label: str
    run: int | None
    scores: dict[str, float]


def run_folders(folder: Path) -> list[Path]:
    """The folders of a quickstart's runs, in the order in which it made them; any other folder alone."""
    if not (folder / RESULTS).exists() or (folder / STATE).exists():
        return [folder]
    results = read_results(folder)
    if not results:
        return [folder]
    order = {folder_name(name): place for place, name in enumerate(results["history"])}
    found = [path.parent for path in folder.glob(f"*/{STATE}")]
    return sorted(found, key=lambda path: (order.get(path.name, len(order)), path.name)) or [folder]


def read_evaluations(runs: list[Run]) -> list[Evaluation]:
    """The rows of each `results.json` beside a run, without those of its runs that are not among `runs`."""
    places = [run.folder.resolve() for run in runs]
    parents = [folder for folder in dict.fromkeys(place.parent for place in places) if (folder / RESULTS).exists()]
    found = []
    for parent in parents:
        results = read_results(parent)
        for name, row in results.get("rows", {}).items():
            place = parent / folder_name(name)
            index = places.index(place) if place in places else None
            if index is None and name in results.get("history", {}):
                continue
            label = runs[index].label if index is not None else name
            label = f"{parent.name}/{name}" if index is None and len(parents) > 1 else label
            found.append(Evaluation(label, index, {key: value for key, value in row.items() if is_number(value)}))
    return found


def read_results(folder: Path) -> dict[str, Any]:
    """A quickstart's results; empty if the file has another form, since any program may write one of this name."""
    try:
        results = read_json(folder / RESULTS)
    except ValueError as error:
        logger.warning(f"{error} The report goes without it.")
        return {}
    parts = [results.get(key) for key in ("rows", "history")] if isinstance(results, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        return {}
    return results if all(isinstance(row, dict) for row in results["rows"].values()) else {}


def folder_name(label: str) -> str:
    """The folder of a run in the folder of results."""
    return label.replace(" ", "-").rstrip("%")


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
