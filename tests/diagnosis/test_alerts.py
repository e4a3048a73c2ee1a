# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Findings become alerts: once, from the main process, and without harm to the run if a tracker fails.

Stand-ins record calls by the signatures of the real functions. `tests/runs/test_trackers.py` reads back what the real
trackers have stored.
"""

import inspect
import logging
import sys
from types import SimpleNamespace

import pytest
from accelerate import PartialState
from transformers import TrainerControl, TrainerState

from trl_entropy.diagnosis.alerts import TRACKERS, Alerts
from trl_entropy.diagnosis.callback import DiagnosisCallback
from trl_entropy.diagnosis.rules import Finding


FINDING = Finding("fast fall", 7, {}, "It fell.", "It means.", "Turn it.", severe=False)
TEXT = "Step 7: It fell. It means. Turn it."


class Calls(list):
    """Calls of a function with the signature of `real`, as the arguments that it would get."""

    def __init__(self, real, bound=False):
        self.signature = inspect.signature(real)
        if bound:
            self.signature = self.signature.replace(parameters=[*self.signature.parameters.values()][1:])

    def __call__(self, *args, **kwargs):
        self.append(self.signature.bind(*args, **kwargs).arguments)


@pytest.fixture
def trackers(monkeypatch):
    """The calls of W&B's and trackio's alerts, by name of the tracker."""
    wandb, trackio = pytest.importorskip("wandb"), pytest.importorskip("trackio")
    calls = {"wandb": Calls(wandb.sdk.wandb_run.Run.alert, bound=True), "trackio": Calls(trackio.alert)}
    run = SimpleNamespace(get=lambda: "run")
    stand_ins = {
        "wandb": SimpleNamespace(run=SimpleNamespace(alert=calls["wandb"])),
        "trackio": SimpleNamespace(
            alert=calls["trackio"], AlertLevel=trackio.AlertLevel, context_vars=SimpleNamespace(current_run=run)
        ),
    }
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_what_each_tracker_gets(trackers):
    alerts = Alerts()
    alerts.send(FINDING, ["tensorboard", "wandb", "trackio"])
    (found,) = trackers["wandb"]
    assert found["title"] == "Diagnosis: fast fall" and found["text"] == TEXT and found["level"] == "WARN"
    assert int(1000 * found["wait_duration"]) == 1  # W&B takes 0 for a minute, and drops the second of two findings
    (found,) = trackers["trackio"]
    assert (found["title"], found["text"], found["level"].value) == ("Diagnosis: fast fall", TEXT, "warn")
    alerts.send(Finding(**{**vars(FINDING), "severe": True}), ["trackio", "wandb"])
    assert trackers["wandb"][1]["level"] == "ERROR" and trackers["trackio"][1]["level"].value == "error"


def test_titles_fit_into_an_alert_of_wandb():
    """Less than 64 characters, as its documentation says."""
    from trl_entropy.diagnosis.rules import RULES

    assert max(len(f"Diagnosis: {rule.name}") for rule in RULES) < 64


def test_without_a_run_or_without_alerts_nothing_is_sent(trackers, monkeypatch):
    monkeypatch.setattr(sys.modules["wandb"], "run", None)
    monkeypatch.delattr(sys.modules["trackio"], "alert")  # as in its first versions
    Alerts().send(FINDING, TRACKERS)
    assert trackers == {"wandb": [], "trackio": []}
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.delitem(sys.modules, "trackio")
    Alerts().send(FINDING, TRACKERS)  # neither is imported for it
    assert not TRACKERS.keys() & sys.modules.keys()


def trained(entropies, main=True, report_to=("wandb", "trackio")):
    PartialState()  # without which accelerate's loggers do not log
    callback, control = DiagnosisCallback(), TrainerControl()
    state = TrainerState(is_world_process_zero=main)
    args = SimpleNamespace(report_to=[*report_to])
    callback.on_train_begin(args, state, control)
    for entropy in entropies:
        state.global_step += 1
        callback.on_log(args, state, control, logs={"entropy": entropy, "reward": 0.5})
    return callback


COLLAPSE = [1.0] * 3 + [0.9 * 0.97**k for k in range(90)]


@pytest.mark.parametrize("main", [True, False])
def test_once_per_finding_and_from_the_main_process(trackers, main):
    callback = trained(COLLAPSE, main)
    assert [finding.rule for finding in callback.findings] == ["collapse"]
    assert [len(calls) for calls in trackers.values()] == [int(main)] * 2


def test_only_trackers_of_the_run(trackers):
    trained(COLLAPSE, report_to=["trackio"])
    assert [len(calls) for calls in trackers.values()] == [0, 1]


def test_a_tracker_that_fails_is_left_out(trackers, monkeypatch, caplog):
    def refuse(**alert):
        raise ConnectionError("no network")

    monkeypatch.setattr(sys.modules["wandb"].run, "alert", refuse)
    PartialState()
    alerts = Alerts()
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        alerts.send(FINDING, TRACKERS)
        alerts.send(FINDING, TRACKERS)
    (record,) = caplog.records
    assert "wandb takes no alerts of the diagnosis (ConnectionError: no network)." in record.getMessage()
    assert len(trackers["trackio"]) == 2
