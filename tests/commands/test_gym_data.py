# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks of reasoning-gym by name on the command line: checks, splits, reward, and a run."""

import json
import sys
from pathlib import Path

import pytest

from trl_entropy import cli
from trl_entropy.commands.data import load_problems, pick_split
from trl_entropy.commands.rewards import reward_by_name
from trl_entropy.gym import reasoning_gym_reward


GIVEN = {
    "model_name_or_path": "some/model",
    "dataset_name": "reasoning_gym:chain_sum",
    "dataset_config": "min_terms=2,max_terms=3",
    "reward_funcs": "reasoning_gym_reward",
    "methods": "clip_cov",
    "output_dir": "out",
}


def words(**changes):
    return [word for name, value in {**GIVEN, **changes}.items() for word in (f"--{name}", value)]


def test_reward_and_dataset_have_names():
    assert reward_by_name("reasoning_gym_reward") is reasoning_gym_reward
    splits = load_problems("reasoning_gym:chain_sum", "size=3,test_size=2")
    assert pick_split(splits, "dataset_train_split", "train").num_rows == 3
    assert pick_split(splits, "dataset_test_split", "test").num_rows == 2


def test_dry_run_of_a_task(capsys):
    assert cli.main(["grpo", "--dry_run", *words()]) == 0
    assert "dataset reasoning_gym:chain_sum, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(dataset_name="reasoning_gym:chain_sun"), "unknown task 'chain_sun' of reasoning-gym. Did you mean"),
        (dict(dataset_config="max_term=3"), "`dataset_config` has the unknown setting 'max_term'"),
        (dict(dataset_config="main"), "`dataset_config` must have the form name=value,name=value"),
        (dict(dataset_streaming="true"), "`dataset_streaming` must be false with 'reasoning_gym:chain"),
        (dict(reward_funcs="reasoning_gym"), "unknown name 'reasoning_gym'. Did you mean 'reasoning_gym_reward'?"),
    ],
)
def test_errors_are_named(capsys, changes, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(["grpo", "--dry_run", *words(**changes)])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_missing_package_is_one_error(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(SystemExit):
        cli.main(["grpo", "--dry_run", *words()])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and 'pip install "trl-entropy[gym]"' in error


def test_mixture_refuses_a_task(capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        json.dumps({"datasets": [{"path": "reasoning_gym:chain_sum"}], "reward_funcs": ["reasoning_gym_reward"]})
    )
    given = ["--config", str(tmp_path / "recipe.yaml"), "--model_name_or_path", "some/model", "--output_dir", "out"]
    with pytest.raises(SystemExit):
        cli.main(["grpo", "--dry_run", *given])
    assert "`datasets` cannot mix in 'reasoning_gym:chain_sum'" in capsys.readouterr().err


def test_training_on_a_task(tiny, tmp_path):
    """An update and an evaluation: the reward gets the columns of both splits."""
    settings = {
        "model_name_or_path": str(tiny), "dataset_config": "max_terms=2,size=8,test_size=2", "bf16": "false",
        "output_dir": str(tmp_path / "run"), "use_cpu": "true", "max_steps": "1", "num_generations": "2",
        "per_device_train_batch_size": "2", "per_device_eval_batch_size": "2", "max_completion_length": "4",
        "eval_strategy": "steps", "eval_steps": "1", "logging_steps": "1", "report_to": "none", "save_strategy": "no",
        "gradient_checkpointing": "false", "steps_per_generation": "1",
    }  # fmt: skip
    from trl_entropy.commands import grpo

    assert grpo.main(words(**settings), launch=False) == 0
    (state,) = Path(tmp_path / "run").glob("trainer_state.json")
    logs = json.loads(state.read_text())["log_history"]
    found = {key: row[key] for row in logs for key in row if key.endswith("rewards/reasoning_gym_reward/mean")}
    assert found == {"rewards/reasoning_gym_reward/mean": 0.0, "eval_rewards/reasoning_gym_reward/mean": 0.0}
