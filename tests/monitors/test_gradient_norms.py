# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Gradient norms of each step: those before clipping, in a run that is the same to the bit."""

import csv
import math

import pytest
import torch
from accelerate import Accelerator
from support.tiny import EXACT

from trl_entropy.curves.refinement import read_norms
from trl_entropy.monitors.gradient_norms import ClippingWatch, norm_sums


SETTINGS = dict(max_steps=4, logging_steps=2, max_grad_norm=0.01, gradient_accumulation_steps=2)


def rows_of(folder):
    with (folder / "gradient_norms.csv").open() as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A run that is watched, and one without the monitor in which the test itself sees gradients before clipping."""
    from support.tiny import build_trainer

    from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer

    folder = tmp_path_factory.mktemp("norms")
    plain = build_trainer(EntropyGRPOTrainer, EntropyGRPOConfig, folder / "plain", **SETTINGS)
    seen, clip = [], plain._clip_grad_norm

    def spied(model):
        gradients = [weight.grad.double() for weight in model.parameters() if weight.grad is not None]
        sums = [sum(float(g.abs().sum()) for g in gradients), sum(float(g.square().sum()) for g in gradients) ** 0.5]
        seen.append(sums)
        return clip(model)

    plain._clip_grad_norm = spied
    plain.train()
    own = Accelerator.clip_grad_norm_
    watched = build_trainer(
        EntropyGRPOTrainer, EntropyGRPOConfig, folder / "watched", monitors=["gradient_norms"], **SETTINGS
    )
    watched.train()
    assert Accelerator.clip_grad_norm_ is own
    return plain, watched, seen, folder


def test_norms_are_those_before_clipping(pair):
    _, watched, seen, folder = pair
    header, *rows = rows_of(folder / "watched")
    assert header == ["step", "l1", "l2"] and [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert len(seen) == 4 and all(l2 > 0.05 for _, l2 in seen)  # each step was clipped
    for (_, l1, l2), expected in zip(rows, seen, strict=True):
        assert [float(l1), float(l2)] == pytest.approx(expected, rel=1e-4)
    lines = [line for line in watched.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["gradient_norms/l2"] == pytest.approx(line["grad_norm"], rel=1e-6)
        assert line["gradient_norms/l1"] == float(rows[line["step"] - 1][1])
    assert read_norms(folder / "watched" / "gradient_norms.csv", "l2").tolist() == [float(row[2]) for row in rows]


def test_a_run_is_the_same_to_the_bit_without_a_probe(pair):
    plain, watched, _, folder = pair
    for name, weight in plain.model.state_dict().items():
        torch.testing.assert_close(watched.model.state_dict()[name], weight, **EXACT)
    lines = [
        [(line["loss"], line["grad_norm"]) for line in trainer.state.log_history if "loss" in line]
        for trainer in (plain, watched)
    ]
    assert lines[0] == lines[1] and watched.state.log_history[0]["step"] == 2
    assert not (folder / "watched" / "monitors").exists()


def test_a_resumed_run_goes_on_with_its_file(make_trainer, tmp_path):
    settings = dict(monitors=["gradient_norms"], save_steps=2, save_strategy="steps", max_grad_norm=0.0)
    make_trainer(output_dir=tmp_path, **settings | dict(max_steps=3)).train()
    first = rows_of(tmp_path)
    assert len(first) == 4
    make_trainer(output_dir=tmp_path, **settings | dict(max_steps=4)).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-2")
    )
    again = rows_of(tmp_path)
    assert [row[0] for row in again[1:]] == ["1", "2", "3", "4"] and again[:3] == first[:3]
    make_trainer(output_dir=tmp_path, **settings | dict(max_steps=1)).train()
    assert [row[0] for row in rows_of(tmp_path)] == ["step", "1"]  # another run


def test_monitor_that_fails_is_left_out(make_trainer, monkeypatch, caplog):
    from trl_entropy.monitors import gradient_norms

    calls = []

    def failing(gradients):
        calls.append(1)
        return 1 / 0 if len(calls) == 2 else norm_sums(gradients)

    own = Accelerator.clip_grad_norm_
    monkeypatch.setattr(gradient_norms, "norm_sums", failing)
    trainer = make_trainer(max_steps=3, monitors=["gradient_norms"])
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert ["gradient_norms/l1" in line for line in lines] == [True, False, False] and len(calls) == 2
    assert "Monitor 'gradient_norms' is off from step 1 on. ZeroDivisionError" in caplog.text
    assert Accelerator.clip_grad_norm_ is own


def test_sums():
    gradients = [torch.tensor([3.0, -4.0]), torch.tensor([[12.0]])]
    assert norm_sums(gradients).tolist() == [19, 169]
    # In half precision the sum of 4096 ones would stop at 256.
    assert norm_sums([torch.ones(4096, dtype=torch.bfloat16)]).tolist() == [4096, 4096]
    assert norm_sums([]).tolist() == [0, 0]


def test_two_watches_leave_nothing_behind():
    own = Accelerator.clip_grad_norm_
    one, two = ClippingWatch(), ClippingWatch()
    one.start()
    one.start()
    two.start()
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([3.0, 4.0])
    assert Accelerator().clip_grad_norm_([weight], 1.0) == 5 == one.norm == two.norm
    one.stop()
    assert Accelerator.clip_grad_norm_ is not own
    two.stop()
    two.stop()
    assert Accelerator.clip_grad_norm_ is own


def test_without_accelerates_clipping_norms_are_unknown():
    from types import SimpleNamespace

    from trl_entropy.monitors.gradient_norms import GradientNorms

    monitor = GradientNorms(SimpleNamespace())
    model = torch.nn.Linear(1, 1)
    model.weight.grad = torch.ones(1, 1)
    monitor.before_gradients()
    monitor.before_step(model, 1)
    assert all(math.isnan(value) for value in monitor.numbers().values())


def test_parts_that_several_processes_hold_count_once():
    """Sharded over 3 processes, and replicated over 2: each part is on two."""
    from types import SimpleNamespace

    from torch.distributed.tensor import Replicate, Shard

    from trl_entropy.monitors.gradient_norms import _sums
    from trl_entropy.monitors.sharded import copies_of

    mesh = SimpleNamespace(size=lambda dim: (2, 3)[dim])
    assert copies_of(SimpleNamespace(device_mesh=mesh, placements=(Replicate(), Shard(0)))) == 2
    assert copies_of(SimpleNamespace(device_mesh=mesh, placements=(Shard(0), Shard(1)))) == 1
    assert _sums([torch.tensor([3.0, 4.0]), torch.tensor([2.0])], [0.5, 1]).tolist() == [5.5, 16.5]


def test_refused_with_deepspeed(monkeypatch):
    from types import SimpleNamespace

    from accelerate.utils import DistributedType

    from trl_entropy.monitors import gradient_norms

    state = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    monkeypatch.setattr(gradient_norms, "PartialState", lambda: state)
    with pytest.raises(ValueError, match="must leave out 'gradient_norms' with DeepSpeed"):
        gradient_norms.GradientNorms(SimpleNamespace()).check_model(torch.nn.Linear(1, 1))
