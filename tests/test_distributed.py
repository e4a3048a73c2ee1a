# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Two processes are one: statistics over `world` do not depend on how the batch is spread."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import EXACT, build_model
from distilling import two_process_results
from two_processes import GROUPED, METHODS, results


HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = dict(
        WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="1"
    )
    shared["PYTHONPATH"] = f"{HERE.parent}:{HERE}"
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "two_processes.py"), str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.mark.parametrize("name", ["off_policy", "on_policy", "half_empty"])
def test_two_processes_equal_one(two, tmp_path, name):
    ranks = [torch.load(two / f"rank{rank}.pt")[name] for rank in (0, 1)]
    assert ranks[0]["metrics"] == pytest.approx(ranks[1]["metrics"], nan_ok=True, abs=0, rel=0)
    one = results(tmp_path, 0, 1)[0][name]
    torch.testing.assert_close(ranks[0]["loss"], one["loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ranks[0]["gradients"], one["gradients"], rtol=1e-5, atol=3e-6)
    assert ranks[0]["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-6, nan_ok=True)
    for method, state in one["states"].items():
        flat, expected = ({k: v for k, v in s.items() if not isinstance(v, dict)} for s in (ranks[0]["states"][method], state))  # fmt: skip
        assert flat == pytest.approx(expected, rel=1e-5)
    # Which act on generation batches where there is more than one update.
    acted = set(METHODS) if name == "on_policy" else set(METHODS) - {"clip_b", "clip_v"}
    assert {key.split("/")[0] for key in one["metrics"]} == {*acted, "entropy"}
    assert one["metrics"]["clip_cov/kept_fraction"] < 1 and one["metrics"]["kl_cov/selected_fraction"] > 0


def test_generation_batch_of_two_processes_equals_one(two, tmp_path):
    one = results(tmp_path, 0, 1)[0]["group_advantages"]
    found = torch.load(two / "rank0.pt")["group_advantages"]
    torch.testing.assert_close(found, one, **EXACT)
    assert (one == 0).any(1).any() and (one != 0).any()


@pytest.mark.parametrize("name", GROUPED)
def test_groups_that_two_processes_share(two, tmp_path, name):
    one = results(tmp_path, 0, 1)[0][name]
    for rank in (0, 1):
        found = torch.load(two / f"rank{rank}.pt")[name]
        torch.testing.assert_close(found["advantages"], one["advantages"], rtol=1e-6, atol=1e-7)
        assert found["logged"] == pytest.approx(one["logged"], rel=1e-5) and len(one["logged"]) == 8
        assert found["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-7) and len(one["metrics"]) > 2
    assert one["advantages"].abs().max() > 0.1 and one["advantages"].isfinite().all()


def test_run_of_two_processes_stays_in_step(two):
    runs = [torch.load(two / f"run{rank}.pt") for rank in (0, 1)]
    torch.testing.assert_close(runs[0]["weights"], runs[1]["weights"], **EXACT)
    assert len(runs[0]["rows"]) == 4 and all(row["loss"] == row["loss"] for row in runs[0]["rows"])
    for row, other in zip(runs[0]["rows"], runs[1]["rows"], strict=True):
        assert row["aepo/temperature"] == other["aepo/temperature"]
        assert 0 <= row["aepo/auxiliary_positive_fraction"] == other["aepo/auxiliary_positive_fraction"] <= 1


@pytest.mark.parametrize("rule", ["soft_or", "entropy_sample", "q3"])
def test_distillation_in_two_processes_equals_one(two, one_distillation, rule):
    one = one_distillation[rule]
    for rank in (0, 1):
        found = torch.load(two / f"distillation{rank}.pt")[rule]
        torch.testing.assert_close(found["loss"], one["loss"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["gradients"], one["gradients"], rtol=1e-5, atol=3e-6)
        assert found["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-6, nan_ok=True)
        assert found["state"]["ranges"].keys() == one["state"]["ranges"].keys()
        for axis, ends in one["state"]["ranges"].items():
            assert found["state"]["ranges"][axis] == pytest.approx(ends, rel=1e-5)
    assert 0.3 < one["metrics"]["tip/kept_fraction"] < 0.5


@pytest.fixture(scope="module")
def one_distillation(tmp_path_factory):
    return two_process_results(tmp_path_factory.mktemp("one"), 0, 1)


def test_distillation_of_two_processes_stays_in_step(two):
    runs = [torch.load(two / f"distillation_run{rank}.pt") for rank in (0, 1)]
    torch.testing.assert_close(runs[0]["weights"], runs[1]["weights"], **EXACT)
    assert len(runs[0]["rows"]) == 2
    for row, other in zip(runs[0]["rows"], runs[1]["rows"], strict=True):
        assert row["tip/kept_fraction"] == other["tip/kept_fraction"] < 0.6 and row["loss"] == row["loss"]
    assert (two / "distillation" / "tip_scatter.json").exists()


def test_two_processes_select_and_train_the_same_weights(two):
    ranks = [torch.load(two / f"kappa{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert ranks[0]["layers"] == ranks[1]["layers"] and ranks[0]["selected"] == ranks[1]["selected"]
    assert sum(bool(layer.kappas) for layer in ranks[0]["layers"]) == 14
    torch.testing.assert_close(ranks[0]["weights"], ranks[1]["weights"], **EXACT)
    before = build_model().state_dict()
    changed = {name for name, weight in ranks[0]["weights"].items() if not torch.equal(weight, before[name])}
    assert changed == {f"{name}.weight" for name in ranks[0]["selected"]} and len(changed) == 3
