# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on trajectories, on hand-made curves."""

import math

import numpy as np
import pytest

from trl_entropy.curves.frontier import area, envelope, lead, matched, matched_end, reach


# pass@1 rises, falls back, and rises again.
WINDING = [(0.1, 0.8), (0.3, 0.6), (0.2, 0.7), (0.4, 0.5)]


def test_envelope_is_the_best_at_no_less_pass_at_1():
    # Below the range: the best of all. Between evaluations: the line. At the end: the last. Beyond: nothing.
    found = envelope(WINDING, [0.0, 0.1, 0.15, 0.3, 0.35, 0.4, 0.41])
    assert found[:-1] == pytest.approx([0.8, 0.8, 0.75, 0.6, 0.55, 0.5]) and math.isnan(found[-1])
    # A later evaluation that is better on both counts for all smaller x.
    assert envelope([(0.1, 0.8), (0.2, 0.6), (0.3, 0.7)], [0.1, 0.15, 0.2, 0.3]) == pytest.approx([0.8, 0.7, 0.7, 0.7])
    # The way back lies higher: at 0.2 it has 0.65, the way forth 0.6.
    assert envelope([(0.1, 0.7), (0.3, 0.5), (0.1, 0.8)], [0.2]) == pytest.approx([0.65])
    assert envelope([(0.2, 0.5), (0.2, 0.6)], [0.2]) == pytest.approx([0.6])
    assert envelope([(0.2, 0.5)], [0.1, 0.2]) == pytest.approx([0.5, 0.5])


def test_evaluations_of_a_diverged_run_offer_nothing():
    diverged = [(0.1, 0.8), (math.nan, math.nan), (0.3, 0.6), (math.nan, 0.0)]
    assert envelope(diverged, [0.2, 0.3]) == pytest.approx([0.7, 0.6])
    assert reach(diverged) == 0.3
    assert math.isnan(reach([(math.nan, 0.5)])) and np.isnan(envelope([(math.nan, 0.5)], [0.1])).all()
    assert math.isnan(matched_end(diverged, WINDING)) and math.isnan(area([], WINDING, 0.1))


def test_differences_at_equal_pass_at_1():
    stock, above = [(0.1, 0.8), (0.5, 0.4)], [(0.1, 0.8), (0.2, 0.8), (0.3, 0.7)]
    found = matched(above, stock, [0.1, 0.2, 0.25, 0.3, 0.31, 0.6])
    assert found[:4] == pytest.approx([0.0, 0.1, 0.1, 0.1]) and np.isnan(found[4:]).all()
    assert matched_end(above, stock) == pytest.approx(0.1)
    assert math.isnan(matched_end([(0.1, 0.8), (0.6, 0.5)], stock))
    # A triangle of 0.1 x 0.1 / 2 and a rectangle of 0.1 x 0.1, over a width of 0.2.
    assert area(above, stock, 0.1) == pytest.approx(0.015, abs=1e-6)
    assert lead(above, stock, 0.1) == pytest.approx(0.075, abs=1e-5)
    assert area(stock, above, 0.1) == pytest.approx(-0.015, abs=1e-6)
    assert area(stock, stock, 0.1) == 0
    assert math.isnan(area(above, stock, 0.3)) and math.isnan(lead(above, stock, 0.3))
