# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Countdown with a calculator: conversations, their templates, evaluation as in TRL's loop, and a run."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import datasets
import pytest
import torch
from datasets import Dataset
from support import agents
from transformers import AutoTokenizer
from trl.chat_template_utils import is_chat_template_prefix_preserving, parse_response, supports_tool_calling

from trl_entropy import cli
from trl_entropy.commands.quickstart import RECIPES, config_for
from trl_entropy.commands.quickstart_common import read_recipe
from trl_entropy.countdown import countdown_reward, grpo
from trl_entropy.countdown.chat import calculator, conversation
from trl_entropy.countdown.evaluation import converse, evaluate
from trl_entropy.countdown.model import WARM_STARTS, build_tokenizer, supervised_batch, targets_of, warm_start
from trl_entropy.countdown.report import AGENT_COLUMNS, COLUMNS, closing, columns_of
from trl_entropy.countdown.task import TASKS, answer_of, countdown_dataset, prompts, read_answer, solutions


TASK = TASKS["tools"]
TOKENIZER = build_tokenizer(TASK)
PROMPT, ANSWER = "n 2 4 6 9 t 17 :", "4 * 6 - 9 + 2"
TEXT = (
    "<user> n 2 4 6 9 t 17 : <eos> <assistant> <call> calculator expression 4 * 6 </call> <eos> <tool> 24 <eos> "
    "<assistant> <call> calculator expression 24 - 9 </call> <eos> <tool> 15 <eos> "
    "<assistant> <call> calculator expression 15 + 2 </call> <eos> <tool> 17 <eos> <assistant> 4 * 6 - 9 + 2 <eos>"
)


def test_a_conversation_is_written_and_parsed():
    talk = conversation(PROMPT, ANSWER)
    ids = TOKENIZER.apply_chat_template(talk, tokenize=True, return_dict=False)
    assert TOKENIZER.decode(ids) == TEXT and TOKENIZER.unk_token_id not in ids
    start = TOKENIZER.apply_chat_template(talk[:1], add_generation_prompt=True, tokenize=True, return_dict=False)
    assert len(ids) - len(start) == TASK.completion_length == 44
    turns = TEXT.split("<assistant> ")[1:]
    for turn, message in zip(turns, talk[1::2], strict=True):
        words = turn.split(" <tool>")[0]
        parsed = parse_response(TOKENIZER, TOKENIZER(words).input_ids, prefix=start, tools=[calculator])
        assert parsed["content"] == message["content"] and parsed.get("tool_calls") == message.get("tool_calls")
    with pytest.raises(ValueError, match="leaves the totals 0 to 30"):
        conversation(PROMPT, "9 * 6 - 4 + 2")


def test_templates_are_what_trl_asks_for(tmp_path):
    assert supports_tool_calling(TOKENIZER) and is_chat_template_prefix_preserving(TOKENIZER)
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.chat_template == TOKENIZER.chat_template and loaded.response_template == TOKENIZER.response_template
    trainer = agents.build_agent_trainer(tmp_path, stock=True)
    suffix = trainer._get_tool_suffix_ids([{"role": "tool", "name": "calculator", "content": "24"}])
    assert TOKENIZER.decode(suffix) == "<tool> 24 <eos> <assistant>" and trainer.chat_template is None


@pytest.mark.parametrize(
    "expression, result",
    [
        ("4 * 6", "24"), ("6 - 6", "0"), ("4 - 6", "no"), ("6 * 6", "no"), ("4 * 6 - 9", "no"), ("4 *", "no"),
        ("4 6 9", "no"), ("", "no"), ("4 <eos>", "no"), ("* 4 *", "no"),
    ],
)  # fmt: skip
def test_calculator(expression, result):
    assert calculator(expression) == result


