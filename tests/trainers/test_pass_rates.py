# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""pass@k in the log: of which rewards, against enumeration, and where it is shown."""

from itertools import combinations

import pytest
import torch
from huggingface_hub import ModelCard
from support.tiny import EXACT, build_dataset, count_reward

from trl_entropy.estimates import accuracy_first
from trl_entropy.report.panels import build_panels
from trl_entropy.report.runs import read_runs
from trl_entropy.trainers.pass_rates import PassRates, pass_keys, pass_rates, sizes


NAN = float("nan")


def even_reward(completion_ids, **columns):
    """1 if the first token is even."""
    return [float(ids[0] % 2 == 0) for ids in completion_ids]


def logged(trainer, prefix=""):
    """pass@k in each line of the log."""
    lines = [
        {key.removeprefix(prefix): value for key, value in line.items() if key.startswith(f"{prefix}pass@")}
        for line in trainer.state.log_history
    ]
    return [line for line in lines if line]


def test_sizes_are_powers_of_two_and_the_group():
    assert [sizes(group) for group in (1, 2, 4, 6, 8)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 6], [1, 2, 4, 8]]
    assert pass_keys(6, 2) == ("pass@1", "pass@2", "pass@4", "pass@6")


@pytest.mark.parametrize("group", [1, 2, 5, 6])
def test_rates_are_shares_of_subsets(group):
    rewards = torch.randint(2, (4 * group,), generator=torch.Generator().manual_seed(group)).float()
    found = pass_rates(rewards, group)
    assert list(found) == [f"pass@{k}" for k in sizes(group)]
    for k in sizes(group):
        shares = []
        for row in rewards.view(4, group).tolist():
            subsets = [*combinations(row, k)]
            shares.append(sum(map(max, subsets)) / len(subsets))
        assert found[f"pass@{k}"] == pytest.approx(sum(shares) / 4)


def test_missing_rewards_are_left_out():
    found = pass_rates(torch.tensor([1, NAN, 0, 0, 1, 1, NAN, NAN]), 4)
    assert found == {"pass@1": pytest.approx((1 / 3 + 1) / 2), "pass@2": pytest.approx((2 / 3 + 1) / 2)}
    assert pass_rates(torch.full((4,), NAN), 4) == {}


def test_function_that_tells_right_from_wrong():
    rewards = torch.tensor([[0.5, 1, 0], [0.2, 1, 1]])
    assert PassRates(["length", "format", "right"]).update(rewards, 2) == {"pass@1": 1, "pass@2": 1}
    assert PassRates(["length", "format", "accuracy"]).update(rewards, 2) == {"pass@1": 0.5, "pass@2": 1}
    assert PassRates(["accuracy", "format", "right"]).update(rewards, 2) == {"pass@1": 1, "pass@2": 1}
    assert accuracy_first(["a", "b_accuracy", "c", "accuracy"]) == ["b_accuracy", "accuracy", "a", "c"]


def test_a_function_that_once_gave_something_else_is_left_out():
    rates = PassRates(["reward"])
    zeros, halves = torch.zeros(4, 1), torch.full((4, 1), 0.5)
    assert rates.update(zeros, 4) == {"pass@1": 0, "pass@2": 0, "pass@4": 0}
    assert rates.update(torch.full((4, 1), NAN), 4) == {}
    assert rates.update(zeros, 4) and not rates.update(halves, 4) and not rates.update(zeros, 4)


def test_logged_in_training_and_evaluation(make_trainer):
    """Without any method, and the means over the generation batches between two lines."""
    trainer = make_trainer(
        reward_funcs=[count_reward, even_reward], max_steps=4, per_device_train_batch_size=8, logging_steps=2,
        eval_dataset=build_dataset(4), eval_strategy="steps", eval_steps=4, num_generations_eval=2,
        per_device_eval_batch_size=4, log_completions=True,
    )  # fmt: skip
    seen, calculate = [], trainer._calculate_rewards

    def spy(*arguments):
        rewards = calculate(*arguments)
        seen.append((trainer.model.training, rewards[:, 1].clone()))
        return rewards

    trainer._calculate_rewards = spy
    trainer.train()
    train = [pass_rates(rewards, 4) for training, rewards in seen if training]
    assert len(train) == 4 and len(logged(trainer)) == 2
    for line, pair in zip(logged(trainer), (train[:2], train[2:]), strict=True):
        assert line == {key: pytest.approx((pair[0][key] + pair[1][key]) / 2) for key in pass_keys(4)}
        assert line["pass@1"] <= line["pass@2"] <= line["pass@4"]
    evaluated = [pass_rates(rewards, 2) for training, rewards in seen if not training]
    (line,) = logged(trainer, "eval_")
    assert line == {
        key: pytest.approx(sum(found[key] for found in evaluated) / len(evaluated)) for key in evaluated[0]
    }
    assert set(line) == {"pass@1", "pass@2"}


def test_not_logged_without_rewards_of_0_and_1(make_trainer):
    trainer = make_trainer()
    trainer.train()
    assert logged(trainer) == []


def test_losses_stay_those_of_trl(make_trainer, tmp_path):
    runs = []
    for stock in (True, False):
        settings = {} if stock else dict(fused_head=False)
        trainer = make_trainer(stock=stock, reward_funcs=even_reward, output_dir=tmp_path / str(stock), **settings)
        trainer.train()
        runs.append(trainer)
    for name, value in runs[0].model.state_dict().items():
        torch.testing.assert_close(runs[1].model.state_dict()[name], value, **EXACT)
    for key in ("loss", "grad_norm", "reward"):
        assert [line.get(key) for line in runs[0].state.log_history] == [
            line.get(key) for line in runs[1].state.log_history
        ]
    assert logged(runs[1]) and not logged(runs[0])


def test_rewards_are_those_before_a_method_shapes_them(make_trainer):
    trainer = make_trainer(
        reward_funcs=even_reward, methods=["pear"], per_device_train_batch_size=8, pear_think_end="w5"
    )
    trainer._generate_and_score_completions([{"prompt": "w1"}] * 8)
    shaped = trainer._logs["rewards"]["even_reward"]
    assert not set(shaped) <= {0, 1} and "pass@4" in trainer._metrics["train"]


def test_report_and_card_show_it(make_trainer, tmp_path):
    trainer = make_trainer(reward_funcs=even_reward, max_steps=3, num_generations=4, output_dir=tmp_path / "run")
    trainer.train()
    trainer.save_state()
    trainer.create_model_card()
    panel = next(panel for panel in build_panels(read_runs([tmp_path / "run"])) if panel.title == "pass@k")
    assert [(series.label, series.kind) for series in panel.series] == [
        ("pass@4", "line"),
        ("pass@1", "second"),
    ]
    assert panel.series[0].y == [line["pass@4"] for line in logged(trainer)] and "As logged" in panel.about
    card = ModelCard.load(tmp_path / "run" / "README.md")
    shown = {entry.metric_name: entry.metric_value for entry in card.data.eval_results}
    last = logged(trainer)[-1]
    assert {key: shown[key] for key in pass_keys(4)} == {key: float(f"{value:.6g}") for key, value in last.items()}
