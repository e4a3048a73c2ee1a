# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Entropies recorded during generation equal those of a direct forward, without another forward."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.scoring import dense_entropies, entropy_reward, scored, seen
from support.tiny import EXACT, build_dataset, build_model, count_reward

from trl_entropy import EntropyGRPOConfig
from trl_entropy.trainers.recording import EntropyRecorder, entropy_of_logits, recording


def check_recorded(trainer, output):
    """Checks the entropies of the last batch against the model's logits. Returns lists of ids and entropies."""
    completion_ids, entropies, masks = seen[-1]
    expected = dense_entropies(trainer, output, completion_ids)
    for row, ids in enumerate(completion_ids):
        assert len(entropies[row]) == len(masks[row]) == len(ids) and all(masks[row])
        torch.testing.assert_close(torch.tensor(entropies[row]), expected[row, : len(ids)], rtol=0, atol=1e-5)
    return completion_ids, entropies


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(fused_head=False),
        dict(temperature=0.7),
        dict(top_k=3, top_p=0.9),
        dict(repetition_penalty=1.5),
        dict(generation_kwargs={"no_repeat_ngram_size": 2}),
        dict(cache_implementation="static"),
        dict(mask_truncated_completions=True),
        dict(gradient_checkpointing=True),
        dict(pad_to_multiple_of=16),
        dict(beta=0.1),
    ],
    ids=str,
)
def test_recorded_entropies_are_those_of_a_direct_forward(make_trainer, settings):
    extra = 0
    if "beta" in settings:  # with an adapter, the reference is the base model
        settings = {**settings, "model": get_peft_model(build_model(), LoraConfig(r=2, target_modules="all-linear"))}
        extra = 1
    trainer, output, forwards = scored(make_trainer, entropy_reward, record_entropies=True, **settings)
    completion_ids, entropies = check_recorded(trainer, output)
    assert forwards == extra and "old_per_token_logps" not in output
    lengths = {len(ids) for ids in completion_ids}
    assert len(lengths) > 1 or {"top_k", "repetition_penalty"} & set(settings)  # some ended early
    if settings.get("mask_truncated_completions"):
        out = output["completion_mask"].sum(1) == 0
        assert 0 < out.sum() < 8 and all(sum(values) > 0 for values in entropies)


@pytest.mark.parametrize("value", [-math.inf, torch.finfo(torch.float32).min])
def test_words_of_probability_0_add_no_entropy(value):
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    masked = torch.cat([torch.full((4, 5), value), logits], -1)
    expected = torch.distributions.Categorical(logits=logits.double() / 0.7).entropy()
    torch.testing.assert_close(entropy_of_logits(masked, 0.7).double(), expected, rtol=1e-6, atol=1e-6)


def test_a_run_is_the_same_with_recorded_entropies(make_trainer):
    def ignores(completion_ids, token_entropies, **kwargs):
        return count_reward(completion_ids)

    weights = []
    for record in (False, True):
        trainer = make_trainer(reward_funcs=ignores, record_entropies=record, max_steps=3)
        trainer.train()
        weights.append(trainer.model.state_dict())
    torch.testing.assert_close(*weights, **EXACT)


@pytest.mark.parametrize("method", ["canon", "empg"])
def test_methods_take_recorded_entropies(make_trainer, method):
    advantages = []
    for record in (False, True):
        trainer, output, forwards = scored(make_trainer, count_reward, methods=[method], record_entropies=record)
        assert forwards == (not record)
        advantages.append(output["advantages"])
    torch.testing.assert_close(*advantages, rtol=1e-4, atol=1e-5)


def test_where_trl_scores_its_pass_is_the_only_source(make_trainer, monkeypatch):
    monkeypatch.setattr("trl_entropy.trainers.generation.recording", None)  # any use is an error
    settings = dict(gradient_accumulation_steps=1, record_entropies=True)
    trainer, output, forwards = scored(make_trainer, entropy_reward, **settings)
    check_recorded(trainer, output)
    assert forwards == 1
    assert any("`record_entropies` does nothing" in warning for warning in trainer.args._inert_warnings([]))


def test_nothing_is_recorded_unless_asked_for(make_trainer, monkeypatch):
    monkeypatch.setattr("trl_entropy.trainers.generation.recording", None)
    _, _, forwards = scored(make_trainer, count_reward, record_entropies=True)
    assert forwards == 0


def test_auxiliary_rollouts_and_evaluation(make_trainer):
    settings = dict(methods=["aepo"], aepo_target_entropy=3.0, aepo_ratio=0.5, record_entropies=True)
    trainer, _, forwards = scored(
        make_trainer, entropy_reward, eval_dataset=build_dataset(4), num_generations_eval=1, **settings
    )
    assert [len(ids) for ids, _, _ in seen] == [8, 4] and forwards == 0
    seen.clear()
    assert math.isfinite(trainer.evaluate()["eval_loss"]) and len(seen) == 1
    assert all(len(values) == len(ids) for ids, values, _ in seen for ids, values in zip(ids, values, strict=True))


