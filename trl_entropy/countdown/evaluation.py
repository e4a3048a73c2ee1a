# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation on Countdown: pass@k, distinct right answers, coverage, token entropy and length."""

from collections.abc import Iterator, Sequence
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..estimates import pass_at_k
from .task import CHAIN, Prompt, Task, read_answer, solutions


SAMPLES = 16


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    temperature: float,
    max_new_tokens: int = CHAIN.completion_length,
) -> tuple[list[str], Tensor]:
    """One completion for each of B texts, and the entropies (N,) of all N sampled tokens, in nats."""
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
    return tokenizer.batch_decode(completions, skip_special_tokens=True), entropy[sampled]


def _chunks(texts: list[str], size: int) -> Iterator[list[str]]:
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
        answers; `length`, tokens of a completion including its end.
    """
    texts, completions, entropies = [row.text for row in rows for _ in range(samples)], [], []
    training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for chunk in _chunks(texts, batch_size):
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
    return scores | {"length": sum(map(len, entropies)) / len(completions)}
