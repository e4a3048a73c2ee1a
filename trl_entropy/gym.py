# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks of [reasoning-gym](https://github.com/open-thought/reasoning-gym): datasets by name, and their reward.

    dataset_name: reasoning_gym:chain_sum
    dataset_config: min_terms=2,max_terms=3,size=1000
    reward_funcs: [reasoning_gym_reward]

Each task generates questions from a seed and scores answers itself. Needs `pip install "trl-entropy[gym]"`.
"""

import json
import re
import warnings
from dataclasses import fields
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
import yaml
from datasets import Dataset, DatasetDict

from .rewards import ANSWER_LINE, said_last
from .settings import did_you_mean


PREFIX = "reasoning_gym:"
REWARD = "reasoning_gym_reward"
COLUMNS = ("gym_task", "gym_settings", "gym_entry")
DEFAULTS = {"seed": 0, "size": 500, "test_size": 100}
LEAST = {"seed": 0, "size": 1, "test_size": 1}
TUPLE, KEYS = "__tuple__", "__keys__"
HELD_OUT_SEED = 1_000_000_000  # added to the seed for the held-out split: tasks add the index of a row to it
INSTRUCTION = "Write the final answer, and nothing else, between <answer> and </answer>."
# As in reasoning-gym's own prompts, which take answers of several lines
TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


def is_task(name: str) -> bool:
    """Whether a dataset's name is that of a task, `reasoning_gym:TASK`."""
    return name.startswith(PREFIX)


def registry() -> dict[str, tuple[type, type]]:
    """The tasks of reasoning-gym by name: class and config class. Raises `ImportError` without the package."""
    try:
        import_module("reasoning_gym")  # which registers the tasks
    except ModuleNotFoundError as error:
        if error.name != "reasoning_gym":
            raise
        raise ImportError(
            f'`{PREFIX}` datasets need the package reasoning-gym: pip install "trl-entropy[gym]".'
        ) from None
    tasks = import_module("reasoning_gym.factory").DATASETS
    return {name: kinds for name, kinds in tasks.items() if name != "composite"}


def read_settings(text: str | None) -> dict[str, Any]:
    """The settings in `min_terms=2,max_terms=3`. Values are YAML, so lists are possible: `operators=["+", "-"]`.

    Raises:
        `ValueError`: the text has another form, or names a setting twice.
    """
    found: dict[str, Any] = {}
    for part in re.split(r",\s*(?=\w+\s*=)", text.strip()) if text and text.strip() else []:
        name, sign, value = (word.strip() for word in part.partition("="))
        if not sign or not name.isidentifier() or not value or name in found:
            raise ValueError(f"`dataset_config` must have the form name=value,name=value, each once, got {text!r}.")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"`dataset_config` must have values in YAML, got {part!r}.") from None
    return found


def build(task: str, settings: dict[str, Any]) -> Any:
    """The task's dataset. Raises `ValueError` for settings that the task refuses."""
    kind, config = registry()[task]
    try:
        return kind(config(**settings))
    except (AssertionError, TypeError, ValueError, AttributeError, KeyError) as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise ValueError(
            f"`dataset_config` must have settings that {PREFIX}{task} accepts, got {shown}: {error}."
        ) from error


def check_task(name: str, config: str | None) -> tuple[str, dict[str, Any]]:
    """The task of a dataset's name, and all its settings that are given or ours. Generates nothing.

    Args:
        name: `reasoning_gym:TASK`.
        config: the task's settings, see [`read_settings`]; among them `seed`, `size` and `test_size`.

    Raises:
        `ImportError`: reasoning-gym is not installed.
        `ValueError`: an unknown task or setting, or a value that the task refuses.
    """
    task, tasks = name.removeprefix(PREFIX), registry()
    if task not in tasks:
        hint = did_you_mean(task, tasks) or f" Known: {', '.join(sorted(tasks))}."
        raise ValueError(f"`dataset_name` has the unknown task {task!r} of reasoning-gym.{hint}")
    settings = {**DEFAULTS, **read_settings(config)}
    known = {**{field.name: field.default for field in fields(tasks[task][1])}, **DEFAULTS}
    for key, value in settings.items():
        if key not in known:
            hint = did_you_mean(key, known) or f" Known: {', '.join(known)}."
            raise ValueError(f"`dataset_config` has the unknown setting {key!r} of {PREFIX}{task}.{hint}")
        if key in LEAST and not (type(value) is int and value >= LEAST[key]):
            raise ValueError(f"`dataset_config`: `{key}` must be an integer >= {LEAST[key]}, got {value!r}.")
        if type(known[key]) in (bool, int, str) and type(value) is not type(known[key]):
            raise ValueError(f"`dataset_config`: `{key}` must be like its default {known[key]!r}, got {value!r}.")
    build(task, {key: value for key, value in settings.items() if key != "test_size"})
    return task, settings


