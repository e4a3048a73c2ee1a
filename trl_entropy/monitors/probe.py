# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The probe: a fixed set of sequences on which monitors look at the model."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .base import ProbeBatch


FILE = "monitors/probe.safetensors"  # in the folder of a run
TOKENIZED = ("input_ids", "prompt_ids", "prompt_input_ids")  # columns of datasets that a trainer has tokenized
TEXTS = ("prompt", "messages", "text")


def row_ids(row: Mapping[str, Any], tokenizer: Any) -> list[int]:
    """The token ids of a dataset row: as they are, or of its prompt, conversation or text.

    Raises:
        `ValueError`: the row has none of these columns.
    """
    for name in TOKENIZED:
        if row.get(name) is not None:
            return list(row[name])
    value = next((row[name] for name in TEXTS if row.get(name) is not None), None)
    if value is None:
        columns = ", ".join(map(repr, (*TEXTS, *TOKENIZED)))
        raise ValueError(f"`monitors` needs a dataset with one of the columns {columns}, got {', '.join(row)}.")
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    if isinstance(value, str):
        return tokenizer(value)["input_ids"]
    text = tokenizer.apply_chat_template(value, tokenize=False, add_generation_prompt=value[-1]["role"] == "user")
    return tokenizer(text, add_special_tokens=False)["input_ids"]


class Probe:
    """Token ids of sequences, and how they are shared out over processes.

    Args:
        sequences: token ids. Empty ones are left out.
    """

    def __init__(self, sequences: Iterable[list[int]]):
        self.sequences = [ids for ids in sequences if ids]
        if not self.sequences:
            raise ValueError("`monitors` needs a dataset with at least one prompt that is not empty.")

    @classmethod
    def of(cls, dataset: Iterable[Mapping[str, Any]], tokenizer: Any, samples: int, max_length: int) -> "Probe":
        """The first `samples` rows of a dataset, each with its last `max_length` tokens."""
        return cls(row_ids(row, tokenizer)[-max_length:] for row in islice(iter(dataset), samples))

    @classmethod
    def load(cls, path: Path) -> "Probe":
        parts = load_file(path)
        return cls(ids.tolist() for ids in parts["input_ids"].split(parts["lengths"].tolist()))

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lengths = torch.tensor([len(ids) for ids in self.sequences])
        save_file({"input_ids": torch.tensor([x for ids in self.sequences for x in ids]), "lengths": lengths}, path)

    def batches(
        self, samples: int, rank: int, processes: int, size: int, device: torch.device
    ) -> Iterator[ProbeBatch]:
        """One process's share of the first `samples` sequences: the same number on each process.

        Where there is none left, the first sequence runs again.
        """
        chosen = self.sequences[:samples]
        places = range(rank, rank + -(-len(chosen) // processes) * processes, processes)
        own = [chosen[place if place < len(chosen) else 0] for place in places]
        for start in range(0, len(own), size):
            rows = [torch.tensor(ids) for ids in own[start : start + size]]
            lengths = torch.tensor([len(row) for row in rows])
            yield ProbeBatch(pad_sequence(rows, batch_first=True).to(device), lengths.to(device))

    def in_order(self, gathered: Tensor, samples: int, processes: int) -> Tensor:
        """(processes · N, K) rows of all processes, one process after the other -> in the order of the probe."""
        rows = gathered.view(processes, -1, gathered.size(-1)).transpose(0, 1).reshape(-1, gathered.size(-1))
        return rows[: min(samples, len(self.sequences))]
