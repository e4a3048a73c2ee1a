# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every pure function gives finite values and gradients for finite inputs, and does not look outside its mask."""

import inspect
import math
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from support import cases, fuzzing
from support.fuzzing import (
    ADVANTAGES,
    ANY,
    ENTROPIES,
    LOGPS,
    covers,
    draw_flags,
    draw_shape,
    draw_tensor,
    draw_tokens,
    finite_gradients,
    floats,
    spoiled,
)
from support.tiny import LOSS_TYPES, REQUIRED

from trl_entropy import functional, settings
from trl_entropy.methods import (
    METHODS,
    aepo,
    agentic_aepo,
    base,
    canon,
    clip_cov,
    discriminator,
    empg,
    epo,
    kl_cov,
    pear,
    prompt_augmentation,
    prompt_templates,
    siren,
    steer,
    tip,
)


SHARES = st.floats(1e-6, 1.0)


# functional.py


@covers(functional.masked_mean, functional.masked_mean_and_std, functional.masked_max)
def masked_statistics(draw):
    shape = draw_shape(draw)
    values, mask = draw_tensor(draw, shape, ANY), draw_flags(draw, shape)
    leaf = values.clone().requires_grad_()
    mean, std = functional.masked_mean_and_std(leaf, mask)
    finite_gradients(functional.masked_mean(leaf, mask), leaf)
    other = spoiled(draw, values, mask)
    assert functional.masked_mean_and_std(other, mask) == (mean, std) and std.isfinite() and std >= 0
    assert functional.masked_max(other, mask) == functional.masked_max(values, mask)
    if mask.any():
        valid = values[mask].double()
        assert valid.min() - 1e-9 * valid.abs().max() <= mean <= valid.max() + 1e-9 * valid.abs().max()
        assert functional.masked_max(values, mask) == valid.max()


@covers(functional.centered_product)
def covariances(draw):
    shape = draw_shape(draw)
    logps, advantages, mask = draw_tensor(draw, shape, LOGPS), draw_tensor(draw, shape, ADVANTAGES), draw_flags(draw, shape)  # fmt: skip
    found = functional.centered_product(logps, advantages, mask)
    assert found.isfinite().all() and (found[~mask] == 0).all()
    other = functional.centered_product(spoiled(draw, logps, mask), spoiled(draw, advantages, mask), mask)
    assert torch.equal(found, other)


@covers(functional.top_count_mask, functional.scatter_valid, functional.share_of)
def top_counts(draw):
    shape, share = draw_shape(draw), draw(SHARES)
    values, mask = draw_tensor(draw, shape, ANY), draw_flags(draw, shape)
    found = functional.top_count_mask(spoiled(draw, values, mask), mask, share)
    count = int(mask.sum())
    assert found.sum() == functional.share_of(share, count) <= count and not (found & ~mask).any()
    assert count == 0 or abs(int(found.sum()) - max(share * count, 1)) < 1
    if 0 < found.sum() < count:
        assert values[found].min() >= values[mask & ~found].max()
    flags = draw_flags(draw, (1, max(count, 1))).flatten()[:count]
    assert torch.equal(functional.scatter_valid(flags, mask)[mask], flags)


@covers(functional.quantiles, functional.row_quantiles)
def quantiles_lie_between_values(draw):
    shape, probability = draw_shape(draw), draw(st.floats(0, 1))
    values, mask = draw_tensor(draw, shape, (-1e30, 1e30)), draw_flags(draw, shape)
    found = functional.row_quantiles(spoiled(draw, values, mask), mask, probability)
    for row, quantile in enumerate(found[:, 0]):
        own = values[row][mask[row]]
        assert quantile == math.inf if not len(own) else own.min() <= quantile <= own.max()
        (other,) = functional.quantiles(own, (probability,))
        assert other.isnan() if not len(own) else own.min() <= other <= own.max()


