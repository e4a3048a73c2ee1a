# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reward functions get the old policy's entropies, at the documented cost."""

import asyncio
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from support.reference import dense_logps_and_entropy
from support.scoring import dense_entropies, entropy_reward, scored, seen
from support.tiny import EXACT, build_dataset, build_model, count_reward
from transformers import Qwen2ForCausalLM

from trl_entropy.methods import METHODS, Method


async def async_entropy_reward(completions, token_entropies, **kwargs):
    await asyncio.sleep(0)
    return [sum(values) for values in token_entropies]


@pytest.mark.parametrize(
    "settings, own, extra",
    [
        (dict(), False, 1),
        (dict(gradient_accumulation_steps=1, steps_per_generation=2), True, 1),
        (dict(num_iterations=2), True, 1),
        (dict(beta=0.1), False, 2),
        (dict(fused_head=False), False, 1),
        (dict(mask_truncated_completions=True), False, 1),
        (dict(mask_truncated_completions=True, gradient_accumulation_steps=1, temperature=0.7), True, 1),
        (dict(gradient_checkpointing=True), False, 1),
    ],
    ids=str,
)
def test_entropies_are_those_of_a_direct_forward(make_trainer, settings, own, extra):
    if "beta" in settings:  # with an adapter, the reference is the base model
        settings = {**settings, "model": get_peft_model(build_model(), LoraConfig(r=2, target_modules="all-linear"))}
    trainer, output, forwards = scored(make_trainer, entropy_reward, **settings)
    ((completion_ids, entropies, masks),) = seen
    # If TRL makes the pass, it is the only one. Otherwise there is one more, which the loss does not see.
    assert forwards == extra and ("old_per_token_logps" in output) == own
    expected = dense_entropies(trainer, output, completion_ids)
    for row, ids in enumerate(completion_ids):
        assert len(entropies[row]) == len(masks[row]) == len(ids) and all(masks[row])
        torch.testing.assert_close(torch.tensor(entropies[row]), expected[row, : len(ids)], rtol=0, atol=1e-5)
    if settings.get("mask_truncated_completions"):
        out = output["completion_mask"].sum(1) == 0
        assert 0 < out.sum() < 8 and all(sum(entropies[row]) > 0 for row in range(8))
        assert not own or output["old_per_token_logps"][out].abs().max() == 0
    rewards = [sum(values) for values in entropies]
    assert list(trainer._logs["rewards"]["entropy_reward"]) == pytest.approx(rewards)
    assert trainer.num_iterations == settings.get("num_iterations", 1)


@pytest.mark.parametrize("accumulation", [1, 2], ids=["scored_by_trl", "scored_for_us"])
@pytest.mark.parametrize(
    "methods, rewards", [(["kl_cov"], count_reward), (["empg"], count_reward), ([], entropy_reward)]
)
def test_a_reference_model_is_asked_for_no_entropies(make_trainer, tmp_path, methods, rewards, accumulation):
    """The reference has TRL's own head, without entropies."""
    build_model().save_pretrained(tmp_path / "model")
    model = Qwen2ForCausalLM.from_pretrained(tmp_path / "model").train()
    settings = dict(
        beta=0.1, methods=methods, gradient_accumulation_steps=accumulation, mask_truncated_completions=True
    )
    trainer, output, forwards = scored(make_trainer, rewards, model=model, **settings)
    assert trainer.ref_model is not None and trainer.ref_model is not trainer.model
    assert forwards == (1 if methods == ["kl_cov"] and accumulation == 2 else 2)
    whole = output["completion_mask"].sum(1) > 0
    ids = output["completion_ids"][whole]
    part = {key: value[whole] for key, value in output.items() if key.endswith(("_ids", "_mask"))}
    expected, _ = dense_logps_and_entropy(build_model(), {**part, "completion_ids": ids})
    torch.testing.assert_close(output["ref_per_token_logps"][whole], expected.detach(), rtol=1e-4, atol=1e-5)
    trainer.train()


