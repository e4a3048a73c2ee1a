# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy report --watch`: the page is renewed while a run trains."""

import json
import os
from types import SimpleNamespace

import pytest
from support.report_runs import Page, lines_of, write_run
from transformers import TrainerState, TrainingArguments

from trl_entropy import cli
from trl_entropy.report.watch import replace_text, snapshot, watch
from trl_entropy.runs import token_log
from trl_entropy.runs.token_log import SettingsCallback


class Clock:
    """Stands in for `time.sleep`: makes one change after another, and then interrupts."""

    def __init__(self, *changes):
        self.changes = [*changes]

    def __call__(self, seconds):
        if not self.changes:
            raise KeyboardInterrupt
        self.changes.pop(0)()


def test_page_follows_the_runs(tmp_path, capsys, monkeypatch):
    """A run that has not logged is waited for. At the end the page no longer loads itself."""
    run, page, seen = tmp_path / "run", tmp_path / "out" / "report.html", []

    def look():
        seen.append(Page(page.read_text()).data)

    def log(steps):
        return lambda: write_run(run, lines_of(entropy=[1.0] * steps), global_step=steps)

    clock = Clock(log(1), look, log(3), look)
    monkeypatch.setattr("trl_entropy.report.watch.watch.__defaults__", (clock,))
    assert cli.main(["report", str(run), "--watch", "--output", str(tmp_path / "out")]) == 0
    assert [(len(data["axes"][0]), data["watch"]) for data in seen] == [(1, 10), (3, 10)]
    assert Page(page.read_text()).data["watch"] is None and 'name="renew"' not in page.read_text()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("waiting: RUN must be the folder of a run") and "does not exist" in lines[0]
    assert [line.partition(":")[0] for line in lines[1:3]] == ["page renewed"] * 2 and len(lines) == 6


def test_only_changes_renew(tmp_path):
    write_run(tmp_path)
    renewed, told = [], []
    touch = lambda: os.utime(tmp_path / "trainer_state.json", ns=(1, 1))  # noqa: E731
    watch([tmp_path], lambda: renewed.append(1), told.append, 1, Clock(lambda: None, touch, lambda: None))
    assert (len(renewed), told) == (2, [])
    before = snapshot([tmp_path])
    (tmp_path / "completions").mkdir()
    (tmp_path / "completions" / "token_entropies_00001.json").write_text("{}")
    assert len(snapshot([tmp_path]) - before) == 1


def test_page_can_pause_its_renewal(tmp_path):
    write_run(tmp_path / "run")
    from trl_entropy.commands.report import write_report

    write_report([tmp_path / "run"], tmp_path, watch=10)
    page = Page((tmp_path / "report.html").read_text())
    (box,) = [attributes for tag, attributes in page.tags if attributes.get("name") == "renew"]
    assert box["type"] == "checkbox" and "checked" in box and page.data["watch"] == 10


def test_pages_are_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    replace_text(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        replace_text(path, "new")
    assert path.read_text() == "old"


def test_trainer_state_is_written_while_a_run_logs(tmp_path, monkeypatch):
    """At most every five seconds, by the main process, and at the end."""
    now = 100.0
    monkeypatch.setattr(token_log, "time", SimpleNamespace(monotonic=lambda: now))
    callback, state = SettingsCallback(), TrainerState()
    args = TrainingArguments(tmp_path / "run", use_cpu=True)
    path = tmp_path / "run" / "trainer_state.json"
    callback.on_train_begin(args, state, None)
    for step, now in ((1, 100.0), (2, 104.0), (3, 105.0), (4, 106.0)):  # noqa: B007 (the clock reads it)
        state.global_step = step
        state.log_history.append({"step": step, "entropy": 1.0})
        callback.on_log(args, state, None)
        assert len(json.loads(path.read_text())["log_history"]) == {1: 1, 2: 1, 3: 3, 4: 3}[step]
    callback.on_train_end(args, state, None)
    assert json.loads(path.read_text())["global_step"] == 4 and not list(path.parent.glob("*.part"))
    path.unlink()
    state.is_world_process_zero = False
    callback.on_train_end(args, state, None)
    assert not path.exists()
