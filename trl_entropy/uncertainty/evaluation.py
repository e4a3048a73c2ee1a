# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of answers to a set of prompts, their fit on half of the prompts, and their quality on the other half."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .completions import Scored
from .epr import Calibration, fit_epr, fit_wepr
from .quality import Estimate, quality


EPR, WEPR, LENGTH = "EPR", "WEPR", "length alone"


@dataclass
class Scores:
    """Scores of N answers.

    Attributes:
        features: (N, 2K) in float64.
        lengths: (N,) tokens that count.
        prompts: the number of each answer's prompt.
        wrong: (N,) 1 for a wrong answer, NaN where it is not known.
        judged: (N,) bool, the answers on which nothing was fitted.
        calibrations: by name of the score.
    """

    features: Tensor
    lengths: Tensor
    prompts: list[int]
    wrong: Tensor
    judged: Tensor
    calibrations: dict[str, Calibration] = field(default_factory=dict)

    @property
    def epr(self) -> Tensor:
        """(N,) in nats."""
        return self.features.chunk(2, -1)[0].sum(-1)

    @property
    def probabilities(self) -> dict[str, Tensor]:
        """(N,) probabilities of a wrong answer, by name of the calibrated score."""
        return {name: found.probabilities(self.features) for name, found in self.calibrations.items()}

    @property
    def all(self) -> dict[str, Tensor]:
        """(N,) scores by name, calibrated where they can be. The length is there for comparison."""
        return {EPR: self.epr, **self.probabilities, LENGTH: self.lengths}

    @property
    def known(self) -> Tensor:
        """(N,) bool, the judged answers of which it is known whether they are right."""
        return self.judged & ~self.wrong.isnan()

    def fit(self, share: float, seed: int) -> None:
        """Fits EPR and WEPR on a share of the prompts, and judges on the others.

        Raises:
            `ValueError`: there are fewer than two prompts, or the answers to fit on are all right or all wrong.
        """
        chosen = part_of(self.prompts, share, seed)
        self.judged = ~chosen
        rows = chosen & ~self.wrong.isnan()
        wrong = self.wrong[rows]
        if wrong.unique().numel() < 2:
            raise ValueError(
                f"`--fit` needs both right and wrong answers, got {int((1 - wrong).sum())} right and "
                f"{int(wrong.sum())} wrong ones to fit on."
            )
        self.calibrations = {
            EPR: fit_epr(self.features[rows], wrong),
            WEPR: fit_wepr(self.features[rows], wrong),
        }

    @cached_property
    def quality(self) -> dict[str, dict[str, Estimate]]:
        """Estimates by name, of each score on the judged answers."""
        rows = self.known
        prompts = [prompt for prompt, there in zip(self.prompts, rows.tolist(), strict=True) if there]
        return {
            name: quality(values[rows], self.wrong[rows], prompts, name in self.calibrations)
            for name, values in self.all.items()
        }


def scores_of(scored: Sequence[Scored], keys: Sequence[Hashable], wrong: Sequence[float], k: int) -> Scores:
    """The scores of answers.

    Args:
        scored: the answers.
        keys: of each answer's prompt.
        wrong: 1 for a wrong answer, NaN if not known.
        k: ranks.
    """
    number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    features = torch.stack([answer.features(k).double() for answer in scored])
    lengths = torch.tensor([answer.length for answer in scored], dtype=torch.float64)
    labels = torch.tensor(wrong, dtype=torch.float64)
    judged = torch.ones(len(scored), dtype=torch.bool)
    return Scores(features, lengths, [number[key] for key in keys], labels, judged)


def part_of(prompts: Sequence[int], share: float, seed: int) -> Tensor:
    """(N,) bool: the answers to a random share of the prompts. At least one prompt is in and one out."""
    count = max(prompts, default=-1) + 1
    if count < 2:
        raise ValueError(f"`--fit` needs at least two prompts, got {count}.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[order[: min(max(round(share * count), 1), count - 1)]] = True
    return chosen[torch.tensor(prompts)]
