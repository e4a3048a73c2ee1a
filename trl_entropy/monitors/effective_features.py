# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Effective features: how many features of a sparse autoencoder a layer uses.

[Superposition as Lossy Compression](https://huggingface.co/papers/2512.13568). With the codes z of an autoencoder for
the tokens of the probe, whose d-dimensional hidden states it encodes:

1. p_i = Σ|z_i| / Σ_j Σ|z_j|, the sums over tokens;
2. F = exp(-Σ p ln p), the effective number of features;
3. ψ = F / d, effective features per dimension: above 1, features share dimensions.

The autoencoder is the user's, and fixed. Departs from the authors' code: nothing is added to p.
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
from .base import ProbeBatch, ProbeMonitor
from .encoders import ACCEPTED, FIELD, encoded, encoder_of
from .layers import layers_of


def effective_features(activity: Tensor) -> float:
    """exp(-Σ p ln p) with p = activity / Σ activity.

    Args:
        activity: (F,) sums of |z| of each feature.

    Returns:
        The number of features that are used. 0 if all are 0; NaN if one is not finite.
    """
    activity = activity.double()
    if not activity.isfinite().all():
        return math.nan
    total = activity.sum()
    return float(torch.special.entr(activity / total).sum().exp()) if total > 0 else 0.0


@dataclass
class EffectiveFeaturesConfig:
    """Fields of the monitor `effective_features`."""

    effective_features_encoder: str | None = field(
        default=None,
        metadata={
            "help": "Encoder of a sparse autoencoder, (n, d) hidden states to (n, F) codes: a dotted path such as "
            "my_sae.encode, or a .safetensors file with W_enc and b_enc. The monitor needs it."
        },
    )
    effective_features_layer: int | None = field(
        default=None, metadata={"help": "Layer whose output the encoder was trained on, from 0. The monitor needs it."}
    )
    effective_features_samples: int = field(default=32, metadata={"help": "Sequences of the probe."})


class EffectiveFeatures(ProbeMonitor):
    """Effective number of a sparse autoencoder's features, at all tokens of the probe."""

    name = "effective_features"
    summary = "how many features of a given sparse autoencoder a layer uses"
    headline = "count"
    cost = "one forward of 32 sequences, and the encoder at each token"
    paper = Paper(
        arxiv="2512.13568",
        title="Superposition as Lossy Compression: Measure with Sparse Autoencoders and Connect to Adversarial "
        "Vulnerability",
        bibtex="""@article{bereska2025superposition,
    title   = {Superposition as Lossy Compression: Measure with Sparse Autoencoders and Connect to Adversarial
               Vulnerability},
    author  = {Leonard Bereska and Zoe Tzifa-Kratira and Reza Samavi and Efstratios Gavves},
    journal = {arXiv preprint arXiv:2512.13568},
    year    = {2025}
}""",
    )

    def __init__(self, config: Any):
        self.samples = checked(
            config,
            "effective_features_samples",
            lambda value: type(value) is int and value >= 1,
            "a whole number >= 1",
        )
        self.layer = checked(
            config,
            "effective_features_layer",
            lambda value: value is None or (type(value) is int and value >= 0),
            "a whole number >= 0, or none",
        )
        checked(
            config,
            FIELD,
            lambda value: value is None or isinstance(value, str) or callable(value),
            f"{ACCEPTED}, or none",
        )
        self.encode: Any = None
        if self.name in config.monitors:
            for name in (FIELD, "effective_features_layer"):
                if getattr(config, name) is None:
                    raise ValueError(f"`{name}` must be set with the monitor {self.name!r}, got None.")
            self.encode = encoder_of(config.effective_features_encoder)
        self._width = 0
        self._rows: list[Tensor] = []

    def check_model(self, model: nn.Module) -> None:
        count = len(layers_of(model))
        if self.layer >= count:
            raise ValueError(
                f"`effective_features_layer` must be below {count}, the model's number of layers, got {self.layer}."
            )

    @contextmanager
    def collecting(self, model: nn.Module, batch: ProbeBatch) -> Iterator[None]:
        def keep(module, arguments, output):
            hidden = output if isinstance(output, Tensor) else output[0]
            self._width = hidden.size(-1)
            for row, length in zip(hidden, batch.lengths.tolist(), strict=True):
                self._rows.append(encoded(self.encode, row[:length].float()))

        hook = layers_of(model)[self.layer].register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    def collected(self) -> dict[str, Tensor]:
        rows, self._rows = self._rows, []
        return {"activity": torch.stack(rows)}

    def measure(self, rows: dict[str, Tensor]) -> dict[str, float]:
        activity = rows["activity"].double().sum(0)
        count = effective_features(activity)
        dead = float((activity == 0).double().mean()) if not math.isnan(count) else math.nan
        return {"count": count, "per_dimension": count / self._width, "dead": dead}
