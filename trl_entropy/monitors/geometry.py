# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Geometry of representations: effective rank and power law of the spectrum.

[Tracing the Representation Geometry of Language Models from Pretraining to
Post-training](https://huggingface.co/papers/2509.23024). The features Z are the last layer's hidden states, after the
final norm, at the last token of each sequence of the probe. With the eigenvalues λ of their covariance:

1. RankMe is exp(-Σ p ln p), with p = λ / Σλ;
2. α is the exponent of λ_i ∝ i^-α, by least squares with weights 1/i over the ranks 11 to 100.

Departs from the paper's code: nothing is added to p, and R² has the same weights and ranks as the fit. Additions are
`participation` = (Σλ)² / Σλ², `top_share` = λ_1 / Σλ, and `dse` ([Assessing Neural Network Representations During
Training Using Noise-Resilient Diffusion Spectral Entropy](https://huggingface.co/papers/2312.04823)).
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..paper import Paper
from ..settings import checked, flag
from .base import ProbeBatch, ProbeMonitor
from .diffusion import diffusion_entropy
from .layers import decoder_of, layers_of


SMALLEST = 1e-12  # of the largest eigenvalue: below, an eigenvalue counts as 0
FEWEST = 12  # ranks from which a power law is fitted
LAST = "last"


def spectrum(features: Tensor) -> Tensor:
    """Eigenvalues of the covariance of features, the largest first, without those that are 0.

    Args:
        features: (n, d). They are centered.

    Returns:
        (r,) in float64. Empty if all features are equal, or one is not finite.
    """
    centered = features.double()
    centered = centered - centered.mean(0)
    if not centered.isfinite().all():
        return centered.new_zeros(0)
    n, d = centered.shape
    gram = centered @ centered.T if n <= d else centered.T @ centered
    values = torch.linalg.eigvalsh(gram / n).flip(0)
    # Equal features differ by rounding only.
    rounding = (features.double().square().sum() / n) * torch.finfo(torch.float64).eps
    return values[(values > SMALLEST * values[0]) & (values > rounding)]


def effective_rank(eigenvalues: Tensor) -> float:
    """RankMe, exp(-Σ p ln p) with p = λ / Σλ; NaN without eigenvalues."""
    share = eigenvalues / eigenvalues.sum()
    return float(torch.special.entr(share).sum().exp()) if len(share) else math.nan


def power_law(eigenvalues: Tensor, first: int = 11, last: int = 100) -> tuple[float, float]:
    """Exponent α and R² of λ_i ∝ i^-α, by least squares of logarithms with weights 1/i.

    Args:
        eigenvalues: (r,), the largest first.
        first, last: ranks of the fit, from 1. Fewer than 12 ranks: NaN.
    """
    end = min(last, len(eigenvalues))
    if end - first + 1 < FEWEST:
        return math.nan, math.nan
    rank = torch.arange(first, end + 1, dtype=torch.float64, device=eigenvalues.device)
    weight = 1 / rank
    x, y = rank.log(), eigenvalues[first - 1 : last].log()
    x, y = (values - (weight * values).sum() / weight.sum() for values in (x, y))
    slope = (weight * x * y).sum() / (weight * x * x).sum()
    left = (weight * (y - slope * x).square()).sum()
    total = (weight * y.square()).sum()
    return float(-slope), float(1 - left / total) if total > 0 else math.nan


def geometry_numbers(features: Tensor, ranks: list[int], dse: bool) -> dict[str, float]:
    """What is known of (n, d) features by name. NaN if it is not defined.

    Args:
        features: (n, d).
        ranks: first and last rank of the power law's fit.
        dse: whether to add the diffusion spectral entropy, in bits.
    """
    values = spectrum(features)
    alpha, r2 = power_law(values, *ranks)
    numbers = {"rankme": effective_rank(values), "alpha": alpha, "alpha_r2": r2}
    defined = len(values) > 0
    numbers["participation"] = float(values.sum() ** 2 / values.square().sum()) if defined else math.nan
    numbers["top_share"] = float(values[0] / values.sum()) if defined else math.nan
    return numbers | ({"dse": diffusion_entropy(features)} if dse else {})


@dataclass
class GeometryConfig:
    """Fields of the monitor `geometry`."""

    geometry_samples: int = field(
        default=256, metadata={"help": "Sequences of the probe. RankMe grows with it: compare at equal numbers only."}
    )
    geometry_ranks: list[int] = field(
        default_factory=lambda: [11, 100], metadata={"help": "First and last rank of the power law's fit."}
    )
    geometry_layers: list[int] = field(
        default_factory=list, metadata={"help": "Layers to measure beside the last one, from 0."}
    )
    geometry_dse: bool = field(default=False, metadata={"help": "Also log the diffusion spectral entropy, in bits."})


class Geometry(ProbeMonitor):
    """RankMe and the power law of the spectrum, of the last layer and of others."""

    name = "geometry"
    summary = "effective rank of the last hidden states, and how their spectrum decays"
    headline = "rankme"
    cost = "one forward of 256 sequences, and a spectrum (0.04 s at width 4096 on one thread)"
    paper = Paper(
        arxiv="2509.23024",
        title="Tracing the Representation Geometry of Language Models from Pretraining to Post-training",
        bibtex="""@article{li2025tracing,
    title   = {Tracing the Representation Geometry of Language Models from Pretraining to Post-training},
    author  = {Melody Zixuan Li and Kumar Krishna Agrawal and Arna Ghosh and Komal Kumar Teru and Adam Santoro and
               Guillaume Lajoie and Blake A. Richards},
    journal = {arXiv preprint arXiv:2509.23024},
    year    = {2025}
}""",
    )

    def __init__(self, config: Any):
        accepted = "a whole number >= 2"
        self.samples = checked(config, "geometry_samples", lambda value: type(value) is int and value >= 2, accepted)
        self.ranks = checked(
            config,
            "geometry_ranks",
            lambda value: len(value) == 2 and all(type(rank) is int for rank in value) and 1 <= value[0] < value[1],
            "two whole numbers, the first at least 1 and below the second",
        )
        self.layers = checked(
            config,
            "geometry_layers",
            lambda value: isinstance(value, list) and all(type(layer) is int and layer >= 0 for layer in value),
            "a list of whole numbers >= 0",
        )
        self.dse = flag(config, "geometry_dse")
        self._rows: dict[str, list[Tensor]] = {}

    def check_model(self, model: nn.Module) -> None:
        count = len(layers_of(model)) if self.layers else 0
        if beyond := [layer for layer in self.layers if layer >= count]:
            raise ValueError(
                f"`geometry_layers` must be below {count}, the model's number of layers, got {beyond[0]}."
            )

    @contextmanager
    def collecting(self, model: nn.Module, batch: ProbeBatch) -> Iterator[None]:
        def keep(name: str):
            def hook(module, arguments, output):
                hidden = output if isinstance(output, Tensor) else output[0]
                rows = torch.arange(len(batch.lengths), device=hidden.device)
                kept = hidden[rows, batch.lengths.to(hidden.device) - 1].float()
                self._rows.setdefault(name, []).append(kept)

            return hook

        with ExitStack() as hooks:
            hooks.callback(decoder_of(model).register_forward_hook(keep(LAST)).remove)
            for layer in self.layers:
                hooks.callback(layers_of(model)[layer].register_forward_hook(keep(f"layer_{layer}")).remove)
            yield

    def collected(self) -> dict[str, Tensor]:
        found = {name: torch.cat(rows) for name, rows in self._rows.items()}
        self._rows = {}
        return found

    def measure(self, rows: dict[str, Tensor]) -> dict[str, float]:
        found: dict[str, float] = {"samples": len(rows[LAST])}
        for name, features in rows.items():
            end = "" if name == LAST else f"_{name}"
            numbers = geometry_numbers(features, self.ranks, self.dse)
            found |= {f"{key}{end}": value for key, value in numbers.items()}
        return found