@pytest.mark.parametrize("rewards", [count_reward, [count_reward, async_entropy_reward]], ids=["none", "async"])
def test_nothing_is_computed_unless_asked_for(make_trainer, rewards):
    trainer, _, forwards = scored(make_trainer, rewards)
    assert forwards == (rewards is not count_reward)
    if forwards:
        assert all(value > 0 for value in trainer._logs["rewards"]["async_entropy_reward"])


def test_scoring_leaves_the_run_as_it_is(make_trainer):
    """If the reward ignores its entropies, the run equals stock TRL's."""

    def ignores(completion_ids, token_entropies=None, **kwargs):
        return count_reward(completion_ids)

    weights = []
    for rewards, stock in ((count_reward, True), (ignores, False)):
        trainer, _, _ = scored(make_trainer, rewards, stock=stock, **({} if stock else {"fused_head": False}))
        torch.manual_seed(0)
        trainer.train()
        weights.append(trainer.model.state_dict())
    torch.testing.assert_close(*weights, **EXACT)


def rollout_with_tools(prompts, trainer):
    """Completions of 4, 5, ... tokens, of which a tool wrote the second and third."""
    ids = [[5, 6, 7, 8, *range(9, 9 + row)] for row in range(len(prompts))]
    return {
        "prompt_ids": [[2, 3]] * len(prompts),
        "completion_ids": ids,
        "logprobs": None,
        "env_mask": [[1, 0, 0, 1, *([1] * row)] for row in range(len(prompts))],
    }


def test_tool_tokens_have_no_entropy(make_trainer):
    seen.clear()
    trainer = make_trainer(reward_funcs=entropy_reward, rollout_func=rollout_with_tools)
    output = trainer._generate_and_score_completions([{"prompt": "w1"}] * 4)
    ((completion_ids, entropies, masks),) = seen
    expected = dense_entropies(trainer, output, completion_ids)
    for row, ids in enumerate(completion_ids):
        assert masks[row] == [True, False, False, *([True] * (len(ids) - 3))]
        assert entropies[row][1:3] == [0, 0] and (expected[row, 1:3] > 0.1).all()
        torch.testing.assert_close(torch.tensor(entropies[row])[3:], expected[row, 3 : len(ids)], rtol=0, atol=1e-5)


def test_evaluation(make_trainer):
    trainer, _, _ = scored(
        make_trainer, entropy_reward, eval_dataset=build_dataset(4), per_device_eval_batch_size=2,
        num_generations_eval=1,
    )  # fmt: skip
    seen.clear()
    metrics = trainer.evaluate()
    assert len(seen) == 2 and math.isfinite(metrics["eval_loss"])
    assert metrics["eval_rewards/entropy_reward/mean"] > 0


def test_a_column_of_that_name_is_refused(make_trainer, monkeypatch):
    trainer, _, _ = scored(make_trainer, entropy_reward)
    with pytest.raises(ValueError, match="takes `token_entropies`, which is also a column of the dataset"):
        trainer._generate_and_score_completions([{"prompt": "w1", "token_entropies": [0.1]}] * 4)


class Own(Method):
    """Adds a reward, and doubles the advantage of the first token in a group hook."""

    name = "clip_b"  # stands in for a method of the registry
    paper = METHODS["clip_b"].paper

    def __init__(self, config):
        pass

    def reward(self, completions, token_entropies, **columns):
        return [values[0] for values in token_entropies], {}

    def group_advantages(self, rollouts):
        advantages = rollouts.advantages.clone()
        advantages[:, 0] *= 2
        return advantages, {"reward_mean": rollouts.rewards}


