# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs that differ only by their seed, and the run with which others are compared."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runs.files import is_private
from .runs import Run


SEEDS = {"seed", "data_seed"}


@dataclass(frozen=True)
class Group:
    """Runs with the same settings but for the seed; or one run alone.

    Attributes:
        label: its name in the report.
        runs: indices of its runs.
    """

    label: str
    runs: list[int]


def group_runs(runs: list[Run]) -> list[Group]:
    """All runs, those that differ only by their seed together. A run without known settings is alone."""
    found: dict[Any, list[int]] = {}
    for index, run in enumerate(runs):
        found.setdefault(without_seed(run) if run.settings else index, []).append(index)
    names = [shared_name([runs[index] for index in members]) for members in found.values()]
    twice = {name for name, count in Counter(names).items() if count > 1}
    labels = [
        f"{runs[members[0]].label} and other seeds" if name in twice and len(members) > 1 else name
        for name, members in zip(names, found.values(), strict=True)
    ]
    return [Group(label, members) for label, members in zip(labels, found.values(), strict=True)]


def without_seed(run: Run) -> str:
    """What tells a run from those that differ only by their seed."""
    settings = run.with_defaults()
    return repr(
        sorted((name, value) for name, value in settings.items() if name not in SEEDS and not is_private(name))
    )


def shared_name(runs: list[Run]) -> str:
    """The name of a group: that of the folders, if they share one, or what their labels begin with."""
    if len(runs) == 1:
        return runs[0].label
    folders = {run.folder.resolve().name for run in runs}
    if len(folders) == 1:
        return folders.pop()
    start = os.path.commonprefix([run.label for run in runs]).rstrip("0123456789").rstrip("-_/. ")
    return start.removesuffix("seed").rstrip("-_/. ") or f"{runs[0].label} and other seeds"


def with_baseline(folders: list[Path], baseline: Path | None) -> tuple[list[Path], int | None]:
    """The folders of the runs and the index of the baseline, which comes first unless it is one of them."""
    if baseline is None:
        return folders, None
    known = [folder.resolve() for folder in folders]
    if baseline.resolve() in known:
        return folders, known.index(baseline.resolve())
    return [baseline, *folders], 0
