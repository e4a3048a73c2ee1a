# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rollouts that branch in TRL's tool loop: the same rows, tools and states as if each row had been made alone."""

import math
import random
import re
from collections import Counter
from statistics import fmean

import pytest
import torch
from peft import LoraConfig
from support import agents
from support.agents import (
    GROUP,
    ROWS,
    TOKENIZER,
    Notebook,
    Script,
    answer,
    asynchronous,
    build_agent_trainer,
    call,
    inputs,
    roll_out,
)
from support.reference import dense_logps_and_entropy
from support.tensors import config_of
from support.tiny import LOSS_TYPES
from trl import GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template

from trl_entropy.methods import build_methods
from trl_entropy.methods.branching import initial_rollouts, turn_entropy
from trl_entropy.trainers import rollouts
from trl_entropy.trainers.branches import BranchedRollouts
from trl_entropy.trainers.environments import check_branching
from trl_entropy.trainers.places import Places
from trl_entropy.trainers.replay import Replay, padded_batch


KEPT = ("ids", "masks", "messages", "values", "prompt_ids", "tool_images")


class Watched(BranchedRollouts):
    """Keeps the last object, and the parent of each branch."""

    last = None

    def __init__(self, *args):
        super().__init__(*args)
        type(self).last, self.parents = self, {}

    def _bear(self, parent, place, *args):
        self.parents[place] = parent
        super()._bear(parent, place, *args)


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    monkeypatch.setattr(rollouts, "BranchedRollouts", Watched)


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """`scripted(policy, decide, **settings)` gives a trainer with a stand-in engine. `decide` sets its branchings."""
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Script)

    def make(policy, decide=None, **settings):
        monkeypatch.setattr(Script, "policy", staticmethod(policy))
        trainer = build_agent_trainer(tmp_path, use_vllm=True, methods=["branching"], **settings)
        trainer.seen = []
        if decide is not None:
            trainer._branching.branches = lambda turn: (trainer.seen.append(turn), decide(len(trainer.seen) - 1))[1]
        return trainer

    return make


def calls_for(turns: int):
    """A policy that calls the tool in so many turns, and then answers. Every word is one of two."""
    return lambda context, number: ((call if context.count("<tool>") < turns else answer)(number), 2)


# Without branches


def named(settings):
    """The settings in words, without addresses of functions, which differ between the workers of pytest."""
    return re.sub(r" at 0x\w+", "", str(settings))


@pytest.mark.parametrize(
    "settings",
    [
        dict(max_tool_calling_iterations=1),
        dict(max_tool_calling_iterations=2),
        dict(),
        dict(max_completion_length=17),
        dict(max_completion_length=25, max_tool_calling_iterations=3),
        dict(tools=[asynchronous]),
        dict(environment=Notebook),
    ],
    ids=named,
)
def test_without_a_free_place_the_loop_is_trls(tmp_path, settings):
    """Ids, masks, messages and all metrics are equal to the bit, and branches of no row are looked for."""
    found = []
    for own in (dict(stock=True), dict(methods=["branching"], branching_initial=GROUP)):
        trainer = build_agent_trainer(tmp_path, **own, **settings)
        found.append(roll_out(trainer, seed=3))
    stock, branched = found
    assert any(0 in mask for mask in stock["masks"])  # tools ran
    assert all(stock[key] == branched[key] for key in KEPT)
    own = {key: values for key, values in branched["metrics"].items() if not key.startswith("branching/")}
    for key in ("tools/call_frequency", "completions/mean_length", "num_tokens", "tools/failure_frequency"):
        assert own[key] == stock["metrics"][key]
    assert branched["metrics"]["branching/branches"] == [0] and branched["metrics"]["branching/roots"] == [GROUP]
    if "environment" in settings:
        check_notebooks(trainer, branched)


