# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Agents with vLLM itself: TRL's tool loop, branches in it, and SPEAR's memory. `make test-vllm`.

The agent has learned for a few steps to call a calculator, so that every word is sampled from the policy.
"""

import copy
import math
import random

import pytest
import torch
from datasets import Dataset
from support.agents import TOKENIZER, final_reward
from support.reference import dense_logps_and_entropy
from support.tiny import EXACT, build_model
from support.vllm_engine import NEEDS_VLLM, SIZES, load_model
from torch.nn.functional import cross_entropy

from trl_entropy.countdown.chat import calculator
from trl_entropy.countdown.model import prompts, supervised_batch, targets_of
from trl_entropy.countdown.task import TASKS
from trl_entropy.trainers.branches import BranchedRollouts
from trl_entropy.trainers.recording import recording_top
from trl_entropy.trainers.replay import padded_batch


pytestmark = NEEDS_VLLM

TASK, GROUP = TASKS["tools"], 4
ROWS = prompts(False, TASK)


@pytest.fixture(scope="module")
def learned():
    """Weights of an agent that calls the calculator, often with sense."""
    model, draw = build_model(**SIZES, initializer_range=0.08), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        tokens = supervised_batch(draw.choices(ROWS, k=16), TOKENIZER, draw, TASK)
        targets = targets_of(tokens, TOKENIZER, len(ROWS[0].text.split()), TASK)
        logits = model(tokens).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=TOKENIZER.pad_token_id)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


@pytest.fixture
def make_agent(make_vllm_trainer, vllm, learned):
    """`make_agent(**settings)`: two groups of four in a generation batch, at most 60 tokens in a completion."""

    def make(**settings):
        model = load_model(vllm.folder)
        model.load_state_dict(learned)
        rows = [[{"role": "user", "content": row.text}] for row in ROWS[:8]]
        defaults = dict(
            model=model,
            reward_funcs=final_reward,
            tools=[calculator],
            train_dataset=Dataset.from_dict({"prompt": rows}),
            processing_class=copy.deepcopy(TOKENIZER),
            per_device_train_batch_size=2 * GROUP,
            num_generations=GROUP,
            max_completion_length=60,
            learning_rate=1e-3,
        )
        return make_vllm_trainer(**{**defaults, **settings})

    return make


def lines(trainer):
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return [{key: value for key, value in row.items() if key != "step_time"} for row in rows]


def test_no_method_is_stock_trl(make_agent):
    """With tools whose results are in the completions."""
    found = []
    for settings in (dict(stock=True), dict(fused_head=False)):
        trainer = make_agent(max_steps=2, **settings)
        trainer.train()
        found.append((lines(trainer), trainer.model.state_dict()))
    for row, other in zip(found[1][0], found[0][0], strict=True):
        assert {key: row[key] for key in other} == other
    torch.testing.assert_close(found[1][1], found[0][1], **EXACT)
    assert all(row["tools/call_frequency"] > 0 and row["grad_norm"] > 0 for row in found[0][0])


def test_entropies_of_the_likeliest_tokens(make_agent):
    """Those that the engine gives are the model's: -Σ p log p over the 10 likeliest, and log p of the sampled one."""
    trainer = make_agent(temperature=1.3)
    engine = trainer.vllm_generation
    engine.sync_weights()
    given = trainer.processing_class.apply_chat_template(
        [[{"role": "user", "content": row.text}] for row in ROWS[:GROUP]], add_generation_prompt=True, return_dict=True
    ).input_ids
    with recording_top(engine, 10) as entropies:
        _, completions, logps, _ = engine.generate(given, None, num_generations=1, profiler=None)
    gaps = []
    for row, ids in enumerate(completions):
        assert len(entropies[row]) == len(logps[row]) == len(ids) > 1
        with torch.no_grad():
            logits = trainer.model(torch.tensor([[*given[row], *ids]])).logits[0, len(given[row]) - 1 : -1]
        model = (logits / 1.3).log_softmax(-1)
        top = model.topk(10).values
        expected = [-(top.exp() * top).sum(-1), model.gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)]
        found = [torch.tensor(entropies[row]), torch.tensor(logps[row]).squeeze(1)]
        gaps.append([(one - other).abs().mean().item() for one, other in zip(found, expected, strict=True)])
        assert found[0].std() > 0.05 and found[1].std() > 0.05
    assert max(map(max, gaps)) < 0.1


