# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Weight norms: against literals, with LoRA, in a resumed run, and the projection."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from support.tiny import EXACT, build_model, build_trainer
from torch import nn

from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer
from trl_entropy.monitors.adapters import adapted_weights
from trl_entropy.monitors.base import Run
from trl_entropy.monitors.sharded import norms
from trl_entropy.monitors.weight_norms import (
    FILE,
    WeightNorms,
    WeightNormsConfig,
    norm_numbers,
    project,
    trained_matrices,
)
from trl_entropy.settings import default_of


BEFORE = torch.tensor([[3.0, 4], [0, 0]], dtype=torch.float64)
AFTER = torch.tensor([[3.3, 4.1], [0.1, 0]], dtype=torch.float64)
KEYS = ("ratio_mean", "ratio_max", "effective_lr_ratio")


def monitor_of(model, folder, step=0, **fields):
    known = {name: default_of(field) for name, field in WeightNormsConfig.__dataclass_fields__.items()}
    monitor = WeightNorms(SimpleNamespace(**known | dict(monitor_steps=50) | fields))
    monitor.check_model(model)
    monitor.begin(model, Run(folder, step, True))
    return monitor


def module_of(*weights):
    model = nn.Module()
    for number, weight in enumerate(weights):
        model.add_module(f"part{number}", nn.Linear(*reversed(weight.shape), bias=False, dtype=weight.dtype))
        model.get_submodule(f"part{number}").weight.data.copy_(weight)
    return model


def test_worked_example(tmp_path):
    model = module_of(BEFORE, torch.zeros(2, 2, dtype=torch.float64))  # a weight of 0 is left out
    monitor = monitor_of(model, tmp_path, weight_norms_reference="cpu")
    model.part0.weight.data.copy_(AFTER)
    monitor.after_step(model, 1)
    found = monitor.numbers()
    ratio = 1.0528057751
    assert found["ratio_mean"] == pytest.approx(ratio, abs=1e-9) == found["ratio_max"]
    assert found["effective_lr_ratio"] == pytest.approx(25 / 27.71, abs=1e-9)  # ‖W_0‖² / ‖W‖²
    assert found["change_mean"] == pytest.approx(0.0663324958, abs=1e-9)
    assert monitor.numbers() == {}  # each measurement is logged once
    project([model.part0.weight], torch.tensor([5.0], dtype=torch.float64))
    # 5 / √27.71 times the weight
    expected = torch.tensor([[3.1344812863, 3.8943555375], [0.0949842814, 0]], dtype=torch.float64)
    torch.testing.assert_close(model.part0.weight.detach(), expected, rtol=0, atol=1e-9)


def test_means_over_weights():
    found = norm_numbers(torch.tensor([1.0, 2, 0]), torch.tensor([2.0, 1, 7]))
    assert found == {"ratio_mean": 1.25, "ratio_max": 2, "effective_lr_ratio": (0.25 + 4) / 2}
    assert all(math.isnan(value) for value in norm_numbers(torch.zeros(1), torch.ones(1)).values())
    # In half precision the sum of 4096 ones would stop at 256.
    assert norms([torch.ones(64, 64, dtype=torch.bfloat16), torch.tensor([[3.0, 4]])]).tolist() == [64, 5]
    zero = torch.zeros(1, 2)
    project([zero], torch.tensor([3.0]))
    assert zero.tolist() == [[0, 0]]


SETTINGS = dict(max_steps=4, monitor_steps=2)


