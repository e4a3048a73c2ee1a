# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support.fuzzing import ENTROPIES, covers, draw_flags, draw_shape, draw_tensor, finite_gradients, spoiled
from support.reference import nucleus_entropy, policy_terms
from support.registry import MethodSettings
from support.tensors import random_tokens
from support.tiny import FLOAT64, LOSS_TYPES

from trl_entropy.functional import row_quantiles
from trl_entropy.methods import siren
from trl_entropy.methods.siren import peak_entropy, peak_mask


METHOD_SETTINGS = {
    "siren": MethodSettings(
        strong=dict(siren_coef=0.5),
        variants=(dict(siren_square="ema", siren_quantile=0.2),),
        state=dict(anchor=0.4),
        world=dict(siren_coef=0.5, siren_quantile=0.5),
        batches=(64, 1024),
    )
}


def by_hand(nucleus, mask, quantile):
    """E, row by row: the mean over sequences of the mean nucleus entropy above the sequence's quantile."""
    means = []
    for row, valid in zip(nucleus, mask, strict=True):
        values = row[valid]
        above = values[values > torch.quantile(values.detach(), quantile)]
        means.append(above.mean() if above.numel() else row.sum() * 0)
    return torch.stack(means).mean()


@pytest.mark.parametrize("nucleus", ["exclude", "include"])
@pytest.mark.parametrize("square", ["micro_batch", "ema"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients(make_trainer, loss_type, square, nucleus):
    def prepare(method):
        method.anchor, method.average = 0.6, 0.9

    def scalar(entropy, log_policy, mask):
        mean = by_hand(nucleus_entropy(log_policy, 0.7, nucleus == "include"), mask, 0.5)
        if square == "micro_batch":
            return 0.8 * (mean - 0.6) ** 2
        distance = 0.9 * 0.9 + 0.1 * mean.detach() - 0.6
        return 0.8 * (distance**2 + 2 * distance * (mean - mean.detach()))

    cases.check_against_reference(
        make_trainer,
        "siren",
        loss_type,
        lambda logps, old, entropy, advantages, mask: policy_terms(loss_type, logps, old, advantages, mask),
        dict(siren_coef=0.8, siren_top_p=0.7, siren_quantile=0.5, siren_nucleus=nucleus, siren_square=square),
        prepare=prepare,
        scalar=scalar,
    )


F3 = [[2, 1, 0.5, 0, -1], [0.5, 0.4, 0.3, 0.2, 0.1], [4, 0, -1, -2, -3], [1.02, 1.01, 1, -2, -2.5]]


@pytest.mark.parametrize(
    "include, entropies, quantile, mean, penalty",
    [
        (False, [0.5822031089, 1.0952872687, 0.0], 0.8540032158, 1.0952872687, 0.0017718347),
        (True, [0.9059592565, 1.3800708112, 0.0], 1.2111956977, 1.3800708112, 0.0038726232),
    ],
)
def test_worked_example(include, entropies, quantile, mean, penalty):
    """The first three rows of the example; the fourth, whose ties depend on the sort, enters by its value."""
    log_policy = torch.tensor(F3, dtype=torch.float64).log_softmax(-1)
    found = nucleus_entropy(log_policy, 0.8, include)[:3]
    torch.testing.assert_close(found, torch.tensor(entropies, dtype=torch.float64), **FLOAT64)
    fourth = 1.0986122887 if include else 0.6931471806
    row = torch.cat([found, found.new_tensor([fourth])])[None]
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert row_quantiles(row, mask, 0.8).item() == pytest.approx(quantile, abs=1e-9)
    peaks = peak_mask(row, mask, 0.8)
    assert peaks.tolist() == [[False, True, False, False]]
    assert peak_entropy(row, peaks).item() == pytest.approx(mean, abs=1e-9)
    method = cases.build("siren")
    method.anchor = 0.5
    tokens = replace(random_tokens(rows=1, length=4), nucleus_entropy=row, mask=mask)
    assert method.loss(tokens)[0].item() == pytest.approx(penalty, abs=1e-9)


def at_step(tokens, step):
    return replace(tokens, draw=(0, step, 0))


def test_anchor_is_the_mean_of_the_first_step_and_stays():
    method = cases.build("siren", siren_quantile=0.5)
    first, second, later = (random_tokens(seed=seed) for seed in (1, 2, 3))
    assert method.loss(at_step(first, 0))[0] is None
    assert method.loss(at_step(second, 0))[0] is None
    means = [by_hand(tokens.nucleus_entropy, tokens.mask, 0.5).item() for tokens in (first, second, later)]
    term = method.loss(at_step(later, 1))[0]
    assert method.anchor == pytest.approx((means[0] + means[1]) / 2)
    assert term.item() == pytest.approx(0.005 * (means[2] - method.anchor) ** 2)
    method.loss(at_step(first, 2))
    assert method.anchor == pytest.approx((means[0] + means[1]) / 2)


def test_evaluation_moves_nothing():
    method = cases.build("siren")
    state = method.state_dict()
    assert method.loss(random_tokens(training=False))[0] is None
    assert method.state_dict() == state


def test_term_carries_no_gradient_through_the_quantile():
    tokens = random_tokens()
    entropy = tokens.nucleus_entropy.clone().requires_grad_()
    method = cases.build("siren", siren_quantile=0.5, siren_coef=1.0)
    method.anchor = 0.1
    (gradient,) = torch.autograd.grad(method.loss(replace(tokens, nucleus_entropy=entropy))[0], entropy)
    peaks = peak_mask(tokens.nucleus_entropy, tokens.mask, 0.5)
    mean = peak_entropy(tokens.nucleus_entropy, peaks).mean()
    expected = peaks.double() / peaks.sum(1, keepdim=True).clamp(min=1) / len(peaks) * 2 * (mean - 0.1)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("lengths", [[1, 1], [2, 5], [7, 7]])
def test_row_quantiles_are_those_of_torch(lengths):
    values = torch.randn(2, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    for probability in (0.0, 0.3, 0.8, 1.0):
        found = row_quantiles(values, mask, probability).flatten()
        for value, row, valid in zip(found, values, mask, strict=True):
            torch.testing.assert_close(value, torch.quantile(row[valid], probability))


def test_properties(make_trainer):
    method = cases.build("siren", siren_quantile=0.4)
    method.anchor = 0.3
    cases.check_padding_does_not_matter(method)
    cases.check_rows_permute(method)
    cases.check_empty_mask(make_trainer, "siren")
    one_token = random_tokens(rows=3, length=1)  # nothing lies above its own quantile
    assert method.loss(one_token)[0].item() == pytest.approx(0.005 * 0.3**2)


def test_state_survives_json():
    import json

    method = cases.build("siren", siren_square="ema")
    for step in (0, 0, 1):
        method.loss(at_step(random_tokens(seed=step), step))
    other = cases.build("siren", siren_square="ema")
    other.load_state_dict(json.loads(json.dumps(method.state_dict())))
    tokens = at_step(random_tokens(seed=9), 2)
    assert other.loss(tokens)[0].item() == method.loss(tokens)[0].item()


def test_metrics(make_trainer):
    trainer = make_trainer(methods=["siren"], max_steps=3)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert "siren/anchor" not in rows[0] and rows[1]["siren/anchor"] == pytest.approx(rows[0]["siren/peak_entropy"])
    assert 0 < rows[2]["siren/peak_fraction"] < 0.5
    assert rows[2]["siren/nucleus_entropy_mean"] < rows[2]["entropy"]


# Searched by test_fuzzing.py


@covers(siren.peak_mask, siren.peak_entropy)
def siren_peaks(draw):
    shape, quantile = draw_shape(draw), draw(st.floats(0, 0.99))
    entropy, mask = draw_tensor(draw, shape, ENTROPIES), draw_flags(draw, shape)
    other = spoiled(draw, entropy, mask)
    peaks = siren.peak_mask(other, mask, quantile)
    assert torch.equal(peaks, siren.peak_mask(entropy, mask, quantile)) and not (peaks & ~mask).any()
    assert (peaks.sum(1) < mask.sum(1).clamp(min=1)).all()  # the quantile itself is never above itself
    leaf = other.requires_grad_()
    means = siren.peak_entropy(leaf, peaks)
    finite_gradients(means, leaf)
    assert (means >= 0).all() and (means <= entropy.max() * (1 + 1e-6)).all()
