# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Several processes are one: statistics over `world` do not depend on how the batch is spread."""

import pytest
import torch
from support.distilling import distillation_results
from support.many_processes import GROUPED, METHODS, results
from support.processes import run_processes
from support.tiny import EXACT, build_model


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids="{} processes".format)
def many(request, tmp_path_factory):
    """The folder with what each of two, or four, processes found, and their number."""
    count, folder = request.param, tmp_path_factory.mktemp("many")
    return run_processes("many_processes.py", count, folder, timeout=120 * count), count


def of_each(many, file):
    folder, count = many
    return [torch.load(folder / f"{file}{rank}.pt", weights_only=False) for rank in range(count)]


@pytest.mark.parametrize("name", ["off_policy", "on_policy", "half_empty"])
def test_many_processes_equal_one(many, tmp_path, name):
    ranks = [found[name] for found in of_each(many, "rank")]
    for other in ranks[1:]:
        assert ranks[0]["metrics"] == pytest.approx(other["metrics"], nan_ok=True, abs=0, rel=0)
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


def test_generation_batch_of_many_processes_equals_one(many, tmp_path):
    one = results(tmp_path, 0, 1)[0]["group_advantages"]
    found = of_each(many, "rank")[0]["group_advantages"]
    torch.testing.assert_close(found, one, **EXACT)
    assert (one == 0).any(1).any() and (one != 0).any()


@pytest.mark.parametrize("name", GROUPED)
def test_groups_that_processes_share(many, tmp_path, name):
    one = results(tmp_path, 0, 1)[0][name]
    for found in (found[name] for found in of_each(many, "rank")):
        torch.testing.assert_close(found["advantages"], one["advantages"], rtol=1e-6, atol=1e-7)
        assert found["logged"] == pytest.approx(one["logged"], rel=1e-5) and len(one["logged"]) == 8
        assert found["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-7) and len(one["metrics"]) > 2
        torch.testing.assert_close(found["rewards"], one["rewards"], rtol=1e-6, atol=1e-7)
    assert one["advantages"].abs().max() > 0.1 and one["advantages"].isfinite().all()
    assert (one["rewards"].min() < 0) == (name == "shaped rewards")


def test_run_of_many_processes_stays_in_step(many):
    first, *others = of_each(many, "run")
    assert len(first["rows"]) == 4 and all(row["loss"] == row["loss"] for row in first["rows"])
    for run in others:
        torch.testing.assert_close(first["weights"], run["weights"], **EXACT)
        for row, other in zip(first["rows"], run["rows"], strict=True):
            assert row["aepo/temperature"] == other["aepo/temperature"]
            assert 0 <= row["aepo/auxiliary_positive_fraction"] == other["aepo/auxiliary_positive_fraction"] <= 1


@pytest.fixture(scope="module")
def one_distillation(tmp_path_factory):
    return distillation_results(tmp_path_factory.mktemp("one"), 0, 1)


@pytest.mark.parametrize("rule", ["soft_or", "entropy_sample", "q3"])
def test_distillation_in_many_processes_equals_one(many, one_distillation, rule):
    one = one_distillation[rule]
    for found in (found[rule] for found in of_each(many, "distillation")):
        torch.testing.assert_close(found["loss"], one["loss"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["gradients"], one["gradients"], rtol=1e-5, atol=3e-6)
        assert found["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-6, nan_ok=True)
        assert found["state"]["ranges"].keys() == one["state"]["ranges"].keys()
        for axis, ends in one["state"]["ranges"].items():
            assert found["state"]["ranges"][axis] == pytest.approx(ends, rel=1e-5)
    assert 0.3 < one["metrics"]["tip/kept_fraction"] < 0.5


def test_distillation_of_many_processes_stays_in_step(many):
    first, *others = of_each(many, "distillation_run")
    assert len(first["rows"]) == 2
    for run in others:
        torch.testing.assert_close(first["weights"], run["weights"], **EXACT)
        for row, other in zip(first["rows"], run["rows"], strict=True):
            assert row["tip/kept_fraction"] == other["tip/kept_fraction"] < 0.6 and row["loss"] == row["loss"]
    assert (many[0] / "distillation" / "tip_scatter.json").exists()


def test_many_processes_select_and_train_the_same_weights(many):
    first, *others = of_each(many, "kappa")
    for other in others:
        assert first["layers"] == other["layers"] and first["selected"] == other["selected"]
        torch.testing.assert_close(first["weights"], other["weights"], **EXACT)
    assert sum(bool(layer.kappas) for layer in first["layers"]) == 14
    before = build_model().state_dict()
    changed = {name for name, weight in first["weights"].items() if not torch.equal(weight, before[name])}
    assert changed == {f"{name}.weight" for name in first["selected"]} and len(changed) == 3
