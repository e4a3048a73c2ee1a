# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import logging
import math

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support import groups as shared
from support.fuzzing import ADVANTAGES, covers, draw_flags, draw_shape, draw_tensor
from support.groups import NAN, group_advantages, mean_of
from support.registry import MethodSettings
from support.tiny import LOSS_TYPES

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import qae
from trl_entropy.methods.qae import lower_quantile


METHOD_SETTINGS = {"qae": MethodSettings(variants=(dict(qae_quantile=0.6),))}


def zero_one(right, group=8):
    return [1.0] * right + [0.0] * (group - right)


def by_counting(rewards, quantile):
    """The smallest reward such that the share of rewards up to it reaches the quantile, in whole numbers."""
    given = [reward for reward in rewards if not math.isnan(reward)]
    tenths = round(10 * quantile)
    return min(x for x in given if 10 * sum(reward <= x for reward in given) >= tenths * len(given))


def test_worked_example():
    found, logs = group_advantages("qae", zero_one(2))
    assert found == pytest.approx([2.159780334] * 2 + [0] * 6, rel=1e-9)
    assert (mean_of(logs["baseline"]), mean_of(logs["zero_fraction"])) == (0, 0.75)
    assert mean_of(logs["positive_group_fraction"]) == 1
    found, logs = group_advantages("qae", zero_one(6))
    assert found == pytest.approx([0] * 6 + [-2.159780334] * 2, rel=1e-9)
    assert (mean_of(logs["baseline"]), mean_of(logs["zero_fraction"])) == (1, 0.75)
    assert mean_of(logs["positive_group_fraction"]) == 0
    table = [mean_of(group_advantages("qae", zero_one(right))[1]["baseline"]) for right in range(9)]
    assert table == [0, 0, 0, 0, 0, 1, 1, 1, 1]


# The numbered departures from GRPO


@pytest.mark.parametrize("group", [4, 8, 16])
@pytest.mark.parametrize("quantile", [0.2, 0.4, 0.5, 0.6, 0.8])
def test_departure_1_baseline_is_the_quantile(group, quantile):
    generator = torch.Generator().manual_seed(group)
    for right in range(group + 1):
        rewards = zero_one(right, group)
        found, logs = group_advantages("qae", rewards, qae_quantile=quantile)
        baseline = mean_of(logs["baseline"])
        assert baseline == by_counting(rewards, quantile)
        hard = 10 * right <= (10 - round(10 * quantile)) * group  # p <= 1 - K, in whole numbers
        assert baseline == (0 if hard else 1)
        assert min(found) >= 0 if hard else max(found) <= 0
        order = torch.randperm(group, generator=generator).tolist()
        assert group_advantages("qae", [rewards[i] for i in order], qae_quantile=quantile)[0] == pytest.approx(
            [found[i] for i in order]
        )
    for _ in range(5):  # any rewards, with ties
        rewards = torch.randint(5, (group,), generator=generator).div(4).tolist()
        found, logs = group_advantages("qae", rewards, qae_quantile=quantile)
        assert mean_of(logs["baseline"]) == by_counting(rewards, quantile)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_departure_2_division_is_that_of_trl(scale):
    rewards = torch.tensor([[0.2, 0.9, 0.4, 0.4], [1, 0, 0, 0]], dtype=torch.float64)
    found, _ = group_advantages("qae", rewards.flatten().tolist(), 4, dict(scale_rewards=scale))
    spread = {"group": rewards.std(1, keepdim=True) + 1e-4, "batch": rewards.std() + 1e-4, "none": 1.0}[scale]
    expected = (rewards - torch.tensor([[0.4], [0.0]], dtype=torch.float64)) / spread
    assert found == pytest.approx(expected.flatten().tolist(), rel=1e-6)


# Properties


def test_no_interpolation():
    """torch's quantile of five right completions of eight is 0.8, and right completions would not get 0."""
    rewards = zero_one(5)
    assert torch.tensor(rewards).quantile(0.4).item() == pytest.approx(0.8)
    found, logs = group_advantages("qae", rewards)
    assert mean_of(logs["baseline"]) == 1 and found[:5] == [0] * 5