def test_reward_and_advantages_of_a_method(make_trainer, monkeypatch):
    monkeypatch.setitem(METHODS, "clip_b", Own)
    rewards = [entropy_reward]
    trainer, output, forwards = scored(make_trainer, rewards, methods=["clip_b"], reward_weights=[0.5])
    assert forwards == 1 and trainer.reward_func_names == ["entropy_reward", "clip_b"]
    assert rewards == [entropy_reward] and trainer.args.reward_weights == [0.5]
    first = torch.tensor([values[0] for values in seen[0][1]])
    assert list(trainer._logs["rewards"]["clip_b"]) == pytest.approx(first.tolist())
    total = torch.tensor([sum(values) for values in seen[0][1]]) * 0.5 + first
    assert trainer._metrics["train"]["reward"] == [pytest.approx(total.mean().item(), rel=1e-5)]
    assert trainer._metrics["train"]["clip_b/reward_mean"] == [pytest.approx(total.mean().item(), rel=1e-5)]
    groups = total.view(2, 4)
    expected = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
    torch.testing.assert_close(output["advantages"][:, 1], expected, rtol=1e-4, atol=1e-5)
    lengths = torch.tensor([len(ids) for ids in seen[0][0]])
    # The completions table shows the advantages in use: the mean over each completion's tokens.
    assert list(trainer._logs["advantages"]) == pytest.approx((expected * (lengths + 1) / lengths).tolist(), rel=1e-4)


class Halves(Own):
    shapes_reward = True

    def __init__(self, config):
        self.shaped_reward = Halves.target

    def reward(self, rewards, prompt_ids, **columns):
        assert len(prompt_ids) == len(rewards) and "token_entropies" not in columns
        return [None if index == 1 else value / 2 for index, value in enumerate(rewards)], {}

    def group_advantages(self, rollouts):
        return rollouts.advantages, {}


@pytest.mark.parametrize("target", [None, "count_reward", "other"])
def test_a_method_shapes_the_reward_of_another(make_trainer, monkeypatch, target):
    monkeypatch.setitem(METHODS, "clip_b", Halves)
    Halves.target = target
    if target == "other":
        with pytest.raises(
            ValueError, match="`clip_b_reward` must be one of the reward functions 'count_reward', got 'other'."
        ):
            scored(make_trainer, count_reward, methods=["clip_b"])
        return
    trainer, output, _ = scored(make_trainer, count_reward, methods=["clip_b"])
    rewards = list(trainer._logs["rewards"]["count_reward"])
    ids = [
        row[mask.bool()].tolist()
        for row, mask in zip(output["completion_ids"], output["completion_mask"], strict=True)
    ]
    expected = [value / 2 for value in count_reward(ids)]
    assert math.isnan(rewards[1]) and output["advantages"][1].abs().max() == 0
    assert rewards[:1] + rewards[2:] == pytest.approx(expected[:1] + expected[2:])
    assert trainer.reward_func_names == ["count_reward"]


def test_dataset_columns_reach_a_shaping_method(make_trainer, monkeypatch):
    class Column(Halves):
        def reward(self, rewards, level, **columns):
            return [float(value) for value in level], {}

    Halves.target = None
    monkeypatch.setitem(METHODS, "clip_b", Column)
    dataset = Dataset.from_dict({"prompt": ["w1", "w2"], "level": [3, 5]})
    trainer = make_trainer(methods=["clip_b"], steps_per_generation=2)
    trainer._generate_and_score_completions([row for row in dataset for _ in range(4)])
    assert list(trainer._logs["rewards"]["count_reward"]) == [3, 3, 3, 3, 5, 5, 5, 5]


def test_auxiliary_rollouts_have_entropies_too(make_trainer, monkeypatch):
    settings = dict(methods=["aepo"], aepo_target_entropy=3.0, aepo_ratio=0.5)
    _, _, forwards = scored(make_trainer, entropy_reward, **settings)
    assert [len(ids) for ids, _, _ in seen] == [8, 4] and forwards == 2


def test_a_method_without_extra_needs_acts_once(make_trainer, monkeypatch):
    """Scoring for a reward function must not make a method act on the generation batch and in each forward."""
    trainer, output, _ = scored(make_trainer, entropy_reward, methods=["clip_b"], clip_b_mu=0.4)
    groups = output["advantages"]
    assert (groups == groups[:, :1]).all()


def test_trl_scores_when_a_batch_serves_more_than_one_update(make_trainer):
    """The trainer relies on this to make TRL run its scoring pass."""
    trainer = make_trainer(stock=True)
    trainer.num_iterations = 2
    assert "old_per_token_logps" in trainer._generate_and_score_completions([{"prompt": "w1"}] * 4)
    trainer.num_iterations = 1
    assert "old_per_token_logps" not in trainer._generate_and_score_completions([{"prompt": "w1"}] * 4)
