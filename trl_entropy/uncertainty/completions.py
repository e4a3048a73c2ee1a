# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of the likeliest tokens of finished completions: by one forward of a model, or from an API."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .answers import Answer
from .contributions import missing_entropy, pooled, ranked_contributions, top_log_probs


BATCH = 4  # sequences per forward


@dataclass(frozen=True)
class Scored:
    """The likeliest tokens at each position of a completion of T tokens.

    Attributes:
        log_probs: (T, R), `-inf` where there are fewer.
        mask: (T,) bool, the tokens that count.
        tokens: texts of the tokens.
        vocabulary: number of tokens that the model knows; `None` if not known.
    """

    log_probs: Tensor
    mask: Tensor
    tokens: list[str]
    vocabulary: int | None = None

    @property
    def length(self) -> int:
        """Number of tokens that count."""
        return int(self.mask.sum())

    def ranked(self, k: int) -> Tensor:
        """(T, k) contributions."""
        return ranked_contributions(self.log_probs, k)

    def features(self, k: int) -> Tensor:
        """(2k,) features."""
        return pooled(self.ranked(k), self.mask)

    def missing(self, k: int) -> float | None:
        """The most by which EPR over all tokens can be above EPR over k; `None` without the vocabulary."""
        if self.vocabulary is None:
            return None
        beyond = missing_entropy(self.log_probs, self.vocabulary, k)
        return float(beyond[self.mask].mean()) if self.length else 0.0


def completion_logits(model: Any, prompts: Sequence[Tensor], completions: Sequence[Tensor]) -> list[Tensor]:
    """One forward of a batch -> the logits that predict the tokens of each completion, at temperature 1.

    Args:
        model: causal language model, in evaluation mode.
        prompts, completions: (P,) and (T,) token ids of each row.

    Returns:
        (T, V) of each row, on the model's device. Without a prompt nothing predicts the first token: (T - 1, V).
    """
    device = next(model.parameters()).device
    rows = [torch.cat([p, c]).to(device) for p, c in zip(prompts, completions, strict=True)]
    rows = [row if len(row) else row.new_zeros(1) for row in rows]
    ids = pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(ids.size(1), device=device) < lengths[:, None]
    first = max(0, min(len(p) for p in prompts) - 1)  # the position whose logits are of the first token
    options: dict[str, Any] = {"use_cache": False}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "logits_to_keep" in inspect.signature(type(base).forward).parameters:
        options["logits_to_keep"] = ids.size(1) - first
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask.long(), **options).logits
    offset = ids.size(1) - logits.size(1)
    found = []
    for row, prompt, completion in zip(logits, prompts, completions, strict=True):
        start = max(len(prompt), 1)
        end = max(len(prompt) + len(completion), start)
        found.append(row[start - 1 - offset : end - 1 - offset])
    return found


def score_rows(
    model: Any,
    prompts: Sequence[Tensor],
    completions: Sequence[Tensor],
    k: int,
) -> tuple[list[Tensor], int]:
    """One forward of a batch, teacher-forced at temperature 1.

    Args:
        model, prompts, completions: as in [`completion_logits`]. A row without a prompt gives no value for its first
            token: log-probabilities of `-inf`.
        k: ranks.

    Returns:
        (T, min(k, V)) log-probabilities of each row, on the CPU, and V.
    """
    found, vocabulary = [], 0
    for logits, completion in zip(completion_logits(model, prompts, completions), completions, strict=True):
        top, vocabulary = top_log_probs(logits, k).cpu(), logits.size(-1)
        unknown = top.new_full((len(completion) - len(top), top.size(-1)), -torch.inf)
        found.append(torch.cat([unknown, top]))
    return found, vocabulary


def batches_of(answers: Sequence[Answer], batch: int) -> Iterator[tuple[list[int], list[Tensor], list[Tensor]]]:
    """Answers of similar length together: their places, and the token ids of their prompts and completions."""
    order = sorted(range(len(answers)), key=lambda n: len(answers[n].prompt_ids) + len(answers[n].completion_ids))
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        prompts, completions = (
            [torch.tensor(getattr(answers[n], name), dtype=torch.long) for n in places]
            for name in ("prompt_ids", "completion_ids")
        )
        yield places, prompts, completions


def score_answers(
    model: Any, tokenizer: Any, answers: Sequence[Answer], k: int = 15, batch: int = BATCH
) -> Iterator[Scored]:
    """The likeliest tokens of finished completions, in their order.

    Args:
        model: causal language model. It is put into evaluation mode.
        tokenizer: for the texts of tokens.
        answers: what to score.
        k: ranks.
        batch: sequences per forward.
    """
    model.eval()
    scored: dict[int, Scored] = {}
    for places, prompts, completions in batches_of(answers, batch):
        found, vocabulary = score_rows(model, prompts, completions, k)
        for n, log_probs in zip(places, found, strict=True):
            answer = answers[n]
            tokens = [tokenizer.decode([token]) for token in answer.completion_ids]
            mask = torch.tensor(answer.mask, dtype=torch.bool)
            if not answer.prompt_ids:
                mask[:1] = False
            scored[n] = Scored(log_probs, mask, tokens, vocabulary)
    for n in range(len(answers)):
        yield scored[n]


def scored_api(logprobs: Any) -> Scored:
    """Log-probabilities of an API as they stand in its answers.

    Args:
        logprobs: OpenAI's object with `content`, or a list with, for each token, its `top_logprobs`: a list of numbers
            or of objects with `logprob`, or an object of numbers, or of objects with `logprob`, by token.

    Raises:
        `ValueError`: another form.
    """
    try:
        positions = logprobs["content"] if isinstance(logprobs, Mapping) else logprobs
        tokens = [str(p["token"]) if isinstance(p, Mapping) and "top_logprobs" in p else "" for p in positions]
        rows = [_ranks(position) for position in positions or []]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            "`logprobs` must be OpenAI's object with `content`, or a list of the likeliest log-probabilities of each "
            f"token, got {str(logprobs)[:80]!r}."
        ) from error
    width = max(map(len, rows), default=0)
    filled = [[*row, *[-torch.inf] * (width - len(row))] for row in rows]
    table = torch.tensor(filled, dtype=torch.float64).view(len(rows), width)
    return Scored(table, torch.ones(len(rows), dtype=torch.bool), tokens)


def _ranks(position: Any) -> list[float]:
    """The log-probabilities of one position."""
    if isinstance(position, Mapping) and "top_logprobs" in position:
        position = position["top_logprobs"]
    entries = position.values() if isinstance(position, Mapping) else position
    return [float(entry["logprob"] if isinstance(entry, Mapping) else entry) for entry in entries]
