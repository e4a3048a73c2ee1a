# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Problem sets of every layout reach TRL's columns, and the math rewards can read their answers."""

import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict
from trl.rewards import accuracy_reward

from trl_entropy.commands.data import (
    asks_for_answer_line,
    data_file,
    has_verl_layout,
    load_problems,
    pick_split,
    to_trl_columns,
)
from trl_entropy.rewards import answer_line_accuracy_reward, box_answer_line, solution_of


SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="real problem sets lie beside the repository, not in it")
# The answer of row 362 of MATH-500 is written `\frac{270}7`. TRL repairs such LaTeX in solutions, but asks the model
# for well-formed LaTeX: a copy of the answer scores 0, `\frac{270}{7}` scores 1.
MALFORMED = {"math500": {r"\frac{270}7": r"\frac{270}{7}"}}
FILES = {"gsm8k_test": 1319, "math500": 500, "DAPO-Math-17k": 17398}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def verl_rows(*answers):
    return [
        {
            "data_source": "math",
            "prompt": [{"role": "user", "content": f"Problem {index}"}],
            "reward_model": {"ground_truth": answer, "style": "rule"},
        }
        for index, answer in enumerate(answers)
    ]


def score(reward, texts, solutions):
    return reward([[{"role": "assistant", "content": text}] for text in texts], solutions)


@pytest.mark.parametrize(
    ("ground_truth", "solution"),
    [
        ("18", r"\boxed{18}"),
        (18, r"\boxed{18}"),
        (-0.5, r"\boxed{-0.5}"),
        (" \\frac{1}{2}\n", r"\boxed{\frac{1}{2}}"),
        (r"so \boxed{3}", r"so \boxed{3}"),
    ],
)
def test_solution_is_boxed_once(ground_truth, solution):
    assert solution_of(ground_truth) == solution


@pytest.mark.parametrize(
    "answer", [r"\frac{1}{2}", "[-2,7]", "Evelyn", "(B)", r"x \in [-2,7]", r"\text{east}", r"\$18"]
)
def test_a_box_is_needed_to_read_other_answers_than_numbers(answer):
    completion = [rf"So \boxed{{{answer}}}."]
    assert score(accuracy_reward, completion, [solution_of(answer)]) == [1.0]
    if answer != r"\frac{1}{2}":  # read without a box as well
        assert score(accuracy_reward, completion, [answer]) == [None]


def test_verl_layout_is_mapped_and_keeps_its_columns():
    dataset = to_trl_columns(DatasetDict(train=Dataset.from_list(verl_rows("18", r"\frac{1}{2}"))))["train"]
    assert dataset.column_names == ["data_source", "prompt", "reward_model", "solution"]
    assert dataset["solution"][:] == [r"\boxed{18}", r"\boxed{\frac{1}{2}}"]
    assert dataset[1]["prompt"] == [{"role": "user", "content": "Problem 1"}]


def test_numbers_as_ground_truth_are_mapped():
    assert to_trl_columns(DatasetDict(train=Dataset.from_list(verl_rows(7))))["train"]["solution"][:] == [r"\boxed{7}"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1 + 1?", "solution": "$2$"},
        {"prompt": "1 + 1?", "reward_model": "a model's name"},
        {"prompt": "1 + 1?", "reward_model": {"ground_truth": ["2", "two"]}},
        {"question": "1 + 1?", "reward_model": {"ground_truth": "2"}},
    ],
)
def test_other_layouts_pass_untouched(row):
    dataset = DatasetDict(train=Dataset.from_list([row]))
    assert not has_verl_layout(dataset["train"].features)
    assert to_trl_columns(dataset)["train"] is dataset["train"]


def test_mixture_keeps_solutions_that_are_there():
    rows = [*verl_rows("18"), {"prompt": [{"role": "user", "content": "1 + 1?"}], "solution": "$2$"}]
    rows[0]["solution"] = None
    mixed = to_trl_columns(DatasetDict(train=Dataset.from_list(rows)))["train"]
    assert mixed["solution"][:] == [r"\boxed{18}", "$2$"]


@pytest.mark.parametrize("suffix", ["parquet", "json", "jsonl", "csv"])
def test_files_of_each_type_are_read(tmp_path, suffix):
    path = tmp_path / f"problems.{suffix}"
    rows = [{"prompt": "1 + 1?", "solution": "2"}, {"prompt": "1 + 2?", "solution": "3"}]
    write = Dataset.from_list(rows)
    {"parquet": write.to_parquet, "csv": write.to_csv}.get(suffix, write.to_json)(str(path))
    assert load_problems(str(path))["train"]["prompt"][:] == ["1 + 1?", "1 + 2?"]


def test_verl_file_and_folder_with_splits_are_read(tmp_path):
    for split, answers in {"train": ("1", "2"), "test": ("3",)}.items():
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, verl_rows(*answers))))
    assert load_problems(str(tmp_path / "train.jsonl"))["train"]["solution"][:] == [r"\boxed{1}", r"\boxed{2}"]
    folder = load_problems(str(tmp_path))
    assert folder["test"]["solution"][:] == [r"\boxed{3}"] and folder["train"].num_rows == 2
    streamed = load_problems(str(tmp_path / "test.jsonl"), streaming=True)["train"]
    assert pick_split({"train": streamed}, "dataset_train_split", "train") is streamed


@pytest.mark.parametrize("path", ["nothing.parquet", "./nothing", "/no/such/folder", "no/such/folder", "x/y.jsonl"])
def test_missing_path_is_named(path):
    with pytest.raises(FileNotFoundError, match=f"must exist, got '{path}'"):
        load_problems(path)


