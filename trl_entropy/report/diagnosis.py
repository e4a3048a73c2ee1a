# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Findings on runs that are read from their files."""

from pathlib import Path
from typing import Any

from ..diagnosis.history import History, training_lines
from ..diagnosis.rules import Finding, diagnose
from .runs import Run, read_history, read_settings, read_state


def findings_of(run: Run) -> list[Finding]:
    """What is wrong with a run."""
    settings = run.with_defaults()
    off = {"tip"} if settings.get("tip_rule") == "none" else set()  # it logs quadrants even if it is off
    signs = {name: found for name, found in run.known.signs.items() if name not in off}
    return diagnose(History(run.history, settings, signs))


def read_run(path: Path) -> Run:
    """A run from its folder, or from a trainer state.

    Raises:
        `ValueError`: there is no readable run.
    """
    history, folder = history_and_folder(path)
    return Run(folder.resolve().name, folder, [], read_settings(folder), history=training_lines(history))


def history_and_folder(path: Path) -> tuple[list[dict[str, Any]], Path]:
    """All log lines of a run, and its folder: that of the state, or above a checkpoint's folder.

    Raises:
        `ValueError`: there is no readable run.
    """
    if not path.is_file():
        return read_history(path), path
    folder = path.resolve().parent
    return read_state(path)[1], folder.parent if folder.name.startswith("checkpoint-") else folder