@covers(functional.row_top_mask, tip.kept_counts)
def tops_of_rows(draw):
    """As many as asked for, none of what is left larger, and ties in order."""
    shape, ratio, least = draw_shape(draw), draw(SHARES), draw(st.integers(0, 3))
    values, mask = draw_tensor(draw, shape, ENTROPIES), draw_flags(draw, shape)
    counts = tip.kept_counts(mask, ratio, least)
    assert torch.equal(counts, torch.minimum(counts, mask.sum(1))) and (counts >= mask.sum(1).clamp(max=least)).all()
    chosen = functional.row_top_mask(spoiled(draw, values, mask), mask, counts)
    assert torch.equal(chosen.sum(1), counts) and not (chosen & ~mask).any()
    for row, own, kept in zip(values, mask, chosen, strict=True):
        for at in (own & ~kept).nonzero().flatten():
            assert (row[kept] >= row[at]).all() and not (kept & (row == row[at]))[at:].any()


@covers(tip.rescale, tip.soft_or)
def scores_of_tip(draw):
    shape = draw_shape(draw)
    values, others = draw_tensor(draw, shape, (-1e18, 1e18)), draw_tensor(draw, shape, ENTROPIES)
    low, high = sorted(draw(st.tuples(floats((-1e18, 1e18)), floats((-1e18, 1e18)))))
    one, two = tip.rescale(values, low, high), tip.rescale(others, others.min(), others.max())
    for axis in (one, two):
        assert axis.isfinite().all() and (axis >= 0).all() and (axis <= 1).all()
    assert low == high or (one[values >= high] == 1).all() and (one[values <= low] == 0).all()
    score = tip.soft_or(one, two)
    assert (score >= torch.maximum(one, two) - 1e-6).all() and (score <= 1 + 1e-6).all()


@covers(tip.draws, tip.quantile_or_none)
def draws_of_tip(draw):
    """Positive, the same again, and not a matter of the padding."""
    shape, place = draw_shape(draw), draw(st.tuples(*[st.integers(0, 99)] * 3))
    mask = draw_flags(draw, shape)
    found = tip.draws(tip.TipTokens(torch.zeros(shape), mask, draw=place), False)
    wider = torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1)
    again = tip.draws(tip.TipTokens(torch.zeros(wider.shape), wider, draw=place), False)
    assert (found > 0).all() and found.isfinite().all() and torch.equal(found[mask], again[wider])
    quantile = draw(st.none() | st.floats(1e-6, 1))
    assert tip.quantile_or_none(type("Config", (), {"field": quantile}), "field") == quantile


@covers(functional.aggregate)
def reduced_losses(draw):
    shape, loss_type = draw_shape(draw), draw(st.sampled_from(LOSS_TYPES))
    terms, mask = draw_tensor(draw, shape, (-1e9, 1e9)), draw_flags(draw, shape)
    items = mask.sum().clamp(min=1)
    leaf = spoiled(draw, terms, mask).requires_grad_()
    found = functional.aggregate(leaf, mask, loss_type, items, 4)
    assert found == functional.aggregate(terms, mask, loss_type, items, 4)
    (gradient,) = finite_gradients(found, leaf)
    assert (gradient[~mask] == 0).all() and (gradient[mask] > 0).all()


@covers(functional.discriminator, functional.mean_discriminator)
def discriminators(draw):
    shape = draw_shape(draw)
    logps, entropy = draw_tensor(draw, shape, LOGPS).requires_grad_(), draw_tensor(draw, shape, ENTROPIES)
    finite_gradients(functional.discriminator(logps, entropy.requires_grad_()), logps, entropy)
    squares = draw_tensor(draw, shape, (0.0, 1.0))
    assert functional.mean_discriminator(entropy, squares, squares * logps).isfinite().all()


@covers(functional.accumulator_dtype)
def accumulators(draw):
    assert functional.accumulator_dtype(torch.device(draw(st.sampled_from(["cpu", "cuda", "xpu"])))) == torch.float64
    assert functional.accumulator_dtype(torch.device("mps")) == torch.float32


# Methods: masks, weights, penalties


