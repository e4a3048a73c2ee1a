# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sharded parameters: under FSDP2 loss, gradients and weights are those of the whole model."""

import json

import pytest
import torch
from support.processes import run_processes
from support.registry import covered
from support.sharded_processes import method_sets
from support.tensors import make_loss_batch
from support.tiny import EXACT, FLOAT32, build_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from trl.trainer.utils import add_fused_lm_head

from trl_entropy.head import add_entropy_head
from trl_entropy.head.forwards import bind_to_module
from trl_entropy.methods import METHODS


@pytest.fixture
def mesh(tmp_path):
    """A process group with this process only."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_head_of_a_sharded_model(mesh):
    """The head reads a weight that is gathered for the forward, freed, and gathered again for the backward."""
    batch = make_loss_batch()
    results = []
    for sharded in (False, True):
        model = build_model()
        add_entropy_head(model, statistics=("second_moments", "nucleus_entropy"))
        if sharded:
            for layer in model.model.layers:
                fully_shard(layer, mesh=mesh, reshard_after_forward=True)
            fully_shard(model, mesh=mesh, reshard_after_forward=True)
            assert isinstance(model.lm_head.weight, DTensor)
        ids, labels = batch["completion_ids"], batch["completion_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        outputs = model(input_ids=ids, labels=labels, fused_lm_head=True, use_cache=False)
        loss = (outputs.log_probs + 0.3 * outputs.entropy + outputs.nucleus_entropy).sum()
        loss.backward()
        gradients = {name: value.grad for name, value in model.named_parameters()}
        gradients = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()}
        results.append((loss.detach(), outputs.sum_sq_probs, gradients))
    torch.testing.assert_close(results[1], results[0], **FLOAT32)
    assert results[0][2]["lm_head.weight"].abs().max() > 0.01


def test_trl_head_of_a_sharded_model_that_masks_words(mesh):
    """The bias is sharded, too."""
    batch, results = make_loss_batch(), []
    ids = batch["completion_ids"].clamp(max=19)
    for sharded in (False, True):
        model, head = build_model(), torch.nn.Linear(16, 24)
        head.weight.data = model.lm_head.weight.data.clone()
        head.bias.data = torch.zeros(24).masked_fill(torch.arange(24) >= 20, -torch.inf)
        model.lm_head = head
        add_fused_lm_head(model, 0.7, outputs=("log_probs", "entropy"))
        bind_to_module(model)
        expected = model(input_ids=ids).logits[:, :-1, :20].detach().div(0.7).softmax(-1)
        if sharded:
            fully_shard(model, mesh=mesh, reshard_after_forward=True)
            assert isinstance(model.lm_head.bias, DTensor)
        outputs = model(input_ids=ids, labels=ids, fused_lm_head=True, use_cache=False)
        torch.testing.assert_close(outputs.entropy, -(expected * expected.log()).sum(-1), **FLOAT32)
        outputs.entropy.sum().backward()
        gradients = {name: value.grad for name, value in model.named_parameters()}
        results.append({name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()})
    torch.testing.assert_close(results[1], results[0], **FLOAT32)
    assert results[0]["lm_head.weight"].isfinite().all() and results[0]["lm_head.weight"].abs().max() > 0.01


@pytest.fixture(scope="module")
def found(request, tmp_path_factory):
    """What both processes found, for the methods of the tests that are run and for none."""
    folder = tmp_path_factory.mktemp("sharded")
    items = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    chosen = {item.callspec.params["methods"][0] for item in items} | {"none"}
    (folder / "chosen.json").write_text(json.dumps([name for name in method_sets() if name in chosen]))
    run_processes("sharded_processes.py", 2, folder, timeout=1500)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


KEYS = ("loss", "grad_norm", "entropy", "gradient_norms/l1", "gradient_norms/l2", "weight_norms/ratio_max")
KEYS += ("weight_norms/ratio_mean", "step_radius/full_max", "step_radius/r_99")


def compare(first, second, keys=KEYS):
    for row, other in zip(first["rows"], second["rows"], strict=True):
        for key in (*keys, *(key for key in row if key.split("/")[0] in METHODS)):
            expected = None if other[key] is None else pytest.approx(other[key], rel=1e-3, abs=1e-5)
            assert row[key] == expected, key
    torch.testing.assert_close(first["weights"], second["weights"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.compatibility("2 processes (DDP)")
@pytest.mark.parametrize("methods", [[name] for name in covered()], ids="+".join)
def test_ddp(found, methods):
    ranks = [part["ddp", methods[0]] for part in found]
    torch.testing.assert_close(ranks[0]["weights"], ranks[1]["weights"], **EXACT)
    assert ranks[0]["kind"] == "DistributedType.MULTI_CPU" and len(ranks[0]["rows"]) == 3
    assert all(value.isfinite().all() for value in ranks[0]["weights"].values())
    plain = found[0].get(("ddp", f"none, as {methods[0]}"), found[0]["ddp", "none"])["weights"]
    assert any(not torch.equal(value, plain[name]) for name, value in ranks[0]["weights"].items())


@pytest.mark.slow
@pytest.mark.compatibility("2 processes (FSDP2)")
@pytest.mark.parametrize("methods", [[name] for name in covered()], ids="+".join)
def test_fsdp_is_ddp(found, methods):
    for part in found:
        sharded = part["fsdp", methods[0]]
        assert sharded["sharded"] and sharded["kind"] == "DistributedType.FSDP"
        compare(sharded, part["ddp", methods[0]])


@pytest.mark.slow
def test_fsdp_resumes(found):
    for part in found:
        compare(part["resumed"], part["whole"])
        assert len(part["resumed"]["rows"]) == 4 and "siren/anchor" in part["resumed"]["rows"][-1]
