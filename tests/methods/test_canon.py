# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support.fuzzing import ADVANTAGES, covers, draw_flags, draw_shape, draw_tensor, spoiled
from support.registry import MethodSettings
from support.tensors import make_rollouts, random_rollouts
from support.tiny import FLOAT64, build_dataset, count_reward

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import canon
from trl_entropy.methods.canon import cosine_mu
from trl_entropy.trainers.generation import Generation
from trl_entropy.trainers.rollouts import batches_made


METHOD_SETTINGS = {
    "canon": MethodSettings(
        group_runs={
            "canon and empg": dict(methods=["canon", "empg"], canon_mu=0.7, canon_alpha=0.9, empg_skip_uniform=True),
            "by length, agentic": dict(
                methods=["canon", "agentic_aepo"], canon_metric="length", canon_mu_schedule="acc_inter_first"
            ),
            "shaped rewards": dict(
                methods=["pear", "canon"], pear_think_end="w5", canon_mu_schedule="acc_intra_first"
            ),
        },
        batches=(512, 8192),
    )
}


REWARDS = [1.0, 0, 1, 1, 0, 0, 1, 1]
METRIC = [0.10, 0.40, 0.20, 0.35, 0.15, 0.50, 0.30, 0.25]
INTER = [0.5, -0.75, 0.5, 0.25, -0.5, -0.75, 0.25, 0.5]
INTRA = [0.25, -0.5, 0.25, 0.5, -0.75, -0.5, 0.5, 0.25]


def advantages(rewards, metric, group=None, batch=0, columns=None, **settings):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    columns = columns or {"all": rewards}
    rollouts = make_rollouts(
        [[value] * 2 for value in metric],
        rewards=rewards,
        num_generations=group or len(rewards),
        batch=batch,
        reward_columns=columns,
    )
    method = cases.build("canon", **{f"canon_{key}": value for key, value in settings.items()})
    method.check_rewards(list(columns))
    found, metrics = method.group_advantages(rollouts)
    assert torch.equal(found[:, 0], found[:, 1])
    return found[:, 0].tolist(), metrics


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(mu=1.0), INTER),
        (dict(mu=0.0), INTRA),
        (dict(mu=0.5), [0.375, -0.625, 0.375, 0.375, -0.625, -0.625, 0.375, 0.375]),
        (dict(mu=0.4), [0.35, -0.6, 0.35, 0.4, -0.65, -0.6, 0.4, 0.35]),
        (dict(mu=1.0, alpha=0.9), [0.4, -0.675, 0.4, 0.325, -0.5, -0.675, 0.325, 0.4]),
    ],
)
def test_worked_example(settings, expected):
    found, metrics = advantages(REWARDS, METRIC, **settings)
    assert found == pytest.approx(expected, abs=1e-12)
    assert metrics["mu"] == pytest.approx(settings["mu"]) and metrics["high_minus_low_reward"].tolist() == [-0.25]


def test_odd_group():
    found, _ = advantages(REWARDS[:5], METRIC[:5], mu=0.5)
    assert found == pytest.approx([0.416667, -0.583333, 0.416667, 0.416667, -0.583333], abs=1e-6)


def literal(rewards, metric, mu, alpha, plus_is_low):
    """One group, from the equations; `None` for a reward that is missing."""
    scored = sorted((m, i) for i, (m, r) in enumerate(zip(metric, rewards, strict=True)) if r == r)
    low = {i for _, i in scored[: len(scored) // 2]}
    high = {i for _, i in scored[len(scored) // 2 :]}
    found = [0.0] * len(rewards)
    if not low:
        return found
    mean = {name: sum(rewards[i] for i in half) / len(half) for name, half in (("low", low), ("high", high))}
    for i in low | high:
        own, other = ("low", "high") if i in low else ("high", "low")
        in_plus = (i in low) == plus_is_low
        inter = alpha * rewards[i] - mean[other] if in_plus else rewards[i] - alpha * mean[other]
        found[i] = mu * inter + (1 - mu) * (rewards[i] - mean[own])
    return found


@pytest.mark.parametrize("metric", ["entropy", "length"])
@pytest.mark.parametrize("group", [2, 4, 8])
def test_against_the_equations(metric, group):
    """Covers all tokens that the policy wrote, including the completion that the loss leaves out."""
    for seed in range(3):
        rollouts = random_rollouts(seed=seed, group=group)
        method = cases.build("canon", canon_metric=metric, canon_mu=0.3, canon_alpha=0.8)
        found = method.group_advantages(rollouts)[0][:, 0].tolist()
        values = [
            row[own].mean().item() if metric == "entropy" else float(own.sum())
            for row, own in zip(rollouts.entropy, rollouts.generated, strict=True)
        ]
        rewards = rollouts.rewards.tolist()
        for start in range(0, 8, group):
            part = slice(start, start + group)
            expected = literal(rewards[part], values[part], 0.3, 0.8, metric == "entropy")
            assert found[part] == pytest.approx(expected, abs=1e-12)


def test_ties_missing_rewards_and_small_groups():
    assert advantages([1, 0, 0, 1], [0.3] * 4)[0] == [1 - 0.5, -0.5, -0.5, 0.5]
    nan = float("nan")
    found, _ = advantages([1, nan, 0, 1], [0.1, 0.0, 0.2, 0.3])
    assert found == pytest.approx([1 - 0.5, 0, -1, 0])
    assert advantages([1.0, nan], [0.1, 0.2])[0] == [0, 0]
    assert advantages([1.0, 0.0], [0.1, 0.2], group=1)[0] == [0, 0]
    for group in (1, 2):  # no gap if a half is empty
        assert advantages([1.0, nan], [0.1, 0.2], group=group)[1]["high_minus_low_reward"].isnan().all()


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0])
def test_equal_rewards_give_nothing(mu):
    assert advantages([1.0] * 8, METRIC, mu=mu)[0] == [0] * 8


def test_halves_of_one_size_and_equal_weights_are_the_group_mean():
    rewards = torch.randn(8, dtype=torch.float64)
    found, _ = advantages(rewards.tolist(), METRIC, mu=0.5)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), rewards - rewards.mean(), **FLOAT64)


