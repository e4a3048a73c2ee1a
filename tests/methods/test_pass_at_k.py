# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import logging
import math
from itertools import combinations

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support import groups as shared
from support.fuzzing import ADVANTAGES, covers, draw_flags, draw_shape, draw_tensor, spoiled
from support.groups import NAN, group_advantages, group_rollouts, mean_of
from support.registry import MethodSettings
from support.tiny import FLOAT64, LOSS_TYPES, build_dataset

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import pass_at_k
from trl_entropy.methods.pass_at_k import max_advantages, pass_advantages, pass_values


METHOD_SETTINGS = {
    "pass_at_k": MethodSettings(
        strong=dict(pass_at_k_size=2),
        variants=(dict(pass_at_k_size=2, pass_at_k_form="max"),),
        group_runs={
            "pass@k, form pass": dict(methods=["pass_at_k"], pass_at_k_size=3),
            "pass@k, form max": dict(methods=["pass_at_k"], pass_at_k_form="max", pass_at_k_size=3),
        },
    )
}

TWO, SIX = [1.0, 0, 0, 1, 0, 0, 0, 0], [1.0, 1, 1, 1, 1, 1, 0, 0]
DISTINCT, TIED = [0.1, 0.7, 0.5, 0.9, 0.2], [0.1, 0.9, 0.5, 0.9, 0.2]


# Worked examples


@pytest.mark.parametrize(
    "right, k, expected",
    [
        (2, 1, (0.25, 1.732046808, -0.5773489359)),
        (2, 2, (0.4642857143, 1.074170157, -0.3580567191)),
        (2, 4, (0.7857142857, 0.5222316951, -0.1740772317)),
        (6, 1, (0.75, 0.5773489359, -1.732046808)),
        (6, 2, (0.9642857143, 0.1924490527, -0.5773471581)),
        (6, 4, (1, 0, 0)),
    ],
)
def test_worked_example_of_form_pass(right, k, expected):
    assert pass_values(8, right, k) == pytest.approx(expected, rel=1e-9, abs=1e-10)
    if k > 1:
        rewards = TWO if right == 2 else SIX
        found, logs = group_advantages("pass_at_k", rewards, pass_at_k_size=k)
        assert found == pytest.approx([expected[1] if reward else expected[2] for reward in rewards], rel=1e-9)
        assert mean_of(logs["rate"]) == pytest.approx(expected[0], rel=1e-9)
        assert mean_of(logs["silent_fraction"]) == (expected[1] == 0)