def test_the_last_message_is_verified():
    talk = conversation(PROMPT, ANSWER)
    completions = [talk[1:], talk[1:-1], talk[1:-2], [*talk[1:-1], {"role": "assistant", "content": "4 * 6 - 9 + 9"}]]
    numbers, target = [[2, 4, 6, 9]] * 4, [17] * 4
    assert countdown_reward(completions, numbers=numbers, target=target) == [1.0, 0.0, 0.0, 0.0]
    assert read_answer(talk, [2, 4, 6, 9], 17) == ANSWER and answer_of(talk[:-1]) == answer_of(talk[:2]) == ""
    rows = countdown_dataset(True, TASK)
    assert rows["prompt"][0] == [{"role": "user", "content": prompts(True, TASK)[0].text}] and len(rows) == 296


def test_targets_are_what_the_policy_writes():
    rows = prompts(False, TASK)[:3]
    tokens = supervised_batch(rows, TOKENIZER, random.Random(0), TASK)
    targets = targets_of(tokens, TOKENIZER, 8, TASK)
    for row, kept, prompt in zip(tokens, targets, rows, strict=True):
        written = [part.split(" <tool>")[0] for part in TOKENIZER.decode(row).split("<assistant> ")[1:]]
        own = [word for word in TOKENIZER.decode(kept).split() if word != "<pad>"]
        assert own == " ".join(written).split() and len(own) == 3 * 8 + 8
        assert " ".join(own[-8:-1]) in solutions(*prompt)
        assert torch.equal(kept[kept != 0], row[kept != 0])
    plain = build_tokenizer()
    tokens = supervised_batch(rows, plain, random.Random(0))
    targets = targets_of(tokens, plain, 8)
    assert (targets[:, :8] == plain.pad_token_id).all() and torch.equal(targets[:, 8:], tokens[:, 8:])