@covers(clip_cov.clip_cov_mask)
def clip_cov_masks(draw):
    shape, ratio = draw_shape(draw), draw(SHARES)
    mask = draw_flags(draw, shape)
    eligible = draw_flags(draw, shape)
    kept = clip_cov.clip_cov_mask(eligible, mask, ratio, (draw(st.integers(0, 9)), 1, 2))
    dropped = mask & ~kept
    assert not (kept & ~mask).any() and not (dropped & ~eligible).any()
    assert dropped.sum() == min(functional.share_of(ratio, int(mask.sum())), int((eligible & mask).sum()))


@covers(kl_cov.kl_cov_mask, kl_cov.kl_cov_penalty)
def kl_cov_terms(draw):
    shape = draw_shape(draw)
    values, mask, share = draw_tensor(draw, shape, (-1e30, 1e30)), draw_flags(draw, shape), draw(SHARES)
    selected = kl_cov.kl_cov_mask(spoiled(draw, values, mask), mask, share)
    assert not (selected & ~mask).any() and selected.any() == (values[mask] > 0).any()
    for kind in ("abs", "k2", "k3"):
        log_ratio = draw_tensor(draw, shape, (-1e4, 1e4)).requires_grad_()
        penalty = kl_cov.kl_cov_penalty(log_ratio, kind)
        finite_gradients(penalty, log_ratio)
        assert (penalty >= -1e-7 * log_ratio.abs() - 1e-30).all()  # which is rounding


@covers(discriminator.clip_b_mask, discriminator.clip_v_mask)
def discriminator_masks(draw):
    shape, mu, share = draw_shape(draw), draw(st.floats(0, 10)), draw(SHARES)
    scores, advantages, mask = draw_tensor(draw, shape, (-20.0, 20.0)), draw_tensor(draw, shape, ADVANTAGES), draw_flags(draw, shape)  # fmt: skip
    other = spoiled(draw, scores, mask)
    for kept, again in (
        [discriminator.clip_b_mask(values, advantages, mask, mu) for values in (scores, other)],
        [discriminator.clip_v_mask(values, advantages, mask, mu, share) for values in (scores, other)],
    ):
        assert torch.equal(kept, again) and not (kept & ~mask).any()
        assert not (mask & ~kept & (advantages >= 0)).any()
    assert (mask & ~kept).sum() <= functional.share_of(share, int(mask.sum()))


@covers(steer.theorem_omega, steer.exact_omega, steer.released_omega, steer.exp_weights, steer.linear_weights)
def steer_weights(draw):
    tokens = draw_tokens(draw)
    for omega in (steer.theorem_omega, steer.exact_omega, steer.released_omega):
        size = (
            omega(tokens).abs().nan_to_num(nan=0.0)
        )  # an infinite ratio times a probability of 0, which `Steer` reads as 0
        size = size.clamp(max=torch.finfo(size.dtype).max)
        largest = functional.masked_max(size, tokens.mask)
        low, high = sorted(draw(st.lists(st.floats(1e-3, 2.0), min_size=2, max_size=2)))
        weights = steer.exp_weights(size, largest, min(low, 1.0))
        assert (weights[tokens.mask] >= min(low, 1.0) * (1 - 1e-5)).all() and (weights <= 1).all()
        smallest = -functional.masked_max(-size, tokens.mask)
        weights = steer.linear_weights(size, smallest, largest, low, high)
        assert ((weights - high)[tokens.mask] <= 1e-6).all() and ((low - weights)[tokens.mask] <= 1e-6).all()


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


@covers(epo.corridor_penalty, epo.turn_mean, epo.phase_weight)
def epo_terms(draw):
    shape = draw_shape(draw)
    entropy, mask = draw_tensor(draw, shape, ENTROPIES), draw_flags(draw, shape)
    low, high = sorted(draw(st.lists(st.floats(0, 5), min_size=2, max_size=2)))
    leaf = entropy.clone().requires_grad_()
    penalty = epo.corridor_penalty(leaf, draw(st.floats(0, 13)), low, high)
    finite_gradients(penalty, leaf)
    assert (penalty >= 0).all()
    leaf = spoiled(draw, entropy, mask).requires_grad_()
    means = epo.turn_mean(leaf, mask)
    torch.testing.assert_close(means, epo.turn_mean(entropy, mask))
    (gradient,) = finite_gradients(means, leaf)
    assert (gradient[~mask] == 0).all() and (gradient[mask] > 0).all()
    step, total = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    assert 1 <= epo.phase_weight(step, total, draw(st.floats(0, 1e3))) <= 2


