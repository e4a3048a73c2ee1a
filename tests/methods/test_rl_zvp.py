# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import logging
import math
from dataclasses import replace

import pytest
import torch
from support import cases
from support import groups as shared
from support.fuzzing import ADVANTAGES, ENTROPIES, covers, draw_flags, draw_shape, draw_tensor, spoiled
from support.groups import NAN, mean_of
from support.registry import MethodSettings
from support.tensors import config_of, random_rollouts
from support.tiny import EXACT, LOSS_TYPES

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import build_methods, rl_zvp
from trl_entropy.methods.rl_zvp import entropy_advantages, uniform_signs


def reward_of_solved_prompts(completion_ids, **kwargs):
    """Every second group of four is all right. In the others every second completion is."""
    return [float(row % 8 < 4 or row % 2) for row in range(len(completion_ids))]


METHOD_SETTINGS = {
    "rl_zvp": MethodSettings(
        strong=dict(rl_zvp_coef=0.5),
        group_runs={
            "pass@k, then RL-ZVP, all right": dict(methods=["pass_at_k", "rl_zvp"], pass_at_k_size=2, rewards=[1.0]),
            "RL-ZVP, all wrong": dict(methods=["rl_zvp"], rl_zvp_coef=0.5, rewards=[0.0]),
        },
        reward=reward_of_solved_prompts,
    )
}

ENTROPY = [0.05, 0.6, 2.6, 1.1]


def changed(rewards, entropy=ENTROPY, group=None, **extra):
    """Advantages of completions that all have these entropies, and the logs."""
    settings = {key: extra.pop(key) for key in list(extra) if key.startswith("rl_zvp_")}
    rollouts = shared.group_rollouts(rewards, group, entropy=[entropy] * len(rewards), **extra)
    return *cases.build("rl_zvp", **settings).group_advantages(rollouts), rollouts


def test_worked_example():
    found, logs, _ = changed([1.0, 1])
    assert found.tolist() == [pytest.approx([0.005, 0.06, 0.26, 0.11], rel=1e-9)] * 2
    assert (mean_of(logs["right_fraction"]), mean_of(logs["wrong_fraction"])) == (1, 0)
    assert mean_of(logs["advantage_abs"]) == pytest.approx((0.005 + 0.06 + 0.26 + 0.11) / 4)
    found, logs, _ = changed([0.0, 0])
    assert found.tolist() == [pytest.approx([-0.255, -0.2, 0, -0.15], rel=1e-9)] * 2
    assert (mean_of(logs["right_fraction"]), mean_of(logs["wrong_fraction"])) == (0, 1)


# The numbered departures from GRPO


def test_departure_1_solved_prompts_reinforce_in_proportion_to_entropy():
    found, _, rollouts = changed([1.0] * 4, rl_zvp_coef=0.3)
    torch.testing.assert_close(found, 0.3 * rollouts.entropy)
    assert (found > 0).all()


def test_departure_2_failed_prompts_blame_confident_tokens():
    found, _, rollouts = changed([0.0] * 4, rl_zvp_coef=0.3)
    torch.testing.assert_close(found, 0.3 * (rollouts.entropy - 2.6))
    assert (found <= 0).all() and (found == 0).sum() == 4  # but not the most uncertain token of each


def test_departure_3_other_groups_stay_to_the_bit():
    values = torch.linspace(-1, 1, 8, dtype=torch.float64)
    found, logs, rollouts = changed([1.0, 0, 0, 1, 1, 1, 1, 1], group=4, advantages=values)
    torch.testing.assert_close(found[:4], rollouts.advantages[:4], **EXACT)
    torch.testing.assert_close(found[4:], rollouts.advantages[4:] + 0.1 * rollouts.entropy[4:])
    assert mean_of(logs["right_fraction"]) == 0.5 and logs["advantage_abs"][:4].isnan().all()


# Properties


def test_maximum_is_over_the_valid_tokens_of_the_completion():
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]]).bool()
    found, _, _ = changed([0.0, 0], mask=mask)
    assert found[0].tolist() == pytest.approx([0.1 * (0.05 - 1.1), 0.1 * (0.6 - 1.1), 0, 0])
    found, _, _ = changed([0.0, 0], mask=torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]).bool())
    assert found[0].tolist() == [0] * 4 and found[1].min() < 0


def test_threshold():
    assert (changed([0.5, 0.5])[0] <= 0).all() and (changed([0.5, 0.5], rl_zvp_threshold=0.4)[0] > 0).all()
    assert (changed([-1.0, -1], rl_zvp_threshold=-2)[0] > 0).all()


def test_missing_rewards():
    found, logs, _ = changed([1, NAN, 1, 1])
    assert (found[[0, 2, 3]] > 0).all() and (found[1] == 0).all() and mean_of(logs["right_fraction"]) == 1
    for rewards in ([1, NAN], [NAN, NAN]):  # fewer than two
        found, logs, _ = changed(rewards)
        assert (found == 0).all() and (mean_of(logs["right_fraction"]), mean_of(logs["wrong_fraction"])) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_against_the_equations(seed):
    rollouts = random_rollouts(seed=seed, group=2)
    found, _ = cases.build("rl_zvp").group_advantages(rollouts)
    for row in range(8):
        group = rollouts.rewards[row - row % 2 :][:2].tolist()
        for token in range(7):
            expected = rollouts.advantages[row, token].item()
            valid = rollouts.entropy[row][rollouts.mask[row]].tolist()
            if rollouts.mask[row, token] and group[0] == group[1]:
                h = rollouts.entropy[row, token].item()
                expected += 0.1 * h if group[0] == 1 else -0.1 * (max(valid) - h)
            assert found[row, token].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_groups():
    cases.check_rollouts(lambda: cases.build("rl_zvp"))
    cases.check_rollouts(lambda: cases.build("rl_zvp", rl_zvp_threshold=2.0))
    assert cases.build("rl_zvp").state_dict() == {}


