# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sampled answers to sums, with the probabilities of the likeliest tokens at each place."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from addition import COMPLETION_LENGTH, Sum, prompts  # noqa: E402
from exact import number_reward  # noqa: E402

from trl_entropy.uncertainty.completions import Scored  # noqa: E402


RANKS, BATCH = 15, 16


@dataclass
class Answers:
    """N sampled answers to prompts.

    Attributes:
        rows: prompt, completion, their ids, and whether it is correct.
        whole, number: the answers with all tokens, and with those of the number and the one after it.
        confidence: (N,) probability of the number.
    """

    rows: list[dict[str, Any]]
    whole: list[Scored]
    number: list[Scored]
    confidence: Tensor


@torch.no_grad()
def sample(model: Any, ids: Tensor, samples: int, digits: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Completions at temperature 1: the forward of a prompt is shared by its samples.

    Args:
        model: in evaluation mode.
        ids: (B, P) prompts of equal length.
        samples: S of each prompt.
        digits: (V,) bool, the tokens that begin with a digit.
        generator: of random numbers.

    Returns:
        (B S, T) tokens, `chosen`: their log-probabilities, and `digit`: the probability of a digit at each place;
        `top`: (B S, T, K) log-probabilities of the likeliest tokens.
    """
    output = model(ids, use_cache=True, logits_to_keep=1)
    cache = output.past_key_values
    cache.batch_repeat_interleave(samples)
    logits = output.logits[:, -1].repeat_interleave(samples, 0)
    found: list[tuple[Tensor, ...]] = []
    for place in range(COMPLETION_LENGTH):
        logps = logits.float().log_softmax(-1)
        token = torch.multinomial(logps.exp(), 1, generator=generator)
        top = logps.topk(min(RANKS, logps.size(-1))).values
        found.append((token[:, 0], logps.gather(1, token)[:, 0], logps[:, digits].exp().sum(-1), top))
        if place + 1 < COMPLETION_LENGTH:
            logits = model(token, past_key_values=cache, use_cache=True).logits[:, -1]
    names = ("tokens", "chosen", "digit", "top")
    return {name: torch.stack(values, 1) for name, values in zip(names, zip(*found, strict=True), strict=True)}


def digits_in(texts: list[str]) -> int:
    """How many tokens at the beginning write the number: a space and digits."""
    for count in range(len(texts), 0, -1):
        written = "".join(texts[:count])
        if written.startswith(" ") and (written[1:].isdigit() or written == " "):
            return count
    return 0


def answers_to(model: Any, tokenizer: Any, rows: list[Sum], samples: int, seed: int) -> Answers:
    """Sampled answers to sums, `samples` to each."""
    vocabulary = [tokenizer.decode([token]) for token in range(model.config.vocab_size)]
    digits = torch.tensor([text[:1].isdigit() for text in vocabulary])
    texts = prompts(rows, tokenizer)
    ids = torch.tensor([tokenizer(text).input_ids for text in texts])  # sums of two-digit numbers are equally long
    generator, model = torch.Generator().manual_seed(seed), model.eval()
    parts = [sample(model, part, samples, digits, generator) for part in ids.split(BATCH)]
    every = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    found = Answers([], [], [], torch.zeros(len(rows) * samples, dtype=torch.float64))
    for place, tokens in enumerate(every["tokens"].tolist()):
        end = tokens.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in tokens else len(tokens)
        pieces = [vocabulary[token] for token in tokens[:end]]
        text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
        row, count = rows[place // samples], digits_in(pieces)
        right = number_reward([text], [row.answer])[0] > 0
        prompt = {"prompt": texts[place // samples], "prompt_ids": ids[place // samples].tolist()}
        found.rows.append(prompt | {"completion": text, "completion_ids": tokens[:end], "correct": right})
        mask = torch.ones(end, dtype=torch.bool)
        found.whole.append(Scored(every["top"][place, :end], mask, pieces, len(vocabulary)))
        mask = torch.arange(end) <= count
        found.number.append(Scored(every["top"][place, :end], mask, pieces, len(vocabulary)))
        logp = every["chosen"][place, : count or end].double().sum()
        ends = 1 - every["digit"][place, count].double() if 0 < count < len(tokens) else 1.0
        found.confidence[place] = logp.exp() * ends
    return found
