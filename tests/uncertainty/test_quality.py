# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Quality of scores: the worked examples, a brute-force count, torchmetrics where it is installed, the bootstrap."""

import math

import pytest
import torch

from trl_entropy.uncertainty import quality as module
from trl_entropy.uncertainty.quality import (
    area_under_risk,
    auroc,
    average_precision,
    brier,
    calibration_bins,
    calibration_error,
    negative_log_likelihood,
    quality,
    risk_coverage,
)


CONFIDENCE = torch.tensor([0.9, 0.8, 0.75, 0.6, 0.55, 0.3], dtype=torch.float64)
RIGHT = torch.tensor([1, 1, 0, 1, 0, 0])


def random_answers(count, seed=0, levels=20):
    """Scores with many ties, and labels that go with them."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(1, levels, (count,), generator=generator).double() / levels
    return scores, (torch.rand(count, generator=generator) < scores).long()


def test_worked_examples():
    assert auroc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1])) == pytest.approx(0.75, abs=1e-12)
    assert calibration_error(CONFIDENCE, RIGHT, bins=5) == pytest.approx(0.25, abs=1e-9)
    assert brier(CONFIDENCE, RIGHT) == pytest.approx(0.1941666667, abs=1e-9)
    assert negative_log_likelihood(CONFIDENCE, RIGHT) == pytest.approx(0.5634677820, abs=1e-9)
    risk = risk_coverage(CONFIDENCE, RIGHT).tolist()
    assert risk == pytest.approx([0, 0, 0.3333333333, 0.25, 0.4, 0.5], abs=1e-9)
    assert area_under_risk(CONFIDENCE, RIGHT) == pytest.approx(0.2472222222, abs=1e-9)


def test_auroc_counts_pairs():
    scores, wrong = random_answers(60)
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a in scores[wrong == 1].tolist()
        for b in scores[wrong == 0].tolist()
    ]  # fmt: skip
    assert auroc(scores, wrong) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert auroc(-scores, wrong) == pytest.approx(1 - auroc(scores, wrong), abs=1e-12)
    assert math.isnan(auroc(scores, torch.ones(60))) and math.isnan(auroc(scores, torch.zeros(60)))
    assert math.isnan(average_precision(scores, torch.zeros(60))) and average_precision(scores, torch.ones(60)) == 1


def test_equal_scores_count_in_no_order():
    right = torch.tensor([1, 0, 0, 1])
    same = torch.full((4,), 0.5)
    assert risk_coverage(same, right).tolist() == [0.5] * 4
    assert auroc(same, 1 - right) == 0.5 and average_precision(same, 1 - right) == 0.5


def test_empty_bins_and_ends():
    count, mean, share = calibration_bins(torch.tensor([0.0, 1.0, 0.999]), torch.tensor([0, 1, 0]), bins=4)
    assert count.tolist() == [1, 0, 0, 2] and math.isnan(mean[1]) and share[3] == 0.5
    assert negative_log_likelihood(torch.tensor([1.0]), torch.tensor([0])) == pytest.approx(-math.log(1e-12), rel=1e-6)


def test_agrees_with_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.classification")
    for seed in range(3):
        scores, wrong = random_answers(200, seed, levels=19)
        assert auroc(scores, wrong) == pytest.approx(float(functional.binary_auroc(scores, wrong)), abs=1e-6)
        expected = float(functional.binary_average_precision(scores, wrong))
        assert average_precision(scores, wrong) == pytest.approx(expected, abs=1e-6)
        expected = float(functional.binary_calibration_error(scores, wrong, n_bins=15))
        assert calibration_error(scores, wrong) == pytest.approx(expected, abs=1e-6)


def test_intervals_are_of_prompts():
    """Answers that are all alike within a prompt are worth one: the interval is that of a tenth of the answers."""
    scores, wrong = random_answers(200)
    single = quality(scores, wrong, draws=300)
    repeated = quality(scores.repeat(10), wrong.repeat(10), [*range(200)] * 10, draws=300)
    careless = quality(scores.repeat(10), wrong.repeat(10), draws=300)
    names = ["auroc", "average_precision", "aurc", "ece", "brier", "nll"]
    assert list(single) == names
    for name in names:
        one, many, narrow = single[name], repeated[name], careless[name]
        assert one.low <= many.value <= one.high and one.value == pytest.approx(many.value, abs=0.01)
        assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.25)
        assert narrow.high - narrow.low < 0.6 * (many.high - many.low)
    assert quality(scores, wrong, draws=300) == single  # the seed is fixed


def test_the_interval_covers_the_truth():
    """Scores of N(d, 1) and N(0, 1): AUROC is Φ(d / √2). A 95 % interval misses it once in twenty."""
    truth, hits = 0.5 * (1 + math.erf(1 / 2)), 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        wrong = torch.arange(100) % 2
        scores = torch.randn(100, generator=generator) + wrong
        found = quality(scores, wrong, probabilities=False, draws=100)["auroc"]
        hits += found.low <= truth <= found.high
    assert 33 <= hits <= 40


def test_few_of_a_class_give_no_auroc():
    scores, wrong = random_answers(100)
    order = wrong.argsort(descending=True)
    few = torch.cat([order[:19], order[-40:]])
    found = quality(scores[few], wrong[few], draws=20)
    assert wrong[few].sum() == 19
    assert math.isnan(found["auroc"].value) and math.isnan(found["average_precision"].value)
    assert not math.isnan(found["brier"].value) and str(found["auroc"]) == "-"
    plain = quality(scores, wrong, probabilities=False, draws=20)
    assert list(plain) == ["auroc", "average_precision", "aurc"]
    assert math.isnan(quality(scores[:0], wrong[:0])["aurc"].value)
    assert module.FEWEST == 20
