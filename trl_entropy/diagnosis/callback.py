# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Diagnosis during a run."""

from collections.abc import Iterable, Mapping
from typing import Any

from accelerate.logging import get_logger
from transformers import TrainerCallback

from ..signs import Signs, signs_of
from .alerts import Alerts
from .history import History, numbers_of, training_lines
from .rules import Finding, diagnose


logger = get_logger(__name__)

OFTEN = 200  # lines up to which every line is checked; of longer logs one in as many hundredths


class DiagnosisCallback(TrainerCallback):
    r"""
    Checks the log of a run after each log line, and warns once of each finding. Changes nothing else.

    With `report_to: wandb` or `trackio`, each finding is also an alert there, sent by the main process.

    Long logs are checked at every 200th part of their length, since each check reads the whole log. After a run is
    resumed, findings that still hold are reported once more.

    Args:
        signs (`Mapping[str, Signs]`, *optional*):
            Signs by the name of the method.
        stop (`bool`, *optional*, defaults to `False`):
            Whether to stop the run on a severe finding.
    """

    def __init__(self, signs: Mapping[str, Signs] | None = None, stop: bool = False):
        self.signs, self.stop = signs or {}, stop
        self._forget()

    def _forget(self) -> None:
        self._lines: list[dict[str, float]] = []
        self.findings: list[Finding] = []
        self._told: set[tuple[str, str]] = set()
        self._alerts = Alerts()

    def on_train_begin(self, args, state, control, **kwargs):
        self._forget()
        self._lines = training_lines(state.log_history)

    def on_log(self, args, state, control, logs=None, **kwargs):
        new = training_lines([{**numbers_of(logs or {}), "step": state.global_step}])
        self._lines += new
        if not new or len(self._lines) % (1 + len(self._lines) // OFTEN):
            return
        for finding in diagnose(History(self._lines, vars(args) if args is not None else {}, self.signs)):
            key = (finding.rule, finding.turn)
            if key not in self._told:
                self._told.add(key)
                self.findings.append(finding)
                logger.warning(f"Diagnosis: {finding}")
                if state.is_world_process_zero:
                    self._alerts.send(finding, getattr(args, "report_to", None) or ())
                control.should_training_stop |= self.stop and finding.severe


def add_diagnosis(trainer: Any, methods: Iterable[Any] | None = None) -> None:
    """Adds the callback to one of our trainers, as its `args.diagnosis` says.

    Args:
        trainer: the trainer.
        methods: its methods, if they are not `trainer.methods`.
    """
    if trainer.args.diagnosis != "false":
        signs = {method.name: signs_of(method) for method in (trainer.methods if methods is None else methods)}
        trainer.add_callback(DiagnosisCallback(signs, trainer.args.diagnosis == "stop"))
