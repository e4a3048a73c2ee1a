# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy monitors`, what it stores, the docs page, and the card of a monitored run."""

from pathlib import Path

import pytest

from trl_entropy.commands import monitors as command
from trl_entropy.commands.main import main
from trl_entropy.commands.methods import known_to_reports
from trl_entropy.monitors.config import MONITORS, MonitorFields
from trl_entropy.report.panels import build_panels
from trl_entropy.report.runs import Run


ROOT = Path(__file__).parents[2]


def test_all_or_some(capsys):
    assert main(["monitors"]) == 0
    text = capsys.readouterr().out
    for name, monitor in MONITORS.items():
        assert f"\n\n{name}\n" in f"\n\n{text}" and monitor.paper.url in text
    assert all(f"{field}: " in text for field in MonitorFields.__dataclass_fields__)
    assert main(["monitors", "attention"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("attention\n") and "geometry" not in text and "attention_queries: int = 64" in text
    with pytest.raises(SystemExit):
        main(["monitors", "geometri"])
    assert (
        f"unknown monitor 'geometri'. Did you mean 'geometry'? Known: {', '.join(MONITORS)}."
        in capsys.readouterr().err
    )


def test_what_is_stored_is_what_there_is(monkeypatch):
    from trl_entropy.commands.listing import monitor_records

    live = monitor_records()
    assert command.known_monitors() == live  # of the modules, as they are loaded
    monkeypatch.setattr(command, "stored", lambda: {"monitors": {"one": {}}})
    assert command.known_monitors() == {"one": {}}


def test_each_is_on_the_page_with_its_test():
    page = (ROOT / "docs" / "monitors.md").read_text()
    for name, monitor in MONITORS.items():
        assert f"| `{name}` |" in page and monitor.paper.url in page
        assert (ROOT / "tests" / "monitors" / f"test_{name}.py").exists()
        assert f"`{name}/{monitor.headline}`" in page


def test_report_has_a_panel_for_each_number():
    lines = [{"step": step, "entropy": 0.5, "geometry/rankme": 9.0 - step} for step in (0, 2, 4)]
    run = Run("a", Path("a"), lines, {}, known_to_reports())
    (panel,) = [panel for panel in build_panels([run]) if panel.title == "geometry/rankme"]
    assert (panel.series[0].x, panel.series[0].y) == ([0, 2, 4], [9.0, 7.0, 5.0])


def test_card_cites_monitors_and_shows_first_and_last(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=2, logging_steps=1, monitors=["geometry"], monitor_steps=1)
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    values = [line["geometry/rankme"] for line in trainer.state.log_history if "geometry/rankme" in line]
    assert f"| geometry/rankme | {values[0]:.4g} | {values[-1]:.4g} |" in card and len(values) == 3
    assert MONITORS["geometry"].paper.bibtex in card and MONITORS["attention"].paper.title not in card
