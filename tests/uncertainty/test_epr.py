# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of completions: the worked examples, their edge cases, and the files of coefficients."""

import json
import math

import pytest
import torch
from support.tiny import FLOAT64

from trl_entropy.uncertainty.contributions import (
    contributions,
    missing_entropy,
    pooled,
    ranked_contributions,
    top_log_probs,
)
from trl_entropy.uncertainty.epr import Calibration, epr_score, fit_epr, fit_wepr, wepr_score


ROWS = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.9, 0.05, 0.03, 0.02]], dtype=torch.float64)
WEIGHTS = Calibration(
    -1.0, torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([0.5, -0.5], dtype=torch.float64)
)


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **FLOAT64)


def test_worked_example_of_all_ranks():
    ranked = contributions(ROWS.log(), 4)
    close(ranked.sum(-1), [1.2130075660, 0.4280482748])
    close(epr_score(ranked), 0.8205279204)
    means = [0.2206990272, 0.2481801020, 0.1825634648, 0.1690853264]
    close(pooled(ranked), [*means, 0.3465735903, 0.3465735903, 0.2599301927, 0.2599301927])


def test_worked_example_of_two_ranks():
    ranked = ranked_contributions(ROWS.log(), 2)
    close(epr_score(ranked), 0.4688791292)
    close(WEIGHTS.logits(pooled(ranked)), -0.2829407689)
    close(wepr_score(ranked, WEIGHTS), 0.4297329553)
    close(WEIGHTS.token_scores(ranked), [0.5099288873, 0.3530630223])
    missing = missing_entropy(ROWS[:1].log(), 4, 2)
    close(missing, [0.5198603854])
    exact = contributions(ROWS[:1].log(), 4).sum(-1)
    assert exact <= ranked[:1].sum(-1) + missing + 1e-12  # the bound, here met: both unknown tokens have 0.125
    close(ranked[:1].sum(-1) + missing - exact, [0.0])


def test_bound_holds_and_needs_an_unknown_token():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 40, generator=generator, dtype=torch.float64)
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
    for k in (1, 5, 39, 40):
        top = top_log_probs(logits, k)
        known = ranked_contributions(top, k).sum(-1)
        assert (known <= entropy + 1e-12).all() and (entropy <= known + missing_entropy(top, 40, k) + 1e-9).all()
    assert missing_entropy(top, 40, 40).eq(0).all()
    close(epr_score(contributions(logits, 40)), float(entropy.mean()))


def test_chunks_do_not_change_the_result():
    logits = torch.randn(3, 7, 11, generator=torch.Generator().manual_seed(1))
    whole = contributions(logits, 4, chunk=1000)
    assert whole.shape == (3, 7, 4) and torch.equal(contributions(logits, 4, chunk=1), whole)
    assert top_log_probs(logits.bfloat16(), 4).dtype == torch.float32
    assert contributions(logits[:0], 4).shape == (0, 7, 4)


def test_ranks_are_sorted_cut_and_filled():
    """An engine adds the sampled token at any place; an API has fewer ranks, or -inf or -9999 for no token."""
    log_probs = ROWS.log()[:, [3, 0, 2, 1]]
    assert torch.equal(ranked_contributions(log_probs, 2), ranked_contributions(ROWS.log(), 2))
    few = ranked_contributions(ROWS.log()[:, :2], 4)
    close(few[:, 2:], [[0.0, 0.0], [0.0, 0.0]])
    nothing = torch.tensor([[0.0, -math.inf, -9999.0], [1e-7, -math.inf, -math.inf]], dtype=torch.float64)
    assert torch.equal(ranked_contributions(nothing, 3), torch.zeros(2, 3, dtype=torch.float64))


def test_masks_leave_out_padding_and_tools():
    ranked = contributions(ROWS.log(), 4)
    loud = torch.full((1, 4), 9.0, dtype=torch.float64)
    mixed = torch.stack([torch.cat([ranked[:1], loud, ranked[1:], loud]), loud.expand(4, 4)])
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    found = pooled(mixed, mask)
    close(found[0], pooled(ranked).tolist())
    assert found[1].eq(0).all()
    close(epr_score(mixed, mask), [0.8205279204, 0.0])
    two = WEIGHTS.probabilities(pooled(mixed[..., :2], mask))
    close(two, [0.4297329553, 1 / (1 + math.e)])  # an empty completion: the intercept alone


def test_empty_completion():
    empty = contributions(torch.zeros(0, 6, dtype=torch.float64), 2)
    assert epr_score(empty) == 0 and WEIGHTS.token_scores(empty).shape == (0,)
    close(wepr_score(empty, WEIGHTS), 1 / (1 + math.e))


def test_files_have_the_names_of_artefactual(tmp_path):
    path = tmp_path / "wepr.json"
    WEIGHTS.save(path)
    assert json.loads(path.read_text()) == {
        "intercept": -1.0,
        "coefficients": {"mean_rank_1": 1.0, "mean_rank_2": 2.0, "max_rank_1": 0.5, "max_rank_2": -0.5},
    }
    assert Calibration.load(path).as_json() == WEIGHTS.as_json() and Calibration.load(path).k == 2
    path.write_text('{"intercept": -2.5, "coefficients": {"mean_entropy": 4}}')
    epr = Calibration.load(path)
    assert epr.k is None and epr.as_json() == {"intercept": -2.5, "coefficients": {"mean_entropy": 4.0}}
    ranked = contributions(ROWS.log(), 4)
    close(epr.logits(pooled(ranked)), -2.5 + 4 * 0.8205279204)
    close(epr.token_scores(ranked), [1 / (1 + math.exp(2.5 - 4 * x)) for x in (1.2130075660, 0.4280482748)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "`weights` must be a JSON file"),
        ('{"intercept": 1}', "`weights` must be a JSON file"),
        ('{"intercept": 1, "coefficients": {}}', "got coefficients  in"),
        ('{"intercept": 1, "coefficients": {"mean_rank_1": 1, "max_rank_2": 2}}', "got coefficients mean_rank_1, max"),
        ('{"intercept": NaN, "coefficients": {"mean_entropy": 1}}', "must hold finite numbers"),
    ],
)
def test_files_of_other_formats_are_refused(tmp_path, text, message):
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Calibration.load(tmp_path / "w.json")


def planted(rows, length=30, seed=0):
    """Contributions of answers, half of them with tokens of a higher temperature: (N, T, K), (N,) wrong."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.arange(rows) % 2
    logits = 4 * torch.randn(rows, length, 50, generator=generator)
    noisy = (torch.rand(rows, length, generator=generator) < 0.3) & (wrong[:, None] > 0)
    return contributions(torch.where(noisy[..., None], logits / 2.5, logits), 8), wrong


def test_planted_hallucinations_are_found():
    from trl_entropy.uncertainty.quality import auroc

    ranked, wrong = planted(200)
    fitted, judged = slice(0, 100), slice(100, 200)
    features = pooled(ranked)
    by_entropy = auroc(epr_score(ranked)[judged], wrong[judged])
    wepr = fit_wepr(features[fitted], wrong[fitted])
    by_ranks = auroc(wepr.probabilities(features[judged]), wrong[judged])
    assert by_entropy > 0.85 and by_ranks > 0.85 and wepr.k == 8
    epr = fit_epr(features[fitted], wrong[fitted])
    assert auroc(epr.probabilities(features[judged]), wrong[judged]) == pytest.approx(by_entropy)
