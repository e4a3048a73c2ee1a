# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Loads datasets: those for TRL unchanged, those in verl's layout with TRL's columns added.

In verl's layout `prompt` is a list of messages, which TRL reads directly, and `reward_model` holds the answer as
`ground_truth`. TRL's math rewards read the answer from a column `solution`.
Tasks of reasoning-gym are generated, see `trl_entropy.gym`.
"""

import os
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, Value, load_dataset

from ..gym import is_task, load_task
from ..rewards import solution_of


BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}


def has_verl_layout(features: dict[str, Any]) -> bool:
    """Whether the dataset has verl's columns and its answers are text or numbers."""
    reward_model = features.get("reward_model")
    answer = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    return "prompt" in features and isinstance(answer, Value)


def solutions(reward_models: list[dict[str, Any] | None], given: list[str | None] | None = None) -> dict[str, list]:
    """The column `solution` for rows in verl's layout. A solution in `given` is kept; a mixture may have some."""
    answers = [(reward_model or {}).get("ground_truth") for reward_model in reward_models]
    found = [None if answer is None else solution_of(answer) for answer in answers]
    if given is not None:
        found = [new if old is None else old for new, old in zip(found, given, strict=True)]
    return {"solution": found}


def to_trl_columns(dataset: DatasetDict | IterableDatasetDict) -> DatasetDict | IterableDatasetDict:
    """Adds the column `solution` to each split in verl's layout. Other columns and splits stay unchanged."""
    for name, split in dataset.items():
        if has_verl_layout(split.features or {}):
            columns = ["reward_model", *(["solution"] if "solution" in split.features else [])]
            dataset[name] = split.map(solutions, input_columns=columns, batched=True)
    return dataset


def data_file(path: str) -> str | None:
    """The name of the `datasets` builder for a data file, or None if `path` is not a data file.

    Raises:
        `FileNotFoundError`: `path` is a file or folder that does not exist.
        `ValueError`: a file of a type that we do not read.
    """
    builder = BUILDERS.get(os.path.splitext(path)[1].lower())
    if "://" in path:
        return builder
    if os.path.isdir(path):
        return None
    if not os.path.exists(path) and (builder or path.startswith(("/", ".")) or path.count("/") > 1):
        raise FileNotFoundError(f"The dataset must exist, got {path!r}, which is no file or folder.")
    if os.path.exists(path) and builder is None:
        raise ValueError(f"The dataset must be a {', '.join(BUILDERS)} file, a folder or a Hub id, got {path!r}.")
    return builder


def load_problems(path: str, config: str | None = None, streaming: bool = False) -> DatasetDict | IterableDatasetDict:
    """Loads a dataset with TRL's columns.

    Args:
        path: a data file, a folder, an id on the Hub, or `reasoning_gym:TASK`.
        config: configuration of a dataset on the Hub, or settings of the task.
        streaming: whether to stream it.

    Raises:
        `FileNotFoundError`, `ValueError`: see [`data_file`].
        `ImportError`, `ValueError`: see [`~trl_entropy.gym.load_task`].
    """
    if is_task(path):
        return load_task(path, config)
    builder = data_file(path)
    if builder is not None:
        dataset = load_dataset(builder, data_files=path, streaming=streaming)
    else:
        dataset = load_dataset(path, name=config, streaming=streaming)
    return to_trl_columns(dataset)


def pick_split(dataset: DatasetDict | IterableDatasetDict, field: str, name: str) -> Dataset | IterableDataset:
    """The split `name`. Raises `ValueError`, naming the argument `field`, if it is missing or empty."""
    if name not in dataset:
        raise ValueError(f"`{field}` must be one of the splits {list(dataset)} of the dataset, got {name!r}.")
    columns = dataset[name].column_names
    if columns is not None and "prompt" not in columns:  # a streamed dataset may not know its columns
        raise ValueError(f"The dataset must have the column `prompt`, got {columns}.")
    if isinstance(dataset[name], Dataset) and not len(dataset[name]):
        raise ValueError(f"The split {name!r} of the dataset must have rows, got none.")
    return dataset[name]


def asks_for_answer_line(prompt: str | list[dict[str, Any]]) -> bool:
    r"""Whether a prompt asks for a line `Answer: ...` rather than for `\boxed{...}`."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    return "Answer:" in text and r"\boxed" not in text