def test_rounding_does_not_raise_the_place():
    assert math.ceil(0.07 * 100) == 8
    rewards = torch.arange(100, dtype=torch.float64).unsqueeze(0)
    assert lower_quantile(rewards, 0.07).item() == 6  # the seventh
    assert lower_quantile(rewards, 1e-12).item() == 0


def test_equal_rewards_give_nothing():
    for scale in ("group", "batch", "none"):
        found, logs = group_advantages("qae", [0.7] * 8, 4, dict(scale_rewards=scale))
        assert found == [0] * 8 and mean_of(logs["positive_group_fraction"]) == 0


def test_missing_rewards():
    found, logs = group_advantages("qae", [1, NAN, 0, 0, 1, NAN])
    alone, others = group_advantages("qae", [1.0, 0, 0, 1])
    assert [found[index] for index in (0, 2, 3, 4)] == pytest.approx(alone) and found[1] == found[5] == 0
    assert mean_of(logs["zero_fraction"]) == mean_of(others["zero_fraction"])
    for scale in ("group", "batch", "none"):
        assert group_advantages("qae", [1, NAN, NAN, NAN], extra=dict(scale_rewards=scale))[0] == [0] * 4


def test_groups():
    shared.check_groups("qae")


# In the trainer


def literal(rewards, logps, entropy, mask):
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))
    baseline = by_counting(rewards, 0.4)
    return [(reward - baseline) / (deviation + 1e-4) for reward in rewards]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_against_definition(make_trainer, loss_type):
    shared.check_loss_against_definition(make_trainer, "qae", loss_type, literal)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_is_that_of_trl(make_trainer, loss_type):
    """No quantile is the mean, so the loss is compared on the method's advantages."""
    shared.check_loss_is_that_of_trl(make_trainer, "qae", loss_type)


def test_accumulation(make_trainer):
    shared.check_accumulation(make_trainer, "qae")


def test_scale_of_the_trainer_reaches_the_method(make_trainer):
    _, batch = shared.generated(make_trainer, ["qae"], scale_rewards="none")
    assert batch["advantages"].unique().tolist() == [0, 1]


# Errors and warnings


@pytest.mark.parametrize("value", [0, 1, -0.5, "half", True])
def test_errors(value):
    with pytest.raises(ValueError, match=r"`qae_quantile` must be a number in \(0, 1\), got "):
        cases.build("qae", qae_quantile=value)


def test_settings_of_trl(tmp_path, caplog):
    settings = dict(methods=["qae"], use_cpu=True, bf16=False, per_device_train_batch_size=12)
    with pytest.raises(ValueError, match="`multi_objective_aggregation` must be 'sum_then_normalize' with method 'q"):
        EntropyGRPOConfig(
            str(tmp_path), num_generations=4, multi_objective_aggregation="normalize_then_sum", **settings
        )
    for changes, count in ((dict(num_generations=3), 1), (dict(num_generations=4, scale_rewards="none"), 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="trl_entropy"):
            EntropyGRPOConfig(str(tmp_path), **changes, **settings)
        assert sum("`num_generations` is only 3" in text for text in caplog.messages) == count
        assert not any("`scale_rewards`" in text for text in caplog.messages)


# Searched by test_fuzzing.py


@covers(qae.lower_quantile)
def quantiles_of_rewards(draw):
    shape = draw_shape(draw)
    rewards, given = draw_tensor(draw, shape, ADVANTAGES, torch.float64), draw_flags(draw, shape)
    quantile = draw(st.floats(1e-6, 1 - 1e-6))
    found = lower_quantile(rewards.masked_fill(~given, torch.nan), quantile)
    assert torch.equal(found.isnan().squeeze(1), ~given.any(1))
    share = ((rewards <= found) & given).sum(1) / given.sum(1)
    below = ((rewards < found) & given).sum(1) / given.sum(1)
    known = given.any(1)
    assert (share[known] >= quantile - 1e-6).all() and (below[known] < quantile + 1e-6).all()
