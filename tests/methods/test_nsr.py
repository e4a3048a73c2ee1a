# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import logging
import math

import pytest
import torch
from support import cases
from support import groups as shared
from support.groups import NAN, group_advantages, mean_of
from support.registry import MethodSettings
from support.tensors import config_of
from support.tiny import LOSS_TYPES, loss_and_gradients

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import build_methods


METHOD_SETTINGS = {
    "nsr": MethodSettings(
        variants=(dict(nsr_positive_weight=0.0), dict(nsr_positive_weight=1.0, nsr_negative_weight=0.0)),
        batches=(2048, 8192),
    )
}

TWO = [1.0, 0, 0, 1, 0, 0, 0, 0]


def test_worked_example():
    found, logs = group_advantages("nsr", TWO)
    assert found == [0.1, -1, -1, 0.1, -1, -1, -1, -1]
    assert mean_of(logs["correct_fraction"]) == 0.25
    expected = [1.61983525 if reward else -0.5399450834 for reward in TWO]
    assert shared.trl_advantages(TWO) == pytest.approx(expected, rel=1e-9)  # GRPO's, for comparison


# The numbered departures from GRPO


def test_departure_1_advantage_depends_on_the_own_reward_alone():
    for others in ([0.0, 0, 0], [1.0, 1, 1], [NAN, NAN, NAN], [7.0, -3, 0]):
        for reward, expected in ((1.0, 0.1), (0.0, -1.0)):
            assert group_advantages("nsr", [reward, *others])[0][0] == expected


def test_departure_2_right_completions_weigh_less():
    for positive, negative in ((0.1, 1.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0), (0.5, 2.0)):
        settings = dict(nsr_positive_weight=positive, nsr_negative_weight=negative)
        assert group_advantages("nsr", [1.0, 0.0], **settings)[0] == [positive, -negative]


def test_departure_3_groups_of_equal_rewards_count():
    assert group_advantages("nsr", [1.0] * 4)[0] == [0.1] * 4
    assert group_advantages("nsr", [0.0] * 4)[0] == [-1] * 4


# Properties


def test_threshold():
    """Rewards of -1 and 1 need no other threshold; a reward at the threshold is wrong."""
    assert group_advantages("nsr", [-1.0, 1.0])[0] == [-1, 0.1]
    assert group_advantages("nsr", [-1.0, 1.0], nsr_threshold=-2)[0] == [0.1, 0.1]
    assert group_advantages("nsr", [0.5, 0.6])[0] == [-1, 0.1]


def test_missing_rewards():
    found, logs = group_advantages("nsr", [1.0, NAN, 0, NAN])
    assert found == [0.1, 0, -1, 0] and mean_of(logs["correct_fraction"]) == 0.5
    assert group_advantages("nsr", [NAN, 0.0])[0] == [0, -1]  # needs no second reward


def test_groups():
    shared.check_groups("nsr")


# In the trainer


def literal(rewards, logps, entropy, mask):
    return [0.1 if reward > 0.5 else -1.0 for reward in rewards]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_against_definition(make_trainer, loss_type):
    shared.check_loss_against_definition(make_trainer, "nsr", loss_type, literal)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_is_that_of_trl(make_trainer, loss_type):
    """No setting gives GRPO, so the loss is compared on the method's advantages."""
    shared.check_loss_is_that_of_trl(make_trainer, "nsr", loss_type)


def test_accumulation(make_trainer):
    shared.check_accumulation(make_trainer, "nsr")


def test_policy_gradient_of_two_tokens():
    """On policy the gradient of the logits is A (1[sampled] - p): wrong answers move their mass to the others."""
    logits = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    answers, rewards = [0, 0, 1], [1.0, 0.0, 1.0]
    weights = torch.tensor(group_advantages("nsr", rewards)[0], dtype=torch.float64)
    (weights * logits.log_softmax(-1)[answers]).sum().backward()
    p = logits.detach().softmax(-1)
    expected = sum(w * (torch.eye(2, dtype=torch.float64)[a] - p) for w, a in zip(weights, answers, strict=True))
    torch.testing.assert_close(logits.grad, expected)


def test_right_completions_without_weight_have_no_gradient_but_stay_in_the_denominators(make_trainer):
    rewards = [1.0, 0, 1, 0, 1, 1, 1, 1]
    trainer, batch = shared.generated(make_trainer, ["nsr"], rewards, nsr_positive_weight=0.0, loss_type="grpo")
    right = torch.tensor(rewards) > 0
    assert (batch["advantages"][right] == 0).all() and (batch["advantages"][~right] == -1).all()
    assert (batch["completion_mask"][right].sum(1) > 0).all()  # nothing is masked
    loss, _ = loss_and_gradients(trainer, batch)
    assert loss.item() == pytest.approx(2 / 8)  # ratio 1, advantage -1 in two of eight rows
    for part, moves in ((right, False), (~right, True)):
        rows = {**batch, "completion_mask": batch["completion_mask"] * part.unsqueeze(1)}
        _, gradients = loss_and_gradients(trainer, rows)
        assert any(gradient.abs().max() > 0 for gradient in gradients.values()) == moves


# Errors and warnings


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(nsr_positive_weight=-1), "`nsr_positive_weight` must be a finite number >= 0, got -1."),
        (dict(nsr_negative_weight=math.inf), "`nsr_negative_weight` must be a finite number >= 0, got inf."),
        (dict(nsr_threshold="half"), "`nsr_threshold` must be a finite number, got 'half'."),
        (
            dict(nsr_positive_weight=0, nsr_negative_weight=0),
            "`nsr_negative_weight` must be above 0 if `nsr_positive_weight` is 0, got 0.",
        ),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError) as error:
        cases.build("nsr", **fields)
    assert str(error.value) == message


def test_settings_of_trl(tmp_path, caplog):
    settings = dict(use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="`multi_objective_aggregation` must be 'sum_then_normalize' with method 'n"):
        EntropyGRPOConfig(str(tmp_path), methods=["nsr"], multi_objective_aggregation="normalize_then_sum", **settings)
    for scale, count in (("group", 0), ("batch", 1), ("none", 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="trl_entropy"):
            EntropyGRPOConfig(str(tmp_path), methods=["nsr"], scale_rewards=scale, **settings)
        assert sum(f"`scale_rewards` '{scale}' does nothing" in text for text in caplog.messages) == count


@pytest.mark.parametrize("other", ["pass_at_k", "canon"])
def test_only_one_method_defines_the_advantage(other):
    for names in (["nsr", other], [other, "nsr"]):
        with pytest.raises(ValueError, match=f"must not list both '{names[0]}' and '{names[1]}': both define the gro"):
            build_methods(config_of(methods=names))


def test_warns_if_hardly_any_completion_is_right():
    assert shared.warned_by("nsr", [0.0] * 8, 19) == []
    (found,) = shared.warned_by("nsr", [0.0] * 8, 50)
    assert "Fewer than 5% of the completions were right in 20" in found and "`beta`" in found
    assert shared.warned_by("nsr", [0.0] * 7 + [1.0], 50) == []
    assert shared.warned_by("nsr", [NAN] * 8, 50) == []
    assert shared.warned_by("nsr", [0.0] * 8, 50, training=False) == []
    (found,) = shared.warned_by("nsr", [0.0, 0.1, 1.0, 0.0], 3)
    assert "`nsr_threshold` (0.5), but this sum takes more than two values" in found