@pytest.mark.parametrize(
    "intra_first, intra",
    [
        (True, {0: 0.02, 15: 0.32, 29: 0.6, 50: 0.3, 69: 0.000925, 70: 0.6}),
        (False, {0: 0.966667, 15: 0.466667, 29: 0, 50: 0.3, 69: 0.599075, 70: 0}),
    ],
)
def test_cosine(intra_first, intra):
    for step, weight in intra.items():
        assert 1 - cosine_mu(step, intra_first) == pytest.approx(weight, abs=1e-6)


def test_schedules_by_accuracy():
    for schedule, mu in (("acc_inter_first", 0.375), ("acc_intra_first", 0.625)):
        found, metrics = advantages(REWARDS, METRIC, mu_schedule=schedule)
        assert metrics["mu"].item() == mu
        assert found == pytest.approx([mu * a + (1 - mu) * b for a, b in zip(INTER, INTRA, strict=True)])
    columns = {"right": torch.tensor([1.0, 0, 0, 0, 0, 0, 0, float("nan")])}
    _, metrics = advantages(REWARDS, METRIC, columns=columns, mu_schedule="acc_intra_first", accuracy="right")
    assert metrics["mu"].item() == pytest.approx(1 / 7)
    nothing = [float("nan")] * 4
    found, metrics = advantages(nothing, METRIC[:4], mu=0.3, mu_schedule="acc_inter_first")
    assert found == [0] * 4 and metrics["mu"].item() == pytest.approx(0.3)
    with pytest.raises(ValueError, match="`canon_accuracy` must name a reward function with a mean in .0, 1."):
        advantages([3.0, 4.0], [0.1, 0.2], mu_schedule="acc_inter_first")
    _, metrics = advantages(REWARDS, METRIC, batch=50, mu_schedule="cosine_inter_first")
    assert metrics["mu"].item() == pytest.approx(0.7)


@pytest.mark.parametrize("schedule, name", [("acc_inter_first", None), ("acc_inter_first", "x"), ("constant", "x")])
def test_the_accuracy_is_one_of_the_rewards(make_trainer, schedule, name):
    with pytest.raises(
        ValueError, match=f"`canon_accuracy` must be one of the reward functions 'count_reward', 'half', got {name!r}"
    ):
        make_trainer(
            methods=["canon"], canon_mu_schedule=schedule, canon_accuracy=name, reward_funcs=[count_reward, half]
        )


def half(completions, **kwargs):
    return [0.5] * len(completions)


def test_the_accuracy_is_that_before_another_method_shapes_it(make_trainer):
    trainer = make_trainer(
        methods=["pear", "canon"], pear_reward="half", canon_accuracy="half", canon_mu_schedule="acc_inter_first",
        reward_funcs=[count_reward, half], per_device_train_batch_size=8,
    )  # fmt: skip
    trainer._generate_and_score_completions([{"prompt": "w1"}] * 8)
    assert trainer._metrics["train"]["canon/mu"] == [0.5] and min(trainer._logs["rewards"]["half"]) < 0.5


def test_the_cosine_counts_generation_batches(make_trainer):
    """Counts generation batches, not updates, including those before the run was resumed."""
    trainer = make_trainer(
        methods=["canon"], canon_metric="length", canon_mu_schedule="cosine_intra_first", max_steps=5,
        steps_per_generation=2, num_iterations=2,
    )  # fmt: skip
    trainer.train()
    logged = [row["canon/mu"] for row in trainer.state.log_history if "canon/mu" in row]
    assert logged == pytest.approx([1 - 0.02, 1 - 0.04])
    trainer._step = 0  # where a resumed run begins to count
    assert batches_made(trainer) == 1
    trainer.state.global_step = 8
    assert batches_made(trainer) == 2


