# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Curves read from logs, and the code length against literals."""

import math

import numpy as np
import pytest

from trl_entropy.curves.base import Curve
from trl_entropy.curves.code_length import code_length, learned_nats


def lines(losses, every=10, tokens=100.0, first=0, **more):
    return [
        {"step": first + every * (n + 1), "loss": loss, "num_tokens": tokens * every * (n + 1), **more}
        for n, loss in enumerate(losses)
    ]


def test_worked_example():
    losses = np.array([4, 3, 2.5, 2.2, 2.2])
    nats = learned_nats(1000.0 * np.arange(5), losses, 2.2)
    assert nats == pytest.approx(2000, abs=1e-9) and nats / math.log(2) == pytest.approx(2885.3900817779, abs=1e-9)
    both = learned_nats(1000.0 * np.arange(5), np.stack([losses, losses + 1]), np.array([2.2, 2.2]))
    assert both.tolist() == pytest.approx([2000, 6000])


def test_worked_example_of_distillation():
    found = code_length(Curve.of(lines([0.5, 0.3, 0.2])), teacher=True)
    assert found.teacher_nats == pytest.approx(1000, abs=1e-9)
    assert found.teacher_nats / math.log(2) == pytest.approx(1442.6950408890, abs=1e-9)
    assert code_length(Curve.of(lines([0.5, 0.3, 0.2]))).teacher_nats is None


def test_windows_are_centered_on_a_known_curve():
    """Window means of L = 2 + exp(-t/T): their area is that of the curve, which end points would miss by 10 %."""
    edges = 1000.0 * np.arange(41)
    means = 2 + 5000 * (np.exp(-edges[:-1] / 5000) - np.exp(-edges[1:] / 5000)) / 1000
    curve = Curve.of(lines(means.tolist()))
    assert curve.start.tolist() == (np.arange(40) * 10).tolist() and curve.middle[0] == 5.5
    assert curve.tokens_start[1] == 1000 and curve.tokens_end[1] == 2000
    found = code_length(curve)
    end = means[-2:].mean()
    assert found.end_loss == pytest.approx(end)
    exact = 5000 * (1 - math.exp(-8)) - 40000 * (end - 2)
    assert found.nats == pytest.approx(exact, rel=1e-9)
    assert abs(learned_nats(edges[1:], means, end) / exact - 1) > 0.05
    assert found.data_nats == pytest.approx(1000 * means.sum(), rel=1e-9)  # prequential: all the nats of the data
    assert found.bits_per_token == found.nats / math.log(2) / 40000 and found.megabytes == found.bits / 8e6
    assert not found.rising


def test_interval_is_that_of_the_noise():
    """Its width against the spread of K over many curves with their own noise."""
    random = np.random.default_rng(0)
    clean = 2 + 2 * np.exp(-np.arange(100) / 20)
    found = [code_length(Curve.of(lines((clean + 0.05 * random.standard_normal(100)).tolist()))) for _ in range(60)]
    spread = np.std([one.nats for one in found])
    widths = [(high - low) / 2 / 1.96 for low, high in (one.interval for one in found)]
    assert np.mean(widths) == pytest.approx(spread, rel=0.25)
    truth = code_length(Curve.of(lines(clean.tolist()))).nats
    assert np.mean([one.interval[0] < truth < one.interval[1] for one in found]) > 0.85
    assert all(math.isnan(end) for end in code_length(Curve.of(lines([2.0, 1.0]))).interval)


def test_resumed_logs():
    """The last line of a step counts, token counts that start again go on, and what is not finite is left out."""
    before = lines([4.0, 3.0, 9.0])
    again = lines([2.5, 2.2], first=20)
    curve = Curve.of([*before, {"step": 20, "eval_loss": 1.0}, *again, {"step": 40, "train_loss": 3.0}])
    assert curve.loss.tolist() == [4, 3, 2.5, 2.2] and curve.end.tolist() == [10, 20, 30, 40]
    assert curve.tokens_end.tolist() == [1000, 2000, 3000, 4000]
    holes = Curve.of([*lines([4.0, None, 3.0, math.nan, 2.0])])
    assert holes.dropped == 2 and holes.loss.tolist() == [4, 3, 2] and holes.start.tolist() == [0, 20, 40]


def test_learning_rates_tokens_and_evaluations():
    rows = [{"step": 2, "loss": 1.0, "learning_rate": 0.2}, {"step": 4, "loss": 1.0, "learning_rate": 0.4}]
    curve = Curve.of([*rows, {"step": 2, "eval_loss": 3.0}, {"step": 4, "eval_loss": 2.0}], tokens_per_step=7)
    assert curve.rates.tolist() == pytest.approx([0.2, 0.2, 0.3, 0.4])
    assert curve.tokens_end.tolist() == [14, 28]
    evaluated = Curve.of([*rows, {"step": 2, "eval_loss": 3.0}, {"step": 4, "eval_loss": 2.0}], evaluation=True)
    assert evaluated.loss.tolist() == [3, 2] and evaluated.middle.tolist() == [2, 4] and len(evaluated.rates) == 4
    assert evaluated.tokens_end is None
    seen = Curve.of([row | {"num_input_tokens_seen": row["step"] * 5, "num_tokens": 1} for row in rows])
    assert seen.tokens_end.tolist() == [10, 20]


def test_rising_losses_and_runs_that_have_no_code_length():
    falling = np.linspace(3, 2, 60)
    assert not code_length(Curve.of(lines(falling.tolist()))).rising
    assert code_length(Curve.of(lines([*falling, *np.linspace(2, 2.5, 20)]))).rising
    with pytest.raises(ValueError, match="has neither: `--tokens-per-step` says"):
        code_length(Curve.of([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]))
    with pytest.raises(ValueError, match="the run logs rewards, so its loss is no likelihood"):
        code_length(Curve.of(lines([2.0, 1.0], reward=0.5)))
    with pytest.raises(ValueError, match="at least two lines with a finite `loss`, got 1"):
        Curve.of(lines([2.0, None]))
