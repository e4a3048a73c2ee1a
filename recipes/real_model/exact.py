# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Exact pass@k of a policy on prompts whose only right answer is a number.

A completion is right if it starts with the answer, ` 109` or ` -5`, and no further digit. Its probability p is that of
the answer's tokens, times that of no digit after them, summed over all ways to split it into tokens. So pass@k needs
no samples:

    pass@k = 1 - (1 - p)^k
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase


PASSES = (1, 4, 8, 16, 64)
OPENING = "<|im_start|>assistant\n"


def opening_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The opening of an assistant's turn, or "" if the tokenizer does not know it."""
    return OPENING if "<|im_start|>" in tokenizer.get_vocab() else ""


def number_reward(completions: list[str], answer: list[str], **kwargs) -> list[float]:
    """TRL reward function: 1.0 if a completion starts with the answer, and no digit follows."""
    return [
        float(re.match(rf"{right}(?!\d)", text) is not None) for text, right in zip(completions, answer, strict=True)
    ]


class Split(NamedTuple):
    """Tokens of a right completion; `open` if the next token must not begin with a digit."""

    tokens: list[int]
    open: bool


class ExactAnswers:
    """Evaluates a policy on prompts.

    Args:
        tokenizer: of the policy.
        prompts: B texts.
        answers: B texts that follow them: a space, and a number.
        length: most tokens of a completion; one is needed to see that no digit follows.
        batch_size: completions per forward.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        answers: Sequence[str],
        length: int,
        batch_size: int = 32,
    ):
        texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
        self.length, self.batch_size = length, batch_size
        self.digits = torch.tensor([bool(re.match(r"\d", text)) for text in texts])  # (V,)
        self.parts = {token: text for token, text in enumerate(texts) if text and re.match(r" ?-?\d| ?-?$", text)}
        found = [(index, split) for index, answer in enumerate(answers) for split in self.splits(answer)]
        missing = set(range(len(answers))) - {index for index, _ in found}
        if missing:
            raise ValueError(f"tokenizer: no {length} tokens of it write {answers[min(missing)]!r}")
        self.owner = torch.tensor([index for index, _ in found])
        starts = [torch.tensor(tokenizer(text).input_ids) for text in prompts]
        self.sequences = [(starts[index], split) for index, split in found]

    def splits(self, text: str, before: tuple[int, ...] = ()) -> Iterator[Split]:
        """All ways to write `text` in tokens, of which the last may go on with something that is no digit."""
        for token, part in self.parts.items():
            tokens = [*before, token]
            if len(tokens) > self.length:
                return
            if part == text:
                yield Split(tokens, open=len(tokens) < self.length)
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
