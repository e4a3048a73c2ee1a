# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Several processes equal one: `world` statistics do not depend on how the batch is split."""

import os

import pytest
import torch
from filelock import FileLock
from support import registry
from support.distilling import distillation_results
from support.many_processes import (
    CONTROLLERS,
    SPLITS,
    controlled,
    grouped,
    monitored,
    replayed,
    results,
    rewards_of,
    uncertain,
)
from support.processes import run_processes
from support.thermostat_runs import strengths
from support.tiny import EXACT, build_model

from trl_entropy.methods import METHODS
from trl_entropy.trainers.replay_files import read_rows


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids="{} processes".format)
def many(request, tmp_path_factory):
    """The folder with the results of each of two or four processes, and their number. Workers of pytest share it."""
    count, root = request.param, tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / f"many{count}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            run_processes("many_processes.py", count, folder, timeout=400 * count)
            (folder / "done").touch()
    return folder, count


def of_each(many, file):
    folder, count = many
    return [torch.load(folder / f"{file}{rank}.pt", weights_only=False) for rank in range(count)]


# Shares of tokens on which a method acts off policy.
ACTING = (
    "erc/dropped_fraction", "m2po/clip_fraction", "ce_gppo/low_fraction", "ce_gppo/high_fraction",
    "simko/top1_fraction", "entropic/likely_fraction", "entropy_advantage/capped_fraction",
)  # fmt: skip
SETS = dict(enumerate(registry.forward_sets()))


