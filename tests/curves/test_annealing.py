# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The law of losses under annealing: its example, and fits to curves that are known to follow it."""

import logging

import numpy as np
import pytest

from trl_entropy.curves import annealing_fit
from trl_entropy.curves.annealing import Law, annealing_sums, warmup_steps, without_warmup
from trl_entropy.curves.annealing_fit import fit_annealing_law
from trl_entropy.curves.base import Curve
from trl_entropy.curves.least_squares import golden_section, nonnegative_fits
from trl_entropy.curves.schedules import scheduled_rates


TRUE = Law(2.0, 0.4, 0.5, 0.3, 0.999)
STEPS, PEAK = 1000, 3e-3


def curve(rates, noise=0.0, seed=0, law=TRUE, every=1):
    losses = law.predict(rates) * (1 + noise * np.random.default_rng(seed).standard_normal(len(rates)))
    means = losses.reshape(-1, every).mean(1)
    return Curve.of(
        {"step": every * (n + 1), "loss": float(loss), "learning_rate": float(rates[every * (n + 1) - 1])}
        for n, loss in enumerate(means)
    )


def test_worked_example():
    rates = np.array([1, 1, 1, 0.5, 0.25])
    first, second = annealing_sums(rates, 0.9)
    assert first.tolist() == pytest.approx([1, 2, 3, 3.5, 3.75], abs=1e-9)
    assert second.tolist() == pytest.approx([0, 0, 0, 0.5, 1.2], abs=1e-9)
    assert Law(2, 0.5, 0.4, 0.1, 0.9).predict(rates)[-1] == pytest.approx(2.1746846385, abs=1e-9)


def test_warm_up_counts_as_the_peak():
    rates = np.array([0.25, 0.5, 1, 1, 0.5])
    assert warmup_steps(rates) == 2 and without_warmup(rates).tolist() == [1, 1, 1, 1, 0.5]
    assert TRUE.predict(rates).tolist() == TRUE.predict([1, 1, 1, 1, 0.5]).tolist()
    wave = np.array([0.5, 0.2, 1.0, 0.3])
    assert warmup_steps(wave) == 0 and without_warmup(wave).tolist() == wave.tolist()
    assert warmup_steps(np.full(5, 0.1)) == 0
    # The fit leaves it out, with 2 % of the steps.
    warm = scheduled_rates("cosine", STEPS, PEAK, 100)
    assert fit_annealing_law([curve(warm)], draws=0).points == STEPS - 120
    assert fit_annealing_law([curve(warm)], skip=300, draws=0).points == STEPS - 300


@pytest.fixture(scope="module")
def cosine():
    return scheduled_rates("cosine", STEPS, PEAK)


def off_by(law):
    """The greatest error of its predictions for other schedules, in nats."""
    schedules = [scheduled_rates(name, STEPS, PEAK) for name in ("wsd", "linear", "constant")]
    return max(np.abs(law.predict(rates) - TRUE.predict(rates))[100:].max() for rates in schedules)


def test_recovers_the_law(cosine):
    exact = fit_annealing_law([curve(cosine)], draws=0)
    assert (exact.floor, exact.scale, exact.alpha, exact.gain) == pytest.approx((2, 0.4, 0.5, 0.3), rel=1e-4)
    assert exact.momentum == 0.999 and exact.error < 1e-6
    noisy = fit_annealing_law([curve(cosine, 0.002)], draws=20)
    assert (noisy.floor, noisy.scale, noisy.alpha, noisy.gain) == pytest.approx((2, 0.4, 0.5, 0.3), rel=0.02)
    assert noisy.momentum == 0.999 and noisy.error == pytest.approx(0.002 * 0.6745, rel=0.1)
    assert off_by(noisy) < 0.002
    low, high = noisy.intervals["alpha"]
    assert low < 0.5 < high and 0 < high - low < 0.1
    assert set(noisy.intervals) == {"alpha", "floor", "scale", "gain"}