@pytest.mark.parametrize("calls, length", [(1.0, 60), (1.0, 44), (0.6, 60)])
def test_evaluation_talks_as_trls_loop_does(tmp_path, monkeypatch, calls, length):
    """Greedy in all but name, so that both write the same."""
    monkeypatch.setattr(agents.Agent, "calls", calls)
    task = replace(TASK, numbers=5 if length == 60 else 4)
    length = task.completion_length
    trainer = agents.build_agent_trainer(
        tmp_path, stock=True, temperature=1e-6, max_completion_length=length, per_device_train_batch_size=8
    )
    found = agents.roll_out(trainer, seed=4)
    torch.manual_seed(4)
    texts = [prompt for prompt in agents.PROMPTS for _ in range(agents.GROUP)]
    talks, entropies = converse(trainer.model.eval(), TOKENIZER, texts, 1e-6, task)
    assert talks == found["messages"]
    assert [len(values) for values in entropies] == [sum(mask) for mask in found["masks"]]
    assert sum(message["role"] == "tool" for talk in talks for message in talk) > 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two optimizer steps with branching from a hardly trained model: its row, its logs, and its folder."""
    folder = tmp_path_factory.mktemp("agent")
    tiny = replace(WARM_STARTS["tools"], hidden_size=32, layers=1, steps=5, batch_size=16)
    model = warm_start(folder / "cache", tiny)
    settings = read_recipe(RECIPES["tools"], {"max_steps": 2, "per_device_train_batch_size": 16})
    held_out = prompts(True, TASK)[:6]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "prompts", lambda *given: held_out)
        row, history, _ = grpo.train("branching", model, config_for(settings, ["branching"], folder), TASK)
    return row, history, folder


def test_a_run_of_the_quickstart(run):
    row, history, folder = run
    assert set(row) == set(AGENT_COLUMNS) and columns_of({"before": row}) == AGENT_COLUMNS
    assert columns_of({"stock": {"entropy": 1.0}}) == COLUMNS
    (point,) = history
    shared = point["branching/shared_fraction"]
    assert row["sampled"] == pytest.approx(point["completions/mean_length"] * (1 - shared))
    assert row["run"] == point["tools/call_frequency"] and point["branching/roots"] == 8
    assert json.loads((folder / "cache" / "warm_start.json").read_text())["task"]["tools"] is True
    stored = Dataset.from_parquet(str(folder / "cache" / "data" / "train.parquet"), cache_dir=str(folder))
    assert stored[0]["prompt"] == [{"content": prompts(False, TASK)[0].text, "role": "user"}]
    tokenizer = AutoTokenizer.from_pretrained(folder / "cache" / "model")
    assert tokenizer.response_template == TOKENIZER.response_template


def test_the_last_lines_say_what_an_agent_spent():
    row = {"entropy": 0.1, "pass@1": 0.3, "pass@16": 0.6, "sampled": 30.0, "run": 3.0}
    rows = {"before": row, "stock": row, "branching": {**row, "sampled": 24.0, "run": 2.1}}
    points = [{"pass@1": 0.1, "pass@16": 0.8}, {"pass@1": 0.3, "pass@16": 0.6}]
    found = closing({"rows": rows, "history": {"stock": [], "branching": []}, "trajectories": {"stock": points}})
    stock, branching = found.splitlines()
    assert stock.endswith("pass@16 0.600 to 0.600.")
    assert branching.endswith("), for 80% of the tokens and 70% of the tools that stock sampled and ran.")


@pytest.mark.filterwarnings("ignore")
def test_the_recipe_trains_from_the_command_line(run, tmp_path, monkeypatch, capfd):
    """It names the tool by its path. A wrong path ends the command before anything is loaded."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    cache = run[2] / "cache"
    flags = dict(
        model_name_or_path=cache / "model", dataset_name=cache / "data", output_dir=tmp_path / "out", max_steps=1,
        per_device_train_batch_size=16, steps_per_generation=1, logging_steps=1, diagnosis="false",
    )  # fmt: skip
    words = ["grpo", "--config", RECIPES["tools"], *(f"--{name}={value}" for name, value in flags.items())]
    assert cli.main(words, launch=False) == 0, capfd.readouterr().err
    (line,) = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"][:1]
    assert line["branching/roots"] == 8 and "tools/call_frequency" in line
    with pytest.raises(SystemExit):
        cli.main([*words, "--tools", "trl_entropy.countdown.abacus"], launch=False)
    assert "`tools` has 'trl_entropy.countdown.abacus', which cannot be imported" in capfd.readouterr().err


def test_scores_of_an_agent_that_knows(tmp_path):
    """A model that copies right conversations is always right, with three calls and 32 words of its own."""
    model, rows = agents.build_model(vocab_size=len(TOKENIZER)), prompts(True, TASK)[:3]
    wanted = {row.text: conversation(row.text, solutions(*row)[0]) for row in rows}

    def generate(input_ids, attention_mask, **settings):
        texts = TOKENIZER.batch_decode(input_ids, skip_special_tokens=False)
        turns = []
        for text in texts:
            text = text.replace("<pad> ", "")
            full = TOKENIZER.apply_chat_template(wanted[text.split("<user> ")[1].split(" <eos>")[0]], tokenize=False)
            full = " ".join(full.split())
            assert full.startswith(text)
            turns.append(full[len(text) :].split(" <tool>")[0])
        new = TOKENIZER(turns, return_tensors="pt", padding=True, padding_side="right").input_ids
        new = torch.where(new == 0, TOKENIZER.eos_token_id, new)
        logits = [torch.zeros(len(texts), len(TOKENIZER)) for _ in range(new.size(1))]
        return SimpleNamespace(sequences=torch.cat([input_ids, new], 1), logits=logits)

    model.generate = generate
    found = evaluate(model, TOKENIZER, rows, samples=8, task=TASK)
    assert found["pass@1"] == found["pass@8"] == found["distinct"] == 1
    assert (found["length"], found["calls"]) == (32, 3)
    assert found["entropy"] == pytest.approx(torch.tensor(float(len(TOKENIZER))).log().item())