def test_evaluation_does_not_branch(tmp_path):
    trainer = build_agent_trainer(tmp_path, methods=["branching"])
    trainer.model.eval()
    Watched.last = None
    trainer._generate_and_score_completions(inputs(GROUP))
    assert Watched.last is None and not any("branching" in key for key in trainer._metrics["eval"])


# With branches


def check_rows(trainer, found):
    """Each branch equals its parent up to the tool result after which it began, and no placeholder is left."""
    rows, group = Watched.last, trainer.num_generations
    values = rows.values if trainer.args.record_entropies else found["values"]
    assert len(found["ids"]) == 2 * group and not any(rows.places.free.values())
    for place, ids in enumerate(found["ids"]):
        mask, messages = found["masks"][place], found["messages"][place]
        assert len(ids) == len(mask) <= trainer.max_completion_length and mask[0] == 1 and ids != [agents.END]
        # The tokens are those of the messages.
        text = TOKENIZER.decode(ids)
        assert text.count("<tool>") == sum(message["role"] == "tool" for message in messages)
        assert values is None or len(values[place]) == len(ids)
        if place not in rows.parents:
            assert rows.places.sharing[place] == 0
            continue
        parent, shared = rows.parents[place], rows.places.sharing[place]
        assert parent // group == place // group and 0 < shared < len(ids)
        assert ids[:shared] == found["ids"][parent][:shared] and mask[:shared] == found["masks"][parent][:shared]
        assert mask[shared - 1] == 0 and TOKENIZER.decode(ids[:shared]).endswith("<eos> <assistant>")
        common = 2 * TOKENIZER.decode(ids[:shared]).count("<tool>")
        assert messages[:common] == found["messages"][parent][:common]
        assert all(one is not other for one, other in zip(messages, found["messages"][parent], strict=False))
        if values is not None:
            assert values[place][:shared] == values[parent][:shared]
    roots, branches, refilled = (found["metrics"][f"branching/{key}"][-1] for key in ("roots", "branches", "refilled"))
    assert roots + branches + refilled == group and branches == len(rows.parents) / 2
    own = sum(map(sum, found["masks"]))
    shared = sum(sum(mask[: rows.places.sharing[place]]) for place, mask in enumerate(found["masks"]))
    assert found["metrics"]["branching/shared_fraction"][-1] == pytest.approx(shared / own)
    return rows


