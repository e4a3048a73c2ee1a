# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The memory of sequences, in runs of SPEAR: what it holds, when it is replayed, and what that adds to the loss."""

import math
import random
from dataclasses import fields, replace

import pytest
import torch
from datasets import Dataset
from support.reference import dense_logps_and_entropy, reduce_terms
from support.tensors import make_loss_batch, random_tokens
from support.tiny import EXACT, FLOAT32, LOSS_TYPES, TRAINING, build_model, loss_and_gradients
from transformers import TrainerCallback

from trl_entropy.trainers.replay import Row, padded_batch


# No bonus, a weight that is 1 at once, and no covariance clipping: what is left is the replay.
PLAIN = dict(methods=["spear"], spear_tool_reward=0.0, spear_replay_steps=0, spear_clip_cov_ratio=0.0)
TOOL = 20  # the token that stands for a tool's result


class Script:
    """A `rollout_func` and a reward: row r of generation batch n is `[r + 2, tool, n + 3, 5]`, with a given reward."""

    def __init__(self, rewards: list[str]):
        self.rewards, self.batch = rewards, -1

    def rollout(self, prompts, trainer):
        self.batch += trainer.model.training
        rows = range(len(prompts))
        return {
            "prompt_ids": [[2, 3, 4][: 1 + row % 3] for row in rows],
            "completion_ids": [[row + 2, TOOL, self.batch + 3, 5, *[7] * (row % 2)] for row in rows],
            "env_mask": [[1, 0, 1, 1, *[1] * (row % 2)] for row in rows],
            "logprobs": None,
        }

    def reward(self, completion_ids, **columns):
        digits = self.rewards[self.batch % len(self.rewards)].replace(" ", "")
        return [float(digits[ids[0] - 2]) for ids in completion_ids]


def number(row: Row) -> int:
    """10 n + r"""
    return 10 * (row.completion_ids[2].item() - 3) + row.completion_ids[0].item() - 2


class Watch(TrainerCallback):
    """What the memory of SPEAR holds after each optimizer step, and the parts of its replay."""

    def __init__(self):
        self.stored, self.parts = [], []

    def on_step_end(self, args, state, control, **kwargs):
        self.stored.append(sorted(number(row) for row in self.trainer._replays["spear"].rows))
        self.parts.append(self.trainer._auxiliary["spear"])


def scripted(make_trainer, rewards, **settings):
    """A trainer whose rollouts and rewards are written down, and what watches it."""
    script, watch = Script(rewards), Watch()
    given = dict(rollout_func=script.rollout, reward_funcs=script.reward, callbacks=[watch], model=build_model())
    given |= dict(per_device_train_batch_size=8, num_generations=4, max_steps=len(rewards), learning_rate=1e-3)
    watch.trainer = make_trainer(**{**given, **PLAIN, **settings})
    return watch.trainer, watch


def logged(trainer, key):
    return [row.get(f"spear/{key}") for row in trainer.state.log_history if "loss" in row]


# The memory

WALK = ["1001 0100", "0000 1110", "1111 1011", "0110 1101", "1011 0111"]


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    from support.tiny import build_trainer

    from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer

    def make(**settings):
        return build_trainer(EntropyGRPOTrainer, EntropyGRPOConfig, tmp_path_factory.mktemp("walk"), **settings)

    trainer, watch = scripted(make, WALK, spear_buffer_size=4, spear_max_age=2)
    trainer.train()
    return trainer, watch


