# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Datasets, checked before a model is loaded: rows, columns, and the values that a trainer reads.

Values are read in the first `FIRST_ROWS` rows, or the first `FIRST_STREAMED_ROWS` of a stream. A dataset whose rows a
transform of its own makes is not read at all, and neither is one of another library.
"""

from collections.abc import Iterator, Sequence, Sized
from typing import Any

from datasets import Dataset, IterableDataset


FIRST_ROWS, FIRST_STREAMED_ROWS = 1000, 8
PROMPT = (("prompt",),)
PROMPT_AND_CONTEXT = (("prompt", "privileged_context"),)  # SDFT
# What GKD's collator reads
CONVERSATION = (("messages",), ("prompt", "input_ids"), ("original_prompt_text", "input_ids"))


def check_datasets(layouts: Sequence[tuple[str, ...]], **datasets: Any) -> None:
    """Checks datasets by the names of the trainer's arguments; several of evaluation may be in a mapping.

    Args:
        layouts: the columns that the trainer needs, in each way that it can have them; none if any will do.

    Raises:
        `ValueError`: a dataset without rows, without columns that the trainer needs, or with a row that lacks a value.
    """
    for field, given in datasets.items():
        parts = given if isinstance(given, dict) else {None: given}
        for name, dataset in parts.items():
            if isinstance(dataset, (Dataset, IterableDataset, Sized)) and not isinstance(dataset, str):
                check_dataset(dataset, field if name is None else f"{field}[{name!r}]", layouts)


def check_dataset(dataset: Any, field: str, layouts: Sequence[tuple[str, ...]]) -> None:
    """Checks one dataset. Raises as [`check_datasets`] does."""
    if isinstance(dataset, Sized) and len(dataset) == 0:
        raise ValueError(f"`{field}` must have at least one row, got {dataset!r}.".replace("\n", " "))
    made = isinstance(dataset, Dataset) and dataset.format["type"] == "custom"
    if made or not isinstance(dataset, (Dataset, IterableDataset)):
        return
    columns = dataset.column_names
    layout = next((layout for layout in layouts if columns is None or set(layout) <= set(columns)), ())
    if layouts and not layout:
        needed = ", or ".join(" and ".join(map(repr, names)) for names in layouts)
        noun = "the column" if len(layouts) == len(layouts[0]) == 1 else "the columns"
        raise ValueError(f"`{field}` must have {noun} {needed}, got the columns {columns!r}.")
    number = -1
    for number, row in enumerate(first_rows(dataset, layout)):
        for name in layout:
            accepts, accepted = ACCEPTED.get(name, (bool, "text"))
            if name not in row or not accepts(row[name]):
                got = f"{row[name]!r:.80}" if name in row else "no such column"
                raise ValueError(f"`{field}` must have {accepted} as {name!r} in each row, got {got} in row {number}.")
    if number == -1:
        raise ValueError(f"`{field}` must have at least one row, got a stream without rows.")


def first_rows(dataset: Dataset | IterableDataset, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The first rows, with those of `columns` that they have."""
    if isinstance(dataset, IterableDataset):
        for row in dataset.take(FIRST_STREAMED_ROWS):
            yield {name: row[name] for name in columns if name in row}
        return
    there = [name for name in dataset.column_names if name in columns]
    values = dataset.with_format(None).select_columns(there)[:FIRST_ROWS]
    for number in range(min(len(dataset), FIRST_ROWS)):
        yield {name: values[name][number] for name in there}


def texts_of(dataset: Any) -> Iterator[tuple[int, str]]:
    """Number and text of the prompts in the first rows, each message of a conversation by itself."""
    if isinstance(dataset, IterableDataset) or (isinstance(dataset, Dataset) and dataset.format["type"] != "custom"):
        for number, row in enumerate(first_rows(dataset, ["prompt"])):
            prompt = row.get("prompt")
            turns = [turn.get("content") for turn in prompt or ()] if is_conversation(prompt) else [prompt]
            for text in turns:
                if isinstance(text, str):
                    yield number, text


def is_prompt(value: Any) -> bool:
    """Whether a value is text, or a conversation whose last turn, if it is the user's, says something."""
    if isinstance(value, str):
        return bool(value.strip())
    if not is_conversation(value):
        return False
    last = value[-1]
    return last["role"] != "user" or bool(last.get("content"))


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of at least one message."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and "role" in turn for turn in value)


# By column: whether a trainer can use a value, and what it can use.
ACCEPTED = {
    "prompt": (is_prompt, "text or a list of messages that is not empty"),
    "privileged_context": (lambda value: value is not None and value not in ("", []), "a context that is not empty"),
    "messages": (is_conversation, "a list of messages that is not empty"),
    "input_ids": (lambda value: value is not None and len(value) > 0, "tokens"),
}
