# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import logging
import math

import pytest
import torch
from support import cases
from support import groups as shared
from support.fuzzing import covers, draw_flags, draw_shape, draw_tensor
from support.groups import NAN, group_advantages
from support.registry import MethodSettings
from support.tiny import LOSS_TYPES

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import maxrl
from trl_entropy.methods.maxrl import mean_scaled


METHOD_SETTINGS = {"maxrl": MethodSettings(variants=(dict(maxrl_cap=0.5),))}


def zero_one(right, group=8):
    return [1.0] * right + [0.0] * (group - right)


def test_worked_example():
    found, logs = group_advantages("maxrl", zero_one(2))
    assert found == pytest.approx([2.999988] * 2 + [-0.999996] * 6, rel=1e-9, abs=5e-11)
    assert logs["advantage_max"].max().item() == pytest.approx(2.999988, rel=1e-9, abs=5e-11)
    found, _ = group_advantages("maxrl", zero_one(6))
    assert found == pytest.approx([0.3333328889] * 6 + [-0.9999986667] * 2, rel=1e-9, abs=5e-11)


# The numbered departure from GRPO


@pytest.mark.parametrize("group", [2, 4, 8, 64])
def test_departure_1_divisor_is_the_mean(group):
    for right in range(1, group + 1):
        found, _ = group_advantages("maxrl", zero_one(right, group))
        p = right / group
        expected = [(1 - p) / p] * right + [-1.0] * (group - right)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-9)  # 1e-6 beside the smallest mean, 1 / 64
        assert sum(found) == pytest.approx(0, abs=1e-9)
    assert max(group_advantages("maxrl", zero_one(1, group))[0]) == pytest.approx(group - 1, rel=1e-3)
    assert group_advantages("maxrl", [0.0] * group)[0] == [0] * group


def test_weight_is_the_gradient_of_the_log_of_the_mean_reward():
    """With one answer of two right, p its probability: the expected update is the gradient of log p."""
    logits = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    p = logits.softmax(-1)[0]
    (expected,) = torch.autograd.grad(p.log(), logits)
    groups = [[1.0 if (number >> place) & 1 else 0.0 for place in range(12)] for number in range(2**12)]
    chances = [p.item() ** sum(group) * (1 - p.item()) ** (12 - sum(group)) for group in groups]
    found = mean_scaled(torch.tensor(groups, dtype=torch.float64))
    right = torch.tensor(groups) > 0
    policy = logits.detach().softmax(-1)
    scores = torch.eye(2, dtype=torch.float64) - policy  # of the right and of the wrong answer
    rows = (found.unsqueeze(2) * torch.where(right.unsqueeze(2), scores[0], scores[1])).mean(1)
    update = (torch.tensor(chances, dtype=torch.float64).unsqueeze(1) * rows).sum(0)
    # for groups of 12 it misses the terms of order above 12, which are (1 - p)^12
    torch.testing.assert_close(update, expected, rtol=1e-3, atol=1e-4)


# Properties


def test_scale_of_rewards_does_not_matter():
    rewards = [0.2, 0.9, 0.4, 0.0]
    found, _ = group_advantages("maxrl", rewards)
    other, _ = group_advantages("maxrl", [1000 * reward for reward in rewards])
    assert found == pytest.approx(other, rel=1e-5)


def test_cap():
    found, logs = group_advantages("maxrl", zero_one(1), maxrl_cap=2.5)
    assert found[0] == 2.5 and found[1] == pytest.approx(-1, rel=1e-4) and logs["advantage_max"].max() == 2.5
    assert group_advantages("maxrl", zero_one(4), maxrl_cap=2.5)[0] == group_advantages("maxrl", zero_one(4))[0]


def test_negative_rewards_are_refused():
    message = "`reward_funcs` must give weighted sums of rewards >= 0 with method 'maxrl', which .* got -0.5"
    with pytest.raises(ValueError, match=message):
        group_advantages("maxrl", [1.0, -0.5, NAN, 0])


def test_missing_rewards():
    found, _ = group_advantages("maxrl", [1, NAN, 0, 0, 1, NAN])
    assert [found[index] for index in (0, 2, 3, 4)] == pytest.approx(group_advantages("maxrl", [1.0, 0, 0, 1])[0])
    assert found[1] == found[5] == 0
    assert group_advantages("maxrl", [1, NAN, NAN])[0] == [0] * 3


def test_groups():
    shared.check_groups("maxrl")
    shared.check_groups("maxrl", maxrl_cap=0.5)


# In the trainer


def literal(rewards, logps, entropy, mask):
    mean = sum(rewards) / len(rewards)
    return [(reward - mean) / (mean + 1e-6) if mean else 0.0 for reward in rewards]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_against_definition(make_trainer, loss_type):
    shared.check_loss_against_definition(make_trainer, "maxrl", loss_type, literal)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_is_that_of_trl(make_trainer, loss_type):
    """No setting gives GRPO, so the loss is compared on the method's advantages."""
    shared.check_loss_is_that_of_trl(make_trainer, "maxrl", loss_type)


def test_accumulation(make_trainer):
    shared.check_accumulation(make_trainer, "maxrl")


def test_largest_advantage_is_logged(make_trainer):
    trainer, _ = shared.generated(make_trainer, ["maxrl"])
    assert trainer._metrics["train"]["maxrl/advantage_max"] == [pytest.approx(3, rel=1e-4)]


# Errors and warnings


@pytest.mark.parametrize("value", [0, -1, math.inf, "high", True])
def test_errors(value):
    with pytest.raises(ValueError, match="`maxrl_cap` must be a finite number above 0, or none, got "):
        cases.build("maxrl", maxrl_cap=value)


def test_settings_of_trl(tmp_path, caplog):
    settings = dict(methods=["maxrl"], use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="`multi_objective_aggregation` must be 'sum_then_normalize' with method 'm"):
        EntropyGRPOConfig(str(tmp_path), multi_objective_aggregation="normalize_then_sum", **settings)
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        EntropyGRPOConfig(str(tmp_path), scale_rewards="none", **settings)
    assert "`scale_rewards` 'none' does nothing with method 'maxrl'" in caplog.text


# Searched by test_fuzzing.py


@covers(maxrl.mean_scaled)
def mean_scaled_rewards(draw):
    shape = draw_shape(draw)
    rewards, given = draw_tensor(draw, shape, (0.0, 1e6), torch.float64), draw_flags(draw, shape)
    found = mean_scaled(rewards.masked_fill(~given, torch.nan))
    size = given.sum(1)
    assert found.isfinite().all() and (found[~given] == 0).all() and (found >= -1).all()
    assert (found.amax(1) <= (size - 1).clamp(min=0) + 1e-9).all() and (found.sum(1).abs() < 1e-6).all()
    assert (found[size < 2] == 0).all()
