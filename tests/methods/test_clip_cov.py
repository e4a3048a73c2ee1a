# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import math
import random

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support.fuzzing import SHARES, covers, draw_flags, draw_shape
from support.reference import covariance, policy_terms
from support.registry import MethodSettings
from support.tensors import config_of, make_tokens, random_tokens
from support.tiny import FLOAT64, LOSS_TYPES

from trl_entropy import functional
from trl_entropy.methods import METHODS, clip_cov
from trl_entropy.methods.clip_cov import clip_cov_mask


METHOD_SETTINGS = {
    "clip_cov": MethodSettings(
        strong=dict(clip_cov_ratio=0.2, clip_cov_low=0.02, clip_cov_high=2.0),
        world=dict(clip_cov_ratio=0.2, clip_cov_low=0.02, clip_cov_high=2.0, clip_cov_scope="world"),
        batches=(256, 2048),
    )
}


SETTINGS = dict(clip_cov_ratio=0.2, clip_cov_low=0.05, clip_cov_high=1.5)


def kept_by_hand(tokens_eligible, mask, share, seed):
    """The draw, token by token: which eligible tokens a seeded sample without replacement takes."""
    places = [(row, column) for row, column in mask.nonzero().tolist() if tokens_eligible[row, column]]
    count = min(len(places), max(1, math.floor(share * int(mask.sum()))))
    kept = mask.clone()
    for pick in random.Random(repr(seed)).sample(range(len(places)), count):
        kept[places[pick]] = False
    return kept


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients(make_trainer, loss_type):
    def reference(logps, old_logps, entropy, advantages, mask):
        cov = covariance(logps, advantages, mask)
        ratio = (logps - old_logps).exp()
        cut = torch.zeros_like(mask)
        if loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo"):
            unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)
            cut = clipped > unclipped
        eligible = mask & (cov > 0.05) & (cov < 1.5) & ~cut
        assert 1 < eligible.sum() < mask.sum()
        kept = kept_by_hand(eligible, mask, 0.2, (7, 0, 0, 0))
        assert 0 < kept.sum() < mask.sum()
        return policy_terms(loss_type, logps, old_logps, advantages, mask) * kept

    cases.check_against_reference(make_trainer, "clip_cov", loss_type, reference, SETTINGS)


def worked_example(**settings):
    method = METHODS["clip_cov"](config_of(**settings))
    tokens = make_tokens(
        [-0.05, -0.10, -3.0, -0.02, -5.0, -0.4], [-0.06, -0.30, -2.9, -0.02, -4.8, -0.5], [1.5] * 3 + [-0.75] * 3
    )
    return method, tokens


def test_worked_example():
    method, tokens = worked_example()
    _, logs = method.token_advantages(tokens)
    expected = [[1.550625, 1.494375, -1.768125, -1.584375, 4.018125, -1.156875]]
    torch.testing.assert_close(logs["covariance_mean"], torch.tensor(expected, dtype=torch.float64), **FLOAT64)
    # Token 1 has the ratio 1.22 and is cut by PPO already; tokens 0 and 4 lie in the band (1, 5).
    assert logs["eligible_fraction"].tolist() == [[True, False, False, False, True, False]]
    ratio = (tokens.logps - tokens.old_logps).exp()
    terms = -torch.minimum(ratio * tokens.advantages, ratio.clamp(0.8, 1.2) * tokens.advantages)
    means = {"none": terms.mean(), 0: terms[:, 1:].sum() / 6, 4: (terms.sum() - terms[0, 4]) / 6}
    for dropped, expected in {"none": -0.4132341874, 0: -0.1607216456, 4: -0.5155755315}.items():
        assert means[dropped].item() == pytest.approx(expected, abs=1e-9)
    kept = logs["kept_fraction"][0].tolist()
    assert sum(kept) == 5 and not (kept[0] and kept[4])


def test_range_of_the_released_code():
    method, tokens = worked_example()
    _, logs = method.token_advantages(make_tokens(tokens.logps, tokens.old_logps, tokens.advantages, epsilon=1.0))
    assert logs["eligible_fraction"].tolist() == [[True, True, False, False, True, False]]


