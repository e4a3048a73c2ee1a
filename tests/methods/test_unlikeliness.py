# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import logging
import math

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support import groups as shared
from support.fuzzing import ADVANTAGES, LOGPS, covers, draw_flags, draw_shape, draw_tensor
from support.groups import NAN, group_advantages, mean_of
from support.registry import MethodSettings
from support.tiny import LOSS_TYPES

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import unlikeliness
from trl_entropy.methods.unlikeliness import likelihood_ranks, lowered


METHOD_SETTINGS = {"unlikeliness": MethodSettings(strong=dict(unlikeliness_coef=0.9), batches=(256, 512))}

REWARDS = [1.0, 1, 0, 1, 0, 0, 1, 0]
MEANS = [-0.9, -0.2, -0.5, -0.3, -1.4, -0.8, -0.25, -0.6]
RANKS = [1, 7, 4, 5, 0, 2, 6, 3]
LOWERED = [0.96875, 0.78125, 0, 0.84375, 0, 0, 0.8125, 0]


def logps_of(means, tokens=2):
    """Log-probabilities of completions with these means, different in each token."""
    steps = torch.linspace(-0.1, 0.1, tokens, dtype=torch.float64)
    return torch.tensor(means, dtype=torch.float64).unsqueeze(1) + steps


def advantages(rewards, means, group=None, tokens=2, scale="group", **settings):
    settings = {f"unlikeliness_{key}": value for key, value in settings.items()}
    extra = dict(logps=logps_of(means, tokens), scale_rewards=scale)
    return group_advantages("unlikeliness", rewards, group, extra, **settings)


def ranks_of(means):
    values = torch.tensor([means], dtype=torch.float64)
    return likelihood_ranks(values, torch.ones_like(values, dtype=torch.bool))[0].tolist()


def test_worked_example():
    found, logs = advantages(REWARDS, MEANS)
    wrong = -0.9287446553
    expected = [1.18436245, 0.7753739783, wrong, 0.911703469, wrong, wrong, 0.8435387236, wrong]
    assert found == pytest.approx(expected, rel=1e-9, abs=5e-10)
    assert mean_of(logs["factor"]) == pytest.approx(sum(LOWERED) / 4)
    assert mean_of(logs["rank_of_right"]) == (1 + 7 + 5 + 6) / 4
    grpo = [0.9352393794 if reward else -0.9352393794 for reward in REWARDS]
    assert shared.trl_advantages(REWARDS) == pytest.approx(grpo, rel=1e-9)


# The numbered departures from GRPO


def test_departure_1_rank_is_the_number_of_less_likely_completions():
    assert ranks_of(MEANS) == RANKS
    assert ranks_of([-1.0, -1, -1, -1]) == [1.5] * 4  # ties: the mean of 0, 1, 2, 3
    assert ranks_of([-2.0, -1, -1, 0]) == [0, 1.5, 1.5, 3]


def test_departure_2_positive_rewards_fall_with_the_rank():
    rewards, ranks = (torch.tensor([values], dtype=torch.float64) for values in (REWARDS, RANKS))
    assert lowered(rewards, ranks, 0.25)[0].tolist() == LOWERED
    assert lowered(rewards - 2, ranks, 0.25)[0].tolist() == [reward - 2 for reward in REWARDS]  # would be raised
    assert lowered(2 * rewards, ranks, 0.5)[0, 1].item() == 2 * (1 - 0.5 * 7 / 8)
    assert advantages(REWARDS, MEANS)[0] == pytest.approx(shared.trl_advantages(LOWERED), rel=1e-9)


def test_departure_3_groups_that_are_all_right_have_a_signal():
    found, _ = advantages([1.0] * 8, MEANS)
    assert [found[place] for place in sorted(range(8), key=MEANS.__getitem__)] == sorted(found, reverse=True)
    assert found[4] > 0 > found[1]
    assert advantages([0.0] * 8, MEANS)[0] == [0] * 8
    assert advantages([1.0] * 8, [-1.0] * 8)[0] == [0] * 8  # equal completions


# Properties


def test_mean_is_per_token_and_over_valid_tokens():
    logps = torch.tensor([[-1.0, -1, -1, -1], [-2.0, 9, 9, 9]], dtype=torch.float64)
    mask = [[1, 1, 1, 1], [1, 0, 0, 0]]
    rollouts = shared.group_rollouts([1.0, 1], 2, tokens=4, logps=logps, mask=mask)
    found, _ = cases.build("unlikeliness").group_advantages(rollouts)
    assert found[1, 0] > 0 > found[0, 0]  # -2 per token, although the other's sum is -4


