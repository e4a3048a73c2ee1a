# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains a classifier with one hidden layer, and judges it on examples held out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


RATE, BATCH = 1e-3, 32


def split_labels(target: Tensor, share: float, seed: int) -> Tensor:
    """(N,) bool: the examples to fit on. Of each label, a share of them, at least one, is left out.

    Raises:
        `ValueError`: the share is not in (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` must be a number in (0, 1), got {share!r}.")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.ones(len(target), dtype=torch.bool)
    for label in target.unique():
        places = (target == label).nonzero().flatten()
        count = min(max(1, round(share * len(places))), len(places) - 1)
        chosen[places[torch.randperm(len(places), generator=generator)[:count]]] = False
    return chosen


def standardization(features: Tensor) -> tuple[Tensor, Tensor]:
    """(d,) means and deviations of (N, d) features. A constant feature has an infinite one, which makes it 0."""
    mean, scale = features.mean(0), features.std(0, correction=0)
    return mean, torch.where(scale > 1e-6 * (1e-6 + mean.abs()), scale, torch.inf)


def train(x: Tensor, target: Tensor, labels: int, width: int, epochs: int, seed: int) -> dict[str, Tensor]:
    """Fits softmax(W2 relu(W1 x + b1) + b2) by cross-entropy, each label weighted by 1 / its frequency.

    Args:
        x: (N, d), standardized.
        target: (N,) places of labels.
        labels: their number C.
        width: H.
        epochs: passes over the examples.
        seed: of initial weights and order. The global random state is left as it is.

    Returns:
        `W1` (H, d), `b1` (H,), `W2` (C, H) and `b2` (C,).
    """
    counts = torch.bincount(target, minlength=labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = nn.Linear(x.size(1), width), nn.Linear(width, labels)
        loss_of = nn.CrossEntropyLoss(weight=len(target) / (labels * counts))
        optimizer = torch.optim.AdamW([*first.parameters(), *second.parameters()], lr=RATE)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(BATCH):
                optimizer.zero_grad()
                with torch.enable_grad():
                    loss_of(second(torch.relu(first(x[rows]))), target[rows]).backward()
                optimizer.step()
    named = {"W1": first.weight, "b1": first.bias, "W2": second.weight, "b2": second.bias}
    return {name: weight.detach().clone() for name, weight in named.items()}


@dataclass(frozen=True)
class HeldOut:
    """Quality on examples that a probe was not fitted to.

    Attributes:
        count: number of examples.
        accuracy: share of right labels.
        majority: share of the most common label: the accuracy of always saying it.
        recall: by label, the share of its examples that got it.
    """

    count: int
    accuracy: float
    majority: float
    recall: dict[str, float]

    @classmethod
    def of(cls, probabilities: Tensor, target: Tensor, labels: Sequence[str]) -> "HeldOut":
        """From (N, C) probabilities and (N,) places of the right labels."""
        right = (probabilities.argmax(-1) == target).double()
        counts = torch.bincount(target, minlength=len(labels))
        of_label = {name: float(right[target == n].mean()) if counts[n] else math.nan for n, name in enumerate(labels)}
        return cls(len(target), float(right.mean()), float(counts.max()) / len(target), of_label)

    @property
    def balanced(self) -> float:
        """Mean recall of the labels."""
        return sum(self.recall.values()) / len(self.recall)
