# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Step radius: against exact derivatives, without a trace in the weights, and as a controller."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.tiny import EXACT, build_model, build_trainer
from torch.func import functional_call, jvp

from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer
from trl_entropy.monitors.base import Run
from trl_entropy.monitors.looking import full_precision
from trl_entropy.monitors.probe import Probe
from trl_entropy.monitors.step_radius import (
    StepRadius,
    StepRadiusConfig,
    largest_and_99th,
    step_radius,
    step_scale,
)
from trl_entropy.settings import default_of


SEQUENCES = [[5, 6, 7, 8, 9], [4, 3], [10, 11, 12, 13]]
KEYS = {f"step_radius/{key}" for key in ("r_max", "r_99", "full_max", "full_99")}


def test_worked_example():
    change = torch.tensor([0.5, -1, 0.25], dtype=torch.float64)
    assert float(step_radius(change)) == pytest.approx(0.4774648293, abs=1e-9)
    assert float(step_radius(3 * change)) == pytest.approx(1.4323944878, abs=1e-9)
    assert 1 / float(step_radius(change)) == pytest.approx(2.0943951024, abs=1e-9)  # ρ for an update of length 1
    radii = torch.tensor([0.2, 0.5, 1.5, 6.4], dtype=torch.float64) / math.pi
    assert largest_and_99th(radii) == pytest.approx((2.0371832716, 1.9903917183), abs=1e-9)
    assert step_scale(float(radii.max())) == pytest.approx(0.4908738521, abs=1e-9)
    assert [step_scale(r) for r in (0.0, 0.4, 1.0, math.inf, math.nan)] == [1] * 5


def monitor_of(model, **fields):
    """A monitor of this model before its first step."""
    known = {name: default_of(field) for name, field in StepRadiusConfig.__dataclass_fields__.items()}
    monitor = StepRadius(SimpleNamespace(**known | dict(monitor_steps=50) | fields))
    monitor.check_model(model)
    monitor.begin(model, Run(Path(), 0, True, Probe(SEQUENCES)))
    return monitor


def build(trained=lambda name: True):
    model = build_model(attn_implementation="eager").double()
    for name, weight in model.named_parameters():
        weight.requires_grad_(trained(name))
    return model


