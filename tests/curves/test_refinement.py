# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Refined schedules: the examples, the running median against a literal one, files, and a trainer that follows one."""

import json
import math
import statistics

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from trl_entropy import refined_schedule
from trl_entropy.curves.refinement import RefinedSchedule, refined_rates, running_median, smoothed


def test_worked_examples():
    norms = np.array([1.0, 2, 2, 1])
    assert refined_rates(norms, 2).tolist() == pytest.approx([1, 0.2083333333, 0.1666666667, 0], abs=1e-9)
    assert refined_rates(norms, 1).tolist() == pytest.approx([1, 0.375, 0.25, 0], abs=1e-9)
    for exponent in (1, 2):
        constant = refined_rates(np.full(4, 1e-200), exponent)
        assert constant.tolist() == pytest.approx([1, 0.6666666667, 0.3333333333, 0], abs=1e-9)


@pytest.mark.parametrize(("count", "width"), [(40, 5), (41, 7), (12, 11)])
def test_running_median_is_literal(count, width):
    values = np.random.default_rng(count).random(count)
    half = width // 2

    def at(place):  # held at its first value before the beginning, reflected at the end
        return values[max(place, 0)] if place < count else values[2 * count - 2 - place]

    expected = [statistics.median(at(t + d) for d in range(-half, half + 1)) for t in range(count)]
    assert running_median(values, width).tolist() == pytest.approx(expected, abs=1e-12)


def test_smoothing():
    """Two norms at each end do not count, skipped steps are filled, and what is not finite is dropped."""
    norms = np.full(150, 2.0)
    norms[[0, 1, -2, -1]] = 99.0
    norms[40], norms[60:66] = 50.0, 0.0
    spoilt = np.insert(norms, [30, 70, 90], [math.nan, math.inf, -math.inf])
    assert smoothed(spoilt).tolist() == [2.0] * 146
    random = np.random.default_rng(0).random(204) + 0.5
    assert smoothed(random).tolist() == running_median(random[2:-2], 21).tolist()
    with pytest.raises(ValueError, match="at least 100 finite gradient norms, got 99"):
        smoothed(np.append(np.ones(99), math.nan))
    with pytest.raises(ValueError, match="above 0, and all are 0"):
        smoothed(np.zeros(100))


def test_file_becomes_factors(tmp_path):
    path = tmp_path / "schedule.json"
    RefinedSchedule.of(np.full(300, 3.0), "l1").save(path)
    found = json.loads(path.read_text())
    assert len(found["factors"]) == 1000 and (found["norm"], found["steps"]) == ("l1", 300)
    factors = refined_schedule(path, 8)
    assert [factors(step) for step in range(9)] == pytest.approx([1 - step / 8 for step in range(9)], abs=1e-9)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scheduler = LambdaLR(optimizer, factors)
    for step in range(8):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * (1 - step / 8))
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0
    falling = RefinedSchedule.of(np.linspace(3, 1, 300), "l2")  # gradients that get smaller: warm-up, then decay
    peak = int(np.argmax(falling.factors))
    assert 100 < peak < 900 and falling.factors[0] < 0.6 and max(falling.factors) == 1 and falling.factors[-1] == 0


def save_schedule(folder, factors):
    path = folder / "schedule.json"
    path.write_text(json.dumps({"factors": factors, "norm": "l1", "steps": 100}))
    return str(path)


def test_trainers_follow_a_schedule(make_trainer, make_distiller, tmp_path):
    path = save_schedule(tmp_path, [0.5, 1.0, 0.0])
    expected = [0.05 * value for value in (0.5, 0.75, 1.0, 0.5)]
    for make in (make_trainer, make_distiller):
        trainer = make(max_steps=4, logging_steps=1, lr_refined=path, learning_rate=0.05)
        trainer.train()
        rates = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
        assert rates == pytest.approx(expected, abs=1e-12)


def test_fields_that_a_schedule_replaces_and_bad_files(tmp_path, caplog):
    from trl_entropy import EntropyGRPOConfig

    def config(**settings):
        return EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)

    path = save_schedule(tmp_path, [1.0, 0.0])
    config(lr_refined=path, lr_scheduler_type="cosine", warmup_steps=3)
    texts = [record.getMessage() for record in caplog.records if "lr_refined" in record.getMessage()]
    assert len(texts) == 2 and all("`lr_refined` replaces it: it does nothing" in text for text in texts)
    caplog.clear()
    config(lr_refined=path)
    config(lr_scheduler_type="cosine")
    assert "lr_refined" not in caplog.text
    with pytest.raises(
        ValueError, match="`lr_refined` must be a file that can be read, got 'none.json': No such file"
    ):
        config(lr_refined="none.json")
    with pytest.raises(ValueError, match="`lr_refined` must be the path of a file, or none, got 3"):
        config(lr_refined=3)
    for factors, message in (
        ([2.0, 0.0], "each from 0 to 1"),
        ([1.0], "at least two factors"),
        (None, "curves refine"),
    ):
        with pytest.raises(ValueError, match=f"`lr_refined` must be the file of a schedule.*{message}"):
            config(lr_refined=save_schedule(tmp_path, factors))