@covers(aepo.regulated_temperature, aepo.reweighted_advantages)
def aepo_terms(draw):
    low, high = draw(st.floats(0.01, 1.0)), draw(st.floats(1.0, 100.0))
    entropy, target = draw(st.none() | st.floats(0, 13)), draw(st.floats(1e-3, 13))
    for rule in ("clip", "binary"):
        temperature = aepo.regulated_temperature(entropy, target, low, high, rule)
        assert low <= temperature <= high and (entropy is None or entropy >= target or temperature >= 1)
    shape = draw_shape(draw)
    advantages, positive = draw_tensor(draw, shape, ADVANTAGES), draw_flags(draw, (shape[0], 1))[:, 0]
    found = aepo.reweighted_advantages(
        advantages, positive, draw_tensor(draw, shape, (0.0, 1e9)), draw(st.floats(0, 1e3)), positive.double().mean()
    )
    assert found.isfinite().all() and found.dtype == advantages.dtype
    assert positive.any() or torch.equal(found, advantages)


@covers(agentic_aepo.entropy_scores)
def agentic_scores(draw):
    shape = draw_shape(draw)
    entropy, mask = draw_tensor(draw, shape, ENTROPIES), draw_flags(draw, shape)
    scores = agentic_aepo.entropy_scores(entropy, mask)
    assert scores.isfinite().all() and (scores[~mask] == 0).all()
    assert torch.equal(scores, agentic_aepo.entropy_scores(spoiled(draw, entropy, mask), mask))
    assert (scores.abs() <= max(int(mask.sum()), 1) ** 0.5).all()  # no value lies further out among n


@covers(canon.halves, canon.group_mean, canon.canon_advantages, canon.cosine_mu)
def canon_terms(draw):
    shape = draw_shape(draw)
    metric, valid = draw_tensor(draw, shape, (-1e30, 1e30)), draw_flags(draw, shape)
    low, high = canon.halves(metric, valid)
    again = canon.halves(spoiled(draw, metric, valid), valid)
    assert torch.equal(low, again[0]) and torch.equal(high, again[1])
    assert torch.equal(low | high, valid) and not (low & high).any()
    assert ((high.sum(1) - low.sum(1)) == valid.sum(1) % 2).all()
    rewards = draw_tensor(draw, shape, ADVANTAGES)
    own = spoiled(draw, rewards, valid)
    assert torch.equal(canon.group_mean(own, valid), canon.group_mean(rewards, valid))
    mu, alpha = draw(st.floats(0, 1)), draw(st.floats(0, 2))
    found = canon.canon_advantages(own, low, high, mu, alpha, draw(st.booleans()))
    assert found.isfinite().all()
    assert 0 <= canon.cosine_mu(draw(st.integers(0, 10**6)), draw(st.booleans())) <= 1


@covers(empg.step_index, empg.step_means, empg.modulated)
def empg_steps(draw):
    shape = draw_shape(draw)
    mask, breaks = draw_flags(draw, shape), draw_flags(draw, shape)
    index = empg.step_index(mask, breaks)
    steps = int(index.max()) + 2
    values = draw_tensor(draw, shape, ENTROPIES)
    entropy, valid = empg.step_means(spoiled(draw, values, mask), mask, index, steps)
    assert entropy.isfinite().all() and valid.sum() <= mask.sum() and (valid.any(1) == mask.any(1)).all()
    assert not valid[:, -1].any()  # one more, so that every step has a next one
    k, k_future, zeta = (draw(st.floats(0, 100)) for _ in range(3))
    advantages = draw_tensor(draw, tuple(entropy.shape), ADVANTAGES)
    for part in empg.modulated(advantages, entropy, valid, k, k_future, zeta):
        assert part.isfinite().all()
    other = empg.modulated(spoiled(draw, advantages, valid), entropy, valid, k, k_future, zeta)
    torch.testing.assert_close(other[2], empg.modulated(advantages, entropy, valid, k, k_future, zeta)[2])


