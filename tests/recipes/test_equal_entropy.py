# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`recipes/benchmarks/equal_entropy.py`: deviations from a target, and differences at equal entropy."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parents[2] / "recipes" / "benchmarks"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(BENCHMARKS))
    found = importlib.import_module("equal_entropy")
    sys.path.remove(str(BENCHMARKS))
    return found


def history(deviations, strengths=None):
    """Four batches without a target, then one per deviation, with a target of 0.1 nats."""
    rows = [{"step": 4, "entropy_keep/entropy": 0.2}] * 4
    for number, deviation in enumerate(deviations):
        strength = strengths[number] if strengths else 1.0
        rows.append(
            {
                "entropy_keep/entropy": 0.1 * math.exp(deviation),
                "entropy_keep/target": 0.1,
                "entropy_keep/strength": strength,
            }
        )
    return rows


def test_deviations_of_a_run(script):
    # 36 batches have a target. The last half of all 40 are the last 20 of them.
    deviations = [0.5] * 6 + [0.0] * 5 + [-0.1] * 5 + [0.02, -0.02] * 10
    found = script.held(history(deviations, [3.0] * 16 + [float(n) for n in range(1, 21)]))
    assert found["mean"] == pytest.approx(0) and found["rms"] == pytest.approx(0.02)
    assert found["rms_10"] == pytest.approx(0, abs=1e-12)
    # The first five with a mean of 0 are those from the eleventh batch (4 + 6 + 1) to the fifteenth.
    assert found["reached"] == 15 and found["lowest"] == pytest.approx(math.exp(-0.1) - 1)
    assert found["strength"] == 10.5 and found["strength_low"] == pytest.approx(2.1)
    assert found["strength_high"] == pytest.approx(18.9)
    never = script.held(history([0.5] * 36))
    assert never["reached"] is None and never["lowest"] is None and never["mean"] == pytest.approx(0.5)


def test_tables_of_stored_runs(script, tmp_path, monkeypatch, capsys):
    plan = script.read_plan(script.HERE / "equal_entropy.yaml", script.COUNTDOWN.recipe)

    def leave(arm, seed, passed, **changes):
        path = script.run_file(tmp_path, arm, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        end = {"entropy": 0.1, "pass@1": passed, "pass@16": 0.8, "distinct": 2.0, "coverage": 0.2}
        run = {"settings": plan.arms[arm] | changes, "points": [end], "history": history([0.01] * 36)}
        path.write_text(json.dumps(run))

    for seed, shift in enumerate((0.0, 0.02)):
        leave("entropy_coef/1", seed, 0.3)
        leave("entropy_coef_quarter/1", seed, 0.1)
        leave("clip_cov/1", seed, 0.25 + shift)
        leave("clip_cov_quarter/1", seed, 0.15)
    leave("stock", 0, 0.4)
    leave("clip_v/1", 0, 0.9, max_steps=1)  # of other settings
    monkeypatch.setattr(sys, "argv", ["equal_entropy.py", f"--output={tmp_path}"])
    script.main()
    text = capsys.readouterr().out
    assert "| `clip_cov` | 0.9 | 1 | +0.010 | 0.010 | 0.010 | 9 | +1% | 1 (1 to 1) |" in text
    # -0.05 and -0.03: mean -0.04, half-width 12.706 * 0.0141 / sqrt(2).
    assert "| `clip_cov` | 0.9 | -0.040 ± 0.127 | +0.000 ± 0.000 |" in text
    assert "| `clip_cov_quarter` | 0.9 | **+0.050 ± 0.000** |" in text
    assert "| `entropy_coef` | 0.9 | 0.300 ± 0.000 |" in text and "| `stock` |  | 0.400 |" in text
    assert "clip_v" not in text
    monkeypatch.setattr(sys, "argv", ["equal_entropy.py", f"--scores={tmp_path / 'equal_entropy_held.json'}"])
    script.main()
    assert capsys.readouterr().out == text


def test_without_runs_it_says_so(script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["equal_entropy.py", f"--output={tmp_path}"])
    with pytest.raises(SystemExit, match="no finished run of .*equal_entropy.yaml"):
        script.main()