def test_tools(make_trainer, monkeypatch):
    """TRL's own loop: every other completion calls a tool, and some of those call it again."""
    calls = []

    def parse(tokenizer, ids, prefix, tools):
        calls.append(len(calls))
        called = [{"type": "function", "function": {"name": "look", "arguments": {}}}] if calls[-1] % 2 else None
        return {"role": "assistant", "content": "w5"} | ({"tool_calls": called} if called else {})

    monkeypatch.setattr("trl.trainer.grpo_trainer.parse_response", parse)
    monkeypatch.setattr("trl.trainer.grpo_trainer.is_conversational", lambda row: True)
    trainer = make_trainer(
        reward_funcs=entropy_reward, record_entropies=True, per_device_train_batch_size=8, max_completion_length=14
    )
    trainer.generation_config.max_new_tokens = 5
    trainer._tokenizer.response_template = "given"
    trainer.tools = [lambda: None]
    trainer._sync_tool_dicts = [{"look": lambda: "w9"}] * 8
    monkeypatch.setattr(trainer, "_get_tool_suffix_ids", lambda messages: [11, 12])
    monkeypatch.setattr(
        trainer, "_tokenize_prompts", lambda prompts: ([[2, 3, 4 + i % 3] for i in range(8)], None, {})
    )
    seen.clear()
    output = trainer._generate_and_score_completions(
        [{"prompt": [{"role": "user", "content": "w1"}]} for _ in range(8)]
    )
    ((completion_ids, entropies, masks),) = seen
    expected = dense_entropies(trainer, output, completion_ids)
    tools = [sum(not own for own in mask) for mask in masks]
    assert {0, 2, 4} <= set(tools) and "old_per_token_logps" not in output
    for row, ids in enumerate(completion_ids):
        own = torch.tensor(masks[row])
        assert len(entropies[row]) == len(ids)
        wanted = expected[row, : len(ids)].masked_fill(~own, 0)
        torch.testing.assert_close(torch.tensor(entropies[row]), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings, reason",
    [
        (dict(use_vllm=True), "`use_vllm`"),
        (dict(use_transformers_continuous_batching=True), "`use_transformers_continuous_batching`"),
        (dict(use_transformers_paged=True), "`use_transformers_continuous_batching`"),
        (dict(generation_kwargs={"num_beams": 2}), "`num_beams` in `generation_kwargs`"),
        (dict(methods=["clip_b"], clip_b_renormalize=True), "method 'clip_b'"),
    ],
    ids=str,
)
def test_what_cannot_be_recorded_is_refused(tmp_path, settings, reason):
    with pytest.raises(ValueError, match=f"`record_entropies` must be false with {reason}, got True"):
        EntropyGRPOConfig(str(tmp_path), bf16=False, record_entropies=True, **settings)


def test_a_rollout_function_and_other_values_are_refused(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="`record_entropies` must be false with `rollout_func`"):
        make_trainer(rollout_func=lambda prompts, trainer: {}, record_entropies=True)
    with pytest.raises(ValueError, match="`record_entropies` must be true or false, got 'yes'"):
        EntropyGRPOConfig(str(tmp_path), bf16=False, record_entropies="yes")


def test_generation_with_other_forwards_is_an_error():
    recorder = EntropyRecorder(1.0)
    recorder.steps = [torch.zeros(2)] * 3
    assert recorder.rows([[5, 6, 7], [5]]) == [[0, 0, 0], [0]]
    assert recorder.rows([[5, 6], [5]]) == [[0, 0], [0]]  # forwards made for the sake of other processes
    for ids in ([[5, 6, 7, 8], [5]], [[5]] * 4):
        with pytest.raises(RuntimeError, match="`record_entropies` saw 3 forwards of \\[2\\] rows while"):
            recorder.rows(ids)


def test_entropy_of_logits():
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    logits = torch.stack([p.log(), torch.tensor([0.0, -torch.inf, 0.0, -torch.inf])])
    torch.testing.assert_close(entropy_of_logits(logits, 1.0), torch.tensor([1.2130075660, math.log(2)]))
    squared = (p.square() / p.square().sum()).double()
    expected = -(squared * squared.log()).sum().float()
    torch.testing.assert_close(entropy_of_logits(logits[:1].bfloat16(), 0.5), expected[None], rtol=1e-2, atol=0)
    torch.testing.assert_close(entropy_of_logits(logits[:1], 0.5), expected[None])
    assert entropy_of_logits(torch.full((1, 3), torch.nan), 1.0).isnan()  # a diverged model is not hidden


def test_the_hook_is_removed_after_an_error():
    model = build_model()
    with pytest.raises(ZeroDivisionError), recording(model, 1.0):
        raise ZeroDivisionError
    assert not model._forward_hooks