def test_draw_is_uniform_over_the_eligible_and_of_the_right_size():
    eligible = torch.zeros(4, 25, dtype=torch.bool)
    eligible[:, ::5] = True  # 20 of 100
    mask = torch.ones_like(eligible)
    hits = torch.zeros(4, 25)
    for step in range(400):
        kept = clip_cov_mask(eligible, mask, 0.05, (0, step, 0))
        assert (~kept).sum() == 5 and not (~kept & ~eligible).any()
        hits += ~kept
    # Each eligible token is hit 100 times on average, with a standard deviation of about 8.7.
    assert hits[eligible].min() > 60 and hits[eligible].max() < 140


@pytest.mark.parametrize("share, count", [(2e-4, 1), (0.02, 2), (0.03, 3), (1.0, 20)])
def test_size_of_the_draw(share, count):
    eligible = torch.arange(100).view(4, 25) < 20
    assert (~clip_cov_mask(eligible, torch.ones_like(eligible), share, (0,))).sum() == count


def test_draw_depends_on_step_micro_batch_and_rank_and_repeats():
    eligible = torch.ones(4, 50, dtype=torch.bool)
    draws = [
        clip_cov_mask(eligible, eligible, 0.1, seed)
        for seed in [(0, 1, 0, 0), (0, 2, 0, 0), (0, 1, 1, 0), (0, 1, 0, 1)]
    ]
    assert torch.equal(draws[0], clip_cov_mask(eligible, eligible, 0.1, (0, 1, 0, 0)))
    assert not any(torch.equal(draws[0], other) for other in draws[1:])


def test_nothing_eligible_changes_nothing():
    method = cases.build("clip_cov", clip_cov_low=50.0, clip_cov_high=60.0)
    tokens = random_tokens()
    assert torch.equal(method.token_advantages(tokens)[0][tokens.mask], tokens.advantages[tokens.mask])


def test_properties(make_trainer):
    method = cases.build("clip_cov", clip_cov_ratio=1.0, clip_cov_low=0.0)  # the whole band: no draw to permute
    cases.check_padding_does_not_matter(method)
    cases.check_rows_permute(method)
    cases.check_extremes_stay_finite(method)
    cases.check_empty_mask(make_trainer, "clip_cov")


def test_metrics(make_trainer):
    trainer = make_trainer(methods=["clip_cov"], **SETTINGS)
    batch = cases.off_policy_batch(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(trainer.model, batch)
    logged = {key: values[0] for key, values in trainer._metrics["train"].items()}
    count = int(batch["completion_mask"].sum())
    eligible = round(logged["clip_cov/eligible_fraction"] * count)
    assert 0 < eligible < count
    assert logged["clip_cov/kept_fraction"] == pytest.approx(1 - min(eligible, int(0.2 * count)) / count)
    assert math.isfinite(logged["clip_cov/covariance_mean"])


# Searched by test_fuzzing.py


@covers(clip_cov.clip_cov_mask)
def clip_cov_masks(draw):
    shape, ratio = draw_shape(draw), draw(SHARES)
    mask = draw_flags(draw, shape)
    eligible = draw_flags(draw, shape)
    kept = clip_cov.clip_cov_mask(eligible, mask, ratio, (draw(st.integers(0, 9)), 1, 2))
    dropped = mask & ~kept
    assert not (kept & ~mask).any() and not (dropped & ~eligible).any()
    assert dropped.sum() == min(functional.ratio_count(ratio, int(mask.sum())), int((eligible & mask).sum()))


def test_one_completion_is_left_alone():
    """All its tokens share one advantage, so every covariance is 0. The config warns of it."""
    method = METHODS["clip_cov"](config_of(clip_cov_low=0.0, clip_cov_ratio=1.0))
    tokens = make_tokens([-0.05, -3.0, -5.0], [-0.05, -3.0, -5.0], [1.5] * 3)
    advantages, logs = method.token_advantages(tokens)
    assert method.compares_completions and logs["covariance_mean"].abs().max() < 1e-12
    assert torch.equal(advantages, tokens.advantages) and logs["kept_fraction"].all()