def test_outliers_and_windows(cosine, monkeypatch):
    """Two of 100 losses too high by 1, and losses that are means of five steps."""
    clean = curve(cosine, 0.005)
    off = np.random.default_rng(1).random(STEPS) < 0.02
    spoilt = Curve(clean.start, clean.end, clean.loss + off, clean.rates)
    law = fit_annealing_law([spoilt], draws=0)
    monkeypatch.setattr(annealing_fit, "ROUNDS", 0)
    plain = fit_annealing_law([spoilt], draws=0)
    assert off_by(law) < 0.013 and abs(law.floor - 2) < 0.6 * abs(plain.floor - 2)
    monkeypatch.undo()
    windows = fit_annealing_law([curve(cosine, every=5)], draws=0)
    assert (windows.floor, windows.scale, windows.alpha, windows.gain) == pytest.approx((2, 0.4, 0.5, 0.3), rel=0.02)
    assert windows.points == (STEPS - 20) // 5


def test_two_runs_together(cosine):
    """A constant run alone knows nothing of the gain; beside one that decays, both tell one law."""
    constant = curve(np.full(STEPS, PEAK), 0.002, seed=3)
    law = fit_annealing_law([curve(cosine, 0.002), constant], draws=0)
    assert law.points == 2 * (STEPS - 20)
    assert (law.floor, law.scale, law.alpha, law.gain) == pytest.approx((2, 0.4, 0.5, 0.3), rel=0.02)


def test_without_decay(caplog):
    law = fit_annealing_law([curve(np.full(STEPS, PEAK), 0.002)], draws=10)
    assert law.gain is None and "gain" not in law.intervals
    assert (law.floor, law.alpha) == pytest.approx((2, 0.5), rel=0.05)
    assert law.predict(np.full(2 * STEPS, PEAK))[-1] == pytest.approx(TRUE.predict(np.full(2 * STEPS, PEAK))[-1], 1e-2)
    with pytest.raises(ValueError, match="must be constant: the law was fitted to a constant learning rate"):
        law.predict(scheduled_rates("linear", STEPS, PEAK))
    with caplog.at_level(logging.WARNING):
        law.predict(np.full(4 * STEPS, PEAK))
    assert "4.0 times the summed learning rate of the fit" in caplog.text


def test_parameters_are_not_negative(cosine):
    """Losses that rise while the rate falls: the gain is 0, not below."""
    worse = curve(cosine, law=Law(2.0, 0.4, 0.5, -0.1, 0.999))
    law = fit_annealing_law([worse], draws=0)
    assert law.gain == 0 and law.floor >= 0 and law.scale >= 0


def test_runs_that_cannot_be_fitted():
    short = [{"step": n, "loss": 2.0, "learning_rate": 1e-3} for n in range(1, 51)]
    with pytest.raises(ValueError, match="at least 50 logged losses after warm-up, got 49"):
        fit_annealing_law([Curve.of(short)])
    with pytest.raises(ValueError, match="must have `learning_rate` above 0"):
        fit_annealing_law([Curve.of([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0}])])
    with pytest.raises(ValueError, match="the run logs rewards"):
        fit_annealing_law([Curve.of([line | {"reward": 1.0} for line in short])])


def test_schedules_are_those_of_transformers():
    assert scheduled_rates("linear", 4, 2.0).tolist() == [2, 1.5, 1, 0.5]
    assert scheduled_rates("constant", 4, 2.0, 2).tolist() == [0, 1, 2, 2]
    wsd = scheduled_rates("wsd", 100, 1.0, 10)
    assert wsd[10:90].tolist() == [1.0] * 80 and wsd[95] == pytest.approx(0.5) and wsd[5] == 0.5


def test_small_fits():
    random = np.random.default_rng(0)
    design = random.standard_normal((4, 30, 3))
    target = design[2] @ np.array([1.0, 0.0, 2.0])
    values, squares = nonnegative_fits(design, target)
    assert values[2].tolist() == pytest.approx([1, 0, 2], abs=1e-9) and squares[2] == pytest.approx(0, abs=1e-12)
    assert (values >= 0).all()
    for row in (0, 1, 3):  # no feasible direction lowers the sum of squares
        slope = design[row].T @ (target - design[row] @ values[row])
        assert (slope < 1e-9).all() and np.abs(slope * values[row]).max() < 1e-9
        assert squares[row] == pytest.approx(np.square(target - design[row] @ values[row]).sum())
    assert golden_section(lambda x: (x - 0.3) ** 2, 0, 1) == pytest.approx(0.3, abs=1e-5)
