# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks of reasoning-gym: settings, splits, answers in completions, and the score that the task gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reasoning_gym import create_dataset

from trl_entropy.gym import (
    COLUMNS,
    HELD_OUT_SEED,
    INSTRUCTION,
    check_task,
    final_answer,
    load_task,
    read_entry,
    read_settings,
    reasoning_gym_reward,
    registry,
    score,
    scorer,
    write_entry,
)


SUPPORT = Path(__file__).parent / "support"
SMALL = "min_terms=2,max_terms=3,min_digits=2,max_digits=2,size=6,test_size=4"
# Answers: a number, several lines, words in any order, an expression (which has no unique answer)
TASKS = ["chain_sum", "spell_backward", "mini_sudoku", "letter_counting", "countdown"]


def columns(split, *rows):
    return {name: [split[row][name] for row in rows] for name in COLUMNS}


def answers(split):
    return [json.loads(entry)["answer"] for entry in split["gym_entry"]]


def test_settings_are_read_as_yaml():
    assert read_settings(None) == read_settings(" ") == {}
    assert read_settings('a=2, b = 0.5,c=true,operators=["+", "-"],d=x') == {
        "a": 2, "b": 0.5, "c": True, "operators": ["+", "-"], "d": "x"
    }  # fmt: skip


@pytest.mark.parametrize("text", ["min_terms", "min_terms=", "=2", "min terms=2", "a=1,a=2", "{a: 1}"])
def test_settings_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match="`dataset_config` must have the form name=value,name=value, each once, got"):
        read_settings(text)


def test_settings_that_are_no_yaml_are_refused():
    with pytest.raises(ValueError, match=r"`dataset_config` must have values in YAML, got 'a=\[1'"):
        read_settings("a=[1")


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("chain_sun", None, "has the unknown task 'chain_sun' of reasoning-gym. Did you mean 'chain_sum'?"),
        ("composite", None, "`dataset_name` has the unknown task 'composite'"),
        ("", None, "unknown task '' of reasoning-gym. Known: ab, acre,"),
        ("chain_sum", "max_term=3", "setting 'max_term' of reasoning_gym:chain_sum. Did you mean 'max_terms'?"),
        ("chain_sum", "zzz=3", "Known: min_terms, max_terms, min_digits, max_digits, allow_negation, seed, size, "),
        ("chain_sum", "max_terms=three", "`max_terms` must be like its default 6, got 'three'"),
        ("chain_sum", "allow_negation=1", "`allow_negation` must be like its default False, got 1"),
        ("chain_sum", "size=0", "`size` must be an integer >= 1, got 0"),
        ("chain_sum", "test_size=2.5", "`test_size` must be an integer >= 1, got 2.5"),
        ("chain_sum", "seed=-1", "`seed` must be an integer >= 0, got -1"),
        ("chain_sum", "min_terms=9", "accepts, got seed=0, size=500, min_terms=9: max_terms must be >= min_terms."),
    ],
)
def test_wrong_tasks_and_settings_are_named(name, config, message):
    with pytest.raises(ValueError) as error:
        check_task(f"reasoning_gym:{name}", config)
    assert message in str(error.value)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r'need the package reasoning-gym: pip install "trl-entropy\[gym\]"'):
        load_task("reasoning_gym:chain_sum")


def test_rows_are_those_of_the_task():
    splits = load_task("reasoning_gym:chain_sum", f"{SMALL},seed=7")
    given = dict(min_terms=2, max_terms=3, min_digits=2, max_digits=2)
    for split, seed, size in (("train", 7, 6), ("test", 7 + HELD_OUT_SEED, 4)):
        rows, dataset = splits[split], create_dataset("chain_sum", seed=seed, size=size, **given)
        assert rows.column_names == ["prompt", *COLUMNS] and rows.num_rows == size
        for row, entry in zip(rows, dataset, strict=True):
            assert row["prompt"] == [{"role": "user", "content": f"{entry['question']}\n\n{INSTRUCTION}"}]
            assert read_entry(row["gym_entry"]) == entry and row["gym_task"] == "chain_sum"
            assert json.loads(row["gym_settings"]) == {**given, "seed": seed, "size": size}


