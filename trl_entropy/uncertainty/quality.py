# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""How well a score tells right answers from wrong ones, with bootstrap intervals over prompts.

A *score* is higher for answers that are rather wrong; `wrong` is 1 for a wrong answer. A *confidence* is the
probability that an answer is right.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


FEWEST = 20  # of right and of wrong answers, from which AUROC and average precision are told
DRAWS = 1000
SMALLEST = 1e-12  # a probability below counts as this in the log-likelihood


def _tied(values: Tensor) -> tuple[Tensor, Tensor]:
    """The place of each value among the distinct ones in ascending order, and how often each of these occurs."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    return place, count


def auroc(scores: Tensor, wrong: Tensor) -> float:
    """Probability that a wrong answer has a higher score than a right one, a tie counting half; NaN without both."""
    wrong = wrong.double()
    positive, negative = float(wrong.sum()), float((1 - wrong).sum())
    if not positive or not negative:
        return math.nan
    place, count = _tied(scores)
    rank = (count.cumsum(0) - (count - 1) / 2.0).double()[place]  # mean rank of equal scores, from 1
    return (float((rank * wrong).sum()) - positive * (positive + 1) / 2) / (positive * negative)


def average_precision(scores: Tensor, wrong: Tensor) -> float:
    """Σ (R_n - R_(n-1)) P_n over the distinct scores, the highest first; NaN without wrong answers."""
    wrong = wrong.double()
    if not wrong.sum():
        return math.nan
    place, count = _tied(scores)
    hits = torch.zeros(len(count), dtype=torch.float64, device=place.device).index_add_(0, place, wrong).flip(0)
    precision = hits.cumsum(0) / count.flip(0).cumsum(0)
    return float((hits * precision).sum() / wrong.sum())


def calibration_bins(confidence: Tensor, right: Tensor, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Number of answers, mean confidence and share of right answers in bins of equal width, closed on the left.

    Returns:
        Three (bins,) tensors. Mean and share are NaN for an empty bin.
    """
    confidence, right = confidence.double(), right.double()
    place = (confidence * bins).long().clamp(0, bins - 1)
    count, mean, share = (
        torch.zeros(bins, dtype=torch.float64, device=place.device).index_add_(0, place, values)
        for values in (torch.ones_like(confidence), confidence, right)
    )
    return count, mean / count, share / count


def calibration_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """ECE: mean over answers of |confidence - share of right answers| of their bin."""
    count, mean, share = calibration_bins(confidence, right, bins)
    gap = torch.where(count > 0, (mean - share).abs(), 0)
    return float((count * gap).sum() / count.sum())


def brier(confidence: Tensor, right: Tensor) -> float:
    """Mean squared difference of confidence and outcome."""
    return float((confidence.double() - right.double()).square().mean())


def negative_log_likelihood(confidence: Tensor, right: Tensor) -> float:
    """Mean of -ln of the probability of the outcome, in nats."""
    right = right.double()
    truth = torch.where(right > 0, confidence.double(), 1 - confidence.double())
    return float(-truth.clamp(min=SMALLEST).log().mean())


def risk_coverage(confidence: Tensor, right: Tensor) -> Tensor:
    """Share of wrong answers among the n most confident ones, n = 1..N: (N,).

    Answers of equal confidence count with the mean of their outcomes, so their order does not matter.
    """
    wrong = 1 - right.double()
    place, count = _tied(confidence)
    mean = torch.zeros(len(count), dtype=torch.float64, device=place.device).index_add_(0, place, wrong) / count
    risk = mean[place[place.argsort(descending=True)]]
    return risk.cumsum(0) / torch.arange(1, len(risk) + 1, dtype=torch.float64, device=risk.device)


def area_under_risk(confidence: Tensor, right: Tensor) -> float:
    """AURC: mean of the risk over all coverages."""
    return float(risk_coverage(confidence, right).mean())


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval; NaN where it is not defined."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        return "-" if math.isnan(self.value) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


Metric = Callable[[Tensor, Tensor], float]
RANKING: dict[str, Metric] = {"auroc": auroc, "average_precision": average_precision}
OF_PROBABILITIES: dict[str, Metric] = {
    "ece": calibration_error,
    "brier": brier,
    "nll": negative_log_likelihood,
}


def quality(
    scores: Tensor,
    wrong: Tensor,
    prompts: Sequence[int] | None = None,
    probabilities: bool = True,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Estimate]:
    """AUROC, average precision and AURC of a score, and ECE, Brier score and NLL of a probability.

    Args:
        scores: (N,) probabilities of a wrong answer, or any scores that are higher for wrong answers.
        wrong: (N,) 1 for a wrong answer.
        prompts: the prompt of each answer, by number. The bootstrap draws prompts, with all their answers. By default
            each answer has its own.
        probabilities: whether the scores are probabilities. If not, ECE, Brier score and NLL are left out.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Estimates by name. AUROC and average precision are NaN with fewer than 20 right or 20 wrong answers.
    """
    scores, wrong = scores.double().cpu(), wrong.double().cpu()

    def measured(rows: Tensor | slice) -> list[float]:
        s, w = scores[rows], wrong[rows]
        found = [metric(s, w) for metric in RANKING.values()]
        found.append(area_under_risk(-s, 1 - w))
        return found + ([metric(1 - s, 1 - w) for metric in OF_PROBABILITIES.values()] if probabilities else [])

    names = [*RANKING, "aurc", *(OF_PROBABILITIES if probabilities else ())]
    if not len(scores):
        return dict.fromkeys(names, Estimate(math.nan))
    drawn = torch.tensor([measured(rows) for rows in _resampled(prompts, len(scores), draws, seed)])
    found = {}
    for place, (name, value) in enumerate(zip(names, measured(slice(None)), strict=True)):
        finite = drawn[:, place][drawn[:, place].isfinite()].double() if draws else drawn.new_zeros(0).double()
        ends = torch.quantile(finite, finite.new_tensor([0.025, 0.975])).tolist() if len(finite) else [math.nan] * 2
        found[name] = Estimate(value, *ends)
    if min(wrong.sum(), (1 - wrong).sum()) < FEWEST:
        found |= dict.fromkeys(RANKING, Estimate(math.nan))
    return found


def _resampled(prompts: Sequence[int] | None, count: int, draws: int, seed: int):
    """Rows of each draw of the bootstrap: those of as many prompts as there are, drawn with replacement."""
    groups: dict[int, list[int]] = {}
    for row, prompt in enumerate(range(count) if prompts is None else prompts):
        groups.setdefault(prompt, []).append(row)
    rows = [torch.tensor(members) for members in groups.values()]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield torch.cat([rows[n] for n in torch.randint(len(rows), (len(rows),), generator=generator).tolist()])
