# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Answers questions, each with the strategy chosen for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .answers import prompt_ids_of
from .diffadapt import Strategy


@dataclass(frozen=True)
class Given:
    """The answer to a question.

    Attributes:
        text: without special tokens.
        ids: its tokens, with that of the end.
        strategy: the one that it was given with.
        truncated: whether it reached the strategy's limit without an end.
    """

    text: str
    ids: list[int]
    strategy: Strategy
    truncated: bool

    @property
    def tokens(self) -> int:
        """Number of its tokens."""
        return len(self.ids)


def instructed(prompt: str | list[dict[str, Any]], instruction: str) -> str | list[dict[str, Any]]:
    """A question with an instruction: before a text, or at the end of a conversation's last message of the user.

    Raises:
        `ValueError`: the conversation has no message of the user that is a text.
    """
    if not instruction:
        return prompt
    if isinstance(prompt, str):
        return f"{instruction}\n\n{prompt}"
    users = [n for n, message in enumerate(prompt) if message["role"] == "user"]
    if not users or not isinstance(prompt[users[-1]]["content"], str):
        raise ValueError(f"`prompt` must end in a text of the user, got {prompt!r:.80}.")
    last = prompt[users[-1]]
    changed = {**last, "content": f"{last['content']}\n\n{instruction}"}
    return [*prompt[: users[-1]], changed, *prompt[users[-1] + 1 :]]


def batches_by_strategy(strategies: Sequence[Strategy], batch: int) -> list[tuple[Strategy, list[int]]]:
    """Places with the same strategy together, at most `batch` of them: an engine takes one setting per call."""
    groups: dict[Strategy, list[int]] = {}
    for place, strategy in enumerate(strategies):
        groups.setdefault(strategy, []).append(place)
    return [
        (strategy, places[start : start + batch])
        for strategy, places in groups.items()
        for start in range(0, len(places), batch)
    ]


def answer_questions(
    model: Any, tokenizer: Any, prompts: Sequence[Any], strategies: Sequence[Strategy], limit: int, batch: int = 8
) -> list[Given]:
    """Generates one answer to each of N prompts, in their order.

    Settings other than temperature and token limit, such as top-p, are those of the model's generation config.

    Args:
        model: causal language model. It is put into evaluation mode.
        tokenizer: of the model.
        prompts: N texts or conversations.
        strategies: N strategies.
        limit: tokens of an answer, of which a strategy takes its share.
        batch: prompts per call.
    """
    if type(limit) is not int or limit < 1:
        raise ValueError(f"`limit` must be a whole number >= 1, got {limit!r}.")
    model.eval()
    found: dict[int, Given] = {}
    for strategy, places in batches_by_strategy(strategies, batch):
        rows = [prompt_ids_of(instructed(prompts[n], strategy.prompt), tokenizer) for n in places]
        written = _generate(model, tokenizer, rows, strategy, strategy.tokens(limit))
        for n, ids in zip(places, written, strict=True):
            ended = bool(ids) and ids[-1] in _ends(model)
            truncated = len(ids) >= strategy.tokens(limit) and not ended
            found[n] = Given(tokenizer.decode(ids, skip_special_tokens=True), ids, strategy, truncated)
    return [found[n] for n in range(len(prompts))]


def _ends(model: Any) -> list[int]:
    """The token ids that end an answer."""
    end = model.generation_config.eos_token_id
    return [] if end is None else [end] if isinstance(end, int) else list(end)


def _generate(model: Any, tokenizer: Any, rows: list[list[int]], strategy: Strategy, limit: int) -> list[list[int]]:
    """The ids that one call generates, each up to its end."""
    device, width, ends = next(model.parameters()).device, max(map(len, rows)), _ends(model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    sampling: dict[str, Any] = {"do_sample": False}
    if strategy.temperature > 0:
        sampling = {"do_sample": True, "temperature": strategy.temperature}
    with torch.no_grad():
        out: Tensor = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=limit, pad_token_id=pad, **sampling
        )
    found = []
    for row in out[:, width:].tolist():
        end = next((n + 1 for n, token in enumerate(row) if token in ends), len(row))
        found.append(row[:end])
    return found