@pytest.mark.parametrize("task", TASKS)
def test_rows_follow_from_the_seed(task):
    name = f"reasoning_gym:{task}"
    one, same, other = (load_task(name, f"size=4,test_size=3,seed={seed}") for seed in (1, 1, 50))
    for split in ("train", "test"):
        assert one[split].to_list() == same[split].to_list()
        assert not {str(row["prompt"]) for row in one[split]} & {str(row["prompt"]) for row in other[split]}


def test_held_out_questions_are_not_trained_on():
    splits = load_task("reasoning_gym:chain_sum", "min_terms=2,max_terms=2,max_digits=1,size=300,test_size=60")
    train, test = ([row["prompt"][0]["content"] for row in splits[split]] for split in ("train", "test"))
    assert not set(train) & set(test) and len(set(test)) == len(test)
    # There are 200 questions of one digit, so the two draws of 300 and 60 share some.
    settings = dict(min_terms=2, max_terms=2, max_digits=1)
    drawn = {
        name: [entry["question"] for entry in create_dataset("chain_sum", seed=seed, size=size, **settings)]
        for name, seed, size in (("train", 0, 300), ("test", HELD_OUT_SEED, 60))
    }
    assert len(test) == len(set(drawn["test"])) < 60
    assert len(train) == sum(question not in drawn["test"] for question in drawn["train"]) < 300


def test_processes_take_the_rows_of_the_first(monkeypatch):
    first = load_task("reasoning_gym:chain_sum", f"{SMALL},seed=50")
    drawn = [split.to_list() for split in first.values()]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)

    def broadcast(rows, src):
        assert src == 0
        rows[:] = drawn

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    second = load_task("reasoning_gym:chain_sum", SMALL)
    assert [split.to_list() for split in second.values()] == drawn


