# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Entropy forecast: the first-order entropy change that a step's policy gradient predicts, and the realized change."""

import math

from ..functional import StepMean, discriminator, mean_discriminator
from ..tokens import TokenBatch


class EntropyForecast:
    """Compares predicted and realized change of mean token entropy at each step.

    For a tabular softmax the update of one token changes its entropy by -η A r (S - N) to first order, with
    S = π (H + log π) of the sampled token and N its mean under the policy
    ([theorem 3.3](https://huggingface.co/papers/2602.03392)). The forecast is the mean of -A g (S - N) over the tokens
    of a step, in nats per unit of η. g is the weight of the token's gradient in TRL's loss: r for PPO, 0 for a masked
    or clipped token. Real models share parameters between tokens, so only the forecast's sign and its correlation with
    the realized change are meaningful.
    """

    def __init__(self):
        self.predicted = {sign: StepMean() for sign in ("", "_positive", "_negative")}
        self.entropy = StepMean()
        self.last_entropy: float | None = None
        self.last_predicted: float | None = None
        self.moments = [0.0] * 6  # n, Σx, Σy, Σx², Σy², Σxy of predicted and realized changes

    def update(self, tokens: TokenBatch) -> dict[str, float]:
        """Adds a forward of training. Returns the log values of the previous step if this forward begins a new one."""
        entropy = tokens.entropy.detach()
        mean = mean_discriminator(entropy, tokens.sum_sq_probs, tokens.sum_sq_probs_log_probs)
        change = -tokens.advantages * tokens.gradient_weight * (discriminator(tokens.logps.detach(), entropy) - mean)
        change = change.masked_fill(~tokens.has_gradient, 0)
        parts = {"": change, "_positive": change.masked_fill(tokens.advantages <= 0, 0)}
        parts["_negative"] = change - parts["_positive"]
        finished = {sign: self.predicted[sign].add_tokens(tokens, part) for sign, part in parts.items()}
        step_entropy = self.entropy.add_tokens(tokens, entropy)
        if step_entropy is None:
            return {}
        logged = {f"entropy/predicted_change{sign}": value for sign, value in finished.items() if value is not None}
        if self.last_entropy is not None:
            realized = step_entropy - self.last_entropy
            logged["entropy/realized_change"] = realized
            if self.last_predicted is not None:
                self._correlate(self.last_predicted, realized)
            logged["entropy/change_correlation"] = self.correlation
        self.last_entropy, self.last_predicted = step_entropy, finished[""]
        return logged

    def _correlate(self, x: float, y: float) -> None:
        self.moments = [a + b for a, b in zip(self.moments, (1, x, y, x * x, y * y, x * y), strict=True)]

    @property
    def correlation(self) -> float:
        """Pearson correlation of predicted and realized changes so far; NaN with fewer than three."""
        n, x, y, xx, yy, xy = self.moments
        spread = (n * xx - x * x) * (n * yy - y * y)
        return (n * xy - x * y) / math.sqrt(spread) if n > 2 and spread > 0 else math.nan

    def state_dict(self) -> dict:
        return {
            "predicted": {sign: mean.state_dict() for sign, mean in self.predicted.items()},
            "entropy": self.entropy.state_dict(),
            "last": [self.last_entropy, self.last_predicted],
            "moments": self.moments,
        }

    def load_state_dict(self, state: dict) -> None:
        for sign, mean in self.predicted.items():
            mean.load_state_dict(state["predicted"][sign])
        self.entropy.load_state_dict(state["entropy"])
        self.last_entropy, self.last_predicted = state["last"]
        self.moments = state["moments"]
