# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's ZeRO on two CPU processes: logs and weights are those of DDP. `make test-deepspeed` runs this file."""

import json
from itertools import product

import pytest
import torch
from accelerate.utils import is_deepspeed_available
from support.deepspeed_processes import RUNS, STAGES, ZERO3_RUNS
from support.processes import run_processes
from support.registry import covered
from support.tiny import EXACT, build_model


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_deepspeed_available(), reason="needs DeepSpeed, which `make test-deepspeed` installs"),
]
# The same float32 operations in other orders. Before the first update only sums differ, by 1e-6 of their size. AdamW
# divides each gradient by its size, so small ones move weights by their rounding: by at most 2e-5 in these runs, where
# three steps move weights by up to 0.1. Norms of later gradients then differ by up to 3e-5 of their size.
FIRST, LATER, WEIGHTS = dict(rel=3e-6, abs=1e-6), dict(rel=1e-4, abs=1e-5), dict(rtol=0, atol=5e-5)


@pytest.fixture(scope="module")
def found(request, tmp_path_factory):
    """What both processes found: runs of the methods whose tests are run, and if there are other tests, all others."""
    folder = tmp_path_factory.mktemp("deepspeed")
    items = [item for item in request.session.items if item.path == request.path]
    params = [item.callspec.params if hasattr(item, "callspec") else {} for item in items]
    chosen = [name for name in covered() if {"methods": [name]} in params]
    others = any("methods" not in found for found in params)
    (folder / "chosen.json").write_text(json.dumps({"methods": chosen, "others": others}))
    build_model().save_pretrained(folder / "model")
    run_processes("deepspeed_processes.py", 2, folder, timeout=1500)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def compare(first, second, weights=WEIGHTS):
    assert len(first["rows"]) == len(second["rows"]) > 2
    for number, (row, other) in enumerate(zip(first["rows"], second["rows"], strict=True)):
        assert row.keys() == other.keys()
        tolerance = LATER if number else FIRST
        for key in row.keys() - {"step_time"}:
            expected = None if other[key] is None else pytest.approx(other[key], nan_ok=True, **tolerance)
            assert row[key] == expected, key
    torch.testing.assert_close(first["weights"], second["weights"], **weights)


@pytest.mark.parametrize(
    "stage, name", [*product(STAGES, RUNS), *(("zero3", name) for name in ZERO3_RUNS)], ids=lambda value: value
)
def test_zero_is_ddp(found, stage, name):
    for part in found:
        run, ddp = part[stage, name], part["ddp", name]
        assert (run["kind"], ddp["kind"]) == ("DistributedType.DEEPSPEED", "DistributedType.MULTI_CPU")
        assert run["sharded"] == (stage == "zero3")
        compare(run, ddp)
    torch.testing.assert_close(found[0][stage, name]["weights"], found[1][stage, name]["weights"], **EXACT)


def test_runs_are_of_what_they_name(found):
    """Each differs from the run without it, and what it sets has moved."""
    runs = {name: found[0]["zero3", name] for name in RUNS}
    before, plain = build_model().state_dict(), runs["none"]["weights"]
    assert max((plain[name] - before[name]).abs().max() for name in plain) > 0.05
    for name in runs.keys() - {"none", "adapter", "tip"}:
        assert max((runs[name]["weights"][key] - plain[key]).abs().max() for key in plain) > 1e-3, name
    adapted = {key for key in runs["adapter"]["weights"] if "lora_" in key}
    assert len(adapted) == 8 and len({row["loss"] for row in runs["adapter"]["rows"]}) == 3
    assert runs["aepo reweight"]["rows"][-1]["aepo/temperature"] != 1
    assert runs["pi"]["rows"][-1]["entropy_coef"] > 0
    assert any("entropy_keep/strength" in row for row in runs["thermostat"]["rows"])
    assert any("entropy_keep/strength" in row for row in runs["thermostat on policy"]["rows"])
    assert all(0.3 < row["tip/kept_fraction"] < 0.6 for row in runs["tip"]["rows"])


@pytest.mark.compatibility("2 processes (ZeRO-3)")
@pytest.mark.parametrize("methods", [[name] for name in covered()], ids="+".join)
def test_methods_under_zero3(found, methods):
    for part in found:
        assert part["zero3", methods[0]]["sharded"]
        compare(part["zero3", methods[0]], part["ddp", methods[0]])


def test_model_that_is_loaded_in_parts(found):
    """With a reference model, which DeepSpeed shards too."""
    for part in found:
        assert part["zero3", "loaded"]["sharded"]
        compare(part["zero3", "loaded"], part["ddp", "loaded"])
        assert part["zero3", "loaded"]["rows"][-1]["kl"] > 0.1


def test_resumed_run_is_the_whole_one(found):
    for part in found:
        whole, resumed = part["whole"], part["resumed"]
        assert len(whole["rows"]) == 4 and "siren/anchor" in resumed["rows"][-1]
        compare(resumed, whole, EXACT)
        torch.testing.assert_close(part["saved"], whole["weights"], **EXACT)  # in model.safetensors of a checkpoint


def test_head_is_compared_with_the_plain_logits(found):
    """In the first forward, once the model is sharded."""
    for part in found:
        for (_, field), message in part["refusals"].items():
            name = "teacher_model" if field == "teacher" else field
            assert message.startswith(f"`{name}` must be a model whose logits are its last hidden state times")
        assert len(part["refusals"]) == 3
