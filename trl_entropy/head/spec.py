# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings of one call of the head, and the running state of a row, which every backend folds tiles into."""

from dataclasses import dataclass

import torch
from torch import Tensor


# Rows of the state, a tensor (STATE_ROWS, N). z are the final logits of a token, m is their running maximum over the
# vocabulary seen so far, d = z - m and e = exp(d). All sums run over that vocabulary. Because of the shift by the
# maximum, all terms of the entropy have one sign: an entropy of 1e-6 nats at logits of 60 is not lost to cancellation.
MAX = 0  # m
SUM = 1  # Σ e
SHIFTED = 2  # Σ e·d
SQUARES = 3  # Σ e²
SQUARES_SHIFTED = 4  # Σ e²·d
SECOND = 5  # Σ exp(d·temperature/second_temperature)
TARGET = 6  # z of the label
STATE_ROWS = 7
# Shifted logits and log-probabilities are raised to at least this. Its exp is 0, like that of -inf, but 0 times it is
# 0, while 0 times -inf is NaN. So a token of probability 0 (of a vocabulary masked by -inf) adds 0 to every sum.
# It is low enough for any second temperature, and high enough that a whole vocabulary of it still sums to a number.
FLOOR = -1e30
# A divergence above this holds the floor times a probability above 0: the true value is infinite
INFINITE = 1e20


@dataclass(frozen=True)
class HeadSpec:
    """How logits become final logits, and which statistics of their softmax to compute.

    Attributes:
        logit_scale, softcap, temperature: final logits are `softcap·tanh(x·logit_scale/softcap)/temperature`, without
            the tanh if `softcap` is `None`.
        second_moments: whether to compute Σp² and Σp² log p.
        second_temperature: if set, compute the label's log-probability at this temperature.
        top_p: if set, compute the entropy of the nucleus of this mass.
        include_crossing: whether the token that crosses `top_p` belongs to the nucleus.
        top_k: if set, compute the log-probabilities of this many likeliest tokens.
        live_rows: whether the backward leaves out rows without gradient.
        wide_logits: whether products keep float32 instead of rounding to a narrower dtype, as in TRL's divergence.
        vocab_tile, token_tile: columns and rows of the largest tile of logits.
    """

    logit_scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    second_moments: bool = False
    second_temperature: float | None = None
    top_p: float | None = None
    include_crossing: bool = False
    top_k: int | None = None
    live_rows: bool = True
    wide_logits: bool = False
    vocab_tile: int = 32768
    token_tile: int = 4096

    @property
    def second_ratio(self) -> float | None:
        """Factor that takes a shifted logit from the temperature to the second temperature."""
        return None if self.second_temperature is None else self.temperature / self.second_temperature

    @property
    def keeps_logits(self) -> bool:
        return self.logit_scale == 1.0 and self.softcap is None and self.temperature == 1.0


@dataclass(frozen=True)
class RowGradients:
    """The values that the gradient of a row's logits depends on, (N,) or (N, K). `None` if no gradient arrives.

    Attributes:
        targets, log_z, entropy: label, log-partition and entropy of the row.
        log_probs_grad, entropy_grad, nucleus_grad: incoming gradients.
        threshold: the nucleus is the tokens with final logits of at least this.
        log_share: logarithm of the probability of the nucleus.
        nucleus_entropy: entropy of the distribution renormalized on the nucleus.
        top_ids, top_grads: (N, K) ids of the likeliest tokens, and incoming gradients of their log-probabilities.
    """

    targets: Tensor
    log_z: Tensor
    entropy: Tensor
    log_probs_grad: Tensor | None = None
    entropy_grad: Tensor | None = None
    nucleus_grad: Tensor | None = None
    threshold: Tensor | None = None
    log_share: Tensor | None = None
    nucleus_entropy: Tensor | None = None
    top_ids: Tensor | None = None
    top_grads: Tensor | None = None

    def live(self) -> Tensor:
        """(N,) bool: rows that any gradient reaches. NaN counts as a gradient, so it stays visible."""
        grads = (self.log_probs_grad, self.entropy_grad, self.nucleus_grad)
        reached = torch.zeros_like(self.log_z, dtype=torch.bool)
        if self.top_grads is not None:
            reached |= (self.top_grads != 0).any(-1)
        for grad in grads:
            if grad is not None:
                reached |= grad != 0
        return reached

    def __getitem__(self, rows: Tensor | slice) -> "RowGradients":
        return RowGradients(*(None if value is None else value[rows] for value in vars(self).values()))


def new_state(rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The initial state of rows, before any tile is folded."""
    state = torch.zeros((STATE_ROWS, rows), dtype=dtype, device=device)
    state[MAX] = -torch.inf
    return state
