# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Entropies over the whole vocabulary of the tokens of finished completions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .answers import Answer
from .completions import BATCH, batches_of, completion_logits
from .contributions import CHUNK


def token_entropies(logits: Tensor, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """Entropies of softmax(logits / temperature).

    Args:
        logits: (T, V).
        temperature: of sampling, above 0.
        chunk: rows worked on at once. It does not change the result.

    Returns:
        (T,) in nats, in float32 or in float64 for such logits.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    parts = [(part.to(dtype) / temperature).log_softmax(-1) for part in logits.split(chunk)]
    found = [torch.special.entr(logps.exp()).sum(-1) for logps in parts]
    return torch.cat(found) if found else logits.new_zeros(0, dtype=dtype)


def answer_entropies(
    model: Any, answers: Sequence[Answer], temperature: float = 1.0, batch: int = BATCH
) -> tuple[list[float], list[int]]:
    """Mean token entropies of answers in nats, and their numbers of tokens, by teacher-forced forwards.

    Tokens that the model did not write do not count. An answer without tokens has entropy NaN.

    Args:
        model: causal language model. It is put into evaluation mode.
        answers: N answers.
        temperature: with which they were sampled.
        batch: sequences per forward.
    """
    model.eval()
    means, counts = [torch.nan] * len(answers), [0] * len(answers)
    for places, prompts, completions in batches_of(answers, batch):
        for n, logits in zip(places, completion_logits(model, prompts, completions), strict=True):
            written = torch.tensor(answers[n].mask, dtype=torch.bool)
            counts[n] = int(written.sum())
            known = written[len(written) - len(logits) :].to(logits.device)
            entropy = token_entropies(logits, temperature)[known]
            means[n] = float(entropy.double().mean()) if len(entropy) else torch.nan
    return means, counts