@pytest.mark.parametrize(
    "rewards, k, expected",
    [
        (DISTINCT, 2, [0, 0.13, 0.07, 0.21, 0.01]),
        (DISTINCT, 3, [0, 0.09, 0.03, 0.21, 0]),
        (DISTINCT, 5, [0, 0, 0, 0.2, 0]),
        (TIED, 2, [0, 0.19, 0.07, 0.19, 0.01]),
        (TIED, 3, [0, 0.15, 0.03, 0.15, 0]),
        (TIED, 5, [0, 0, 0, 0, 0]),
    ],
)
def test_worked_example_of_form_max(rewards, k, expected):
    _, found = max_advantages(torch.tensor([rewards], dtype=torch.float64), k)
    assert (found / 5)[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_worked_example_of_form_max_divided():
    found, _ = group_advantages("pass_at_k", DISTINCT, pass_at_k_size=3, pass_at_k_form="max")
    assert found == pytest.approx([0, 1.34423052, 0.4480768399, 3.13653788, 0], rel=1e-9)


# The numbered departures from GRPO


def subsets(count, k, holding=None):
    return [
        chosen for chosen in combinations(range(count), k) if holding is None or holding in chosen
    ]  # every subset of k


def over_all_subsets(rewards, k, threshold=None):
    """The objective of a group and the share of each completion in it, by enumeration.

    The share is the mean, over the subsets that hold the completion, of their value minus the mean value of all.
    """
    values = [float(reward > threshold) for reward in rewards] if threshold is not None else rewards

    def best(chosen):
        return max(values[index] for index in chosen)

    everything = [best(chosen) for chosen in subsets(len(rewards), k)]
    objective = sum(everything) / len(everything)
    return objective, [
        sum(best(chosen) for chosen in subsets(len(rewards), k, index))
        / len(subsets(len(rewards), k, index)) - objective
        for index in range(len(rewards))
    ]  # fmt: skip


@pytest.mark.parametrize("group", [2, 3, 4, 5, 6])
def test_departure_1_objective_is_that_of_k_completions(group):
    generator = torch.Generator().manual_seed(group)
    for k in range(1, group + 1):
        for right in range(group + 1):
            rewards = [1.0] * right + [0.0] * (group - right)
            objective, shares = over_all_subsets(rewards, k, threshold=0.5)
            rate, found = pass_advantages(*flags(rewards), k)
            assert rate.item() == pytest.approx(objective, abs=1e-12)
            deviation = math.sqrt(objective * (1 - objective))
            expected = [share / (deviation + 1e-6) if deviation > 1e-9 else 0 for share in shares]
            assert found[0].tolist() == pytest.approx(expected, abs=1e-9)
        if k > 1:
            rewards = torch.randn(1, group, generator=generator, dtype=torch.float64)
            best, _ = max_advantages(rewards, k)
            assert best.item() == pytest.approx(over_all_subsets(rewards[0].tolist(), k)[0], abs=1e-12)


def flags(rewards):
    rewards = torch.tensor([rewards])
    return rewards > 0.5, ~rewards.isnan()


@pytest.mark.parametrize("group", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("rewards", ["0/1", "real"])
def test_departure_2_advantage_is_the_share_in_the_objective(group, rewards):
    """The sum over all subsets that hold a completion, of their best reward minus their best without it."""
    generator = torch.Generator().manual_seed(group)
    values = torch.randn(group, generator=generator, dtype=torch.float64)
    values = (values > 0).double() if rewards == "0/1" else values
    for k in range(2, group + 1):
        expected = []
        for index in range(group):
            gains = [
                max(values[list(chosen)]) - max(values[[other for other in chosen if other != index]])
                for chosen in subsets(group, k, index)
            ]
            # the mean over the subsets with the completion is G / k times the sum over all subsets
            expected.append(sum(gains).item() / math.comb(group, k))
        _, found = max_advantages(values.unsqueeze(0), k)
        assert found[0].tolist() == pytest.approx([group * share for share in expected], abs=1e-12)


def test_departure_3_prompts_that_are_solved_give_no_signal():
    for right in range(9):
        found, logs = group_advantages("pass_at_k", [1.0] * right + [0.0] * (8 - right), pass_at_k_size=3)
        silent = right == 0 or right > 8 - 3
        assert (max(map(abs, found)) == 0) == silent == bool(mean_of(logs["silent_fraction"]))


# Properties


@pytest.mark.parametrize("form", ["pass", "max"])
def test_sums_and_invariances(form):
    """Form pass sums to 0. Form max does not change if a constant is added to all rewards."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(5):
        rewards = torch.randn(8, generator=generator, dtype=torch.float64)
        rewards = (rewards > 0).double() if form == "pass" else rewards
        settings = dict(pass_at_k_size=2 + seed, pass_at_k_form=form)
        found, _ = group_advantages("pass_at_k", rewards.tolist(), **settings)
        if form == "pass":
            assert sum(found) == pytest.approx(0, abs=1e-9)
        else:
            assert group_advantages("pass_at_k", (rewards + 3).tolist(), **settings)[0] == pytest.approx(found)


def test_k_of_one_is_grpo_with_the_population_deviation():
    rate, found = pass_advantages(*flags(TWO), 1)
    rewards = torch.tensor(TWO, dtype=torch.float64)
    expected = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-6)
    torch.testing.assert_close(found[0], expected, **FLOAT64)


def test_k_of_all_is_the_best_minus_the_second():
    for rewards in (DISTINCT, TIED, [0.0, 1, 0, 0, 0]):
        _, found = max_advantages(torch.tensor([rewards], dtype=torch.float64), 5)
        best, second = sorted(rewards)[:2:-1]
        expected = [5 * (best - second) if reward == best else 0 for reward in rewards]
        assert found[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_small_k_of_max_agrees_with_the_policy_gradient():
    """With k = 2 and G = 2 the best has the difference to the other, as twice the reward minus the mean."""
    _, found = max_advantages(torch.tensor([[0.25, 1.0]], dtype=torch.float64), 2)
    assert found[0].tolist() == [0, 2 * (1.0 - 0.25)]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_form_max_divides_as_trl(scale):
    rewards = [*DISTINCT[:4], *TIED[1:]]
    extra = dict(scale_rewards=scale)
    found, _ = group_advantages("pass_at_k", rewards, 4, extra, pass_at_k_size=3, pass_at_k_form="max")
    plain = torch.tensor(rewards, dtype=torch.float64)
    _, raw = max_advantages(plain.view(2, 4), 3)
    spread = {"group": plain.view(2, 4).std(1, keepdim=True), "batch": plain.std(), "none": 1 - 1e-4}
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64), (raw / (spread[scale] + 1e-4)).flatten(), **FLOAT64
    )


def test_missing_rewards():
    """They are left out: the rest is a group of its own."""
    for form in ("pass", "max"):
        settings = dict(pass_at_k_size=3, pass_at_k_form=form)
        found, logs = group_advantages("pass_at_k", [1, NAN, 0, 0, NAN, 1, 0, 0], **settings)
        alone, others = group_advantages("pass_at_k", [1.0, 0, 0, 1, 0, 0], **settings)
        assert [found[index] for index in (0, 2, 3, 5, 6, 7)] == pytest.approx(alone)
        assert found[1] == found[4] == 0 and mean_of(logs["rate"]) == pytest.approx(mean_of(others["rate"]))
        found, logs = group_advantages("pass_at_k", [1, NAN, 0, NAN], **settings)  # fewer than k
        assert found == [0] * 4 and logs["rate"].isnan().all()


def test_until_returns_to_the_advantages_of_trl():
    values = torch.linspace(-1, 1, 8, dtype=torch.float64)
    method = cases.build("pass_at_k", pass_at_k_until=0.5)
    for progress, own in ((0.0, True), (0.49, True), (0.5, False), (1.0, False)):
        rollouts = group_rollouts(TWO, advantages=values, progress=progress)
        found, logs = method.group_advantages(rollouts)
        assert ("rate" in logs) == own and torch.equal(found, rollouts.advantages) == (not own)
    method = cases.build("pass_at_k")  # never, not even in the evaluation after the last step
    assert "rate" in method.group_advantages(group_rollouts(TWO, progress=1.0))[1]


def test_until_counts_optimizer_steps(make_trainer):
    trainer = make_trainer(methods=["pass_at_k"], pass_at_k_size=2, pass_at_k_until=0.5, max_steps=4)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert ["pass_at_k/rate" in line for line in lines] == [True, True, False, False]


def test_evaluation_with_fewer_completions_than_k(make_trainer):
    """No error, and no advantage."""
    for form in ("pass", "max"):
        trainer = make_trainer(
            methods=["pass_at_k"], pass_at_k_size=3, pass_at_k_form=form, num_generations_eval=2,
            per_device_eval_batch_size=4, eval_dataset=build_dataset(4),
        )  # fmt: skip
        metrics = trainer.evaluate()
        assert math.isfinite(metrics["eval_loss"])
        assert metrics["eval_pass_at_k/silent_fraction"] == 1 and metrics["eval_pass_at_k/advantage_abs"] == 0


def test_groups():
    for form in ("pass", "max"):
        shared.check_groups("pass_at_k", pass_at_k_size=2, pass_at_k_form=form)


# In the trainer


def literal(rewards, logps, entropy, mask):
    """By the equations, with k = 2."""
    n, c = len(rewards), sum(rewards)
    rate = 1 - math.comb(int(n - c), 2) / math.comb(n, 2)
    deviation = math.sqrt(rate * (1 - rate))
    if deviation == 0:
        return [0.0] * n
    wrong = (n - c - 1) / (n - 1)
    return [(1 - rate - (0 if reward else wrong)) / (deviation + 1e-6) for reward in rewards]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_against_definition(make_trainer, loss_type):
    shared.check_loss_against_definition(make_trainer, "pass_at_k", loss_type, literal, pass_at_k_size=2)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_is_that_of_trl(make_trainer, loss_type):
    shared.check_loss_is_that_of_trl(make_trainer, "pass_at_k", loss_type, pass_at_k_size=2)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_past_until_is_trl_to_the_bit(make_trainer, monkeypatch, loss_type):
    monkeypatch.setattr(pass_at_k, "ratio", lambda config, name: 0.0)  # past it from the first step on
    shared.check_neutral(make_trainer, "pass_at_k", loss_type)


def test_accumulation(make_trainer):
    shared.check_accumulation(make_trainer, "pass_at_k", pass_at_k_size=2)


# Errors and warnings


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(pass_at_k_size=1), "`pass_at_k_size` must be a whole number >= 2, got 1."),
        (dict(pass_at_k_size=2.5), "`pass_at_k_size` must be a whole number >= 2, got 2.5."),
        (dict(pass_at_k_form="best"), "`pass_at_k_form` must be one of 'pass', 'max', got 'best'."),
        (dict(pass_at_k_threshold=math.nan), "`pass_at_k_threshold` must be a finite number, got nan."),
        (dict(pass_at_k_until=0), "`pass_at_k_until` must be a ratio in (0, 1], got 0."),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError) as error:
        cases.build("pass_at_k", **fields)
    assert str(error.value) == message


def config(folder, caplog, **settings):
    """The warnings of a config."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        EntropyGRPOConfig(str(folder), methods=["pass_at_k"], use_cpu=True, bf16=False, **settings)
    return [record.getMessage().removeprefix("[RANK 0] ") for record in caplog.records]


def test_settings_of_trl(tmp_path, caplog):
    with pytest.raises(ValueError, match="`pass_at_k_size` must be at most `num_generations`, which is 4, got 5."):
        config(tmp_path, caplog, pass_at_k_size=5, num_generations=4)
    with pytest.raises(ValueError, match="`multi_objective_aggregation` must be 'sum_then_normalize' with method 'p"):
        config(tmp_path, caplog, multi_objective_aggregation="normalize_then_sum")
    assert config(tmp_path, caplog) == []
    assert config(tmp_path, caplog, scale_rewards="batch", pass_at_k_form="max") == []
    assert config(tmp_path, caplog, scale_rewards="batch") == [
        "`scale_rewards` 'batch' does nothing with method 'pass_at_k', which has a scale of its own."
    ]


def test_warns_about_silence_that_lasts():
    silent, speaking = [1.0] * 8, [1.0, 0, 0, 0, 1, 0, 0, 0]
    assert shared.warned_by("pass_at_k", silent, 19) == []
    (found,) = shared.warned_by("pass_at_k", silent, 50)
    assert "no signal for more than 90% of the groups in 20" in found and "lower `pass_at_k_size` (4)" in found
    assert shared.warned_by("pass_at_k", speaking, 50, dict(pass_at_k_size=2)) == []
    assert shared.warned_by("pass_at_k", silent, 50, training=False) == []


def test_warns_about_more_than_two_rewards():
    (found,) = shared.warned_by("pass_at_k", [1.0, 0, 0.2, 1, 0, 1, 0.2, 0.7], 3, dict(pass_at_k_size=2))
    assert "`pass_at_k_threshold` (0.5), but this sum takes more than two values" in found
    form = dict(pass_at_k_size=2, pass_at_k_form="max")
    assert shared.warned_by("pass_at_k", [1.0, 0, 0.2, 1, 0, 1, 0.2, 0.7], 3, form) == []


# Searched by test_fuzzing.py


@covers(pass_at_k.pass_values, pass_at_k.pass_advantages, pass_at_k.max_advantages)
def pass_at_k_terms(draw):
    shape = draw_shape(draw)
    rewards, given = draw_tensor(draw, shape, ADVANTAGES, torch.float64), draw_flags(draw, shape)
    k = draw(st.integers(1, 5))
    right = rewards > 0
    rate, found = pass_advantages(right, given, k)
    assert torch.equal(pass_advantages(spoiled(draw, rewards, given) > 0, given, k)[1], found)
    assert ((rate >= 0) & (rate <= 1) | rate.isnan()).all() and torch.equal(rate.isnan(), given.sum(1) < k)
    assert found.isfinite().all() and found.sum(1).abs().max() < 1e-9 and (found[~given] == 0).all()
    scored = rewards.masked_fill(~given, torch.nan)
    best, found = max_advantages(scored, k + 1)
    assert found.isfinite().all() and (found >= 0).all() and torch.equal(best.isnan(), given.sum(1) < k + 1)
