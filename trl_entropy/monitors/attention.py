# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Entropy of attention heads, without keeping attention maps.

[Stabilizing Transformer Training by Preventing Attention Entropy
Collapse](https://huggingface.co/papers/2303.06296). For each layer, head and query i with scores s_i:

    H_i = -Σ_j A_ij ln A_ij = logsumexp(s_i) - Σ_j A_ij s_ij        A_i = softmax(s_i)

in nats; relative_i = H_i / ln(number of keys that i may attend to), for queries with at least 8 keys.

While the probe runs, the model's attention function is wrapped: the entropies of some evenly spaced queries are
computed from query and key, then the model's own function does its work. Learned sinks, where a model has them, are no
keys: probabilities are over keys.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..paper import Paper
from ..settings import checked
from .attention_scores import chosen_scores, query_positions, watched_attention
from .base import ProbeBatch, ProbeMonitor
from .layers import language_model


FEWEST_KEYS = 8  # of a query that counts in relative entropies
COLLAPSED = 0.05  # relative entropy of a head, below which it has collapsed


def attention_entropy(scores: Tensor, allowed: Tensor) -> Tensor:
    """(..., K) scores and (..., K) whether a key may be attended to -> (...) entropies in nats, 0 without a key."""
    scores = scores.float().masked_fill(~allowed, -torch.inf)
    logps = scores - scores.logsumexp(-1, keepdim=True)
    return -(logps.exp() * logps).masked_fill(~allowed | logps.isneginf(), 0.0).sum(-1)


@dataclass
class AttentionConfig:
    """Fields of the monitor `attention`."""

    attention_samples: int = field(default=32, metadata={"help": "Sequences of the probe."})
    attention_queries: int = field(
        default=64, metadata={"help": "Evenly spaced queries of each sequence. All of them cost a second attention."}
    )
    attention_skip_first: int = field(
        default=0,
        metadata={"help": "Keys at the beginning to leave out: the first ones often take most of the attention."},
    )


class Attention(ProbeMonitor):
    """Entropies of all heads: their means, the smallest, and the share of collapsed heads."""

    name = "attention"
    summary = "entropy of attention heads: near 0, a head looks at one token only"
    headline = "entropy_mean"
    cost = "one forward of 32 sequences, with 64 queries each once more"
    paper = Paper(
        arxiv="2303.06296",
        title="Stabilizing Transformer Training by Preventing Attention Entropy Collapse",
        bibtex="""@inproceedings{zhai2023stabilizing,
    title     = {Stabilizing Transformer Training by Preventing Attention Entropy Collapse},
    author    = {Shuangfei Zhai and Tatiana Likhomanenko and Etai Littwin and Dan Busbridge and Jason Ramapuram and
                 Yizhe Zhang and Jiatao Gu and Joshua M. Susskind},
    booktitle = {International Conference on Machine Learning},
    year      = {2023}
}""",
    )

    def __init__(self, config: Any):
        for name in ("attention_samples", "attention_queries"):
            checked(config, name, lambda value: type(value) is int and value >= 1, "a whole number >= 1")
        checked(config, "attention_skip_first", lambda value: type(value) is int and value >= 0, "a whole number >= 0")
        self.samples, self.queries = config.attention_samples, config.attention_queries
        self.skip = config.attention_skip_first
        self._heads: list[int] = []  # of each layer
        self._batches: list[dict[str, Tensor]] = []
        self._arrays: dict[str, Tensor] = {}

    def check_model(self, model: nn.Module) -> None:
        inner = language_model(model)
        if not getattr(inner, "_supports_attention_backend", False):
            raise ValueError(
                f"`monitors` must leave out 'attention': {type(inner).__name__} does not call its attention through "
                "transformers' `AttentionInterface`."
            )

    @contextmanager
    def collecting(self, model: nn.Module, batch: ProbeBatch) -> Iterator[None]:
        found: dict[int, dict[str, Tensor]] = {}

        def look(module, query, key, mask, options):
            layer = getattr(module, "layer_idx", None)
            if query.size(2) == batch.input_ids.size(1) and layer not in found:
                layer = len(found) if layer is None else layer
                found[layer] = self._entropies(module, query, key, mask, batch, options)

        with watched_attention(model, look):
            yield
        if not found:
            raise ValueError("`monitors` must leave out 'attention': no layer of the model attends to tokens.")
        layers = [found[layer] for layer in sorted(found)]
        self._heads = [row["entropy"].size(1) for row in layers]
        self._batches.append({key: torch.cat([row[key] for row in layers], dim=1) for key in layers[0]})

    def _entropies(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, batch: ProbeBatch, options: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Sums over queries of each sequence (B, heads), and the numbers of queries, repeated for each head."""
        lengths = batch.lengths.to(query.device)
        positions, valid = query_positions(lengths, self.queries)
        scores, allowed = chosen_scores(module, query, key, mask, positions, lengths, options)
        allowed = (allowed & (torch.arange(key.size(2), device=query.device) >= self.skip)).expand_as(scores)
        entropy, count = attention_entropy(scores, allowed), allowed.sum(-1)
        counts = valid[:, None] & (count > 0)
        enough = valid[:, None] & (count >= FEWEST_KEYS)
        relative = entropy / count.clamp(min=2).log()
        return {
            "entropy": (entropy * counts).sum(-1),
            "queries": counts.sum(-1).float(),
            "relative": (relative * enough).sum(-1),
            "relative_queries": enough.sum(-1).float(),
        }

    def collected(self) -> dict[str, Tensor]:
        found = {key: torch.cat([batch[key] for batch in self._batches]) for key in self._batches[0]}
        self._batches = []
        return found

    def measure(self, rows: dict[str, Tensor]) -> dict[str, float]:
        total = {key: values.double().sum(0) for key, values in rows.items()}
        heads = total["entropy"] / total["queries"]
        relative = (total["relative"] / total["relative_queries"]).float()
        known = relative[relative.isfinite()]
        self._arrays = {"entropy": self._by_layer(heads.float()), "relative": self._by_layer(relative)}
        defined = len(known) > 0
        return {
            "entropy_mean": float(total["entropy"].sum() / total["queries"].sum()),
            "entropy_min_head": float(heads.min()),
            "relative_mean": float(total["relative"].sum() / total["relative_queries"].sum()) if defined else math.nan,
            "relative_p10": float(known.quantile(0.1)) if defined else math.nan,
            "collapsed_heads": float((known < COLLAPSED).float().mean()) if defined else math.nan,
        }

    def _by_layer(self, heads: Tensor) -> Tensor:
        """(layers, heads), NaN where a layer has fewer heads than another."""
        return nn.utils.rnn.pad_sequence(list(heads.split(self._heads)), batch_first=True, padding_value=math.nan)

    def arrays(self) -> dict[str, Tensor]:
        return self._arrays
