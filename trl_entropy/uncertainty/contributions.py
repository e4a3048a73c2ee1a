# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ranked entropy contributions: what each of the likeliest tokens adds to the entropy at a position, in nats.

s_k = -p_(k) ln p_(k), with p_(k) the probability of the k-th likeliest token, at temperature 1 and without top-p.
"""

import torch
from torch import Tensor


CHUNK = 1024  # rows of logits whose log-probabilities are held at once


def top_log_probs(logits: Tensor, k: int, chunk: int = CHUNK) -> Tensor:
    """Log-probabilities of the k likeliest tokens, in descending order.

    Args:
        logits: (..., V), at temperature 1.
        k: ranks; all of them if V is smaller.
        chunk: rows worked on at once. It does not change the result.

    Returns:
        (..., min(k, V)) in float32, or in float64 for such logits.
    """
    rows = logits.reshape(-1, logits.size(-1))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    k = min(k, logits.size(-1))
    found = [part.to(dtype).log_softmax(-1).topk(k).values for part in rows.split(chunk)]
    return torch.cat(found).view(*logits.shape[:-1], k) if found else rows.new_zeros((*logits.shape[:-1], k))


def ranked_contributions(log_probs: Tensor, k: int = 15) -> Tensor:
    """Contributions -p ln p of the k likeliest tokens, by rank.

    Args:
        log_probs: (..., R) log-probabilities of the likeliest tokens, or of all, in any order. An engine may add that
            of the sampled token: only the k largest count. `-inf` stands for no token.
        k: ranks.

    Returns:
        (..., k) in nats. 0 where there are fewer ranks.
    """
    ranks = log_probs.sort(-1, descending=True).values[..., :k].clamp(max=0)
    found = torch.special.entr(ranks.exp())
    return torch.nn.functional.pad(found, (0, k - found.size(-1)))


def contributions(logits: Tensor, k: int = 15, chunk: int = CHUNK) -> Tensor:
    """[`ranked_contributions`] of (..., V) logits at temperature 1: (..., k)."""
    return ranked_contributions(top_log_probs(logits, k, chunk), k)


def missing_entropy(log_probs: Tensor, vocabulary: int, k: int = 15) -> Tensor:
    """The most that tokens beyond the k likeliest can add to the entropy: -Q (ln Q - ln(V - K)), Q their mass.

    Args:
        log_probs: (..., R) as in [`ranked_contributions`].
        vocabulary: number V of tokens.
        k: ranks that are known.

    Returns:
        (...) in nats.
    """
    ranks = log_probs.sort(-1, descending=True).values[..., :k].clamp(max=0)
    beyond = max(vocabulary - ranks.size(-1), 1)
    mass = (1 - ranks.exp().sum(-1)).clamp(min=0)
    if vocabulary <= ranks.size(-1):
        return torch.zeros_like(mass)
    return torch.special.entr(mass) + mass * torch.tensor(beyond, dtype=mass.dtype).log()


def pooled(ranked: Tensor, mask: Tensor | None = None) -> Tensor:
    """The features of completions: means over tokens of each rank, then maxima.

    Args:
        ranked: (..., T, K) contributions.
        mask: (..., T) bool, the tokens that count: neither padding nor of tools. All by default.

    Returns:
        (..., 2K). 0 for a completion without tokens.
    """
    if mask is None:
        mask = torch.ones(ranked.shape[:-1], dtype=torch.bool, device=ranked.device)
    counted = ranked.masked_fill(~mask.unsqueeze(-1), 0)
    means = counted.sum(-2) / mask.sum(-1, keepdim=True).clamp(min=1)
    maxima = counted.amax(-2) if ranked.size(-2) else torch.zeros_like(means)
    return torch.cat([means, maxima], -1)
