# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The columns with entropies in TRL's table of completions."""

import pandas
import pytest
from support.tiny import build_model


MEAN, MAX = "token_entropy_mean", "token_entropy_max"


def table_of(trainer, step=1):
    return pandas.read_parquet(f"{trainer.args.output_dir}/completions/completions_{step:05d}.parquet")


def test_columns_are_mean_and_peak_of_what_rewards_get(make_trainer):
    seen = []

    def reward(completion_ids, token_entropies, token_mask, **kwargs):
        assert all(map(all, token_mask))
        seen.extend(token_entropies)
        return [float(len(ids)) for ids in completion_ids]

    trainer = make_trainer(reward_funcs=reward, log_completions=True, steps_per_generation=2, max_steps=1)
    trainer.train()
    table = table_of(trainer)
    assert len(seen) == len(table) == 8 and len({len(values) for values in seen}) > 1
    assert table[MEAN].tolist() == pytest.approx([sum(values) / len(values) for values in seen], rel=1e-5)
    assert table[MAX].tolist() == pytest.approx([max(values) for values in seen])


def test_columns_are_there_where_trl_scores(make_trainer):
    """Truncated completions have entropies too, although the loss does not see their tokens."""
    trainer = make_trainer(log_completions=True, steps_per_generation=2, max_steps=1, mask_truncated_completions=True)
    trainer.train()
    assert table_of(trainer)[MEAN].between(0, 3.2, inclusive="neither").all()


def test_no_forward_is_made_for_the_table(make_trainer):
    trainer = make_trainer(log_completions=True, max_steps=1)
    passes = []
    forward = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: passes.append(1) or forward(*a, **k)
    trainer.train()
    assert MEAN not in table_of(trainer) and len(passes) == 1


def test_entropies_of_the_reference_are_not_taken_for_the_policy(make_trainer):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build_model(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    trainer = make_trainer(model=model, beta=0.1, log_completions=True, max_steps=1)
    trainer.train()
    assert MEAN not in table_of(trainer)


def test_a_reward_may_log_a_column_of_the_same_name(make_trainer):
    def reward(completions, log_extra, **kwargs):
        log_extra(MEAN, ["mine"] * len(completions))
        return [float(len(text)) for text in completions]

    trainer = make_trainer(reward_funcs=reward, log_completions=True, steps_per_generation=2, max_steps=1)
    trainer.train()
    table = table_of(trainer)
    assert set(table[MEAN]) == {"mine"} and table[MAX].gt(0).all()


def test_a_completion_without_a_token_of_the_policy_has_no_entropy(make_trainer):
    def rollout(prompts, trainer):
        rows = len(prompts)
        masks = [[1, 1], [0, 0]] * (rows // 2)  # tool results are not the policy's tokens
        given = {"prompt_ids": [[2, 3]], "completion_ids": [[5, 6]], "logprobs": [[-1.0, -1.0]]}
        return {key: value * rows for key, value in given.items()} | {"env_mask": masks}

    trainer = make_trainer(rollout_func=rollout, log_completions=True, steps_per_generation=2, max_steps=1)
    trainer.train()
    assert table_of(trainer)[MEAN].isna().tolist() == [False, True] * 4


def test_the_table_does_not_move_training(make_trainer, tmp_path):
    losses = []
    for log in (False, True):
        trainer = make_trainer(
            output_dir=tmp_path / str(log),
            log_completions=log,
            steps_per_generation=2,
            mask_truncated_completions=True,
        )
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == losses[1]