def lines_of(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


def logged(line):
    return {key.partition("/")[2]: value for key, value in line.items() if key.startswith("weight_norms/")}


def literal(start, now):
    """The numbers of matrices before and now, from their definitions."""
    names = [name for name, weight in now.items() if weight.dim() == 2]
    ratios = [float(now[name].double().norm() / start[name].double().norm()) for name in names]
    changes = [float((now[n].double() - start[n].double()).norm() / start[n].double().norm()) for n in names]
    found = [sum(ratios) / len(ratios), max(ratios), sum(ratio**-2 for ratio in ratios) / len(ratios)]
    return dict(zip(KEYS, found, strict=True)) | {"change_mean": sum(changes) / len(changes)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    plain = build_trainer(EntropyGRPOTrainer, EntropyGRPOConfig, folder / "plain", **SETTINGS)
    plain.train()
    settings = SETTINGS | dict(monitors=["weight_norms"], weight_norms_reference="cpu")
    watched = build_trainer(EntropyGRPOTrainer, EntropyGRPOConfig, folder / "watched", **settings)
    watched.train()
    return plain, watched, folder


def test_a_run_is_the_same_to_the_bit(pair):
    plain, watched, _ = pair
    assert [set(logged(line)) for line in lines_of(watched)] == [{*KEYS, "change_mean"}] * 2 + [
        set(),
        {*KEYS, "change_mean"},
    ]
    assert [line["loss"] for line in lines_of(plain)] == [line["loss"] for line in lines_of(watched)]
    for name, weight in plain.model.state_dict().items():
        torch.testing.assert_close(watched.model.state_dict()[name], weight, **EXACT)


def test_numbers_are_those_of_the_weights(pair):
    watched = pair[1]
    expected = literal(build_model().state_dict(), watched.model.state_dict())
    assert logged(lines_of(watched)[3]) == pytest.approx(expected, rel=1e-5)
    assert expected["ratio_max"] > 1.005 and expected["change_mean"] > 0.1


def test_a_resumed_run_compares_with_the_same_weights(pair, make_trainer, tmp_path, caplog):
    settings = dict(
        SETTINGS, monitors=["weight_norms"], weight_norms_reference="cpu", save_strategy="steps", save_steps=2
    )
    make_trainer(output_dir=tmp_path, **settings | dict(max_steps=2)).train()
    kept = load_file(tmp_path / FILE)
    assert kept.keys() == trained_matrices(build_model()).keys()
    resumed = make_trainer(output_dir=tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected = literal(build_model().state_dict(), resumed.model.state_dict())
    assert logged(lines_of(resumed)[3]) == pytest.approx(expected, rel=1e-5)
    assert len([line for line in lines_of(resumed) if logged(line)]) == 3
    (tmp_path / FILE).unlink()
    caplog.set_level(logging.WARNING)
    again = make_trainer(output_dir=tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "does not hold the weights of this run: 'weight_norms' compares with the weights of this" in caplog.text
    assert logged(lines_of(again)[3])["ratio_max"] < expected["ratio_max"]


def test_lora_is_compared_with_the_frozen_weights(make_trainer):
    peft_config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    trainer = make_trainer(monitors=["weight_norms"], peft_config=peft_config, **SETTINGS)
    trainer.train()
    weights, start = trainer.model.state_dict(), build_model().state_dict()
    now = {name: weight for name, weight in start.items() if name.endswith(("q_proj.weight", "down_proj.weight"))}
    for name in now:
        inside = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (weights[f"{inside}.lora_{part}.default.weight"] for part in "AB")
        now[name] = start[name] + 3 * b @ a  # s = lora_alpha / r
    expected = literal(start, now)
    change = expected.pop("change_mean")
    head = literal(start, {"lm_head.weight": weights["base_model.model.lm_head.modules_to_save.default.weight"]})
    found = logged(lines_of(trainer)[3])
    assert found["change_mean"] == pytest.approx(change, rel=1e-5)  # of adapters alone, which know where they began
    assert found["ratio_max"] == pytest.approx(max(expected["ratio_max"], head["ratio_max"]), rel=1e-5)
    mean = (4 * expected["ratio_mean"] + head["ratio_mean"]) / 5
    assert found["ratio_mean"] == pytest.approx(mean, rel=1e-6) and mean != pytest.approx(1, abs=1e-4)
    assert len([*adapted_weights(trainer.model)]) == 4 and len(trained_matrices(trainer.model)) == 1


def test_projection_keeps_the_norms_of_some_weights(pair, make_trainer):
    settings = SETTINGS | dict(monitors=["weight_norms"], weight_norms_project=["q_proj", "k_proj"])
    trainer = make_trainer(**settings)
    trainer.train()
    start, now = build_model().state_dict(), trainer.model.state_dict()
    for name, weight in now.items():
        if weight.dim() == 2:
            kept = ".q_proj." in name or ".k_proj." in name
            ratio = float(weight.norm() / start[name].norm())
            assert (abs(ratio - 1) < 1e-6) is kept, name
            assert not weight.equal(start[name])
    assert pair[0].model.state_dict()["model.layers.0.self_attn.q_proj.weight"].norm() != pytest.approx(
        float(start["model.layers.0.self_attn.q_proj.weight"].norm()), rel=1e-4
    )


def test_projection_leaves_the_optimizer_alone(tmp_path):
    """One step of Adam: the weight is that of the plain step, scaled; moments are those of the plain step."""
    models, states = [], []
    for projected in ([], ["part0"]):
        model = module_of(BEFORE, AFTER)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
        monitor = monitor_of(model, tmp_path, weight_norms_project=projected)
        (model.part0.weight.square().sum() - model.part1.weight.sum()).backward()
        optimizer.step()
        monitor.after_step(model, 1)
        models.append(model)
        states.append([state["exp_avg"] for state in optimizer.state.values()])
    plain, scaled = (model.part0.weight.detach() for model in models)
    torch.testing.assert_close(scaled, plain * 5 / plain.norm(), rtol=1e-12, atol=0)
    assert models[0].part1.weight.equal(models[1].part1.weight) and not plain.equal(scaled)
    assert all(one.equal(other) for one, other in zip(*states, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(weight_norms_reference="gpu"), "`weight_norms_reference` must be one of 'cpu', 'none', got 'gpu'"),
        (dict(weight_norms_project="q_proj"), "`weight_norms_project` must be a list of names of modules, got 'q_"),
    ],
)
def test_bad_fields(make_trainer, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(monitors=["weight_norms"], **settings)


def test_models_that_do_not_fit(tmp_path, monkeypatch):
    from accelerate.utils import DistributedType

    from trl_entropy.monitors import weight_norms as module

    model = module_of(BEFORE)
    with pytest.raises(ValueError, match="must name modules with a trained matrix, got 'q_prj'"):
        monitor_of(model, tmp_path, weight_norms_project=["part0", "q_prj"])
    with pytest.raises(ValueError, match="must leave out 'weight_norms': no matrix is trained"):
        monitor_of(model.requires_grad_(False), tmp_path)
    state = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    monkeypatch.setattr(module, "PartialState", lambda: state)
    with pytest.raises(ValueError, match="must leave out 'weight_norms' with DeepSpeed"):
        monitor_of(model, tmp_path)