def test_memory_and_baseline_of_the_worked_example(walk):
    trainer, watch = walk
    assert watch.stored == [
        [0, 3, 5],
        [0, 3, 5, 14, 15, 16],
        [0, 3, 5, 14, 15, 16, 24, 26, 27],
        [31, 32, 34, 35, 37],
        [31, 32, 34, 35, 37, 40, 42, 43, 45, 46, 47],
    ]
    assert logged(trainer, "baseline") == [None, 0.375, 0.375, 0.625, 0.625]
    assert logged(trainer, "worthy") == [0, 3, 6, 9, 5] and logged(trainer, "stored") == [0, 3, 6, 9, 5]
    assert logged(trainer, "replayed_rows") == [0, 0, 0, 4, 0]
    assert [parts is not None for parts in watch.parts] == [False, False, False, True, False]
    (part,) = watch.parts[3]
    assert part["advantages"].tolist() == [0.375] * 4
    assert trainer.methods[0].baseline == [[0.5, 0.25], [0, 0.75], [1, 0.75], [0.5, 0.75], [0.75, 0.75]]
    # The draw is that of the seed and the step, among the nine in the order of their storing
    rows = [10 * (ids[2] - 3) + ids[0] - 2 for ids in part["completion_ids"].tolist()]
    assert set(rows) < {0, 3, 5, 14, 15, 16, 24, 26, 27} and len(set(rows)) == 4
    places = sorted(random.Random(repr((7, 3))).sample(range(9), 4))
    assert [row // 10 for row in rows] == [place // 3 for place in places]  # three were stored per step
    assert logged(trainer, "age_mean")[3] == pytest.approx(sum(3 - row // 10 for row in rows) / 4)


def test_rows_are_whole_and_share_no_memory(walk):
    trainer, _ = walk
    rows = trainer._replays["spear"].rows
    assert len(rows) == 11
    for row in rows:
        r = number(row) % 10
        assert row.completion_ids.tolist() == [r + 2, TOOL, row.step + 3, 5, *[7] * (r % 2)]
        assert row.prompt_ids.tolist() == [2, 3, 4][: 1 + r % 3] and row.reward == 1
        assert row.own.tolist() == [True, False, True, True, *[True] * (r % 2)]
        tensors = [value for field in fields(row) if isinstance(value := getattr(row, field.name), torch.Tensor)]
        assert len(tensors) == 4 and row.engine_ratio is None
        for tensor in tensors:
            assert tensor.device.type == "cpu"
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        assert sum(tensor.element_size() for tensor in tensors[1:]) == 9  # bytes per completion token


def test_old_rows_are_forgotten_and_empty_batches_do_not_age(make_trainer):
    """Ages count from the newest row. Nothing is worth a replay: the baseline is that of groups that all succeed."""
    rewards = ["1000 1111", "1111 1111", "1111 1111", "1000 1111", "1111 1111", "0000 1111"]
    trainer, watch = scripted(make_trainer, rewards, spear_max_age=2, spear_buffer_size=4)
    trainer.train()
    # Of step 0 until the row of step 3 is the newest, which the batch after it finds
    assert watch.stored == [[0], [0], [0], [0, 30], [30], [30]]


@pytest.mark.parametrize("iterations, steps", [(1, 1), (1, 2), (2, 2)], ids=["on policy", "off policy", "twice"])
def test_stored_log_probabilities_are_those_of_the_policy_that_generated(make_trainer, iterations, steps):
    """Also of rows that are stored after an update, and once only. Tool tokens are marked."""
    trainer, watch = scripted(
        make_trainer,
        ["1001 0100", "1010 1100"],
        per_device_train_batch_size=8 // steps,
        steps_per_generation=steps,
        num_iterations=iterations,
        max_steps=2 * steps * iterations,
        spear_buffer_size=8,
        learning_rate=0.05,
    )
    weights, make = [], trainer._generate_and_score_completions

    def spy(inputs):
        weights.append({key: value.clone() for key, value in trainer.model.state_dict().items()})
        return make(inputs)

    trainer._generate_and_score_completions = spy
    trainer.train()
    rows = trainer._replays["spear"].rows
    assert sorted(map(number, rows)) == [0, 3, 5, 10, 12, 14, 15] and len(weights) == 2
    assert not torch.equal(weights[0]["lm_head.weight"], weights[1]["lm_head.weight"])
    assert {row.step for row in rows} == {0, steps * iterations}
    for row in rows:
        model = build_model()
        model.load_state_dict(weights[number(row) // 10])
        with torch.no_grad():
            logps = dense_logps_and_entropy(model, padded_batch([row], 0, None))[0]
        torch.testing.assert_close(row.logps, logps[0], rtol=1e-5, atol=1e-5)
        assert row.own.tolist()[:4] == [True, False, True, True]


@pytest.mark.parametrize("width", [1, 6], ids=["per sequence", "per token"])
def test_corrections_for_the_engine_are_stored(make_trainer, width):
    """With vLLM the loss of the replay is corrected as TRL corrects its own. Rows without facts are not stored."""
    trainer = make_trainer(**PLAIN, spear_tools_only=False)
    batch = make_loss_batch()
    ratio = torch.linspace(0.5, 1.5, 4 * width).view(4, width)
    tokens = replace(random_tokens(4, 6), mask=batch["completion_mask"].bool(), engine_ratio=ratio)
    facts = torch.tensor([[1.0, 0.5, 3], [math.nan] * 3, [0.9, 0.2, 3], [math.nan] * 3])
    memory = trainer._replays["spear"]
    memory.remember(facts, batch, tokens)
    assert [(row.reward, row.step) for row in memory.rows] == [(1.0, 3), (pytest.approx(0.9), 3)]
    for row, place in zip(memory.rows, (0, 2), strict=True):
        length = int(batch["completion_mask"][place].sum())
        torch.testing.assert_close(row.engine_ratio, ratio.expand(4, 6)[place, :length], **EXACT)
        torch.testing.assert_close(row.logps, tokens.old_logps[place, :length].float(), **EXACT)


# What it adds to the loss


def row_of(prompt, completion, own, logps, reward=1.0, ratio=None, step=0):
    return Row(
        prompt_ids=torch.tensor(prompt, dtype=torch.int32),
        completion_ids=torch.tensor(completion, dtype=torch.int32),
        own=torch.tensor(own, dtype=torch.bool),
        logps=torch.tensor(logps),
        engine_ratio=None if ratio is None else torch.tensor(ratio),
        reward=reward,
        advantage=0.5,
        step=step,
    )


# Of other lengths than the batch; stored log-probabilities on both sides of the clip bounds of the tiny model's.
ROWS = [
    row_of([2], [9, 14, 20, 3, 8, 11, 4], [1, 1, 0, 0, 1, 1, 1], [-3.0, -2.0, 0.0, 0.0, -2.5, -1.0, -4.0], 0.9),
    row_of([7, 3, 2, 8, 5], [6, 4], [1, 1], [-3.3, -2.4], 0.8),
    row_of([4, 4], [12, 3, 9, 2], [1, 0, 1, 1], [-2.6, 0.0, -3.1, -2.2], 1.1),
    row_of([11, 2, 6], [5, 17, 16], [1, 1, 1], [-1.5, -3.6, -2.9], 0.7),
]
BASELINE = 0.5


def with_replay(make_trainer, rows=ROWS, **settings):
    """A trainer that is about to replay all of `rows`, chosen by the method from its memory."""
    trainer = make_trainer(
        **{**PLAIN, "model": build_model(), "spear_buffer_size": len(rows), "spear_tools_only": False, **settings}
    )
    memory, (method,) = trainer._replays["spear"], [one for one in trainer.methods if one.name == "spear"]
    method.baseline = [[BASELINE]]
    memory.rows = [*rows, *rows]  # more than 1.5 times the size; the first half is chosen
    choose = method.replays
    method.replays = lambda stored: (
        (list(range(len(rows))), (stored.reward - BASELINE)[: len(rows)].tolist()),
        choose(stored)[1],
    )
    trainer._auxiliary["spear"] = memory.recall(torch.ones(1, 1, dtype=torch.bool))
    assert memory.rows == []
    return trainer


def literal_terms(model, row, low=0.8, high=1.2):
    """(T,) loss of each token of one row, from dense logits of the row by itself, with gradient."""
    logps = dense_logps_and_entropy(model, padded_batch([row], 0, None))[0][0]
    ratio, worth = (logps - row.logps).exp(), row.reward - BASELINE
    factor = 1 if row.engine_ratio is None else row.engine_ratio
    return -torch.minimum(ratio * worth, ratio.clamp(low, high) * worth) * factor


def literal_loss(model, loss_type, rows, items, accumulation, max_length=8):
    """The rows as TRL reduces a micro-batch. `items`: tokens that the types divide by which count a whole update."""
    terms = [literal_terms(model, row) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(terms, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([row.own for row in rows], batch_first=True)
    if loss_type in ("dapo", "cispo", "vespo"):
        return torch.where(mask, padded, 0.0).sum() / items / accumulation
    return reduce_terms(loss_type, padded, mask, max_length, accumulation)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradient_is_that_of_the_literal_term(make_trainer, loss_type, accumulation):
    """γ is that of the step. In each micro-batch the part of the replay that belongs to it."""
    settings = dict(loss_type=loss_type, gradient_accumulation_steps=accumulation, spear_replay_steps=200)
    trainer = with_replay(make_trainer, **settings)
    trainer.state.global_step = 60
    without = make_trainer(**{**PLAIN, **settings}, model=build_model(), spear_tools_only=False)
    batch, model = make_loss_batch(), build_model()
    items = sum(int(row.own.sum()) for row in ROWS) / accumulation
    for step in range(accumulation):
        trainer._step = without._step = step
        loss, gradients = loss_and_gradients(trainer, dict(batch))
        stock, plain = loss_and_gradients(without, dict(batch))
        own = ROWS[step * 4 // accumulation : (step + 1) * 4 // accumulation]
        model.zero_grad()
        expected = 0.2061073739 * literal_loss(model, loss_type, own, items, accumulation)
        expected.backward()
        torch.testing.assert_close(loss - stock, expected.detach(), **FLOAT32)
        added = {name: gradient - plain[name] for name, gradient in gradients.items()}
        torch.testing.assert_close(added, {n: p.grad for n, p in model.named_parameters()}, **FLOAT32)
        assert max(gradient.abs().max() for gradient in added.values()) > 1e-3


def test_the_engine_corrects_replayed_tokens(make_trainer):
    ratios = [[0.5 + 0.1 * place for place in range(len(row.own))] for row in ROWS]
    rows = [replace(row, engine_ratio=torch.tensor(ratio)) for row, ratio in zip(ROWS, ratios, strict=True)]
    trainer = with_replay(make_trainer, rows, loss_type="bnpo")
    without = make_trainer(**PLAIN, model=build_model(), spear_tools_only=False, loss_type="bnpo")
    loss, _ = loss_and_gradients(trainer, make_loss_batch())
    stock, _ = loss_and_gradients(without, make_loss_batch())
    expected = literal_loss(build_model(), "bnpo", rows, None, 1)
    torch.testing.assert_close(loss - stock, expected.detach(), **FLOAT32)


@pytest.mark.parametrize("settings", [dict(pad_to_multiple_of=8), dict(importance_sampling_level="sequence")], ids=str)
def test_padding_and_sequence_level_ratios_change_no_row(make_trainer, settings):
    """Each row has the loss that it has by itself. The ratio of the replay stays one per token."""
    found = {}
    trainer = with_replay(make_trainer, loss_type="bnpo", **settings)
    method = trainer.methods[0]
    term = method.auxiliary_loss
    method.auxiliary_loss = lambda tokens: found.update(term=term(tokens)[0], tokens=tokens) or term(tokens)
    loss_and_gradients(trainer, make_loss_batch())
    assert found["term"].size(1) == (8 if "pad_to_multiple_of" in settings else 7)
    assert found["tokens"].mask.sum() == sum(row.own.sum() for row in ROWS)
    for own, row in zip(found["term"].masked_fill(~found["tokens"].mask, 0), ROWS, strict=True):
        expected = literal_terms(build_model(), row).masked_fill(~row.own, 0)
        torch.testing.assert_close(own[: len(expected)], expected, **FLOAT32)


def test_no_gradient_through_the_tokens_of_tools(make_trainer):
    """Other stored log-probabilities of a tool's tokens change nothing."""
    other = [replace(ROWS[0], logps=ROWS[0].logps - 3.0 * ~ROWS[0].own), *ROWS[1:]]
    results = [loss_and_gradients(with_replay(make_trainer, rows), make_loss_batch()) for rows in (ROWS, other)]
    torch.testing.assert_close(results[0], results[1], **EXACT)


def losses(trainer):
    return [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row]


def count_forwards(trainer):
    """Counts the forwards of the policy in training, without those of generation."""
    calls, forward = [], trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: calls.append(1) or forward(*a, **k)
    return calls


NEUTRAL = {
    "empty memory": dict(spear_buffer_size=4, spear_max_age=2, rewards=["1111 0000"] * 3),
    "weight 0": dict(spear_coef=0.0, rewards=WALK),
    "weight that has not grown": dict(spear_replay_steps=10**12, spear_buffer_size=4, rewards=WALK),
    "not enough": dict(spear_buffer_size=8, rewards=WALK[:4]),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_without_a_replay_the_run_is_stock_to_the_bit_and_makes_no_more_forwards(make_trainer, tmp_path, name):
    settings = dict(NEUTRAL[name])
    rewards = settings.pop("rewards")
    common = dict(learning_rate=0.05, fused_head=False)
    ours, _ = scripted(make_trainer, rewards, **common, callbacks=[], **settings)
    script = Script(rewards)
    stock = make_trainer(
        stock=True,
        output_dir=tmp_path / "stock",
        model=build_model(),
        rollout_func=script.rollout,
        reward_funcs=script.reward,
        per_device_train_batch_size=8,
        num_generations=4,
        max_steps=len(rewards),
        learning_rate=0.05,
    )
    counts = [count_forwards(trainer) for trainer in (ours, stock)]
    for trainer in (ours, stock):
        torch.manual_seed(5)
        trainer.train()
    torch.testing.assert_close(ours.model.state_dict(), stock.model.state_dict(), **EXACT)
    assert len(counts[0]) == len(counts[1]) == len(rewards)
    assert losses(ours) == losses(stock)


def test_two_iterations_store_once_and_replay_twice(make_trainer):
    settings = dict(per_device_train_batch_size=4, steps_per_generation=2, num_iterations=2, spear_buffer_size=2)
    trainer, watch = scripted(make_trainer, ["1001 0110", "1100 0110"], max_steps=8, **settings)
    calls = count_forwards(trainer)
    trainer.train()
    # Four are worth a replay; two of them are drawn, and one goes with each micro-batch.
    assert watch.stored[3] == [0, 3, 5, 6] and watch.stored[-1] == [10, 11, 15, 16]
    assert logged(trainer, "replayed_rows") == [0, None, None, None, 2, None, None, None]
    assert [value is not None for value in logged(trainer, "ratio_mean")] == [False] * 4 + [True] * 4
    assert len(calls) == 2 + 8 + 4  # TRL scores its rollouts; eight updates; two parts, each twice
    assert all(len(part["advantages"]) == 1 for part in watch.parts[-1])


def test_evaluation_changes_nothing(make_trainer, tmp_path):
    results = []
    for strategy in ("no", "steps"):
        trainer, watch = scripted(
            make_trainer,
            WALK,
            output_dir=tmp_path / strategy,
            spear_buffer_size=4,
            spear_tool_reward=0.1,
            spear_tool_steps=9,
            eval_strategy=strategy,
            eval_steps=2,
            eval_dataset=Dataset.from_dict({"prompt": ["w1", "w2"]}),
            per_device_eval_batch_size=8,
        )
        evaluate = trainer.evaluate

        def evaluate_apart(*args, evaluate=evaluate, **kwargs):
            """Evaluation draws random numbers, which would shuffle later batches otherwise."""
            with torch.random.fork_rng():
                return evaluate(*args, **kwargs)

        trainer.evaluate = evaluate_apart
        trainer.train()
        results.append((trainer.model.state_dict(), watch.stored, trainer.methods[0].state_dict()))
        assert logged(trainer, "replayed_rows")[3] == 4
        first = trainer.state.log_history[0]
        assert first["rewards/spear/mean"] == pytest.approx(0.1) and first["spear/tool_calls"] == 1  # by `env_mask`
    torch.testing.assert_close(results[0][0], results[1][0], **EXACT)
    assert results[0][1:] == results[1][1:]


# With other methods


@pytest.mark.parametrize("methods", [["nsr", "spear"], ["spear", "nsr"]], ids=str)
def test_what_counts_as_a_positive_advantage_is_judged_after_the_methods_before(make_trainer, monkeypatch, methods):
    """Here NSR turns advantages around, so listed first it makes SPEAR remember the other rows."""
    from trl_entropy.methods.nsr import Nsr

    monkeypatch.setattr(Nsr, "group_advantages", lambda method, rollouts: (-rollouts.advantages, {}))
    trainer, watch = scripted(make_trainer, ["1001 0100"], methods=methods)
    trainer.train()
    turned = methods[0] == "nsr"
    assert watch.stored == [[1, 2, 4, 6, 7] if turned else [0, 3, 5]]
    for row in trainer._replays["spear"].rows:
        assert row.reward == (0 if turned else 1) and row.advantage > 0


def test_other_methods_do_not_see_the_replay(make_trainer):
    """Clip-Cov, SIREN and KL-Cov's clip act on the batch alone, and a method that sets the bounds does not set its."""
    seen = []
    trainer = with_replay(make_trainer, methods=["spear", "clip_cov", "kl_cov", "siren"], epsilon_high=0.28)
    for method in trainer.methods[1:]:
        hook = method.token_advantages
        method.token_advantages = lambda tokens, hook=hook: seen.append(len(tokens.mask)) or hook(tokens)
    found, term = [], trainer.methods[0].auxiliary_loss
    trainer.methods[0].auxiliary_loss = lambda tokens: found.append(tokens) or term(tokens)
    loss_and_gradients(trainer, make_loss_batch(rows=3))
    assert seen == [3, 3, 3] and len(found) == 1
    assert found[0].clip_high == pytest.approx(1.28) and found[0].clip_low == pytest.approx(0.8)
    assert len(found[0].mask) == 4 and math.isinf(found[0].clip_negative)


# Refusals


def test_images_are_refused(make_trainer, tmp_path):
    dataset = Dataset.from_dict({"prompt": ["w1", "w2"], "image": [None, None]})
    with pytest.raises(ValueError, match="`methods` must not list 'spear' with images, .* got the column 'image'"):
        make_trainer(**PLAIN, spear_tools_only=False, train_dataset=dataset)
    trainer, _ = scripted(make_trainer, WALK)
    with pytest.raises(ValueError, match="`methods` must not list 'spear' with images, .* got 'pixel_values'"):
        trainer._replays["spear"].mark(None, {"pixel_values": torch.zeros(1)})


def test_tools_are_needed(make_trainer):
    with pytest.raises(ValueError, match="`spear_tools_only` must be false without `tools`"):
        make_trainer(methods=["spear"])


def test_too_few_rows_empty_the_memory(make_trainer):
    """Two candidates for four micro-batches: no replay."""
    trainer = make_trainer(**{**PLAIN, "spear_tools_only": False}, steps_per_generation=4, spear_buffer_size=4)
    memory, method = trainer._replays["spear"], trainer.methods[0]
    memory.rows = list(ROWS[:2])
    method.replays = lambda stored: (([0, 1], [0.4, 0.3]), {})
    assert memory.recall(torch.ones(1, 1, dtype=torch.bool)) is None and memory.rows == []


@pytest.mark.parametrize("value", [None, math.nan])
def test_missing_rewards_are_not_kept(make_trainer, value):
    trainer, watch = scripted(make_trainer, ["1001 0100"])
    reward = trainer.reward_funcs[0]
    trainer.reward_funcs[0] = lambda completion_ids, **columns: [
        value if ids[0] == 2 or ids[0] >= 6 else given
        for ids, given in zip(completion_ids, reward(completion_ids), strict=True)
    ]
    trainer.train()
    assert watch.stored == [[3]] and trainer.methods[0].baseline == [[pytest.approx(1 / 3)]]


def test_masked_rows_are_not_kept(make_trainer):
    """Truncated completions, which `mask_truncated_completions` leaves out, have no log-probabilities."""
    trainer, watch = scripted(make_trainer, ["1001 0100"], mask_truncated_completions=True)
    trainer.train()
    assert watch.stored == [[]]  # no completion ends with the EOS token


# TRL's own tool loop


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


class Room:
    """An environment with the same tool."""

    def reset(self, **row):
        return None

    def add(self, a: int, b: int) -> int:
        """Adds two numbers.

        Args:
            a: The first number.
            b: The second number.
        """
        return a + b


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": %d, "b": 2}}\n</tool_call>'
ANSWERED = "<tool_response>"


@pytest.mark.parametrize("given", [dict(tools=[add]), dict(environment_factory=Room)], ids=["tools", "environment"])
def test_bonus_and_memory_of_trls_tool_loop(tmp_path, monkeypatch, given):
    """Row r of four calls r tools, one per turn; the last row's first call fails, and its error is the answer."""
    from support.chat import save_chat_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOTrainer
    from trl.chat_template_utils import qwen3_chat_template

    from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer

    folder = save_chat_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = qwen3_chat_template

    def turn(trainer, prompt_ids, images, fields, num_generations, has_tool_images=False):
        found = []
        for row, ids in enumerate(prompt_ids):
            context = tokenizer.decode(ids).rsplit("user\nquestion", 1)[1]
            calls = context.count(ANSWERED)
            wanted = row if num_generations > 1 else int(context.split("row ")[1][0])
            text = f"row {wanted} " + (CALL % calls if calls < wanted else "done")
            text = text.replace("add", "none") if wanted == 3 and not calls else text
            found.append([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
        return found, None

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", turn)
    rewards = [0.0, 1.0, 1.0, 0.5]
    trainer = EntropyGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        processing_class=tokenizer,
        reward_funcs=lambda completions, **columns: rewards,
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": "question"}]] * 4}),
        args=EntropyGRPOConfig(
            str(tmp_path / "out"),
            methods=["spear"],
            spear_tool_reward=0.1,
            spear_tool_cap=0.15,
            spear_tool_steps=2,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=800,
            max_steps=2,
            learning_rate=1e-3,
            **TRAINING,
        ),
        **given,
    )
    trainer.train()
    first, second = (row for row in trainer.state.log_history if "loss" in row)
    assert first["tools/call_frequency"] == 6 / 4 and first["tools/failure_frequency"] == pytest.approx(1 / 6)
    assert first["spear/tool_calls"] == 6 / 4
    assert first["rewards/spear/mean"] == pytest.approx((0 + 0.1 + 0.15 + 0.15) / 4)
    assert (first["spear/tool_coef"], second["spear/tool_coef"]) == (1, 0.5)
    assert second["rewards/spear/mean"] == pytest.approx(first["rewards/spear/mean"] / 2)
    assert list(trainer._logs["rewards"]["spear"])[-4:] == pytest.approx([0, 0.05, 0.075, 0.075])
    rows = sorted(trainer._replays["spear"].rows, key=lambda row: (row.step, len(row.own)))
    assert [row.step for row in rows] == [0, 0, 1, 1]  # rows 1 and 2, with more than the mean of the group
    for row, (calls, reward) in zip(rows, [(1, 1.1), (2, 1.15), (1, 1.05), (2, 1.075)], strict=True):
        assert row.reward == pytest.approx(reward)
        others = tokenizer.decode(row.completion_ids[~row.own])
        own = tokenizer.decode(row.completion_ids[row.own])
        assert others.count(ANSWERED) == calls and ANSWERED not in own and own.endswith("done<|im_end|>")