# Methods: texts and rewards


PIECES = st.lists(st.text("ab<>/\n", max_size=3), min_size=1, max_size=8)


@covers(empg.ends_of, pear.tag_span)
def places_of_texts(draw):
    pieces, tag = draw(PIECES), draw(st.text("ab<>\n", min_size=1, max_size=2))
    text = "".join(pieces)
    ends = empg.ends_of(pieces, tag)
    assert len(ends) == text.count(tag) and ends == sorted(ends)
    for number, end in enumerate(ends, start=1):
        assert "".join(pieces[: end + 1]).count(tag) >= number > "".join(pieces[:end]).count(tag)
    span = pear.tag_span(pieces, tag)
    assert (span is None) == (tag not in text)
    if span is not None:
        assert 0 <= span[0] < span[1] <= len(pieces) and tag in "".join(pieces[span[0] : span[1]])
        assert tag not in "".join(pieces[: span[1] - 1])


@covers(pear.mean, pear.phase_entropies, pear.pear_penalty, pear.pear_reward)
def pear_rewards(draw):
    values = draw(st.lists(st.floats(0, 13), max_size=6))
    kept = [draw(st.booleans()) for _ in values]
    start = draw(st.integers(0, len(values)))
    span = draw(st.sampled_from([None, (start, draw(st.integers(start, len(values))))]))
    think, answer = pear.phase_entropies(values, kept, span)
    spoilt = [value if keep else 1e30 for value, keep in zip(values, kept, strict=True)]
    assert pear.phase_entropies(spoilt, kept, span) == (think, answer)
    assert 0 <= pear.mean(values, kept) <= 13 and 0 <= min(think, answer) and max(think, answer) <= 13
    penalty = pear.pear_penalty(think, answer, draw(st.floats(-10, 10)))
    scale, floor = draw(st.floats(0.01, 1)), draw(st.none() | st.floats(-1, 0.01))
    reward = pear.pear_reward(draw(st.booleans()), penalty, scale, 0.0, floor)
    assert penalty >= 0 and reward <= 1 and (floor is None or reward >= min(floor, 0))


TEXTS = st.text("w{} \n<think>/", max_size=12)


@covers(
    prompt_templates.read_template,
    prompt_augmentation.drawn,
    prompt_augmentation.texts_of,
    prompt_augmentation.has_images,
)
def templates(draw):
    fields = {"user": draw(TEXTS) + "{prompt}", "markers": draw(st.lists(TEXTS.filter(bool), max_size=3))}
    template = prompt_templates.read_template("own", fields)
    assert 0 <= template.score(draw(TEXTS)) <= 1
    prompt = draw(TEXTS)
    conversation = [{"role": "user", "content": prompt}]
    assert prompt in template.apply(prompt) and prompt in template.apply(conversation)[-1]["content"]
    assert conversation == [{"role": "user", "content": prompt}]
    assert prompt_augmentation.texts_of([{"type": "text", "text": prompt}, {"type": "image"}]) == [prompt]
    count, place = draw(st.integers(1, 20)), (draw(st.integers(0, 99)), draw(st.integers(0, 99)))
    assert not prompt_augmentation.has_images({"prompt": prompt})
    mixed = [*conversation, {"role": "user", "content": [{"type": "text", "text": prompt}, {"type": "image"}]}]
    assert prompt_augmentation.has_images({"prompt": mixed}) and not prompt_augmentation.has_images(
        {"prompt": mixed[:1]}
    )
    assert 0 <= prompt_augmentation.drawn(count, place, prompt) < count
    assert prompt_augmentation.drawn(count, place, prompt) == prompt_augmentation.drawn(count, place, conversation)


