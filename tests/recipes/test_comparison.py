# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The report of `recipes/benchmarks/methods.py`: docs/comparison.md from the committed scores, without old runs."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "recipes" / "benchmarks"
SEEDS = [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def comparison():
    """The script and what it imports, as modules."""
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("comparison_of_methods", BENCHMARKS / "methods.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(BENCHMARKS))
    return module, sys.modules["methods_report"]


@pytest.fixture(scope="module")
def arms(comparison):
    return comparison[0].read_arms(BENCHMARKS / "methods.yaml", comparison[0].quickstart.RECIPE)


def test_committed_scores_are_those_of_the_document(comparison, arms, tmp_path, capsys):
    script, report = comparison
    scores = report.read_scores(script.SCORES_FILE, arms, SEEDS)
    assert list(scores.runs) == list(arms) and scores.left_out == 0
    assert all(list(rows) == SEEDS for rows in scores.runs.values())
    assert report.table(scores, arms) in (ROOT / "docs" / "comparison.md").read_text()
    paired = {line.split("|")[1].strip(" `"): line for line in report.table(scores, arms, True).splitlines()}
    assert "stock" not in paired and "| 0.08 | **+0.047 ± 0.012** | **-0.071 ± 0.016** |" in paired["kl_cov"]
    # The scores written equal those read, without runs of other settings.
    report.write_scores(scores, arms, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == script.SCORES_FILE.read_text()
    other = {**arms, "siren/1": {**arms["siren/1"], "siren_coef": 99.0}}
    changed = report.read_scores(script.SCORES_FILE, other, SEEDS[:2])
    assert changed.left_out == 2 and len(changed.runs) == len(arms) - 1
    script.report(report.Scores({}, {}, {}, 3), arms, tmp_path)
    assert capsys.readouterr().out.splitlines()[0].startswith("3 runs of other settings than those of methods.yaml")


def test_runs_of_other_settings_are_no_current_ones(comparison, arms, tmp_path, monkeypatch, capsys):
    script, report = comparison
    scores = dict.fromkeys(report.SCORES, 0.1)
    place = dict(log_token_entropies=0, logging_steps=9, output_dir="elsewhere", report_to="wandb", seed=1)
    for seed, changes in enumerate([place, {"siren_coef": 99.0}, {"new_setting": None}, {"epsilon": ...}]):
        settings = {key: value for key, value in {**arms["siren/1"], **changes}.items() if value is not ...}
        path = report.run_file(tmp_path, "siren/1", seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": settings, "scores": scores}))
    found = report.collect(tmp_path, arms, SEEDS, {})
    assert found.runs == {"siren/1": {0: scores}} and found.left_out == 3
    made = []
    monkeypatch.setattr(
        script,
        "train_arm",
        lambda name, settings, seed, *rest: made.append(seed) or {"settings": settings, "scores": scores},
    )
    monkeypatch.setattr(sys, "argv", ["methods.py", "--only", "siren", f"--output={tmp_path}"])
    monkeypatch.setattr(script, "warm_start", lambda cache: None)
    monkeypatch.setattr(script, "load_warm_start", lambda model: ())
    monkeypatch.setattr(script, "evaluate", lambda *arguments: scores)
    monkeypatch.setattr(script, "silence_libraries", lambda: None)
    monkeypatch.setattr(script.torch, "set_num_threads", lambda threads: None)
    script.main()
    assert len(made) == 5 * 4 - 1 and (tmp_path / "methods.png").exists()
    assert list(json.loads((tmp_path / "methods.json").read_text())["runs"]) == [
        "stock", "siren/1", "siren/2", "siren/3"
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["methods.py", "--report", f"--output={tmp_path / 'none'}"])
    monkeypatch.setattr(script, "plot", lambda *arguments: None)
    capsys.readouterr()
    script.main()
    printed = capsys.readouterr().out
    assert printed.startswith(f"From {script.SCORES_FILE}:") and "Differences to stock, paired by seed" in printed


def test_few_and_many_seeds(comparison, arms, tmp_path, capsys):
    script, report = comparison
    assert [round(report.student(freedom), 3) for freedom in (1, 2, 3, 4, 9, 10, 30, 200)] == [
        12.706, 4.303, 3.182, 2.776, 2.262, 2.228, 2.042, 1.972
    ]  # fmt: skip
    mean, half = report.interval([0.1 * number for number in range(11)])
    assert (mean, half) == (pytest.approx(0.5), pytest.approx(2.228139 * math.sqrt(0.11 / 11)))
    one = dict.fromkeys(report.SCORES, 0.25)
    script.report(report.Scores({"stock": {3: one}}, one, {}), arms, tmp_path)
    printed = capsys.readouterr().out
    assert "| `stock` |  | 0.250 | 0.250 | 0.250 | 0.250 | 0.25 | 0.250 | 0.2 |  | 1 |" in printed
    assert "nan" not in printed and "No plot" in printed and not (tmp_path / "methods.png").exists()
    script.report(report.Scores({}, {}, {}), arms, tmp_path)
    assert capsys.readouterr().out == "There is no run to report on.\n"
    for runs in ({"siren/1": {3: one}}, {"stock": {3: one}, "siren/1": {4: one}}):
        script.report(report.Scores(runs, one, {}), arms, tmp_path)
        assert "nan" not in capsys.readouterr().out and (tmp_path / "methods.png").exists()