def updates(model, size):
    """An update of each trained weight."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: size * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def apply(model, update):
    with torch.no_grad():
        for name, change in update.items():
            model.get_parameter(name).add_(change)


def logits_of(model, ids):
    return lambda weights: functional_call(model, weights, (torch.tensor([ids]),)).logits[0]


def exact_radii(model, update):
    """r of all positions, by forward derivatives, and by the logits after the whole update."""
    linear, full = [], []
    weights = {name: model.get_parameter(name).detach() for name in update}
    for ids in SEQUENCES:
        before, change = jvp(logits_of(model, ids), (weights,), (update,))
        after = logits_of(model, ids)({name: weights[name] + update[name] for name in update})
        linear += [(max(row) - min(row)) / math.pi for row in change.tolist()]
        full += [(max(row) - min(row)) / math.pi for row in (after - before).tolist()]
    return linear, full


def measured(model, update, **fields):
    monitor = monitor_of(model, **fields)
    monitor.before_step(model, 1)
    apply(model, update)
    after = {name: weight.clone() for name, weight in model.state_dict().items()}
    monitor.after_step(model, 1)
    return monitor.numbers(), after


@pytest.mark.parametrize("copy", ["device", "cpu"])
@pytest.mark.parametrize("size", [0.001, 0.1])
def test_radii_are_those_of_exact_derivatives(size, copy):
    model = build()
    update = updates(model, size)
    linear, full = exact_radii(model, update)
    assert len(linear) == 11 and (max(linear) > 3) is (size == 0.1)
    found, after = measured(model, update, step_radius_copy=copy)
    assert found["full_max"] == pytest.approx(max(full), rel=1e-9)
    assert found["r_max"] == pytest.approx(max(linear), rel=0.02)
    assert found["r_99"] == pytest.approx(float(torch.tensor(linear).quantile(0.99)), rel=0.02)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, after[name], **EXACT)


def test_large_updates_saturate_as_a_whole():
    """A step along the gradient, where the model is most curved: r is right, what the whole step shows is not."""
    model, ids = build(), torch.tensor(SEQUENCES[:1])
    model(ids, labels=ids).loss.backward()
    update = {name: -0.01 * weight.grad for name, weight in model.named_parameters()}
    linear, full = exact_radii(model, update)
    found, _ = measured(model, update)
    assert found["r_max"] == pytest.approx(max(linear), rel=0.02) and max(linear) > 15
    assert found["full_max"] == pytest.approx(max(full)) and max(full) < 3


@pytest.mark.parametrize("fraction", [0.5, 0.01, 0.0001])
def test_logits_that_are_linear_in_the_weights_have_one_radius(fraction):
    model = build(trained=lambda name: name.startswith("lm_head"))
    update = updates(model, 0.3)
    linear, full = exact_radii(model, update)
    found, _ = measured(model, update, step_radius_fraction=fraction)
    assert max(linear) == pytest.approx(max(full), rel=1e-9)
    assert found["r_max"] == pytest.approx(max(linear), rel=1e-9)
    assert found["r_99"] == pytest.approx(found["full_99"], rel=1e-9)


def test_positions_and_sequences_are_limited():
    model = build()
    update = updates(model, 0.01)
    linear, _ = exact_radii(model, update)
    found, _ = measured(model, update, step_radius_samples=1, step_radius_positions=2)
    assert found["r_max"] == pytest.approx(max(linear[0], linear[4]), rel=1e-3)  # first and last of the first
    found, _ = measured(build(), update, step_radius_copy="none")
    assert set(found) == {"full_max", "full_99"}


def test_no_update_is_no_step():
    model = build()
    found, _ = measured(model, {})
    assert found == {"r_max": 0, "r_99": 0, "full_max": 0, "full_99": 0}


@pytest.mark.parametrize("copy", ["device", "cpu"])
def test_controller_takes_a_smaller_learning_rate(copy):
    """With SGD: a step of r = R is that of the learning rate over R, and the momentum is that of the whole step."""
    ids, models, states, scale = torch.tensor([SEQUENCES[0]]), [], [], 1.0
    for controlled in (True, False):
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01 * scale, momentum=0.9)
        model(ids, labels=ids).loss.backward()
        start = {name: weight.clone() for name, weight in model.named_parameters()}
        monitor = monitor_of(model, step_radius_control=True, step_radius_copy=copy)
        if controlled:
            monitor.before_step(model, 3)
        optimizer.step()
        if controlled:
            monitor.after_step(model, 3)
            numbers = monitor.numbers()
            scale = numbers["scale"]
        models.append(model)
        states.append([state["momentum_buffer"] for state in optimizer.state.values()])
    assert set(numbers) == {"r_max", "r_99", "scale"} and scale == 1 / numbers["r_max"] < 0.5
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=1e-9, atol=1e-12)
    assert all(one.equal(other) for one, other in zip(*states, strict=True))
    first = build()
    update = {name: models[0].get_parameter(name).detach() - weight.detach() for name, weight in start.items()}
    assert 0.9 < max(exact_radii(first, update)[0]) < 1.4


SETTINGS = dict(max_steps=4, gradient_accumulation_steps=2, monitor_steps=2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("radius")
    trainers = []
    for monitors in ([], ["step_radius"]):
        trainers.append(
            build_trainer(EntropyGRPOTrainer, EntropyGRPOConfig, folder / str(monitors), monitors=monitors, **SETTINGS)
        )
        trainers[-1].train()
    return trainers


def lines_of(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


def test_a_run_is_the_same_to_the_bit(pair):
    plain, watched = pair
    found = [{key for key in line if key.startswith("step_radius")} for line in lines_of(watched)]
    assert found == [KEYS, KEYS, set(), KEYS]  # the first step, and every second one
    for one, other in zip(*map(lines_of, pair), strict=True):
        assert (one["loss"], one["grad_norm"]) == (other["loss"], other["grad_norm"])
    for name, weight in plain.model.state_dict().items():
        torch.testing.assert_close(watched.model.state_dict()[name], weight, **EXACT)
    assert all(line["step_radius/r_max"] > 1 for line in lines_of(watched)[:2])  # a learning rate of 0.05


def test_a_run_under_control(pair, make_trainer):
    trainer = make_trainer(monitors=["step_radius"], step_radius_control=True, **SETTINGS)
    trainer.train()
    lines = lines_of(trainer)
    assert lines[0]["step_radius/r_max"] == lines_of(pair[1])[0]["step_radius/r_max"]  # of the update as it was
    for line in lines:
        scale = line["step_radius/scale"]
        assert scale == pytest.approx(min(1, 1 / line["step_radius/r_max"]))
    assert lines[0]["step_radius/scale"] < 0.5
    start, moved = build_model().state_dict(), []
    for other in (trainer, pair[1]):
        weights = other.model.state_dict()
        moved.append(sum(float((weights[name] - start[name]).square().sum()) for name in start))
    assert moved[0] < 0.5 * moved[1]


def test_failure_in_the_middle_restores_the_weights(pair, make_trainer, monkeypatch, caplog):
    calls, own = [], StepRadius._look

    def look(self, model):
        calls.append(1)
        if len(calls) == 4:  # with the weights between old and new
            raise RuntimeError("no logits today")
        return own(self, model)

    monkeypatch.setattr(StepRadius, "_look", look)
    caplog.set_level(logging.WARNING)
    trainer = make_trainer(monitors=["step_radius"], **SETTINGS)
    trainer.train()
    assert len(calls) == 4 and "Monitor 'step_radius' is off from step 0 on. RuntimeError: no logits" in caplog.text
    for name, weight in pair[0].model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], weight, **EXACT)


def test_autocast_is_off_while_measuring(make_trainer):
    trainer = make_trainer(bf16=True, monitors=["step_radius"], max_steps=1)
    trainer.train()
    model, ids = trainer.model, torch.tensor(SEQUENCES[:1])
    model.eval()
    with torch.no_grad():
        cast = model(input_ids=ids).logits
        with full_precision(model):
            found = model(input_ids=ids).logits
        again = model(input_ids=ids).logits
        plain = build_model()
        plain.load_state_dict(model.state_dict())
        expected = plain.eval()(input_ids=ids).logits
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(again, cast, **EXACT)
    assert (cast - expected).abs().max() > 1e-3  # so autocast was on
    assert torch.get_float32_matmul_precision() == "highest"
    assert KEYS <= set(lines_of(trainer)[0])


def test_half_precision_is_refused(make_trainer):
    settings = dict(model=build_model().bfloat16(), monitors=["step_radius"], max_steps=1)
    with pytest.raises(ValueError, match="must leave out 'step_radius' unless .* Got .*weight in torch.bfloat16"):
        make_trainer(**settings).train()
    trainer = make_trainer(**settings, step_radius_allow_low_precision=True)
    trainer.train()
    assert KEYS <= set(lines_of(trainer)[0])
    model = build_model()
    model.lm_head.register_forward_hook(lambda module, arguments, output: output.bfloat16())
    with pytest.raises(ValueError, match="Got logits in torch.bfloat16"):
        monitor_of(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(step_radius_samples=0), "`step_radius_samples` must be an integer >= 1, got 0"),
        (dict(step_radius_positions=0.5), "`step_radius_positions` must be an integer >= 1, got 0.5"),
        (dict(step_radius_fraction=1.0), r"`step_radius_fraction` must be a number in \(0, 1\), got 1.0"),
        (dict(step_radius_copy="gpu"), "`step_radius_copy` must be one of 'device', 'cpu', 'none', got 'gpu'"),
        (dict(step_radius_control="on"), "`step_radius_control` must be true or false, got 'on'"),
        (
            dict(step_radius_control=True, step_radius_copy="none"),
            "`step_radius_copy` must be 'device' or 'cpu' with `step_radius_control`, got 'none'",
        ),
    ],
)
def test_bad_fields(make_trainer, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(monitors=["step_radius"], **settings)


def test_refused_with_deepspeed(monkeypatch):
    from accelerate.utils import DistributedType

    from trl_entropy.monitors import step_radius as module

    model = build_model()
    monitor = monitor_of(model)
    state = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    monkeypatch.setattr(module, "PartialState", lambda: state)
    with pytest.raises(ValueError, match="must leave out 'step_radius' with DeepSpeed"):
        monitor.check_model(model)