@pytest.mark.slow
def test_processes_with_other_hash_seeds_have_the_same_rows(tmp_path):
    """The task draws from a set, whose order depends on the hash seed."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    found = {}
    for folder, count in ((alone, 1), (together, 2)):
        folder.mkdir()
        processes = []
        for rank in range(2):
            place = folder / str(rank) if count == 1 else folder
            place.mkdir(exist_ok=True)
            words = [str(rank if count == 2 else 0), str(count), str(place), "isomorphic_strings"]
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(SUPPORT / "gym_process.py"), *words],
                    env={**os.environ, "PYTHONHASHSEED": str(rank + 1), "PYTHONPATH": str(SUPPORT.parents[1])},
                )
            )
        assert [process.wait(300) for process in processes] == [0, 0]
        files = [folder / "0" / "0.json", folder / "1" / "0.json"] if count == 1 else sorted(folder.glob("*.json"))
        found[count] = [json.loads(file.read_text()) for file in files]
    assert found[1][0] != found[1][1]
    assert found[2][0] == found[2][1]


def test_a_task_that_is_held_out_entirely_is_refused():
    with pytest.raises(ValueError, match=r"all 2 of reasoning_gym:chain_sum are among the 5000 held out"):
        load_task("reasoning_gym:chain_sum", "min_terms=1,max_terms=1,max_digits=1,size=2,test_size=5000")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer>5</answer>", "5"),
        ("<answer>4</answer> no, <answer> 5\n</answer>.", "5"),
        ("<ANSWER>1 2\n2 1</Answer>", "1 2\n2 1"),
        ("Answer: 4\n<answer>5</answer>\nAnswer: 6", "5"),
        ("Answer: 4\nSo it is.\nAnswer: 5\nI hope that helps.", "5"),
        ("**Answer:** 5", "5"),
        ("**Answer: 5**", "5"),
        ("answer:\n5", "5"),
        ("<answer></answer>", None),
        ("<answer>5", None),
        ("Answer:", None),
        ("5", None),
        ("", None),
        ([{"role": "assistant", "content": "<answer>5</answer>"}], "5"),
        ([{"role": "assistant", "content": "Answer: 4"}, {"role": "assistant", "content": "Answer: 5"}], "5"),
        ([{"role": "assistant", "content": "Answer: 4"}, {"role": "assistant", "content": "I cannot say."}], None),
        ([{"role": "assistant", "content": "Answer: 4"}, {"role": "tool", "content": "Answer: 5"}], None),
        ([{"role": "assistant", "content": None, "tool_calls": []}], None),
    ],
)
def test_final_answer(completion, answer):
    assert final_answer(completion) == answer


@pytest.mark.parametrize("task", TASKS)
def test_right_answers_score_one(task):
    train = load_task(f"reasoning_gym:{task}", "size=4,test_size=3")["train"]
    right = answers(train)
    if task == "countdown":  # the answer of an entry is an expression in its metadata
        right = [json.loads(entry)["metadata"]["expression"] for entry in train["gym_entry"]]
    tagged = [f"So <answer>{answer}</answer>" for answer in right]
    given = columns(train, *range(len(train)))
    assert reasoning_gym_reward(tagged, **given, prompts=None) == [1.0] * len(train)
    assert reasoning_gym_reward([[{"role": "assistant", "content": text}] for text in tagged], **given) == [1.0] * len(
        train
    )
    assert (
        reasoning_gym_reward(right, **given) == reasoning_gym_reward([""] * len(train), **given) == [0.0] * len(train)
    )


def test_wrong_answers_get_what_the_task_gives():
    splits = {task: load_task(f"reasoning_gym:{task}", "size=1,test_size=1")["train"] for task in TASKS}
    assert answers(splits["chain_sum"]) == ["-14282"] and answers(splits["spell_backward"]) == ["noremopyh"]
    for task, text, expected in (
        ("chain_sum", "14282", 0.0),
        ("chain_sum", "-14282.0", 1.0),  # the task compares numbers
        ("chain_sum", "no number", 0.0),
        ("letter_counting", "99", 0.0),
        ("countdown", "1 + 1", 0.05),  # an expression, and wrong
        ("countdown", "no number", 0.01),
        ("spell_backward", "xxxxxx", 0.0),
    ):
        assert reasoning_gym_reward([f"<answer>{text}</answer>"], **columns(splits[task], 0)) == [expected], text


def test_entries_keep_tuples_and_keys():
    entry = {"a": (1, [2, (3,)]), "b": {0: "x", "0": ("y",)}, "c": None, "d": {"e": 1.5}}
    assert read_entry(write_entry(entry)) == entry


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(registry()))
def test_entries_of_every_task_are_kept(task):
    (entry,) = create_dataset(task, seed=3, size=1)
    assert read_entry(write_entry(entry)) == entry
    if entry["answer"] is not None:  # else there are many right ones
        assert score(task, json.dumps({"seed": 3, "size": 1}), write_entry(entry), entry["answer"]) == 1.0


def test_rows_of_several_tasks_score_together():
    one = load_task("reasoning_gym:chain_sum", SMALL)["train"]
    two = load_task("reasoning_gym:spell_backward", "size=4,test_size=3")["train"]
    given = {name: [one[0][name], two[0][name], one[1][name]] for name in COLUMNS}
    right = [answers(one)[0], answers(two)[0], answers(one)[0]]
    assert reasoning_gym_reward([f"Answer: {answer}" for answer in right], **given)[:2] == [1.0, 1.0]
    assert answers(one)[0] != answers(one)[1] and scorer.cache_info().currsize


def test_an_answer_that_the_task_cannot_read_scores_zero(monkeypatch):
    given = columns(load_task("reasoning_gym:chain_sum", SMALL)["train"], 0)
    task = scorer(given["gym_task"][0], given["gym_settings"][0])

    def refuse(answer, entry):
        raise IndexError(answer)

    monkeypatch.setattr(task, "score_answer", refuse)
    with pytest.warns(UserWarning, match="reasoning_gym:chain_sum cannot read some answers and raises IndexError"):
        assert reasoning_gym_reward(["<answer>5</answer>"], **given) == [0.0]


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match="needs the columns gym_task, gym_settings, gym_entry, which"):
        reasoning_gym_reward(["5"], prompts=["2 + 3"])
