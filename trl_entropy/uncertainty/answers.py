# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Answers as token ids: of texts, of conversations, or as they were generated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """Token ids of a prompt and its completion.

    Attributes:
        prompt_ids, completion_ids: token ids.
        mask: of the completion: `False` for tokens that the model did not write, such as results of tools.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    mask: list[bool]


def prompt_ids_of(prompt: str | list[dict[str, Any]], tokenizer: Any) -> list[int]:
    """The token ids of a prompt: a text as it is, a conversation up to the point where the assistant writes.

    Raises:
        `ValueError`: it is neither, or it is empty.
    """
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
    elif isinstance(prompt, list) and prompt:
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    else:
        raise ValueError(f"`prompt` must be a text or a conversation, got {prompt!r:.80}.")
    if not ids:
        raise ValueError("`prompt` must not be empty.")
    return ids


def answer_of(row: Mapping[str, Any], tokenizer: Any) -> Answer:
    """The token ids of a row: as they are, or of its prompt and completion, both texts or both conversations.

    Raises:
        `ValueError`: the row lacks them, or the chat template rewrites earlier turns.
    """
    if row.get("prompt_ids") is not None and row.get("completion_ids") is not None:
        ids = list(row["completion_ids"])
        mask = [True] * len(ids) if row.get("completion_mask") is None else [bool(x) for x in row["completion_mask"]]
        if len(mask) != len(ids):
            raise ValueError(f"`completion_mask` must have one entry a token, got {len(mask)} for {len(ids)} tokens.")
        return Answer(list(row["prompt_ids"]), ids, mask)
    prompt, completion = row.get("prompt"), row.get("completion")
    if prompt is None or completion is None:
        raise ValueError(
            "The data must have the columns `prompt` and `completion`, `prompt_ids` and `completion_ids`, or "
            f"`logprobs`, got {', '.join(row)}."
        )
    if isinstance(prompt, str) and isinstance(completion, str):
        ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
        return Answer(tokenizer(prompt)["input_ids"], ids, [True] * len(ids))
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return _of_conversation(prompt, completion, tokenizer)


def _of_conversation(prompt: list[dict], completion: list[dict], tokenizer: Any) -> Answer:
    """The ids of a conversation. Counted are the contents of the assistant's turns in the completion."""

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def rendered(messages: list[dict], opens: bool) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens)

    done = rendered(prompt, bool(completion) and completion[0]["role"] == "assistant")
    prompt_ids, ids, mask = ids_of(done), list[int](), list[bool]()
    for place, message in enumerate(completion):
        following = completion[place + 1]["role"] if place + 1 < len(completion) else None
        opens = message["role"] != "assistant" and following == "assistant"
        text = rendered([*prompt, *completion[: place + 1]], opens)
        if not text.startswith(done):
            raise ValueError("`--model` must have a chat template that leaves earlier turns as they are: give ids.")
        part, done = text[len(done) :], text
        if message["role"] == "assistant":
            content = message.get("content") or ""
            end = part.rfind(content) + len(content) if content and content in part else 0
            written, rest = ids_of(part[:end]), ids_of(part[end:])
            ids, mask = [*ids, *written], [*mask, *[True] * len(written)]
            part_ids = rest if following else []
        else:
            part_ids = ids_of(part)
        ids, mask = [*ids, *part_ids], [*mask, *[False] * len(part_ids)]
    return Answer(prompt_ids, ids, mask)