def test_hub_ids_and_urls_are_left_to_datasets():
    assert data_file("trl-lib/DeepMath-103K") is None and data_file("gsm8k") is None
    assert data_file("hf://datasets/a/b/train.parquet") == "parquet"


def test_file_of_unknown_type_is_refused(tmp_path):
    (tmp_path / "problems.txt").write_text("1 + 1?")
    with pytest.raises(ValueError, match=r"must be a \.parquet, \.json, \.jsonl, \.csv file.*problems\.txt"):
        load_problems(str(tmp_path / "problems.txt"))


def test_empty_split_is_refused():
    dataset = DatasetDict(train=Dataset.from_dict({"prompt": [], "solution": []}))
    with pytest.raises(ValueError, match="The split 'train' of the dataset must have rows, got none"):
        pick_split(dataset, "dataset_train_split", "train")


def test_missing_split_and_missing_prompts_are_named():
    dataset = DatasetDict(train=Dataset.from_list([{"question": "1 + 1?"}]))
    with pytest.raises(ValueError, match=r"`dataset_test_split` must be one of the splits \['train'\].*'test'"):
        pick_split(dataset, "dataset_test_split", "test")
    with pytest.raises(ValueError, match=r"must have the column `prompt`, got \['question'\]"):
        pick_split(dataset, "dataset_train_split", "train")


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        ("9 + 9 = 18.\n\nAnswer: 18", r"\boxed{18}"),
        ("Answer: 17\nNo.\n**Answer:** 18.", r"\boxed{18}"),
        ("**Answer: 18**", r"\boxed{18}"),
        ("ANSWER:\n18", r"\boxed{18}"),
        ("answer: $18$.", r"\boxed{18}"),
        (r"Answer: \(\frac{1}{2}\)", r"\boxed{\frac{1}{2}}"),
        (r"Answer: \[\frac{1}{2}\]", r"\boxed{\frac{1}{2}}"),
        (r"Answer: $\boxed{18}$", r"\boxed{18}"),
        (r"Answer: \$18.50", r"\boxed{\$18.50}"),
        ("Answer: .5", r"\boxed{.5}"),
        (r"It is \boxed{18}.", r"It is \boxed{18}."),
        ("Answer:\n\\[\n18\n\\]", "Answer:\n\\[\n18\n\\]"),
        ("Answer:", "Answer:"),
        ("", ""),
    ],
)
def test_answer_line_becomes_a_box(text, boxed):
    assert box_answer_line(text) == boxed


def test_answer_line_reward_tells_right_from_wrong_where_stock_cannot():
    texts, solutions = ["Answer: 18", "Answer: 17", r"\boxed{18}", "I think it is 18"], [r"\boxed{18}"] * 4
    assert score(accuracy_reward, texts, solutions) == [0.0, 0.0, 1.0, 0.0]
    assert score(answer_line_accuracy_reward, texts, solutions) == [1.0, 0.0, 1.0, 0.0]


def test_prompts_that_ask_for_an_answer_line_are_recognised():
    assert asks_for_answer_line([{"role": "user", "content": 'Put it on its own line after "Answer:".'}])
    assert not asks_for_answer_line([{"role": "user", "content": r"Answer: in \boxed{}."}])
    assert not asks_for_answer_line("1 + 1?")


@needs_data
@pytest.mark.parametrize(
    "name", ["gsm8k_test", *(pytest.param(name, marks=pytest.mark.slow) for name in list(FILES)[1:])]
)
def test_gold_answers_of_real_files_score_one(name):
    dataset = load_problems(str(SHARED / f"{name}.parquet"))["train"]
    assert dataset.num_rows == FILES[name] and dataset.column_names[-1] == "solution"
    gold = [row["ground_truth"] for row in dataset["reward_model"]]
    pairs = list(dict(zip(gold, dataset["solution"], strict=True)).items())  # equal answers score alike
    solutions = [solution for _, solution in pairs]
    malformed = MALFORMED.get(name, {})
    rewards = score(accuracy_reward, [rf"So it is $\boxed{{{answer}}}$." for answer, _ in pairs], solutions)
    assert {answer for (answer, _), value in zip(pairs, rewards, strict=True) if value != 1.0} == set(malformed)
    mended = score(accuracy_reward, map(solution_of, malformed.values()), map(solution_of, malformed))
    assert mended == [1.0] * len(malformed)
    # The same completions to TRL's reward, and so the same scores.
    assert [box_answer_line(f"So it is.\nAnswer: {answer}") for answer, _ in pairs] == solutions


@needs_data
def test_answers_to_other_problems_score_zero():
    solutions = list(dict.fromkeys(load_problems(str(SHARED / "gsm8k_test.parquet"))["train"]["solution"]))
    assert set(score(accuracy_reward, solutions[1:], solutions[:-1])) == {0.0}


@needs_data
def test_real_prompts_name_their_answer_format():
    asked = {
        name: asks_for_answer_line(load_problems(str(SHARED / f"{name}.parquet"))["train"][0]["prompt"])
        for name in FILES
    }
    assert asked == {"gsm8k_test": True, "math500": False, "DAPO-Math-17k": False}


def test_answer_line_reward_reads_what_an_agent_says_last():
    call = {"role": "assistant", "tool_calls": [{"type": "function"}]}
    result = {"role": "tool", "name": "calculator", "content": "18"}
    answers = [[call, result, {"role": "assistant", "content": "Answer: 18"}], [call, result], [call]]
    solutions = [r"\boxed{18}"] * 3
    assert answer_line_accuracy_reward(answers, solutions) == [1.0, 0.0, 0.0]
    assert answer_line_accuracy_reward([[{"role": "assistant", "content": "Answer: 18"}, call]], solutions[:1]) == [
        0.0
    ]
