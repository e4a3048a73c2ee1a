# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Problem sets: TRL datasets as they are, and the layout of verl's files mapped to TRL's columns.

A file in verl's layout has the columns `prompt` (a list of messages) and `reward_model`, whose `ground_truth` is the
answer. TRL reads the messages as they are, and its math rewards want the answer in a column `solution`.
"""

import re
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, Value, load_dataset


BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
ANSWER_LINE = re.compile(r"answer[ \t*]*:[\s*]*([^\n]+)", re.IGNORECASE)
DELIMITED = re.compile(r"(?:\$\$?|\\\(|\\\[)(.+?)(?:\$\$?|\\\)|\\\])")
OPENING = ("", "$$", r"\[", r"\(")  # nothing on this line, or mathematics displayed below it


def solution_of(ground_truth: str | int | float) -> str:
    r"""An answer as TRL's math rewards can read it: in a box.

    Outside a box or `$...$` math-verify reads numbers only: `\frac{1}{2}`, `[0, 1]` or `Evelyn` come out as nothing
    or as one of their digits.
    """
    answer = str(ground_truth).strip()
    return answer if r"\boxed" in answer else rf"\boxed{{{answer}}}"


def has_verl_layout(features: dict[str, Any]) -> bool:
    """Whether the columns are those of verl, with an answer that is text or a number."""
    reward_model = features.get("reward_model")
    answer = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    return "prompt" in features and isinstance(answer, Value)


def solutions(reward_models: list[dict[str, Any] | None], given: list[str | None] | None = None) -> dict[str, list]:
    """Rows in verl's layout -> their column `solution`; what a row has been given stays, as in a mixture."""
    answers = [(reward_model or {}).get("ground_truth") for reward_model in reward_models]
    found = [None if answer is None else solution_of(answer) for answer in answers]
    if given is not None:
        found = [new if old is None else old for new, old in zip(found, given, strict=True)]
    return {"solution": found}


def to_trl_columns(dataset: DatasetDict | IterableDatasetDict) -> DatasetDict | IterableDatasetDict:
    """Adds `solution` to each split in verl's layout, keeps all columns, and leaves other splits untouched."""
    for name, split in dataset.items():
        if has_verl_layout(split.features or {}):
            columns = ["reward_model", *(["solution"] if "solution" in split.features else [])]
            dataset[name] = split.map(solutions, input_columns=columns, batched=True)
    return dataset


def load_problems(path: str, config: str | None = None, streaming: bool = False) -> DatasetDict | IterableDatasetDict:
    """Loads a data file, a local folder or a dataset of the Hub, in TRL's columns.

    Raises:
        `FileNotFoundError`: `path` names a file or folder that does not exist.
        `ValueError`: `path` is a file of another type.
    """
    local = Path(path).expanduser()
    builder = BUILDERS.get(local.suffix.lower())
    remote = "://" in path
    if not remote and not local.exists() and (builder or path.startswith(("/", ".", "~")) or path.count("/") > 1):
        raise FileNotFoundError(f"`dataset_name` must exist, got {path!r}, which is no file or folder.")
    if local.is_file() and builder is None:
        raise ValueError(f"`dataset_name` must be a {', '.join(BUILDERS)} file, a folder or a Hub id, got {path!r}.")
    if builder is not None and not local.is_dir():
        dataset = load_dataset(builder, data_files=path if remote else str(local), streaming=streaming)
    else:
        dataset = load_dataset(str(local) if local.is_dir() else path, name=config, streaming=streaming)
    return to_trl_columns(dataset)


def pick_split(dataset: DatasetDict | IterableDatasetDict, field: str, name: str) -> Dataset | IterableDataset:
    """The split that the argument `field` names. Raises `ValueError` where it is missing or has no prompts."""
    if name not in dataset:
        raise ValueError(f"`{field}` must be one of the splits {list(dataset)} of the dataset, got {name!r}.")
    columns = dataset[name].column_names
    if columns is not None and "prompt" not in columns:  # a streamed dataset may not know its columns
        raise ValueError(f"The dataset must have the column `prompt`, got {columns}.")
    return dataset[name]


def asks_for_answer_line(prompt: str | list[dict[str, Any]]) -> bool:
    """Whether a prompt asks for a line `Answer: ...` and not for a box."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    return "Answer:" in text and r"\boxed" not in text


def box_answer_line(text: str) -> str:
    r"""A completion whose answer stands after its last `Answer:` -> that answer in a box; other text as it is.

    >>> box_answer_line("So 9 + 9 = 18.\n**Answer:** $18$.")
    '\\boxed{18}'
    """
    lines = ANSWER_LINE.findall(text)
    if not lines:
        return text
    answer = lines[-1].rstrip(" \t\r*.").lstrip(" \t*")
    if answer in OPENING:
        return text
    delimited = DELIMITED.fullmatch(answer)
    return solution_of(delimited[1] if delimited else answer)