def test_completions_without_a_token_have_the_rank_of_the_median():
    values = torch.tensor([[-1.0, NAN, -3, -2, NAN]], dtype=torch.float64)
    given = torch.tensor([[True] * 4 + [False]])
    found = likelihood_ranks(values, given)
    assert found[0, :4].tolist() == [3, 1.5, 0, 1.5] and found[0, 4].isnan()
    for broken in (math.inf, -math.inf):
        values[0, 1] = broken
        assert likelihood_ranks(values, given)[0, :4].tolist() == [3, 1.5, 0, 1.5]
    assert likelihood_ranks(torch.full((1, 3), NAN), torch.ones(1, 3, dtype=torch.bool)).tolist() == [[1, 1, 1]]
    even = torch.tensor([[-1.0, NAN, -3, -2, -4]])  # between the two in the middle
    assert likelihood_ranks(even, torch.ones(1, 5, dtype=torch.bool))[0, 1] == 2


def test_missing_rewards():
    """They are left out of ranks, too."""
    found, _ = advantages([1, NAN, 1, 0, NAN, 1], [-1.0, -0.5, -3, -2, -9, -0.1])
    alone, _ = advantages([1.0, 1, 0, 1], [-1.0, -3, -2, -0.1])
    assert [found[index] for index in (0, 2, 3, 5)] == pytest.approx(alone) and found[1] == found[4] == 0


@pytest.mark.parametrize("scale", ["batch", "none"])
def test_division_is_that_of_trl(scale):
    found, _ = advantages(REWARDS, MEANS, scale=scale)
    expected = torch.tensor(LOWERED, dtype=torch.float64)
    divisor = expected.std() + 1e-4 if scale == "batch" else 1.0
    assert found == pytest.approx(((expected - expected.mean()) / divisor).tolist(), rel=1e-6)


def test_small_coefficient_is_grpo():
    found, _ = advantages(REWARDS, MEANS, coef=1e-12)
    assert found == pytest.approx(shared.trl_advantages(REWARDS), rel=1e-9)


def test_groups():
    shared.check_groups("unlikeliness")


# In the trainer


def literal(rewards, logps, entropy, mask):
    means = [row[own].mean().item() for row, own in zip(logps, mask, strict=True)]
    changed = [
        reward * (1 - 0.25 * sum(other < mean for other in means) / len(means))
        for reward, mean in zip(rewards, means, strict=True)
    ]
    return shared.trl_advantages(changed)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_against_definition(make_trainer, loss_type):
    shared.check_loss_against_definition(make_trainer, "unlikeliness", loss_type, literal)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_coefficient_0_is_trl_to_the_bit(make_trainer, loss_type):
    shared.check_neutral(make_trainer, "unlikeliness", loss_type, unlikeliness_coef=0.0)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_is_that_of_trl(make_trainer, loss_type):
    shared.check_loss_is_that_of_trl(make_trainer, "unlikeliness", loss_type)


def test_accumulation(make_trainer):
    shared.check_accumulation(make_trainer, "unlikeliness")


# Errors and warnings


@pytest.mark.parametrize("value", [-0.1, 1, "much", True])
def test_errors(value):
    with pytest.raises(ValueError, match=r"`unlikeliness_coef` must be a number in \[0, 1\), got "):
        cases.build("unlikeliness", unlikeliness_coef=value)


def test_settings_of_trl(tmp_path, caplog):
    settings = dict(methods=["unlikeliness"], use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="`multi_objective_aggregation` must be 'sum_then_normalize' with method 'u"):
        EntropyGRPOConfig(str(tmp_path), multi_objective_aggregation="normalize_then_sum", **settings)
    with pytest.raises(ValueError, match="`record_entropies` must be false with method 'unlikeliness', got True"):
        EntropyGRPOConfig(str(tmp_path), record_entropies=True, **settings)
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        EntropyGRPOConfig(str(tmp_path), scale_rewards="none", **settings)
        assert caplog.text == ""
        EntropyGRPOConfig(str(tmp_path), num_generations=4, unlikeliness_coef=0.0, **settings)
    assert "`num_generations` is only 4" in caplog.text and "'unlikeliness' does nothing" in caplog.text


# Searched by test_fuzzing.py


@covers(unlikeliness.likelihood_ranks, unlikeliness.lowered)
def ranks_and_rewards(draw):
    shape = draw_shape(draw)
    values, given = draw_tensor(draw, shape, LOGPS, torch.float64), draw_flags(draw, shape)
    ranks = likelihood_ranks(values, given)
    size = given.sum(1)
    assert torch.equal(ranks.isnan(), ~given)
    torch.testing.assert_close(ranks.nansum(1), (size * (size - 1) / 2).double())
    rewards = draw_tensor(draw, shape, ADVANTAGES, torch.float64).masked_fill(~given, torch.nan)
    coef = draw(st.floats(0, 0.999))
    found = lowered(rewards, ranks, coef)
    assert torch.equal(found.isnan(), ~given)
    assert ((found <= rewards) | ~given).all() and ((found.sign() == rewards.sign()) | ~given).all()