def write_entry(entry: dict[str, Any]) -> str:
    """An entry of a task as JSON. What JSON lacks is marked, as tasks compare it with the answer: tuples, and keys
    that are no text."""

    def marked(value: Any) -> Any:
        if isinstance(value, dict):
            items = [[key, marked(item)] for key, item in value.items()]
            return dict(items) if all(isinstance(key, str) for key in value) else {KEYS: items}
        if isinstance(value, list | tuple):
            items = [marked(item) for item in value]
            return items if isinstance(value, list) else {TUPLE: items}
        return value

    return json.dumps(marked(entry))


def read_entry(text: str) -> dict[str, Any]:
    """The entry that [`write_entry`] wrote."""

    def unmarked(found: dict[str, Any]) -> Any:
        if found.keys() == {TUPLE}:
            return tuple(found[TUPLE])
        return dict(found[KEYS]) if found.keys() == {KEYS} else found

    return json.loads(text, object_hook=unmarked)


def generate(task: str, settings: dict[str, Any], seed: int, size: int) -> list[dict[str, Any]]:
    """Rows of a task: `prompt`, a conversation that ends with [`INSTRUCTION`], and the columns of the reward."""
    settings = {**settings, "seed": seed, "size": size}
    dataset, text = build(task, settings), json.dumps(settings)
    entries = [dataset[index] for index in range(len(dataset))]
    return [
        {
            "prompt": [{"role": "user", "content": f"{entry['question']}\n\n{INSTRUCTION}"}],
            **dict(zip(COLUMNS, (task, text, write_entry(entry)), strict=True)),
        }
        for entry in entries
    ]


def load_task(name: str, config: str | None = None) -> DatasetDict:
    """The splits `train` and `test` of a task. They are the same for the same settings and on all processes.

    `test` has `test_size` rows of other seeds, each question once. `train` has `size` rows, less those whose question
    is in `test`. Takes and raises what [`check_task`] does; also raises `ValueError` if nothing is left to train on.
    """
    task, settings = check_task(name, config)
    seed, size, test_size = (settings.pop(key) for key in DEFAULTS)
    drawn = [generate(task, settings, seed, size), generate(task, settings, seed + HELD_OUT_SEED, test_size)]
    if torch.distributed.is_initialized():  # a few tasks draw from sets, whose order differs between processes
        torch.distributed.broadcast_object_list(drawn, src=0)
    test = {row["prompt"][0]["content"]: row for row in drawn[1]}
    train = [row for row in drawn[0] if row["prompt"][0]["content"] not in test]
    if not train:
        raise ValueError(
            f"`dataset_config` must leave questions to train on: all {size} of {name} are among the {test_size} held "
            "out. Choose a larger `size` or harder settings."
        )
    return DatasetDict(train=Dataset.from_list(train), test=Dataset.from_list(list(test.values())))


def final_answer(completion: str | list[dict[str, Any]]) -> str | None:
    """The answer in a completion: in the last `<answer>` tags, else the line after the last `Answer:`; else `None`.

    Of a conversation the last message is read. If a tool has the last word, there is no answer.

    >>> final_answer("Not 6. <answer>5</answer>")
    '5'
    >>> final_answer("So 2 + 3 = 5.\\n**Answer:** 5")
    '5'
    """
    text = completion if isinstance(completion, str) else said_last(completion)
    if tagged := TAGS.findall(text):
        return tagged[-1].strip() or None
    lines = ANSWER_LINE.findall(text)
    return (lines[-1].strip().strip("*").strip() or None) if lines else None


@lru_cache(maxsize=64)
def scorer(task: str, settings: str) -> Any:
    """The task whose `score_answer` scores; `settings` is JSON."""
    return build(task, json.loads(settings))


def score(task: str, settings: str, entry: str, answer: str | None) -> float:
    """The task's score of an answer, usually in [0, 1]; 0 without an answer, or if the task cannot read it."""
    if answer is None:
        return 0.0
    try:
        return float(scorer(task, settings).score_answer(answer, read_entry(entry)))
    except Exception as error:  # a model can write anything, and some tasks parse it without a check
        warnings.warn(f"{PREFIX}{task} cannot read some answers and raises {type(error).__name__}: they score 0.")
        return 0.0


def reasoning_gym_reward(
    completions: list[str] | list[list[dict[str, Any]]],
    gym_task: list[str] | None = None,
    gym_settings: list[str] | None = None,
    gym_entry: list[str] | None = None,
    **kwargs: Any,
) -> list[float]:
    """TRL reward function: the score that the task itself gives to the [`final_answer`].

    1.0 for a right answer. Many tasks give a part of it to answers that are nearly right or just of the right form.

    Args:
        completions: B texts or conversations.
        gym_task: B names of tasks.
        gym_settings: B settings of tasks, as JSON.
        gym_entry: B questions with answer and metadata, as JSON.

    Raises:
        `ValueError`: the dataset lacks these columns.
    """
    if gym_task is None or gym_settings is None or gym_entry is None:
        raise ValueError(
            f"`{REWARD}` needs the columns {', '.join(COLUMNS)}, which datasets named `{PREFIX}TASK` have."
        )
    rows = zip(gym_task, gym_settings, gym_entry, map(final_answer, completions), strict=True)
    return [score(*row) for row in rows]