def test_branching(make_agent, monkeypatch, learned):
    """Branches begin with their parent's tokens. Log-probabilities are those of the engine, also at shared ones."""
    made = []
    bear = BranchedRollouts._bear
    monkeypatch.setattr(
        BranchedRollouts, "_bear", lambda self, *args: (bear(self, *args), made.append((self, *args[:2])))[0]
    )
    trainer = make_agent(methods=["branching"], branching_initial=2, branching_probability=0.05, max_steps=2)
    outputs, make = [], trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda rows: (outputs.append(make(rows)), outputs[-1])[1]
    trainer.train()
    rows = lines(trainer)
    assert made and all(row["branching/branches"] > 0 and math.isfinite(row["loss"]) for row in rows)
    for rollouts, parent, place in made:
        shared = rollouts.places.sharing[place]
        assert shared > 0 and rollouts.ids[place][:shared] == rollouts.ids[parent][:shared]
        assert rollouts.values[place][:shared] == rollouts.values[parent][:shared]
    model, output = build_model(**SIZES), outputs[0]
    model.load_state_dict(learned)
    with torch.no_grad():
        logps, _ = dense_logps_and_entropy(model, output, trainer.temperature)
    own = (output["completion_mask"] * output["tool_mask"]).bool()
    assert (logps - output["sampling_per_token_logps"])[own].abs().mean() < 0.1


def test_more_log_probabilities_than_the_engine_gives_are_refused(make_agent):
    with pytest.raises(ValueError, match="`branching_logprobs` must be at most 20 with `vllm_mode` 'colocate'"):
        make_agent(methods=["branching"], branching_logprobs=21)
    trainer = make_agent(methods=["branching"], branching_logprobs=20, max_steps=1)
    trainer.train()
    assert "branching/roots" in lines(trainer)[0]


SPEAR = dict(spear_buffer_size=4, spear_replay_steps=0, spear_clip_cov_low=-1e9)


def test_spear(make_agent):
    """Completions with tool calls are remembered with the engine's correction, replayed, and corrected again."""
    trainer = make_agent(methods=["spear"], max_steps=6, steps_per_generation=1, **SPEAR)
    memory, seen = trainer._replays["spear"], []
    remember = memory.remember

    def spy(facts, batch, tokens):
        before = len(memory.rows)
        remember(facts, batch, tokens)
        weights = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        seen.append((memory.rows[before:], weights))

    memory.remember = spy
    trainer.train()
    rows = lines(trainer)
    assert all(math.isfinite(row["loss"]) for row in rows) and max(row["tools/call_frequency"] for row in rows) > 0
    assert max(row.get("spear/replayed_rows", 0) for row in rows) >= 2
    assert any(row.get("spear/tool_calls", 0) > 0 for row in rows)
    assert any(found for found, _ in seen)
    for found, weights in seen:
        for row in found:
            assert not row.own.all() and row.own[0]  # a tool's result is marked
            assert row.engine_ratio is not None and row.engine_ratio.isfinite().all()
            model = build_model(**SIZES)
            model.load_state_dict(weights)
            with torch.no_grad():
                logps = dense_logps_and_entropy(model, padded_batch([row], TOKENIZER.pad_token_id, None))[0]
            torch.testing.assert_close(row.logps[row.own], logps[0][row.own], rtol=1e-4, atol=1e-4)
    ratios = torch.cat([row.engine_ratio[row.own] for found, _ in seen for row in found])
    assert (ratios != 1).any()


@pytest.mark.compatibility("vLLM")
@pytest.mark.parametrize("methods", [["branching"]], ids="+".join)
def test_methods_that_need_tools(make_agent, methods):
    """Finite, moves, and differs from the run without the method."""
    found = []
    for names in ([], methods):
        trainer = make_agent(methods=names, max_steps=3)
        before = trainer.model.lm_head.weight.clone()
        trainer.train()
        assert all(math.isfinite(row["loss"]) for row in lines(trainer))
        assert not torch.equal(before, trainer.model.lm_head.weight)
        found.append(trainer.model.lm_head.weight)
    assert not torch.equal(*found)


@pytest.mark.parametrize(
    "settings",
    [
        dict(methods=["agentic_aepo"]),
        dict(methods=["empg", "epo"]),
        dict(methods=["branching", "spear"], spear_tools_only=True, **SPEAR),
    ],
    ids=lambda settings: "+".join(settings["methods"]),
)
def test_methods_with_tools(make_agent, settings):
    trainer = make_agent(max_steps=3, **settings)
    trainer.train()
    rows = lines(trainer)
    assert len(rows) == 3 and all(math.isfinite(row["loss"]) for row in rows)
    assert max(row["tools/call_frequency"] for row in rows) > 0
    assert all(any(key.startswith(f"{name}/") for row in rows for key in row) for name in settings["methods"])