def test_no_group():
    rollouts = replace(random_rollouts(), num_generations=1)  # as in an evaluation with one completion per prompt
    found, _ = cases.build("rl_zvp").group_advantages(rollouts)
    torch.testing.assert_close(found, rollouts.advantages, **EXACT)


# In the trainer


def literal(rewards, logps, entropy, mask):
    rows = []
    for row, own, advantage in zip(entropy, mask, shared.trl_advantages(rewards), strict=True):
        if len(set(rewards)) > 1:
            rows.append([advantage] * len(row))
        elif rewards[0] == 1:
            rows.append((0.1 * row).tolist())
        else:
            rows.append((-0.1 * (row[own].max() - row)).tolist())
    return rows


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_against_definition(make_trainer, loss_type, wrong):
    """One of three groups has equal rewards."""
    rewards = [1.0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0] if wrong else shared.REWARDS
    shared.check_loss_against_definition(make_trainer, "rl_zvp", loss_type, literal, rewards)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_without_equal_rewards_it_is_trl_to_the_bit(make_trainer, loss_type):
    rewards = [1.0, 0, 1, 0, 0, 0, 1, 0, 1, 1, 1, 0]
    shared.check_neutral(make_trainer, "rl_zvp", loss_type, rewards=rewards)


def test_accumulation(make_trainer):
    shared.check_accumulation(make_trainer, "rl_zvp")


def test_after_a_method_that_replaces_advantages(make_trainer):
    _, batch = shared.generated(make_trainer, ["pass_at_k", "rl_zvp"], pass_at_k_size=4)
    _, alone = shared.generated(make_trainer, ["pass_at_k"], pass_at_k_size=4)
    mask = batch["completion_mask"].bool()
    torch.testing.assert_close(batch["advantages"][:8], alone["advantages"][:8], **EXACT)
    assert (alone["advantages"][8:] == 0).all() and (batch["advantages"][8:][mask[8:]] > 0).any()


# Errors and warnings


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(rl_zvp_coef=0), "`rl_zvp_coef` must be a finite number above 0, got 0."),
        (dict(rl_zvp_coef=math.inf), "`rl_zvp_coef` must be a finite number above 0, got inf."),
        (dict(rl_zvp_threshold=None), "`rl_zvp_threshold` must be a finite number, got None."),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError) as error:
        cases.build("rl_zvp", **fields)
    assert str(error.value) == message


def test_order_and_exclusion(tmp_path, caplog):
    for names in (["nsr", "rl_zvp"], ["rl_zvp", "nsr"]):
        with pytest.raises(ValueError, match="NSR learns from groups of equal rewards already"):
            build_methods(config_of(methods=names))
    with pytest.raises(ValueError, match="must list 'pass_at_k', .* before 'rl_zvp'"):
        build_methods(config_of(methods=["rl_zvp", "pass_at_k"]))
    for names, count in ((["rl_zvp", "empg"], 0), (["empg", "rl_zvp"], 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="trl_entropy"):
            EntropyGRPOConfig(str(tmp_path), methods=names, use_cpu=True, bf16=False)
        assert sum("list 'rl_zvp' before 'empg'" in text for text in caplog.messages) == count


def test_warns_if_almost_all_prompts_fail():
    assert shared.warned_by("rl_zvp", [0.0] * 8, 19) == []
    (found,) = shared.warned_by("rl_zvp", [0.0] * 8, 50)
    assert "more than 80% of the prompts were wrong in 20" in found
    assert shared.warned_by("rl_zvp", [0.0] * 7 + [1.0], 50) == []
    assert shared.warned_by("rl_zvp", [0.0] * 8, 50, training=False) == []


# Searched by test_fuzzing.py


@covers(rl_zvp.uniform_signs, rl_zvp.entropy_advantages)
def equal_rewards(draw):
    shape = draw_shape(draw)
    rewards, given = draw_tensor(draw, shape, ADVANTAGES), draw_flags(draw, shape)
    scored = rewards.masked_fill(~given, torch.nan)
    signs = uniform_signs(scored, scored > 0)
    assert (signs[~given] == 0).all() and (signs.amax(1) * signs.amin(1) >= 0).all()
    assert (signs[given.sum(1) < 2] == 0).all()
    entropy, mask = draw_tensor(draw, shape, ENTROPIES), draw_flags(draw, shape)
    found = entropy_advantages(entropy, mask, signs[:, 0], 0.1)
    assert torch.equal(entropy_advantages(spoiled(draw, entropy, mask), mask, signs[:, 0], 0.1), found)
    assert found.isfinite().all() and (found * signs[:, :1] >= 0).all() and (found[~mask] == 0).all()