def test_properties():
    cases.check_rollouts(lambda: cases.build("canon"))
    cases.check_rollouts(lambda: cases.build("canon", canon_metric="length"))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(canon_mu=1.5), "`canon_mu` must be a weight in [0, 1], got 1.5."),
        (dict(canon_alpha=-1), "`canon_alpha` must be a finite number >= 0, got -1."),
        (dict(canon_metric="surprise"), "`canon_metric` must be one of 'entropy', 'length', got 'surprise'."),
        (
            dict(canon_mu_schedule="linear"),
            "`canon_mu_schedule` must be one of 'constant', 'acc_inter_first', 'acc_intra_first', "
            "'cosine_inter_first', 'cosine_intra_first', got 'linear'.",
        ),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError) as error:
        cases.build("canon", **fields)
    assert str(error.value) == message


def test_it_comes_before_what_it_would_undo(tmp_path):
    settings = dict(use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="`methods` must list 'canon', .* before 'empg', whose advantages it would"):
        EntropyGRPOConfig(str(tmp_path), methods=["empg", "canon"], **settings)
    assert EntropyGRPOConfig(str(tmp_path), methods=["canon", "empg"], **settings).methods == ["canon", "empg"]


def test_normalised_rewards_warn(caplog, tmp_path):
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        EntropyGRPOConfig(
            str(tmp_path),
            methods=["canon"],
            multi_objective_aggregation="normalize_then_sum",
            use_cpu=True,
            bf16=False,
        )
    assert "`multi_objective_aggregation` 'normalize_then_sum' does nothing" in caplog.text


def test_odd_groups_warn(caplog, tmp_path):
    for count, warnings in ((3, 1), (4, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="trl_entropy"):
            EntropyGRPOConfig(
                str(tmp_path), methods=["canon"], num_generations=count, per_device_train_batch_size=count,
                use_cpu=True, bf16=False,
            )  # fmt: skip
        assert sum("'canon' halves a group" in record.getMessage() for record in caplog.records) == warnings


@pytest.mark.parametrize("metric, forwards", [("entropy", 1), ("length", 0)])
def test_training(make_trainer, monkeypatch, metric, forwards):
    trainer = make_trainer(
        methods=["canon"], canon_metric=metric, per_device_train_batch_size=8, mask_truncated_completions=True,
        eval_dataset=build_dataset(2), per_device_eval_batch_size=2, num_generations_eval=1,
    )  # fmt: skip
    generations, generate = [], Generation.generate
    monkeypatch.setattr(Generation, "generate", lambda self, *a: (generations.append(self), generate(self, *a))[1])
    made, forward = [], trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (made.append(k), forward(*a, **k))[1]
    output = trainer._generate_and_score_completions([{"prompt": "w1"}] * 4 + [{"prompt": "w2"}] * 4)
    assert len(made) == forwards
    rewards = list(trainer._logs["rewards"]["count_reward"])
    if metric == "length":
        lengths = [float(len(ids)) for ids in generations[0].completion_ids]
        expected = literal(rewards[:4], lengths[:4], 1, 1, False) + literal(rewards[4:], lengths[4:], 1, 1, False)
        assert output["advantages"][:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert list(trainer._logs["advantages"]) == pytest.approx(output["advantages"][:, 0].tolist())
    assert (output["completion_mask"].sum(1) == 0).any()  # and these have a metric like any other
    assert trainer.evaluate()["eval_loss"] == 0  # groups of one
    trainer.train()
    assert trainer.state.log_history[-2]["canon/mu"] == 1


# Searched by test_fuzzing.py


@covers(canon.halves, canon.group_mean, canon.canon_advantages, canon.cosine_mu)
def canon_terms(draw):
    shape = draw_shape(draw)
    metric, valid = draw_tensor(draw, shape, (-1e30, 1e30)), draw_flags(draw, shape)
    low, high = canon.halves(metric, valid)
    again = canon.halves(spoiled(draw, metric, valid), valid)
    assert torch.equal(low, again[0]) and torch.equal(high, again[1])
    assert torch.equal(low | high, valid) and not (low & high).any()
    assert ((high.sum(1) - low.sum(1)) == valid.sum(1) % 2).all()
    rewards = draw_tensor(draw, shape, ADVANTAGES)
    own = spoiled(draw, rewards, valid)
    assert torch.equal(canon.group_mean(own, valid), canon.group_mean(rewards, valid))
    mu, alpha = draw(st.floats(0, 1)), draw(st.floats(0, 2))
    found = canon.canon_advantages(own, low, high, mu, alpha, draw(st.booleans()))
    assert found.isfinite().all()
    assert 0 <= canon.cosine_mu(draw(st.integers(0, 10**6)), draw(st.booleans())) <= 1
