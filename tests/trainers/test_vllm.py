# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""vLLM, simulated by an engine whose policy is slightly off, as with another precision."""

import math

import pytest
import torch
from support.reference import dense_logps_and_entropy
from support.scoring import dense_entropies, entropy_reward, scored, seen
from support.tiny import build_dataset, build_model, build_tokenizer, count_reward

from trl_entropy.methods import METHODS


class Engine:
    """Stands in for TRL's vLLM backend: completions, and the log-probability of each of their tokens."""

    def __init__(self, model, temperature, max_completion_length, **settings):
        self.source, self.temperature, self.length = model, temperature, max_completion_length
        self.model, self.synced = build_model(), 0

    def sync_weights(self):
        self.synced += 1
        self.model.load_state_dict(self.source.state_dict())
        generator = torch.Generator().manual_seed(5)
        for parameter in self.model.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)

    @torch.no_grad()
    def generate(self, prompts, images, num_generations, profiler):
        self.model.eval()
        batch = build_tokenizer().pad({"input_ids": prompts}, return_tensors="pt")
        out = self.model.generate(
            **batch,
            do_sample=True,
            temperature=self.temperature,
            top_k=0,
            max_new_tokens=self.length,
            output_scores=True,
            return_dict_in_generate=True,
        )
        tokens = out.sequences[:, batch["input_ids"].size(1) :]
        logps = torch.stack(out.scores, 1).log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        ids, logprobs = [], []
        for row, values in zip(tokens.tolist(), logps.tolist(), strict=True):
            length = row.index(1) + 1 if 1 in row else len(row)
            ids.append(row[:length])
            logprobs.append([[value] for value in values[:length]])
        logprobs[0][0] = [None]  # TRL's backend gives `None` for NaN
        return prompts, ids, logprobs, None


@pytest.fixture
def make_vllm_trainer(make_trainer, monkeypatch):
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", lambda **settings: Engine(**{
        key: settings[key] for key in ("model", "temperature", "max_completion_length")
    }))  # fmt: skip
    return lambda **settings: make_trainer(use_vllm=True, **settings)


@pytest.mark.parametrize(
    "settings, corrects",
    [
        (dict(), True),
        (dict(mask_truncated_completions=True), True),
        (dict(vllm_importance_sampling_mode="token_truncate", gradient_accumulation_steps=1), True),
        (dict(vllm_importance_sampling_correction=False), False),
    ],
    ids=str,
)
def test_entropies_are_those_of_the_model_that_is_trained(make_vllm_trainer, settings, corrects):
    """One forward: TRL's own if it corrects for the engine, else the one that we make it run."""
    trainer, output, forwards = scored(make_vllm_trainer, entropy_reward, **settings)
    ((completion_ids, entropies, masks),) = seen
    assert trainer.vllm_generation.synced == 1 and forwards == 1
    expected = dense_entropies(trainer, output, completion_ids)
    for row, ids in enumerate(completion_ids):
        assert len(entropies[row]) == len(masks[row]) == len(ids) and all(masks[row])
        torch.testing.assert_close(torch.tensor(entropies[row]), expected[row, : len(ids)], rtol=0, atol=1e-5)
    assert ("old_per_token_logps" in output) == ("importance_sampling_ratio" in output) == corrects
    if not corrects:
        return
    with torch.no_grad():
        logps, _ = dense_logps_and_entropy(trainer.model, output, trainer.temperature)
    mask = output["completion_mask"].bool()
    off = (logps - output["sampling_per_token_logps"]).nan_to_num() * mask
    assert off.abs().max() > 0.01  # the engine is off, and this is corrected
    if "vllm_importance_sampling_mode" in settings:
        expected_ratio = off.exp().clamp(max=trainer.args.vllm_importance_sampling_clip_max)
    else:
        expected_ratio = off.sum(1, keepdim=True).exp()
        expected_ratio[expected_ratio > trainer.args.vllm_importance_sampling_clip_max] = 0
    torch.testing.assert_close(output["importance_sampling_ratio"], expected_ratio, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("methods", [["kl_cov"], ["clip_b"], ["pear", "canon", "empg", "epo"]], ids=str)
def test_methods_learn_of_the_correction(make_vllm_trainer, monkeypatch, methods):
    """Three steps, with weights synchronized before each. Methods see the ratio to the engine."""
    ratios = []
    term = METHODS[methods[-1]].loss
    monkeypatch.setattr(
        METHODS[methods[-1]], "loss", lambda self, tokens: (ratios.append(tokens.engine_ratio), term(self, tokens))[1]
    )
    trainer = make_vllm_trainer(methods=methods, max_steps=3, learning_rate=1e-3)
    trainer.train()
    assert trainer.vllm_generation.synced == 3
    seen_ratios = [ratio for ratio in ratios if ratio is not None]
    assert len(seen_ratios) == 3 and all((ratio != 1).any() for ratio in seen_ratios)
    history = [line for line in trainer.state.log_history if "loss" in line]
    assert len(history) == 3 and all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in history)
    assert all("sampling/importance_sampling_ratio/mean" in line for line in history)


def test_neutral_methods_leave_the_corrected_loss_as_it_is(make_vllm_trainer):
    losses = []
    for settings in (dict(stock=True), dict(fused_head=False), dict()):
        trainer = make_vllm_trainer(max_steps=2, reward_funcs=count_reward, train_dataset=build_dataset(8), **settings)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == losses[1] and losses[2] == pytest.approx(losses[0], abs=1e-5)
    assert any(loss != 0 for loss in losses[0])
