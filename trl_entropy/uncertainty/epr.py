# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""EPR and WEPR: scores of a completion by the entropies of its tokens.

[Learned Hallucination Detection in Black-Box LLMs using Token-level Entropy Production
Rate](https://huggingface.co/papers/2509.04492). With the contributions s_kj of rank k at token j, K ranks:

1. EPR is mean_j Σ_k s_kj, in nats;
2. WEPR is σ(β_0 + mean_j Σ_k β_k s_kj + Σ_k γ_k max_j s_kj), the probability of a hallucination;
3. the score of a token is σ(β_0 + Σ_k β_k s_kj).

Departs from the paper, as its code does: nats instead of bits, and the probability of a wrong answer, not of a right
one. The coefficients are fitted with an L2 penalty on standardized features. None are shipped: those of the authors
are of other models and prompts.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..paper import Paper
from .contributions import pooled
from .logistic import fit_logistic


PAPER = Paper(
    arxiv="2509.04492",
    title="Learned Hallucination Detection in Black-Box LLMs using Token-level Entropy Production Rate",
    bibtex="""@inproceedings{moslonka2026learned,
    title     = {Learned Hallucination Detection in Black-Box {LLM}s using Token-level Entropy Production Rate},
    author    = {Charles Moslonka and Hicham Randrianarivo and Arthur Garnier and Emmanuel Malherbe},
    booktitle = {Advances in Information Retrieval (ECIR)},
    year      = {2026}
}""",
)
EPR_NAME = "mean_entropy"


def epr_score(ranked: Tensor, mask: Tensor | None = None) -> Tensor:
    """EPR: mean over tokens of the entropy of the K likeliest tokens, in nats.

    Args:
        ranked: (..., T, K) contributions.
        mask: (..., T) bool, the tokens that count; all by default.

    Returns:
        (...). 0 for a completion without tokens.
    """
    return pooled(ranked, mask)[..., : ranked.size(-1)].sum(-1)


@dataclass(frozen=True)
class Calibration:
    """Coefficients that turn features into the probability of a hallucination.

    Attributes:
        intercept: β_0.
        mean: (K,) β of WEPR; for EPR (1,), of the score itself.
        maximum: (K,) γ of WEPR; `None` for EPR.
    """

    intercept: float
    mean: Tensor
    maximum: Tensor | None = None

    @property
    def k(self) -> int | None:
        """Number of ranks; `None` for EPR, which does not depend on it."""
        return None if self.maximum is None else len(self.mean)

    def _weights(self, like: Tensor) -> Tensor:
        """β as (K,) weights of contributions."""
        weights = self.mean.to(like)
        return weights.expand(like.size(-1)) if self.maximum is None else weights

    def logits(self, features: Tensor) -> Tensor:
        """(..., 2K) features of [`pooled`] -> (...) logits."""
        means, maxima = features.chunk(2, -1)
        found = self.intercept + means @ self._weights(means)
        return found if self.maximum is None else found + maxima @ self.maximum.to(maxima)

    def probabilities(self, features: Tensor) -> Tensor:
        """(..., 2K) features of [`pooled`] -> (...) probabilities of a hallucination."""
        return self.logits(features).sigmoid()

    def token_scores(self, ranked: Tensor) -> Tensor:
        """(..., T, K) contributions -> (..., T) scores of tokens in (0, 1)."""
        return (self.intercept + ranked @ self._weights(ranked)).sigmoid()

    def as_json(self) -> dict:
        """The JSON format of `artefactual`."""
        if self.maximum is None:
            named = {EPR_NAME: float(self.mean[0])}
        else:
            parts = {"mean": self.mean, "max": self.maximum}
            named = {f"{part}_rank_{n}": x for part, w in parts.items() for n, x in enumerate(w.tolist(), 1)}
        return {"intercept": self.intercept, "coefficients": named}

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Reads the JSON format of `artefactual`.

        Raises:
            `ValueError`: the file is not of this format.
        """
        accepted = (
            f'a JSON file {{"intercept": ..., "coefficients": {{...}}}} with the coefficient "{EPR_NAME}", or with '
            '"mean_rank_1" to "mean_rank_K" and "max_rank_1" to "max_rank_K"'
        )
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            intercept, named = float(found["intercept"]), {k: float(x) for k, x in found["coefficients"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"`weights` must be {accepted}, got {str(path)!r}.") from error
        ranks = range(1, len(named) // 2 + 1)
        if not all(map(math.isfinite, (intercept, *named.values()))):
            raise ValueError(f"`weights` must hold finite numbers, got others in {str(path)!r}.")
        if set(named) == {EPR_NAME}:
            return cls(intercept, torch.tensor([named[EPR_NAME]], dtype=torch.float64))
        if not named or set(named) != {f"{part}_rank_{n}" for part in ("mean", "max") for n in ranks}:
            raise ValueError(f"`weights` must be {accepted}, got coefficients {', '.join(named)} in {str(path)!r}.")
        mean, maximum = ([named[f"{part}_rank_{n}"] for n in ranks] for part in ("mean", "max"))
        return cls(intercept, torch.tensor(mean, dtype=torch.float64), torch.tensor(maximum, dtype=torch.float64))


def wepr_score(ranked: Tensor, calibration: Calibration, mask: Tensor | None = None) -> Tensor:
    """WEPR: the probability that a completion is a hallucination.

    Args:
        ranked: (..., T, K) contributions.
        calibration: coefficients of K ranks.
        mask: (..., T) bool, the tokens that count; all by default.

    Returns:
        (...). σ(β_0) for a completion without tokens.
    """
    return calibration.probabilities(pooled(ranked, mask))


def fit_wepr(features: Tensor, wrong: Tensor, strength: float = 1.0) -> Calibration:
    """WEPR's coefficients, by logistic regression of wrong answers on the features.

    Args:
        features: (N, 2K) of [`pooled`].
        wrong: (N,) 1 for a wrong answer, 0 for a right one.
        strength: of the data against the penalty, as in [`fit_logistic`].
    """
    intercept, weights = fit_logistic(features, wrong, strength)
    mean, maximum = weights.chunk(2)
    return Calibration(intercept, mean, maximum)


def fit_epr(features: Tensor, wrong: Tensor, strength: float = 1.0) -> Calibration:
    """A calibration of EPR. Takes the arguments of [`fit_wepr`]."""
    scores = features.chunk(2, -1)[0].sum(-1, keepdim=True)
    intercept, weights = fit_logistic(scores, wrong, strength)
    return Calibration(intercept, weights)