@pytest.mark.parametrize("name", ["off_policy", "on_policy", "half_empty"])
@pytest.mark.parametrize("number", SETS)
def test_many_processes_equal_one(many, tmp_path, number, name):
    methods = SETS[number]
    ranks = [found[number][name] for found in of_each(many, "rank")]
    for other in ranks[1:]:
        assert ranks[0]["metrics"] == pytest.approx(other["metrics"], nan_ok=True, abs=0, rel=0)
    one = results(tmp_path, 0, 1, methods)[0][name]
    torch.testing.assert_close(ranks[0]["loss"], one["loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ranks[0]["gradients"], one["gradients"], rtol=1e-5, atol=3e-6)
    assert ranks[0]["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-6, nan_ok=True)
    for method, state in one["states"].items():
        flat, expected = (
            {key: value for key, value in found.items() if not isinstance(value, dict)}
            for found in (ranks[0]["states"][method], state)
        )
        assert flat == pytest.approx(expected, rel=1e-5)
    # Off policy, methods may act in the hook for generation batches instead, as Clip_B and Clip_V do.
    before = {method for method in methods if registry.acts(method, ("group_advantages",))}
    acted = {key.split("/")[0] for key in one["metrics"]} - {"entropy"}
    assert set(methods) - before <= acted <= set(methods)
    assert {"clip_b", "clip_v"} & acted == ({"clip_b", "clip_v"} if name == "on_policy" else set())
    assert (
        one["metrics"].get("clip_cov/kept_fraction", 0) < 1 and one["metrics"].get("kl_cov/selected_fraction", 1) > 0
    )
    if name == "off_policy":  # and these act, so that the comparison is one of their work
        assert all(0 < one["metrics"][key] < 1 for key in ACTING if key.split("/")[0] in methods)


@pytest.mark.parametrize("number", SETS)
def test_generation_batch_of_many_processes_equals_one(many, tmp_path, number):
    one = results(tmp_path, 0, 1, SETS[number])[0]["group_advantages"]
    found = of_each(many, "rank")[0][number]["group_advantages"]
    torch.testing.assert_close(found, one, **EXACT)
    assert (one == 0).any(1).any() and (one != 0).any()


def record_changes(monkeypatch, names):
    """By method: whether its hook for generation batches changed the advantages, from the next call on."""
    changed = {}

    def spied(name, hook):
        def group_advantages(method, rollouts):
            found, logs = hook(method, rollouts)
            changed[name] = not torch.equal(found, rollouts.advantages)
            return found, logs

        return group_advantages

    for name in names:
        if registry.acts(name, ("group_advantages",)):
            monkeypatch.setattr(METHODS[name], "group_advantages", spied(name, METHODS[name].group_advantages))
    return changed


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_controllers_of_the_entropy_bonus_see_all_processes(many, tmp_path, controller):
    one = controlled(tmp_path, 0, 1, controller)
    for found in (found[controller] for found in of_each(many, "rank")):
        for name, values in one.items():
            assert found[name] == pytest.approx(values, rel=1e-6), name
    assert len({values["entropy_coef"] for values in one.values()}) == 3  # each batch moved it


def test_monitors_see_the_sequences_of_all_processes(many, tmp_path):
    one = monitored(tmp_path, 0, 1)
    assert one["geometry/samples"] == 6 and len(one) > 10
    assert one["step_radius/r_max"] > 1 and one["weight_norms/ratio_mean"] == pytest.approx(1.1)
    assert one["weight_norms/change_mean"] == pytest.approx(0.1, rel=1e-4)
    for found in (found["monitors"] for found in of_each(many, "rank")):
        assert found == pytest.approx(one, rel=1e-5, nan_ok=True)


def test_uncertainty_is_of_the_completions_of_all_processes(many, tmp_path):
    one = uncertain(tmp_path, 0, 1)
    assert 0 < one["eval_epr/auroc"] < 1 and len(one) == 3
    for found in (found["uncertainty"] for found in of_each(many, "rank")):
        assert found == pytest.approx(one, rel=1e-5)


def test_thermostat_sees_all_processes(many, tmp_path):
    first, *others = [found["thermostat"] for found in of_each(many, "rank")]
    assert all(other == first for other in others)
    one = strengths(tmp_path, 0, 1)
    for name, last in (("off_policy", 4), ("on_policy", 3)):
        assert [row[2] for row in one[name]][-1] == last and one[name][-1][0] > 1e-6
        for found, expected in zip(first[name], one[name], strict=True):
            assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", registry.group_runs())
def test_groups_that_processes_share(many, tmp_path, monkeypatch, name):
    run = registry.group_runs()[name]
    changed = record_changes(monkeypatch, run["methods"])
    one = grouped(tmp_path, 0, 1, **run)
    assert all(changed.values()), changed
    for found in (found[name] for found in of_each(many, "rank")):
        torch.testing.assert_close(found["advantages"], one["advantages"], rtol=1e-6, atol=1e-7)
        assert found["logged"] == pytest.approx(one["logged"], rel=1e-5)
        assert found["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-7, nan_ok=True)
        torch.testing.assert_close(found["rewards"], one["rewards"], rtol=1e-6, atol=1e-7)
    changes_advantages = any(registry.acts(method, ("group_advantages",)) for method in run["methods"])
    assert len(one["logged"]) == 8 * changes_advantages
    assert {key.split("/")[0] for key in one["metrics"]} == set(run["methods"])
    assert len(one["metrics"]) > 2 or len(run["methods"]) == 1
    assert one["advantages"].abs().max() > 0.1 and one["advantages"].isfinite().all()
    shaped = any(METHODS[method].shapes_reward for method in run["methods"])
    assert torch.equal(one["rewards"][:, :1], rewards_of(run.get("rewards"))) != shaped
    if not shaped or "pear" in run["methods"]:
        assert (one["rewards"].min() < 0) == shaped


def test_run_of_many_processes_stays_in_step(many):
    first, *others = of_each(many, "run")
    assert len(first["rows"]) == 4 and all(row["loss"] == row["loss"] for row in first["rows"])
    for run in others:
        torch.testing.assert_close(first["weights"], run["weights"], **EXACT)
        for row, other in zip(first["rows"], run["rows"], strict=True):
            assert row["aepo/temperature"] == other["aepo/temperature"]
            assert row["gradient_norms/l1"] == other["gradient_norms/l1"] > row["gradient_norms/l2"]
            assert row["gradient_norms/l2"] == pytest.approx(other["grad_norm"], rel=1e-6) and row["grad_norm"] > 0.01
            assert row["step_radius/scale"] == other["step_radius/scale"] <= 1
            assert ("weight_norms/ratio_max" in row) is (row["step"] != 3)
            assert 0 <= row["aepo/auxiliary_positive_fraction"] == other["aepo/auxiliary_positive_fraction"] <= 1
    assert min(row["step_radius/scale"] for row in first["rows"]) < 1
    assert len((many[0] / "run" / "gradient_norms.csv").read_text().splitlines()) == 5  # of one process


@pytest.mark.parametrize("loss_type", ["dapo", "dr_grpo"])
@pytest.mark.parametrize("name", SPLITS[2])
def test_a_replay_of_many_processes_is_that_of_one(many, tmp_path, name, loss_type):
    """Baseline, choice, gradients, draws and metrics, however the sequences lie on the processes."""
    one = replayed(tmp_path, 0, 1, (9,), loss_type)
    assert len(one["advantages"]) == 4 and one["metrics"]["spear/kept_fraction"] < 1
    for found in (found["replay", name, loss_type] for found in of_each(many, "rank")):
        assert torch.equal(found["advantages"], one["advantages"]) and found["items"] == one["items"]
        assert found["left"] == one["left"] == 0
        torch.testing.assert_close(found["loss"], one["loss"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["gradients"], one["gradients"], rtol=1e-5, atol=3e-6)
        assert found["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-6)


def test_run_that_replays_in_many_processes_stays_in_step(many):
    first, *others = of_each(many, "replay")
    assert any(row.get("spear/replayed_rows") for row in first["rows"]) and len(first["rows"]) == 8
    assert [len(batch) for batch in first["baseline"]] == [2] * 4  # of groups that span the processes
    for run in others:
        torch.testing.assert_close(first["weights"], run["weights"], **EXACT)
        assert run["baseline"] == first["baseline"]
        for row, other in zip(first["rows"], run["rows"], strict=True):
            keys = {key for key in row if key.startswith("spear/")}
            assert {key: row[key] for key in keys} == pytest.approx({key: other[key] for key in keys}, abs=0)
    files = sorted(path.name for path in (many[0] / "replay" / "checkpoint-8").glob("spear_*"))
    assert files == [f"spear_replay_{rank}.safetensors" for rank in range(many[1])]
    rows = [read_rows(str(many[0] / "replay" / "checkpoint-8" / file)) for file in files]
    assert [len(own) for own in rows] == [run["stored"] for run in (first, *others)]


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
