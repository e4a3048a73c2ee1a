# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Entropy-guided attention: a penalty on heads whose entropy is far from a threshold.

[Entropy-Guided Attention for Private LLMs](https://huggingface.co/papers/2501.03489). With the entropy H of a query's
attention in nats, a threshold r_h of its head and a context of T tokens:

1. e = H - r_h ln T;
2. the penalty is e² where |e| > 0.2 ln T, else 0;
3. the loss gets its mean over layers, heads and queries, times a coefficient.

Departs from the authors' code: a mean instead of sums over the batch and the queries, with which a coefficient depends
on both; entropies of some evenly spaced queries; r_h learned only if asked.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..monitors.attention_scores import chosen_scores, query_positions, watched_attention
from ..paper import Paper
from .warning import warn_once


PAPER = Paper(
    arxiv="2501.03489",
    title="Entropy-Guided Attention for Private LLMs",
    bibtex="""@article{jha2025entropy,
    title   = {Entropy-Guided Attention for Private {LLM}s},
    author  = {Nandan Kumar Jha and Brandon Reagen},
    journal = {arXiv preprint arXiv:2501.03489},
    year    = {2025}
}""",
)
MARGIN = 0.2


def entropy_of_scores(scores: Tensor, allowed: Tensor) -> Tensor:
    """Entropies of attention, with a gradient that is finite for each row.

    Args:
        scores: (..., K).
        allowed: (..., K) bool, the keys that may be attended to.

    Returns:
        (...) in nats. 0 for a row without keys, with gradient 0.
    """
    some = allowed.any(-1)
    open_ = allowed | ~some.unsqueeze(-1)
    masked = scores.masked_fill(~open_, -torch.inf)
    entropy = masked.logsumexp(-1) - (masked.softmax(-1) * scores.masked_fill(~open_, 0)).sum(-1)
    return torch.where(some, entropy, 0)


def head_penalties(entropy: Tensor, thresholds: Tensor, context: int, margin: float = MARGIN) -> Tensor:
    """The penalty of each query.

    Args:
        entropy: (B, H, Q) in nats.
        thresholds: (H,) r_h, as shares of ln T.
        context: T, at least 2.
        margin: share of ln T around a threshold that costs nothing.

    Returns:
        (B, H, Q).
    """
    most = math.log(context)
    e = entropy - thresholds[:, None] * most
    return torch.where(e.abs() > margin * most, e.square(), 0)


class AttentionPenalty(nn.Module):
    r"""
    The penalty for a model, as a term to add to its loss. Off unless you write it into your own loss.

    Args:
        model: model of transformers whose attention goes through its attention interface. Activation checkpointing
            must be off.
        coef: coefficient of the mean penalty.
        threshold: r_h at first, in [0, 1].
        learn_thresholds: whether r_h of each layer and head is trained: give `penalty.parameters()` to the optimizer.
        margin: share of ln T around a threshold that costs nothing.
        queries: evenly spaced queries of each sequence that are looked at.

    Raises:
        `ValueError`: an argument is out of range, or the model does not fit.

    Example:

    ```python
    penalty = AttentionPenalty(model)
    with penalty.watching(batch["attention_mask"]):
        loss = model(**batch).loss
    (loss + penalty.loss()).backward()
    ```
    """

    def __init__(
        self,
        model: nn.Module,
        coef: float = 1e-2,
        threshold: float = 0.5,
        learn_thresholds: bool = False,
        margin: float = MARGIN,
        queries: int = 64,
    ):
        super().__init__()
        warn_once("AttentionPenalty")
        if not 0 <= coef < math.inf:
            raise ValueError(f"`coef` must be a finite number >= 0, got {coef!r}.")
        for name, value in (("threshold", threshold), ("margin", margin)):
            if not 0 <= value <= 1:
                raise ValueError(f"`{name}` must be a number in [0, 1], got {value!r}.")
        if type(queries) is not int or queries < 1:
            raise ValueError(f"`queries` must be a whole number >= 1, got {queries!r}.")
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        if not getattr(inner, "_supports_attention_backend", False):
            raise ValueError(
                f"`model` must call its attention through transformers' `AttentionInterface`, got "
                f"{type(inner).__name__}, which does not."
            )
        config = inner.config.get_text_config()
        shape = (config.num_hidden_layers, config.num_attention_heads)
        device = next(model.parameters()).device
        self.thresholds = nn.Parameter(torch.full(shape, threshold, device=device), requires_grad=learn_thresholds)
        self.coef, self.margin, self.queries = coef, margin, queries
        self._model = [model]  # in a list, as it is no part of this module
        self._sums: list[Tensor] = []  # of the penalties of each layer
        self._counts: list[Tensor] = []

    @contextmanager
    def watching(self, attention_mask: Tensor) -> Iterator[None]:
        """Around a forward of the model.

        Args:
            attention_mask: (B, T) 1 for tokens, padded on either side.

        Raises:
            `ValueError`: the model repeats its forward in the backward pass, or no layer attends to the tokens.
        """
        model = self._model[0]
        if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise ValueError("`AttentionPenalty` needs a model without activation checkpointing: turn it off.")
        self._sums, self._counts = [], []
        seen: set[int] = set()
        tokens = attention_mask.bool()
        lengths, first = tokens.sum(1), tokens.int().argmax(1)
        own, valid = query_positions(lengths.clamp(min=1), self.queries)
        positions, valid = own + first[:, None], valid & (lengths[:, None] > 0)
        whole = torch.full_like(lengths, tokens.size(1))  # the keys that are padding are left out below

        def look(module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]) -> None:
            if query.size(2) != tokens.size(1) or id(module) in seen:  # only the first forward counts
                return
            seen.add(id(module))

            def penalty(query: Tensor, key: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
                scores, allowed = chosen_scores(module, query, key, mask, positions, whole, options)
                allowed = (allowed & tokens[:, None, None, :]).expand_as(scores)
                found = head_penalties(entropy_of_scores(scores, allowed), thresholds, tokens.size(1), self.margin)
                counts = valid[:, None] & allowed.any(-1)
                return (found * counts).sum(), counts.sum()

            thresholds = self.thresholds[len(self._sums)]
            total, count = checkpoint(penalty, query, key, thresholds, use_reentrant=False, preserve_rng_state=False)
            self._sums.append(total)
            self._counts.append(count)

        with watched_attention(model, look):
            yield
        if not self._sums:
            raise ValueError("`AttentionPenalty` saw no layer that attends to the tokens of `attention_mask`.")

    def loss(self) -> Tensor:
        """The coefficient times the mean penalty of the last forward: a scalar. 0 if no query has a key."""
        total, count = torch.stack(self._sums).sum(), torch.stack(self._counts).sum()
        return self.coef * total / count.clamp(min=1)
