# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`recipes/benchmarks/schedules.py`: runs, predictions of the annealing law, and the refined schedule."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from trl_entropy.countdown.model import WarmStart
from trl_entropy.countdown.task import Prompt
from trl_entropy.curves.annealing import Law
from trl_entropy.curves.refinement import NORMS_FILE, RefinedSchedule


BENCHMARKS = Path(__file__).parents[2] / "recipes" / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    """The script and its report."""
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    module, report = importlib.import_module("schedules"), importlib.import_module("schedules_report")
    sys.path[:] = before
    return module, report


def test_a_refined_run_follows_the_linear_one(modules, tmp_path, monkeypatch):
    schedules, report = modules
    rows = [Prompt((1, 2, 3, 4), 10), Prompt((2, 4, 6, 9), 17)]
    monkeypatch.setattr(schedules, "known_prompts", lambda held_out: rows)
    start = WarmStart(hidden_size=16, layers=1, heads=2, steps=20, batch_size=4, learning_rate=3e-2)
    setting = schedules.Setting(start, held_out=8, every=5)
    schedules.train("linear", 3, setting, tmp_path / "3" / "linear")
    norms = tmp_path / "3" / "linear" / NORMS_FILE
    assert len(norms.read_text().splitlines()) == 21
    # A schedule takes 100 norms. These fall, so the rates rise first.
    norms.write_text("step,l1,l2\n" + "".join(f"{step},{200 - step},1\n" for step in range(1, 151)))
    schedules.train(schedules.REFINED, 3, setting, tmp_path / "3" / schedules.REFINED)
    runs = schedules.collect(tmp_path)
    linear, refined = runs[3]["linear"], runs[3][schedules.REFINED]
    assert [line["step"] for line in linear if "eval_loss" in line] == [5, 10, 15, 20]
    assert report.end_of(linear) < 0.9 * linear[1]["eval_loss"]
    rates = [line["learning_rate"] for line in linear if "loss" in line]
    # The logged rate is that of the step itself. One is of warm-up.
    assert rates == pytest.approx([3e-2 * (21 - step) / 19 for step in (5, 10, 15, 20)], rel=1e-4)
    schedule = RefinedSchedule.load(tmp_path / "3" / schedules.REFINED / "schedule.json")
    rates = [line["learning_rate"] for line in refined if "loss" in line]
    assert rates == pytest.approx([3e-2 * schedule.over(20)(step - 1) for step in (5, 10, 15, 20)], rel=1e-4)
    assert schedule.steps == 150 and rates != sorted(rates, reverse=True)
    assert f"| linear | {report.end_of(linear):.4f} |  | 1 |" in report.refined_table(runs)


def test_the_law_predicts_runs_that_follow_it(modules, tmp_path):
    schedules, report = modules
    law, runs = Law(0.5, 0.4, 0.5, 0.3, 0.99), {0: {}}
    for name in report.DECAYING:
        rates = 1e-2 * np.array(schedules.factors(name, 600, tmp_path))
        losses = law.predict(rates)
        runs[0][name] = [
            {"step": step, "learning_rate": rates[step - 1], "loss": 1.0, "eval_loss": losses[step - 1]}
            for step in range(1, 601, 3)
        ]
    rows = report.predictions(runs)
    assert [row["fitted"] for row in rows if row["predicted"] == "linear"] == ["wsd", "cosine", "wsd + cosine"]
    for row in rows:
        assert abs(row["misses"]) < 0.02 * row["seen"] and row["baseline"] != 0
        others = [report.end_of(runs[0][name]) for name in row["fitted"].split(" + ")]
        assert row["baseline"] == pytest.approx(sum(others) / len(others) - row["seen"])
    assert report.prediction_table(rows).count("\n") == 1 + len(rows) == 10
    report.draw(json.loads(json.dumps(runs)), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