def check_notebooks(trainer, found):
    """The state of each row's environment is what its messages say."""
    for environment, messages in zip(trainer.environments, found["messages"], strict=True):
        results = [index for index, message in enumerate(messages) if message["role"] == "tool"]
        expected = [messages[index - 1]["tool_calls"][0]["function"]["arguments"]["expression"] for index in results]
        last = messages[-1].get("tool_calls")
        # TRL drops a result that does not fit after the tool ran: the environment is one call ahead then.
        ahead = [last[0]["function"]["arguments"]["expression"]] if last else []
        assert environment.lines in (expected, expected + ahead)
        assert [messages[index]["content"] for index in results] == [str(n) for n in range(len(results))]


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(record_entropies=True, methods=["agentic_aepo", "branching"]),
        dict(max_completion_length=33, branching_width=3, branching_initial=2),
        dict(environment=Notebook, branching_initial=2, max_tool_calling_iterations=3),
        dict(tools=[asynchronous], branching_rule="arpo"),
        dict(branching_dynamic=True, environment=Notebook),
    ],
    ids=named,
)
def test_branches_share_the_beginning_of_their_parents(tmp_path, settings):
    """And their own turns: H of each turn on each path is that of a dense forward of the row."""
    settings = {"methods": ["branching"], "branching_probability": 0.3, **settings}
    if settings.get("branching_rule") == "arpo":
        settings["branching_probability"] = 0.7
    trainer = build_agent_trainer(tmp_path, num_generations=8, per_device_train_batch_size=16, **settings)
    found = roll_out(trainer, seed=1)
    rows = check_rows(trainer, found)
    assert rows.parents
    if "environment" in settings:
        check_notebooks(trainer, found)
        states = [environment.lines for environment in trainer.environments]
        assert len({id(lines) for lines in states}) == 16
    output = found["output"]
    with torch.no_grad():
        _, entropy = dense_logps_and_entropy(trainer.model, output)
    for row, mask in enumerate(found["masks"]):
        turns, last = [], 0
        for own, value in zip(mask, entropy[row].tolist(), strict=False):
            turns += [[]] if own and not last else []
            if own:
                turns[-1].append(value)
            last = own
        expected = [turn_entropy(values, 20, len(TOKENIZER)) for values in turns]
        # An empty turn, at the end of the budget, has no tokens.
        expected += [0.0] * (len(rows.places.turns[row]) - len(expected))
        assert rows.places.turns[row] == pytest.approx(expected, abs=1e-5)
    if trainer.args.record_entropies:
        own = torch.tensor([mask + [0] * (entropy.size(1) - len(mask)) for mask in found["masks"]]).bool()
        values = torch.tensor([row + [0.0] * (entropy.size(1) - len(row)) for row in rows.values])
        torch.testing.assert_close(values, entropy.masked_fill(~own, 0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("initial, decides", [(1, True), (2, True), (2, False)])
def test_no_tool_runs_twice_and_no_call_is_added(scripted, monkeypatch, initial, decides):
    ran, rounds = [], []
    stock = GRPOTrainer._tool_call_loop

    def counted(self, *args):
        rounds.append(len(ran))
        return stock(self, *args)

    def calculator(expression: str) -> str:
        """
        Computes.

        Args:
            expression: An expression.
        """
        ran.append(expression)
        return str(len(ran) % 31)

    monkeypatch.setattr(GRPOTrainer, "_tool_call_loop", counted)
    trainer = scripted(calls_for(3), lambda number: decides, branching_initial=initial, tools=[calculator])
    found = roll_out(trainer)
    check_rows(trainer, found)
    results = {
        (row // GROUP, tuple(ids[: end + 1]))
        for row, ids in enumerate(found["ids"])
        for end in range(len(ids) - 1)
        if found["masks"][row][end : end + 2] == [0, 1]
    }
    assert len(ran) == len(results) == len(set(ran))
    assert sum(sum(message["role"] == "tool" for message in row) for row in found["messages"]) == 3 * ROWS
    assert len(ran) < 3 * ROWS if decides else len(ran) == 3 * ROWS
    refills = not decides
    calls = len(trainer.vllm_generation.contexts)
    assert found["metrics"]["branching/engine_calls"] == [calls] == [1 + len(rounds) + refills]
    assert len(rounds) == (6 if refills else 3)
    # The metric of the tools is that of their runs.
    assert found["metrics"]["tools/call_frequency"] == [len(ran) / ROWS]


def test_the_sampled_tokens_keep_their_own_log_probabilities(scripted):
    """The engine gives ten tokens, the likeliest first. TRL gets the sampled one's, and branches their parent's."""
    trainer = scripted(
        lambda context, number: ((call if context.count("<tool>") < 2 else answer)(number), 2 + number % 12),
        lambda number: True,
        branching_initial=1,
    )
    found = roll_out(trainer)
    rows = check_rows(trainer, found)
    spreads = {}
    for number, context in enumerate(context for batch in trainer.vllm_generation.contexts for context in batch):
        text = (call if context.count("<tool>") < 2 else answer)(number)
        spreads[text] = 2 + number % 12
    for row, messages in enumerate(found["messages"]):
        values, at, expected = found["values"][row], 0, []
        for message in messages:
            if message["role"] == "tool":
                at += 4
                continue
            arguments = [one["function"]["arguments"]["expression"] for one in message.get("tool_calls") or []]
            words = f"<call> calculator expression {arguments[0]} </call>" if arguments else message["content"]
            spread = spreads[f"{words} <eos>"]
            length = len(words.split()) + 1
            assert values[at : at + length] == pytest.approx([-math.log(spread)] * length)
            at += length
            # Of more than ten equally likely words, ten count.
            entropy = min(spread, 10) * math.log(spread) / spread
            expected.append(length * entropy / math.log(len(TOKENIZER)))
        assert at == len(values) and rows.places.turns[row] == pytest.approx(expected)
    assert trainer.vllm_generation.logprobs == 0 and found["output"]["importance_sampling_ratio"].isfinite().all()
    stock = found["output"]["sampling_per_token_logps"]
    assert stock.size(0) == ROWS


# Which rows branch


def test_which_rows_branch_and_in_which_order(scripted):
    """Prompt 0 calls tools, prompt 1 never does: its free places are sampled from the prompt at once."""

    def policy(context, number):
        agent = " 17 :" in context and context.count("<tool>") < 3
        return (call if agent else answer)(number), 3

    for scope, counts in (("path", [0, 1, 1, 0, 2, 2]), ("prompt", [0, 1, 1, 2, 2, 2])):
        trainer = scripted(
            policy,
            lambda number: number != 1,
            num_generations=6,
            per_device_train_batch_size=12,
            branching_initial=1,
            branching_scope=scope,
        )
        rows = check_rows(trainer, roll_out(trainer))
        # Round 1: row 0 branches into place 1. Round 2: row 0 does not, row 1 does. Round 3: all three do.
        assert rows.parents == {1: 0, 2: 1, 3: 0, 4: 1, 5: 2}
        assert [turn.consecutive for turn in trainer.seen] == counts
        # The roots, then those of prompt 1; then each round with its branches.
        assert [len(batch) for batch in trainer.vllm_generation.contexts] == [2, 5, 2, 3, 6]
        top = {key: rows.logs(60)[key].tolist() for key in ("on_top_path_fraction", "branches", "refilled", "roots")}
        # Of the five branchings, rows 1, 2 and 4, the fullest paths, have all but that of row 0 in round 3.
        assert top["branches"] == [5, 0] and top["refilled"] == [0, 5] and top["roots"] == [1, 1]
        assert math.isnan(top["on_top_path_fraction"][1]) and top["on_top_path_fraction"][0] == pytest.approx(0.8)


def test_the_first_of_two_rows_gets_the_last_place(scripted):
    trainer = scripted(calls_for(2), lambda number: number < 4, branching_initial=2, branching_width=2)
    rows = check_rows(trainer, roll_out(trainer))
    assert rows.parents == {2: 0, 3: 1, 6: 4, 7: 5} and len(trainer.seen) == 4  # no place was left in round 2
    trainer = scripted(calls_for(1), lambda number: True, branching_initial=3)
    rows = check_rows(trainer, roll_out(trainer))
    assert rows.parents == {3: 0, 7: 4} and rows.places.consecutive == [1, 0, 0, 1] * 2
    trainer = scripted(calls_for(2), lambda number: True, branching_initial=1, branching_width=3)
    rows = check_rows(trainer, roll_out(trainer))
    assert rows.parents == {1: 0, 2: 0, 3: 0, 5: 4, 6: 4, 7: 4}


def test_draws_and_decisions_are_those_of_the_rule(scripted):
    """The literal rule, on the entropies of the script: uncertain turns from the second on."""
    trainer = scripted(
        lambda context, number: (
            (call if context.count("<tool>") < 4 else answer)(number),
            1 + 3 * context.count("<tool>") + number % 2,
        ),
        num_generations=8,
        per_device_train_batch_size=16,
        branching_initial=2,
    )
    trainer.state.global_step = 5
    decided, method = [], trainer._branching
    branches = type(method).branches

    def decide(turn):
        decided.append((turn, branches(method, turn)))
        return decided[-1][1]

    method.branches = decide
    check_rows(trainer, roll_out(trainer))
    draws = {random.Random(repr((7, 5, row, turn))).random() for row in range(16) for turn in range(1, 6)}
    assert {turn.draw for turn, _ in decided} <= draws and len({turn.draw for turn, _ in decided}) == len(decided)
    for turn, found in decided:
        score = (turn.draw + 0.2 * (turn.entropy - turn.reference)) * (1 - 0.05 * turn.consecutive)
        assert found == (score >= 0.5)
    assert {found for _, found in decided} == {True, False}
    assert any(turn.entropy > turn.reference for turn, _ in decided)


def test_dynamic_budget(scripted):
    """The first row of each prompt is sampled to its end, and decides how many more begin at the prompt."""

    def policy(context, number):
        turn = context.count("<tool>")
        sure = " 17 :" in context  # prompt 0: sure at first, then not
        return (call if turn < 3 else answer)(number), [1, 9, 9, 9][turn] if sure else [9, 1, 1, 1][turn]

    sizes = dict(num_generations=8, per_device_train_batch_size=16)
    trainer = scripted(policy, lambda number: False, branching_dynamic=True, **sizes)
    found = roll_out(trainer)
    rows = check_rows(trainer, found)
    unit = math.log(9) / math.log(len(TOKENIZER))
    probes = [[0, 8 * unit, 8 * unit, 4 * unit], [8 * unit, 0, 0, 0]]  # of calls of eight words and answers of four
    assert [rows.places.turns[0], rows.places.turns[8]] == [pytest.approx(turns) for turns in probes]
    budgets = [initial_rollouts(turns[0], fmean(turns), 8, 0.5) for turns in probes]
    assert list(rows.places.roots.values()) == budgets and budgets == [2, 7]
    sizes = [len(batch) for batch in trainer.vllm_generation.contexts]
    # The probes; seven more roots; as none branches, the other seven places.
    assert sizes == [2, 2, 2, 2, 7, 7, 7, 7, 7, 7, 7, 7]
    # Nothing is thrown away: all tokens that were sampled are in the rows.
    sampled = sum(
        8 if context.count("<tool>") < 3 else 4 for batch in trainer.vllm_generation.contexts for context in batch
    )
    assert sum(map(sum, found["masks"])) == sampled
    metrics = found["metrics"]
    assert metrics["branching/root_entropy"] == [pytest.approx(fmean(turns[0] for turns in probes))]
    assert metrics["branching/turn_entropy"] == [pytest.approx(fmean(map(fmean, probes)))]


# Whole runs


def train(folder, **settings):
    defaults = dict(
        methods=["branching"], max_steps=4, learning_rate=0.01, steps_per_generation=2, gradient_accumulation_steps=1,
        per_device_train_batch_size=4,
    )  # fmt: skip
    resume = settings.pop("resume", None)
    trainer = build_agent_trainer(folder, **{**defaults, **settings})
    drawn, method = [], trainer._branching
    branches = type(method).branches
    method.branches = lambda turn: (drawn.append(turn.draw), branches(method, turn))[1]
    trainer.train(resume_from_checkpoint=resume)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return trainer, drawn, lines


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        dict(methods=["agentic_aepo", "branching"]),
        dict(methods=["pear", "empg", "branching"], branching_rule="arpo"),
        dict(methods=["empg", "spear", "branching"], spear_buffer_size=2, spear_replay_steps=0),
        dict(methods=["agentic_aepo", "branching", "spear"], spear_buffer_size=2, spear_replay_steps=0),
        dict(methods=["pear", "canon", "empg", "branching", "spear"], spear_buffer_size=2, spear_replay_steps=0),
        dict(
            methods=["aepo", "branching"], branching_dynamic=True, record_entropies=True, environment=Notebook,
            steps_per_generation=1, per_device_train_batch_size=8, aepo_target_entropy=1.0,
        ),
    ],
    ids=lambda settings: "-".join(settings["methods"]),
)  # fmt: skip
def test_training_with_other_methods(tmp_path, settings):
    trainer, drawn, lines = train(tmp_path, max_steps=2, **settings)
    assert drawn and len(lines) == 2
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    for name in settings["methods"]:
        assert any(key.startswith(f"{name}/") for line in lines for key in line)
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


@pytest.mark.filterwarnings("ignore")
def test_branched_completions_are_replayed_with_their_log_probabilities(tmp_path, monkeypatch):
    """What SPEAR remembers of branches: their tokens, which of them are the policy's, and their log-probabilities."""
    rows, remember = [], Replay.remember

    def watch(self, *args):
        before = len(self.rows)
        remember(self, *args)
        rows.extend(self.rows[before:])

    monkeypatch.setattr(Replay, "remember", watch)
    trainer, drawn, lines = train(
        tmp_path, methods=["agentic_aepo", "branching", "spear"], max_steps=8, learning_rate=0.0,
        spear_buffer_size=2, spear_replay_steps=0,
    )  # fmt: skip
    assert drawn and sum(line.get("branching/branches", 0) for line in lines) > 0
    assert sum(line.get("spear/replayed_rows", 0) for line in lines) > 0
    calls = Counter((row.step, *row.completion_ids[: row.own.tolist().index(False)].tolist()) for row in rows)
    assert max(calls.values()) > 1  # a branch and its parent, which begin with the same call
    for row in rows:
        with torch.no_grad():
            logps = dense_logps_and_entropy(trainer.model, padded_batch([row], TOKENIZER.pad_token_id, None))[0][0]
        assert not row.own.all() and row.advantage > 0
        torch.testing.assert_close(row.logps[row.own], logps[row.own], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_repeats_the_draws(tmp_path):
    whole, drawn, lines = train(tmp_path / "whole", save_strategy="steps", save_steps=2)
    again, drawn_again, _ = train(tmp_path / "again")
    assert drawn == drawn_again
    part, drawn_part, rest = train(tmp_path / "part", resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert 0 < len(drawn_part) < len(drawn) and drawn_part == drawn[-len(drawn_part) :]
    assert [line["loss"] for line in rest[-2:]] == [line["loss"] for line in lines[-2:]]
    for other in (again, part):
        torch.testing.assert_close(other.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


METHODS = pytest.mark.parametrize("methods", [["branching"]])


def check_acts(folder, methods, **settings):
    """A run of three steps, two of them on one generation batch: finite, and not the run without the method."""
    weights = []
    for names in (methods, []):
        defaults = dict(max_steps=3, steps_per_generation=2, per_device_train_batch_size=4, learning_rate=0.01)
        trainer = build_agent_trainer(folder, methods=names, **{**defaults, **settings})
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert all(value.isfinite().all() for value in weights[0].values())
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    return weights[0]


@pytest.mark.slow  # the loss does not know that rollouts branch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.compatibility("{loss_type}")
@METHODS
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_types(tmp_path, methods, loss_type):
    check_acts(tmp_path, methods, loss_type=loss_type)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.compatibility("LoRA")
@METHODS
def test_lora(tmp_path, methods):
    weights = check_acts(tmp_path, methods, peft_config=LoraConfig(r=2, target_modules="all-linear"))
    assert any("lora_" in name for name in weights)
    assert Watched.last.parents


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.compatibility("bf16")
@METHODS
def test_bf16(tmp_path, methods):
    check_acts(tmp_path, methods, bf16=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.compatibility("num_iterations: 2")
@METHODS
def test_two_iterations(tmp_path, methods):
    check_acts(tmp_path, methods, num_iterations=2, max_steps=4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.compatibility("gradient checkpointing")
@METHODS
def test_gradient_checkpointing(tmp_path, methods):
    plain = check_acts(tmp_path, methods)
    torch.testing.assert_close(check_acts(tmp_path, methods, gradient_checkpointing=True), plain, rtol=1e-3, atol=1e-4)


def test_rows_of_two_processes_branch_as_those_of_one():
    """Decisions depend on the row's number among the rows of all processes."""
    (method,) = build_methods(config_of(methods=["branching"], branching_initial=2))
    whole = Places(method, 8, 16, 50, (7, 3, 0))
    halves = [Places(method, 8, 8, 50, (7, 3, first)) for first in (0, 8)]
    found = []
    for places, start in ((whole, 0), (halves[0], 0), (halves[1], 8)):
        rows, births = list(places.first), []
        for turn in range(4):
            for row in rows:
                places.add_turn(row, [0.1 * (turn + row + start)])
            births.append(places.births(rows))
            for parent, place in births[-1]:
                places.add_branch(parent, place, [0.1 * (turn + place + start)], 5)
            rows = sorted({*rows, *(place for _, place in births[-1])})
        found.append([sorted((parent + start, place + start) for parent, place in one) for one in births])
    assert found[0] == [sorted(one + other) for one, other in zip(*found[1:], strict=True)] and any(found[0])
    assert whole.deltas and len(whole.left_over([])) == len([*halves[0].left_over([]), *halves[1].left_over([])])


# A chat template of a real model


def test_branches_in_the_chat_template_of_qwen3(scripted, monkeypatch):
    """TRL's own template and parser: calls as JSON, thoughts, and a system prompt that describes the tools."""
    tokenizer = agents.byte_tokenizer(qwen3_chat_template)
    monkeypatch.setattr(Script, "tokenizer", tokenizer)

    def policy(context, number):
        turn = context.count("<tool_response>\n")
        call = (
            '<think>\nHm.\n</think>\n\n<tool_call>\n{"name": "calculator", "arguments": {"expression": "%d + %d"}}\n'
        )
        return (call % (number % 9, turn) + "</tool_call>" if turn < 2 else f"It is {number}.") + "<|im_end|>", 2

    trainer = scripted(
        policy, lambda number: True, branching_initial=1, processing_class=tokenizer, max_completion_length=600,
        model=agents.build_model(vocab_size=len(tokenizer), max_position_embeddings=4096),
    )  # fmt: skip
    found = roll_out(trainer)
    rows = Watched.last
    assert len(rows.parents) == 6 and [len(batch) for batch in trainer.vllm_generation.contexts] == [2, 4, 8]
    for place, messages in enumerate(found["messages"]):
        assert [message["role"] for message in messages] == ["assistant", "tool"] * 2 + ["assistant"]
        assert messages[0]["tool_calls"][0]["function"]["name"] == "calculator"
        assert messages[0]["reasoning_content"].strip() == "Hm." and messages[-1]["content"].startswith("It is ")
        text = tokenizer.decode(found["ids"][place])
        assert text.count("<tool_response>") == 2 and text.endswith("<|im_end|>")
        if place in rows.parents:
            shared = rows.places.sharing[place]
            assert tokenizer.decode(found["ids"][place][:shared]).endswith("<|im_start|>assistant\n")
            assert found["ids"][place][:shared] == found["ids"][rows.parents[place]][:shared]


# What is refused


class Locked(Notebook):
    def __deepcopy__(self, memo):
        raise TypeError("a socket cannot be copied")


def test_runs_that_cannot_branch_are_refused(tmp_path, monkeypatch):
    message = "`environment_factory` must make environments that `copy.deepcopy` can copy .* got Locked, .* a socket"
    with pytest.raises(ValueError, match=message):
        build_agent_trainer(tmp_path, methods=["branching"], environment=Locked)
    with pytest.raises(ValueError, match="`tools` or `environment_factory` must be given with method 'branching'"):
        build_agent_trainer(tmp_path, methods=["branching"], tools=())
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    with pytest.raises(ValueError, match="`rollout_func` must be none with method 'branching'"):
        build_agent_trainer(tmp_path, methods=["branching"], tools=(), rollout_func=lambda prompts, trainer: {})
    trainer = build_agent_trainer(tmp_path, methods=["branching"])
    trainer._is_vlm = True
    with pytest.raises(ValueError, match="`processing_class` must be a tokenizer with method 'branching'"):
        check_branching(trainer, "branching")
