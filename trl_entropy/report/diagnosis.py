# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Findings on runs that are read from their files."""

from pathlib import Path

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
    """A run from its folder, or from a trainer state. Settings lie beside the state, or above a checkpoint's folder.

    Raises:
        `ValueError`: there is no readable run.
    """
    if path.is_file():
        _, history = read_state(path)
        folder = path.resolve().parent
        folder = folder.parent if folder.name.startswith("checkpoint-") else folder
    else:
        history, folder = read_history(path), path
    return Run(folder.resolve().name, folder, [], read_settings(folder), history=training_lines(history))
