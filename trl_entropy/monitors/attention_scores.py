# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of attention at some queries, taken while the model runs."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .layers import language_model


# What an attention function is called with: module, query (B, H, T, D), key (B, h, K, D), mask, and its options.
Look = Callable[[nn.Module, Tensor, Tensor, Any, dict[str, Any]], None]


@contextmanager
def watched_attention(model: nn.Module, look: Look) -> Iterator[None]:
    """Calls `look` before each call of the model's attention function, which then does its work unchanged."""
    name = language_model(model).config.get_text_config()._attn_implementation
    had = name in ALL_ATTENTION_FUNCTIONS
    own = ALL_ATTENTION_FUNCTIONS[name] if had else None

    def attend(module, query, key, value, attention_mask, *args, **kwargs):
        look(module, query, key, attention_mask, kwargs)
        function = own if own is not None else sys.modules[type(module).__module__].eager_attention_forward
        return function(module, query, key, value, attention_mask, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS[name] = attend
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[name]
        if had and ALL_ATTENTION_FUNCTIONS.get(name) is not own:  # which was there for this process only
            ALL_ATTENTION_FUNCTIONS[name] = own


def chosen_scores(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Any,
    positions: Tensor,
    lengths: Tensor,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Scores in float32 at the chosen queries, and which keys these may attend to.

    Args:
        module, query, key, mask, options: what an attention function is called with.
        positions: (B, Q) of the queries.
        lengths: (B,) tokens of each sequence, padded on the right.

    Returns:
        (B, H, Q, K) each. The second one may have 1 for H.
    """
    rows = positions[:, None, :, None].expand(-1, query.size(1), -1, query.size(-1))
    chosen, keys = query.gather(2, rows).float(), key.float()
    keys = keys.repeat_interleave(query.size(1) // key.size(1), dim=1)
    scaling = options.get("scaling")
    scores = chosen @ keys.transpose(-1, -2) * (query.size(-1) ** -0.5 if scaling is None else scaling)
    if options.get("softcap") is not None:
        scores = options["softcap"] * (scores / options["softcap"]).tanh()
    window = options.get("sliding_window", getattr(module, "sliding_window", None))
    return scores, allowed_keys(mask, positions, key.size(2), lengths, window)


def query_positions(lengths: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Evenly spaced queries of each sequence.

    Args:
        lengths: (B,) tokens of each sequence.
        count: queries per sequence. A shorter sequence has all of its own.

    Returns:
        (B, count) positions, and (B, count) whether a place holds a query.
    """
    place = torch.arange(count, device=lengths.device)
    last = (lengths - 1)[:, None]
    spread = (place * last / max(count - 1, 1)).round().long()
    short = lengths[:, None] <= count
    positions = torch.where(short, place.expand_as(spread), spread)
    return positions.clamp(max=last), ~short | (place <= last)


def allowed_keys(mask: Any, positions: Tensor, keys: int, lengths: Tensor, window: int | None) -> Tensor:
    """(B, 1, Q, K): whether a query may attend to a key.

    Args:
        mask: the attention function's mask. One of (B, 1, T, K), boolean or additive, says it all. Otherwise attention
            is causal, within `window` keys if it is given.
        positions: (B, Q) of the queries.
        keys: K.
        lengths: (B,) tokens of each sequence.
        window: keys of sliding-window attention.
    """
    if isinstance(mask, Tensor) and mask.dim() == 4:
        rows = mask.expand(len(positions), *mask.shape[1:])
        index = positions[:, None, :, None].expand(-1, rows.size(1), -1, rows.size(-1))
        rows = rows.gather(2, index)[..., :keys]
        return rows if rows.dtype == torch.bool else rows > torch.finfo(rows.dtype).min / 2
    key = torch.arange(keys, device=positions.device)
    query = positions[:, :, None]
    allowed = (key <= query) & (key < lengths[:, None, None])
    if window is not None:
        allowed &= key > query - window
    return allowed[:, None]
