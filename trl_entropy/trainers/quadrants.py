# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The kept and dropped tokens on TIP's two axes: student entropy and divergence from the teacher.

    Q1  uncertain, far from the teacher        Q2  uncertain, close to it
    Q3  confident, far: confident errors       Q4  confident, close: solved

The paper gives no thresholds. Here they are the medians of the batch: if the axes were independent, each quadrant
would hold a quarter of the tokens.
"""

import json
import os

import torch
from torch import Tensor

from ..functional import quantiles
from ..methods.tip import TipTokens


SCATTER_FILE = "tip_scatter.json"
SCATTER_TOKENS = 4096


def thresholds(tokens: TipTokens) -> tuple[Tensor, Tensor]:
    """Medians of entropy and of divergence (nats) over the finite tokens of all processes."""
    values = (tokens.entropy, tokens.divergence)
    return tuple(quantiles(tokens.world.gather(value[tokens.finite]), (0.5,))[0] for value in values)


def quadrants(tokens: TipTokens) -> Tensor:
    """(B, T) 1 to 4, or 0 if a token is not valid or not finite. Values equal to a threshold count as below it."""
    entropy, divergence = thresholds(tokens)
    uncertain, far = tokens.entropy > entropy, tokens.divergence > divergence
    return torch.where(uncertain, torch.where(far, 1, 2), torch.where(far, 3, 4)).masked_fill(~tokens.finite, 0)


def selection_metrics(tokens: TipTokens, keep: Tensor) -> dict[str, Tensor]:
    """Log values by key, for `reduce_metrics` and the prefix `tip/`.

    Args:
        tokens: the tokens to select from. Without their divergence, its metrics are missing.
        keep: (B, T) bool, the selected tokens.
    """

    def where(values: Tensor, chosen: Tensor) -> Tensor:
        return values.float().masked_fill(~(chosen & tokens.finite), torch.nan)

    dropped = tokens.mask & ~keep
    found = {
        "kept_fraction": keep.float(),
        "selected_tokens": keep,
        "entropy_kept_mean": where(tokens.entropy, keep),
        "entropy_dropped_mean": where(tokens.entropy, dropped),
        "nonfinite_tokens": tokens.world.sum((tokens.mask & ~tokens.finite).sum()),
    }
    if tokens.divergence is None:
        return found
    found["divergence_kept_mean"] = where(tokens.divergence, keep)
    found["divergence_dropped_mean"] = where(tokens.divergence, dropped)
    quadrant = quadrants(tokens)
    for number in (1, 2, 3, 4):
        inside = quadrant == number
        found[f"q{number}_fraction"] = where(inside, tokens.mask)
        found[f"q{number}_kept_fraction"] = where(keep, inside)
    return found


def write_scatter(folder: str, tokens: TipTokens, keep: Tensor, step: int) -> None:
    """Writes up to `SCATTER_TOKENS` tokens of this process' micro-batch to `SCATTER_FILE`, which it overwrites.

    The file is one JSON object: `step`, the optimizer step; `entropy` and `divergence`, lists of equal length with
    the student's entropy and the reverse KL in nats; `kept`, a list of booleans; `entropy_threshold` and
    `divergence_threshold`, the medians that separate the quadrants. It holds finite tokens only.
    """
    finite = tokens.finite
    entropy, divergence = (quantiles(x[finite], (0.5,))[0].item() for x in (tokens.entropy, tokens.divergence))
    if not finite.any():
        return

    def listed(values: Tensor) -> list[float]:
        return [round(value, 6) for value in values[finite][:SCATTER_TOKENS].tolist()]

    content = {
        "step": step,
        "entropy": listed(tokens.entropy),
        "divergence": listed(tokens.divergence),
        "kept": keep[finite][:SCATTER_TOKENS].tolist(),
        "entropy_threshold": entropy,
        "divergence_threshold": divergence,
    }
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, SCATTER_FILE), "w", encoding="utf-8") as file:
        json.dump(content, file)