@covers(
    settings.checked,
    settings.one_of,
    settings.one_reward,
    settings.share,
    settings.non_negative,
    settings.flag,
    settings.name_or_none,
)
def fields_are_read_or_refused(draw):
    """Whatever stands in a field, it is given back or refused in one line that names it."""
    value = draw(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({}))  # fmt: skip
    config = type("Config", (), {"field": value})
    names = draw(st.lists(st.text("ab", max_size=1), max_size=2))
    try:
        assert settings.one_reward(value, "field", names) in names
    except ValueError as error:
        assert str(error).startswith("`field` must be") and repr(value) in str(error) and value not in names
    readers = [
        settings.share,
        settings.non_negative,
        settings.flag,
        settings.name_or_none,
        lambda *args: settings.one_of(*args, "a", "b"),
    ]
    for read in readers:
        try:
            assert read(config, "field") is value
        except ValueError as error:
            assert str(error).startswith("`field` must be") and repr(value) in str(error)


@pytest.mark.parametrize("check", fuzzing.PROPERTIES, ids=lambda check: check.__name__)
def test_property(check):
    fuzzing.search(check, 12)


@pytest.mark.slow
@pytest.mark.parametrize("check", fuzzing.PROPERTIES, ids=lambda check: check.__name__)
def test_property_with_many_examples(check):
    fuzzing.search(check, 200)


def test_every_pure_function_is_searched():
    modules = [
        functional,
        *{sys.modules[method.__module__] for method in METHODS.values()},
        tip,
        base,
        settings,
        prompt_templates,
    ]
    found = {
        function
        for module in modules
        for _, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not function.__name__.startswith("_")
    }
    assert len(found) > 40 and found == fuzzing.COVERED


# Whole methods


VARIANTS = [
    *((name, REQUIRED.get(name, {})) for name in METHODS),
    ("aepo", dict(aepo_target_entropy=0.5, aepo_mode="reweight")),
    ("steer", dict(steer_omega="exact")),
    ("steer", dict(steer_omega="released", steer_mapping="linear")),
    ("kl_cov", dict(kl_cov_penalty="k3", kl_cov_ratio=0.5)),
    ("siren", dict(siren_square="ema", siren_quantile=0.2)),
    ("agentic_aepo", dict(agentic_aepo_scope="micro_batch")),
]


def check_method(draw, name, settings):
    """Advantages, term and gradient are finite, and tokens outside the mask change none of them."""
    tokens = draw_tokens(draw)
    method = cases.build(name, **settings)
    if name == "siren":
        method.anchor = 0.4
    if name == "aepo":
        method.entropy = 0.3
    if name == "epo":
        method.history_total, method.history_steps = 1.0, 2
    found = cases.outcome(method, tokens)
    for result in found:
        assert result[tokens.mask].isfinite().all(), result
    out = ~tokens.mask
    spoilt = replace(
        tokens,
        advantages=tokens.advantages.masked_fill(out, 1e6),
        logps=tokens.logps.masked_fill(out, -3.0),
        entropy=tokens.entropy.masked_fill(out, 12.0),
        nucleus_entropy=tokens.nucleus_entropy.masked_fill(out, 12.0),
        ratio=tokens.ratio.masked_fill(out, 40.0),
    )
    for result, other in zip(found, cases.outcome(method, spoilt), strict=True):
        torch.testing.assert_close(other[tokens.mask], result[tokens.mask])


VARIANT_IDS = [f"{name}-{number}" for number, (name, _) in enumerate(VARIANTS)]


@pytest.mark.parametrize("name, settings", VARIANTS, ids=VARIANT_IDS)
def test_method(name, settings):
    fuzzing.search(lambda draw: check_method(draw, name, settings), 8)


@pytest.mark.slow
@pytest.mark.parametrize("name, settings", VARIANTS, ids=VARIANT_IDS)
def test_method_with_many_examples(name, settings):
    fuzzing.search(lambda draw: check_method(draw, name, settings), 100)
