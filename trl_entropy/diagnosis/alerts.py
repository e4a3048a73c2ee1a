# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Findings as alerts of W&B and trackio."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from accelerate.logging import get_logger

from .rules import Finding


logger = get_logger(__name__)


def alert_wandb(module: Any, title: str, text: str, level: str) -> None:
    """`level` is "WARN" or "ERROR". Does nothing if no run is open."""
    if module.run is not None:  # W&B drops alerts of one title within a minute, unless told to wait less
        module.run.alert(title=title, text=text, level=level, wait_duration=0.001)


def alert_trackio(module: Any, title: str, text: str, level: str) -> None:
    """Does nothing if trackio is too old to have alerts, or no run is open."""
    if hasattr(module, "alert") and module.context_vars.current_run.get() is not None:
        module.alert(title=title, text=text, level=module.AlertLevel(level.lower()))


TRACKERS: dict[str, Callable[[Any, str, str, str], None]] = {"wandb": alert_wandb, "trackio": alert_trackio}


class Alerts:
    """Sends findings to the trackers of a run. A tracker that fails is left out from then on, with a warning."""

    def __init__(self):
        self._failed: set[str] = set()

    def send(self, finding: Finding, report_to: Iterable[str]) -> None:
        """Sends a finding. Call it in the process that reports.

        Args:
            finding: the finding.
            report_to: names of trackers. Those that this process has not imported have no run here.
        """
        level = "ERROR" if finding.severe else "WARN"
        text = f"Step {finding.step}: {finding.evidence} {finding.meaning} {finding.turn}"
        for name in report_to:
            if name not in TRACKERS or name not in sys.modules or name in self._failed:
                continue
            try:
                TRACKERS[name](sys.modules[name], f"Diagnosis: {finding.rule}", text, level)
            except Exception as error:
                self._failed.add(name)
                logger.warning(f"{name} takes no alerts of the diagnosis ({type(error).__name__}: {error}).")
