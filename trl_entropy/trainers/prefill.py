# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Prompts with a prefilled assistant turn, which the policy continues."""

from collections.abc import Callable
from typing import Any


def prefill_of(prompt: str | list[dict[str, Any]]) -> str:
    """The prefilled assistant text at the end of a conversation, or ''."""
    if not isinstance(prompt, list) or prompt[-1]["role"] != "assistant":
        return ""
    content = prompt[-1]["content"]
    return content if isinstance(content, str) else ""


def prefilled(completion: list[dict[str, Any]], prefill: str) -> list[dict[str, Any]]:
    """The messages of a completion, the first of which starts with the prefill."""
    first, *others = completion
    return [{**first, "content": prefill + (first["content"] or "")}, *others]


def without(prompts: list, prefills: list[str]) -> list:
    """The prompts without their prefilled turns."""
    return [prompt[:-1] if prefill else prompt for prompt, prefill in zip(prompts, prefills, strict=True)]


def tokenize_prefilled(stock: Callable, prompts: list, tokenizer: Any) -> tuple[list, list | None, dict[str, list]]:
    """TRL's `_tokenize_prompts`, also for prompts with a prefill, whose tokens follow those of the prompt."""
    prefills = [prefill_of(prompt) for prompt in prompts]
    if not any(prefills):
        return stock(prompts)
    ids, images, fields = stock(without(prompts, prefills))
    added = tokenizer(prefills, add_special_tokens=False)["input_ids"]
    fields = {  # a processor's fields with one value per token; text-only prompts here
        key: [[*row, *[0] * len(more)] for row, more in zip(rows, added, strict=True)] for key, rows in fields.items()
    }
    return [[*row, *more] for row, more in zip(ids, added, strict=True)], images, fields


def whole_turns(prompts: list, completions: list) -> tuple[list, list]:
    """Prompts and completions for reward functions, with the prefill moved into the completion."""
    prefills = [prefill_of(prompt) for prompt in prompts]
    if not any(prefills):
        return prompts, completions
    completions = [
        prefilled(completion, prefill) if prefill else completion
        for completion, prefill in zip(completions, prefills, strict=True)
    ]
    return without(prompts, prefills), completions
