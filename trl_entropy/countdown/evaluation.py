# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation on Countdown: pass@k, distinct right answers, coverage, token entropy and length."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.chat_template_utils import parse_response

from ..estimates import pass_at_k
from .chat import ASSISTANT, TOOL, calculator
from .task import CHAIN, Completion, Prompt, Task, read_answer, solutions


SAMPLES = 16


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    temperature: float,
    max_new_tokens: int = CHAIN.completion_length,
) -> tuple[list[str], Tensor]:
    """One completion for each of B texts, and the entropies (N,) of all N sampled tokens, in nats."""
    completions, entropies = sample_each(model, tokenizer, texts, temperature, max_new_tokens)
    return completions, torch.cat(entropies)


@torch.no_grad()
def sample_each(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    temperature: float,
    max_new_tokens: int,
) -> tuple[list[str], list[Tensor]]:
    """One completion for each of B texts, and the entropies (nats) of its tokens, its end included."""
    batch = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
    generated = model.generate(
        **batch,
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    completions = generated.sequences[:, batch.input_ids.shape[1] :]
    logps = (torch.stack(generated.logits, dim=1).float() / temperature).log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)
    ended = (completions == tokenizer.eos_token_id).cumsum(-1)
    sampled = (ended == 0) | ((ended == 1) & (completions == tokenizer.eos_token_id))
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    return texts, [values[own] for values, own in zip(entropy, sampled, strict=True)]


def converse(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], temperature: float, task: Task
) -> tuple[list[list[dict[str, Any]]], list[Tensor]]:
    """As [`sample_each`], but of conversations in which the calculator answers each call, as in TRL's loop."""
    prompts = [[{"role": "user", "content": text}] for text in texts]
    starts = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    room = [task.completion_length] * len(texts)
    said: list[list[dict[str, Any]]] = [[] for _ in texts]
    entropies: list[list[Tensor]] = [[] for _ in texts]
    contexts = dict(enumerate(starts))
    while contexts:
        turns, found = sample_each(
            model, tokenizer, [*contexts.values()], temperature, max(room[row] for row in contexts)
        )
        for (row, context), turn, values in zip(list(contexts.items()), turns, found, strict=True):
            ends = len(turn.split()) < len(values) <= room[row]  # with its end token, within the budget
            words = turn.split()[: room[row]] + [tokenizer.eos_token] * ends
            entropies[row].append(values[: room[row]])
            message = parse_response(
                tokenizer, tokenizer(" ".join(words)).input_ids, prefix=tokenizer(context).input_ids
            )
            calls = message.get("tool_calls") or []
            results = [calculator(**call["function"]["arguments"]) for call in calls]
            replies = [{"role": "tool", "name": "calculator", "content": result} for result in results]
            suffix = "".join(f" {TOOL} {result} {tokenizer.eos_token}" for result in results) + f" {ASSISTANT}"
            room[row] -= len(values) + len(suffix.split())
            del contexts[row]
            said[row].append(message)
            if calls and ends and room[row] > 0:
                said[row] += replies
                contexts[row] = f"{context} {' '.join(words)}{suffix}"
    return said, [torch.cat(values) for values in entropies]


def _chunks(texts: list, size: int) -> Iterator[list]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Prompt],
    samples: int = SAMPLES,
    temperature: float = 1.0,
    batch_size: int = 1024,
    seed: int = 0,
    task: Task = CHAIN,
) -> dict[str, float]:
    """Samples every prompt `samples` times and scores the completions.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        rows: the prompts, usually `prompts(held_out=True)`.
        samples: completions per prompt. pass@k is reported for k = 1, 8, 16 up to this number.
        temperature: of sampling and of the entropy.
        batch_size: completions per forward.
        seed: of sampling. The global random state is restored.
        task: of the prompts; it bounds the length of a completion.

    Returns:
        `entropy`: mean over sampled tokens, in nats. The others are means over prompts: `pass@1`, `pass@8`, `pass@16`
        (unbiased); `distinct`, the number of different right answers; `coverage`, that number relative to all right
        answers; `length`, tokens that the policy wrote in a completion, including its end; with tools `calls`, calls
        of the calculator.
    """
    texts = [row.text for row in rows for _ in range(samples)]
    completions: list[Completion] = []
    entropies: list[Tensor] = []
    training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for chunk in _chunks(texts, batch_size):
            if task.tools:
                talks, values = converse(model, tokenizer, chunk, temperature, task)
                completions += talks
                entropies.append(torch.cat(values))
            else:
                sampled, entropy = sample(model, tokenizer, chunk, temperature, task.completion_length)
                completions += sampled
                entropies.append(entropy)
    model.train(training)
    right = []
    for row, chunk in zip(rows, _chunks(completions, samples), strict=True):
        answers = (read_answer(completion, *row) for completion in chunk)
        right.append([answer for answer in answers if answer is not None])
    scores = {"entropy": torch.cat(entropies).mean().item()}
    for k in (1, 8, 16):
        if k <= samples:
            scores[f"pass@{k}"] = fmean(pass_at_k(samples, len(answers), k) for answers in right)
    scores["distinct"] = fmean(len(set(answers)) for answers in right)
    scores["coverage"] = fmean(
        len(set(answers)) / len(solutions(*row)) for row, answers in zip(rows, right, strict=True)
    )
    scores["length"] = sum(map(len, entropies)) / len(completions)
    if task.tools:
        messages = [message for row in completions if isinstance(row, list) for message in row]
        scores["calls"] = sum(message["role"] == "tool" for message in messages) / len(completions)
    return scores
