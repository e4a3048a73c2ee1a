# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The common part of methods on the rewards of a group: statistics, warnings, and which completions are right."""

import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import strategies as st
from support.fuzzing import ADVANTAGES, covers, draw_flags, draw_shape, draw_tensor
from support.groups import NAN, group_rollouts
from support.tensors import config_of
from support.tiny import FLOAT64

from trl_entropy.collectives import Collectives
from trl_entropy.methods import groups
from trl_entropy.methods.groups import Correctness, GroupMethod, LastingCondition


REWARDS = torch.tensor([[1.0, 0, 0, 1], [2, NAN, 5, NAN], [NAN, NAN, 3, NAN]], dtype=torch.float64)


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), equal_nan=True, **FLOAT64)


def warned(action, times=1):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            action()
    return [str(warning.message) for warning in caught]


def test_standard_deviation_is_that_of_the_given_rewards():
    """Of 1, 0, 0, 1 it is √(1/3), of 2 and 5 √(9/2), and a single reward has none."""
    close(groups.standard_deviation(REWARDS), [[0.5773502692], [2.1213203436], [NAN]])


@pytest.mark.parametrize(
    "scale, first, second",
    [
        ("group", 1.7317508595, 0.4713822996),  # √(1/3) and √(9/2), plus 1e-4
        ("batch", 0.5556880495, 0.5556880495),  # 1.7994708 of 1, 0, 0, 1, 2, 5, 3, plus 1e-4
        ("none", 1, 1),
    ],
)
def test_divided_as_trl_divides(scale, first, second):
    """Missing rewards, and a single reward in its group, get 0."""
    found = groups.divided(torch.ones_like(REWARDS), REWARDS, scale)
    close(found, [[first] * 4, [second, 0, second, 0], [0.0] * 4])


def test_advantages_are_spread_over_the_tokens_of_this_process():
    values = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    second = Collectives(gather=lambda lengths: torch.cat([lengths, lengths]), rank=1)
    rollouts = replace(group_rollouts([0.0] * 4, tokens=2), world=second)
    assert groups.spread_over_tokens(values, rollouts).tolist() == [[5, 5], [6, 6], [7, 7], [8, 8]]


def test_a_lasting_condition_warns_once_after_20_batches_in_a_row():
    rollouts = group_rollouts([1.0, 0])
    condition = LastingCondition("It lasts.")
    assert warned(lambda: condition.update(True, rollouts), 19) == []
    assert warned(lambda: condition.update(False, rollouts)) == []
    assert warned(lambda: condition.update(True, replace(rollouts, training=False)), 50) == []
    assert warned(lambda: condition.update(True, rollouts), 19) == []
    assert warned(lambda: condition.update(True, rollouts), 40) == ["It lasts."]
    other = LastingCondition("It lasts.")
    elsewhere = replace(rollouts, world=Collectives(rank=1))
    assert warned(lambda: other.update(True, elsewhere), 40) == []


def test_right_is_above_the_threshold():
    rollouts = group_rollouts([0.0] * 4)
    correct = Correctness(config_of(nsr_threshold=0.5), "nsr")
    rewards = torch.tensor([[0.5, 0.6, NAN, 0.4]], dtype=torch.float64)
    found = []
    (message,) = warned(lambda: found.append(correct(rewards, rollouts).tolist()), 3)
    assert found == [[[False, True, False, False]]] * 3
    assert "`nsr_threshold` (0.5), but this sum takes more than two values" in message
    quiet = Correctness(config_of(nsr_threshold=0.5), "nsr")
    assert warned(lambda: quiet(rewards, replace(rollouts, training=False)), 3) == []
    assert warned(lambda: quiet(rewards[:, :2], rollouts), 3) == []


def test_missing_rewards_get_no_advantage():
    class Raw(GroupMethod):
        name = "raw"

        def advantages(self, rewards, rollouts):
            assert rewards.dtype == torch.float64 and rewards.shape == (2, 2)
            return torch.full_like(rewards, 3.0), {}

    found, logs = Raw(None).group_advantages(group_rollouts([1.0, NAN, 0, 1], 2, tokens=3))
    assert found.tolist() == [[3.0] * 3, [0.0] * 3, [3.0] * 3, [3.0] * 3]
    assert torch.equal(logs["advantage_abs"], found)


# Searched by test_fuzzing.py


@covers(groups.standard_deviation, groups.divided)
def deviations(draw):
    shape = draw_shape(draw)
    rewards, given = draw_tensor(draw, shape, ADVANTAGES, torch.float64), draw_flags(draw, shape)
    scored = rewards.masked_fill(~given, torch.nan)
    spread = groups.standard_deviation(scored)
    assert torch.equal(spread.isfinite().squeeze(1), given.sum(1) > 1)
    for scale in ("group", "batch", "none"):
        assert groups.divided(rewards, scored, scale).isfinite().all()


@covers(groups.threshold, groups.spread_over_tokens)
def thresholds_and_tokens(draw):
    value = draw(st.one_of(st.floats(), st.text(), st.none(), st.booleans(), st.integers()))
    try:
        found = groups.threshold(SimpleNamespace(x_threshold=value), "x_threshold")
    except ValueError as error:
        assert "`x_threshold` must be a finite number, got " in str(error)
    else:
        assert found is value and math.isfinite(found) and not isinstance(found, bool)
    shape = draw_shape(draw)
    values = draw_tensor(draw, shape, ADVANTAGES, torch.float64)
    rollouts = group_rollouts([0.0] * values.numel(), shape[1], tokens=3)
    assert torch.equal(groups.spread_over_tokens(values, rollouts), values.view(-1, 1).expand(-1, 3))
