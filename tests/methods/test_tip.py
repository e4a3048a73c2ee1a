# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fuzzing import ENTROPIES, SHARES, covers, draw_flags, draw_shape, draw_tensor, floats, spoiled
from support.tiny import EXACT, FLOAT64

from trl_entropy import functional
from trl_entropy.collectives import Collectives
from trl_entropy.functional import row_top_mask
from trl_entropy.methods.tip import (
    NEEDS,
    Tip,
    TipConfig,
    TipTokens,
    draws,
    kept_counts,
    quantile_or_none,
    rescale,
    soft_or,
)


INF, NAN = math.inf, math.nan
STUDENT = [[[8.0, 0, 0, 0], [1, 1, 0, 0], [6, 2, 0, 0]], [[0, 0, 0, 0], [5, 5, 0, 0], [0, 0, 0, 0]]]
TEACHER = [[[0.0, 8, 0, 0], [2, 0, 0, 0], [6, 2, 0, 0]], [[0, 1, 0, 0], [5, 4, 0, 0], [9, 0, 0, 0]]]


def tip(**fields):
    return Tip(TipConfig(**{f"tip_{name}": value for name, value in fields.items()}))


def worked_example():
    """Two rollouts of 3 and 2 tokens; the sixth position is padding, with a divergence that would be the largest."""
    student, teacher = (torch.tensor(logits, dtype=torch.float64).log_softmax(-1) for logits in (STUDENT, TEACHER))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    return TipTokens(
        entropy=-(student.exp() * student).sum(-1),
        divergence=(student.exp() * (student - teacher)).sum(-1),
        forward_divergence=(teacher.exp() * (teacher - student)).sum(-1),
        mask=mask,
    )


def make_tokens(entropy, divergence=None, mask=None, **extra):
    entropy = torch.tensor(entropy, dtype=torch.float64)
    divergence = torch.zeros_like(entropy) if divergence is None else torch.tensor(divergence, dtype=torch.float64)
    mask = torch.ones_like(entropy) if mask is None else torch.tensor(mask)
    return TipTokens(entropy=entropy, divergence=divergence, forward_divergence=divergence, mask=mask.bool(), **extra)


def indices(keep, tokens):
    """Kept tokens by their number among the valid ones."""
    return torch.nonzero(keep[tokens.mask]).flatten().tolist()


def test_statistics_of_the_worked_example():
    tokens = worked_example()
    valid = tokens.mask
    expected = [0.0065273947, 0.9199707690, 0.0892099488, 1.0, 0.5289834571]
    torch.testing.assert_close(tokens.entropy[valid] / math.log(4), torch.tensor(expected).double(), rtol=0, atol=1e-7)
    expected = torch.tensor([7.9892759884, 0.3343440858, 0.0, 0.1073740195, 0.1198561896], dtype=torch.float64)
    torch.testing.assert_close(tokens.divergence[valid], expected, **FLOAT64)
    expected = torch.tensor([7.9892759884, 0.2806353731, 0.0, 0.1179928669, 0.1104796376], dtype=torch.float64)
    torch.testing.assert_close(tokens.forward_divergence[valid], expected, **FLOAT64)


SCORES = {
    "soft_or": [1.0, 0.9285302424, 0.0837656212, 1.0, 0.5363612751],
    "bottom": [-1.0, -0.9285302424, -0.0837656212, -1.0, -0.5363612751],
    "divergence": [7.9892759884, 0.3343440858, 0.0, 0.1073740195, 0.1198561896],
    "q3": [7.9892759884, 0.0209329682, 0.0, 0.0, 0.0520027911],
}


@pytest.mark.parametrize("rule", SCORES)
def test_scores_of_the_worked_example(rule):
    tokens = worked_example()
    expected = torch.tensor(SCORES[rule], dtype=torch.float64)
    torch.testing.assert_close(tip(rule=rule).scores(tokens)[tokens.mask], expected, **FLOAT64)


def test_axes_of_the_worked_example():
    tokens, method = worked_example(), tip()
    low, high = method._range("entropy", tokens.entropy, 0.98, tokens)
    assert (high / math.log(4)).item() == pytest.approx(0.9935976615, rel=1e-9)
    expected = torch.tensor([0.0, 0.9254086614, 0.0837656212, 1.0, 0.5292997671], dtype=torch.float64)
    torch.testing.assert_close(rescale(tokens.entropy, low, high)[tokens.mask], expected, **FLOAT64)
    low, high = method._range("divergence", tokens.divergence, None, tokens)
    expected = torch.tensor([1.0, 0.0418491095, 0.0, 0.0134397685, 0.0150021341], dtype=torch.float64)
    torch.testing.assert_close(rescale(tokens.divergence, low, high)[tokens.mask], expected, **FLOAT64)


@pytest.mark.parametrize(
    "fields, kept, loss",
    [
        (dict(rule="soft_or", ratio=0.5), [0, 3], 4.0483250040),
        (dict(rule="soft_or", ratio=0.2), [0, 3], 4.0483250040),
        (dict(rule="soft_or", ratio=0.2, min_tokens=0), [], NAN),
        (dict(rule="soft_or", ratio=1.0), [0, 1, 2, 3, 4], 1.7101700567),
        (dict(rule="none", ratio=0.2), [0, 1, 2, 3, 4], 1.7101700567),
        (dict(rule="entropy", ratio=0.5), [1, 3], 0.2208590527),  # token 0, the confident error, is lost
        (dict(rule="q3", ratio=0.5), [0, 4], 4.0545660890),
        (dict(rule="divergence", ratio=0.5), [0, 4], 4.0545660890),
        (dict(rule="bottom", ratio=0.5), [2, 4], 0.0599280948),
        (dict(rule="soft_or", ratio=0.7), [0, 1, 3], 2.8103313646),
    ],
)
def test_kept_tokens_of_the_worked_example(fields, kept, loss):
    tokens = worked_example()
    keep = tip(**fields).keep(tokens)
    assert indices(keep, tokens) == kept and not (keep & ~tokens.mask).any()
    assert tokens.divergence[keep].mean().item() == pytest.approx(loss, rel=1e-9, nan_ok=True)


def test_clip_of_the_divergence():
    """One outlier of 100 makes every other divergence small, and entropy alone decides; clipped, it does not."""
    entropy = [[0.1, 0.0, 0.2, 0.3] * 14 + [0.1, 0.0, 0.2, 1.0]]
    tokens = make_tokens(entropy, [[0.0, 2.0, 0.0, 0.0] * 14 + [0.0, 100.0, 0.0, 0.0]])
    kept = tip(ratio=0.25, entropy_clip_quantile=None).keep(tokens)[0]
    assert kept[3::4].sum() == 14 and kept[57]
    kept = tip(ratio=0.25, entropy_clip_quantile=None, divergence_clip_quantile=0.9).keep(tokens)[0]
    assert kept[1::4].sum() == 15


def test_ties_go_to_the_earlier_token():
    tokens = make_tokens([[0.5] * 6, [0.5] * 6], [[1.0] * 6, [1.0] * 6])
    for rule in ("soft_or", "entropy", "q3", "divergence", "bottom"):
        keep = tip(rule=rule).keep(tokens)
        assert keep.tolist() == [[True] * 3 + [False] * 3] * 2
    assert tip().scores(tokens).abs().max() == 0  # both axes are 0 where all values are equal


def test_negative_entropies_are_none():
    """As rounding leaves them: the tokens are equal, and no range begins below 0."""
    tokens = make_tokens([[-2e-5, 0.0, -4e-5, -1e-5]])
    for rule in ("entropy", "soft_or"):
        assert indices(tip(rule=rule).keep(tokens), tokens) == [0, 1]
    running = tip(scope="ema")
    running.keep(tokens)
    assert running.ranges["entropy"] == [0, 0]


def test_ties_of_bf16():
    """Rows of bf16 logits tie exactly; the order of a longer row stays stable too."""
    entropy = torch.rand(1, 500, generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens = TipTokens(entropy=entropy, mask=torch.ones(1, 500).bool())
    keep = tip(rule="entropy").keep(tokens)[0]
    values = entropy[0].tolist()
    expected = sorted(range(500), key=lambda index: (-values[index], index))[:250]
    assert len(set(values)) < 400 and sorted(expected) == keep.nonzero().flatten().tolist()


@pytest.mark.parametrize("rule", [rule for rule in NEEDS if rule != "none"])
def test_empty_and_short_rollouts(rule):
    tokens = make_tokens(
        [[0.3, 0.1, 0.7], [0.2, 0.4, 0.1], [0.9, 9.0, 9.0]], mask=[[1, 0, 0], [0, 0, 0], [1, 1, 1]], draw=(1, 2, 3)
    )
    method = tip(rule=rule, ratio=0.2)
    keep = method.keep(tokens)
    assert keep.sum(1).tolist() == method.counts(tokens.mask).tolist() == [1, 0, 1] and not (keep & ~tokens.mask).any()
    nothing = make_tokens([[0.3, 0.1]], mask=[[0, 0]])
    assert not method.keep(nothing).any()
    assert not tip(rule=rule, ratio=0.2, scope="ema").keep(nothing).any()


def test_one_token_in_the_batch_is_kept():
    tokens = make_tokens([[0.3, 5.0]], [[2.0, 9.0]], mask=[[1, 0]])
    assert tip().scores(tokens)[0, 0] == 0
    assert tip().keep(tokens).tolist() == [[True, False]]


def test_tokens_that_are_not_finite_are_dropped():
    tokens = make_tokens([[0.3, NAN, 0.7, 0.2], [0.1, 0.2, 0.3, 0.9]], [[INF, 1.0, 0.2, 0.3], [0.1, -1e-7, 0.3, -INF]])
    assert tokens.finite.tolist() == [[False, False, True, True], [True, True, True, False]]
    for rule in NEEDS:
        keep = tip(rule=rule, ratio=0.5).keep(tokens)
        assert rule == "none" or keep.sum(1).tolist() == [2, 2] and not (keep & ~tokens.finite).any()
    scores = tip().scores(tokens)[tokens.finite]
    assert ((0 <= scores) & (scores <= 1)).all() and scores.max() > 0.99
    keep = tip(ratio=0.9).keep(tokens)
    assert keep.sum(1).tolist() == [2, 3]  # fewer than the 3 that were to be kept


@pytest.mark.parametrize(
    "ratio, length, count", [(0.29, 100, 29), (0.5, 7, 3), (0.1, 9, 1), (0.1, 30, 3), (0.7, 10, 7)]
)
def test_counts(ratio, length, count):
    assert kept_counts(torch.ones(1, length).bool(), ratio).tolist() == [count]


def test_counts_of_minimum():
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    assert kept_counts(mask, 0.25, 3).tolist() == [3, 1, 0]
    assert kept_counts(mask, 0.25, 0).tolist() == [1, 0, 0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_selection_does_not_depend_on_padding_or_order_of_rollouts(seed, ratio):
    generator = torch.Generator().manual_seed(seed)
    entropy, divergence = torch.rand(2, 4, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 9, generator=generator) < 0.7
    method = tip(ratio=ratio)
    keep = method.keep(TipTokens(entropy, mask, divergence))
    assert torch.equal(keep.sum(1), kept_counts(mask, ratio)) and not (keep & ~mask).any()
    garbage = torch.where(mask, entropy, torch.full_like(entropy, 50.0))
    assert torch.equal(method.keep(TipTokens(garbage, mask, divergence)), keep)
    order = torch.randperm(4, generator=generator)
    assert torch.equal(method.keep(TipTokens(entropy[order], mask[order], divergence[order])), keep[order])
    dropped = mask & ~keep
    scores = method.scores(TipTokens(entropy, mask, divergence))
    lowest = torch.where(keep, scores, torch.inf).amin(1, keepdim=True)
    assert (scores <= lowest)[dropped].all()


def test_soft_or_is_exact_at_its_ends():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    one, zero = torch.ones(1000), torch.zeros(1000)
    for score in (soft_or(values, one), soft_or(one, values)):
        torch.testing.assert_close(score, one, **EXACT)
    torch.testing.assert_close(soft_or(values, zero), values, **EXACT)


def test_row_top_mask_by_hand():
    scores = torch.tensor([[3.0, 1.0, 3.0, 2.0], [0.0, -5.0, 4.0, 4.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1]]).bool()
    assert row_top_mask(scores, mask, torch.tensor([1, 3])).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 1]]


def test_draws_follow_entropy():
    """Frequencies of single draws against the paper's probabilities p = h / Σh."""
    entropy = torch.tensor([[0.0, 1.0, 2.0, 5.0]])
    method, hits = tip(rule="entropy_sample", ratio=0.25), torch.zeros(4)
    for step in range(2000):
        hits += method.keep(TipTokens(entropy, torch.ones(1, 4).bool(), draw=(0, step, 0)))[0]
    torch.testing.assert_close(hits / 2000, torch.tensor([0.0, 0.125, 0.25, 0.625]), rtol=0, atol=0.03)


@pytest.mark.parametrize("rule", ["entropy_sample", "random"])
def test_draws_repeat(rule):
    method = tip(rule=rule)

    def keep(*draw, rank=0, scope="micro_batch"):
        tokens = make_tokens([[0.5] * 40], draw=draw, world=Collectives(rank=rank, gather=lambda x: torch.cat([x, x])))
        return tip(rule=rule, scope=scope).keep(tokens)

    assert torch.equal(keep(1, 2, 3), keep(1, 2, 3)) and keep(1, 2, 3).sum() == 20
    others = [keep(2, 2, 3), keep(1, 3, 3), keep(1, 2, 4), keep(1, 2, 3, rank=1)]
    assert not any(torch.equal(keep(1, 2, 3), other) for other in others)
    assert method.state_dict() == {"ranges": {}}


def on_two_processes(function):
    """[function(rank, world) for both ranks], with collectives between two threads."""
    barrier, slots = threading.Barrier(2, timeout=20), [None, None]

    def world(rank):
        def exchange(own):
            slots[rank] = own
            barrier.wait()
            found = list(slots)
            barrier.wait()
            return found

        return Collectives(sum=lambda own: sum(exchange(own)), gather=lambda own: torch.cat(exchange(own)), rank=rank)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda rank: function(rank, world(rank)), (0, 1)))


@pytest.mark.parametrize("scope", ["world", "ema"])
@pytest.mark.parametrize("rule", [rule for rule in NEEDS if rule != "none"])
def test_two_processes_equal_one(rule, scope):
    generator = torch.Generator().manual_seed(0)
    entropy, divergence, forward = torch.rand(3, 6, 8, generator=generator, dtype=torch.float64)
    entropy[4:] *= 3  # the ends of both axes differ between processes
    mask = torch.rand(6, 8, generator=generator) < 0.8
    whole = TipTokens(entropy, mask, divergence, forward, (7, 1, 0))
    expected = tip(rule=rule, scope=scope)
    kept = expected.keep(whole)

    def one(rank, world):
        own = slice(0, 4) if rank == 0 else slice(4, 6)
        tokens = TipTokens(entropy[own], mask[own], divergence[own], forward[own], (7, 1, 0), world)
        method = tip(rule=rule, scope=scope)
        return method.keep(tokens), method.state_dict()

    (first, state), (second, other) = on_two_processes(one)
    assert torch.equal(torch.cat([first, second]), kept) and state == other == expected.state_dict()


def test_ema_of_the_ranges():
    method = tip(scope="ema", entropy_clip_quantile=None)
    first = make_tokens([[0.0, 1.0, 2.0]], [[0.0, 4.0, 8.0]])
    method.keep(first)
    assert method.ranges == {"entropy": [0.0, 2.0], "divergence": [0.0, 8.0]}
    method.keep(make_tokens([[1.0, 2.0, 12.0]], [[1.0, 2.0, 3.0]]))
    assert method.ranges["entropy"] == pytest.approx([0.1, 3.0])
    assert method.ranges["divergence"] == pytest.approx([0.1, 7.5])
    # Beyond the running ends values are clipped.
    scores = method.scores(make_tokens([[0.0, 1.0, 50.0]], [[0.0, 0.0, 0.0]]))
    assert scores.min() == 0 and scores.max() == 1
    # A micro-batch without a token does not move them.
    before = json.loads(json.dumps(method.state_dict()))
    method.keep(make_tokens([[1.0]], mask=[[0]]))
    assert method.state_dict() == before
    restored = tip(scope="ema", entropy_clip_quantile=None)
    restored.load_state_dict(before)
    assert restored.ranges == method.ranges


@pytest.mark.parametrize(
    "name, value, accepted",
    [
        ("rule", "top", "'none', 'entropy', .*'q3'"),
        ("ratio", 0.0, r"ratio in \(0, 1\]"),
        ("ratio", 1.5, r"ratio in \(0, 1\]"),
        ("ratio", "half", r"ratio in \(0, 1\]"),
        ("entropy_clip_quantile", 0.0, "quantile"),
        ("divergence_clip_quantile", 98, "quantile"),
        ("min_tokens", -1, "integer >= 0"),
        ("min_tokens", 1.5, "integer >= 0"),
        ("scope", "batch", "'micro_batch', 'world', 'ema'"),
    ],
)
def test_bad_fields(name, value, accepted):
    with pytest.raises(ValueError, match=f"`tip_{name}` must be .*{accepted}.*got {value!r}"):
        tip(**{name: value})


def test_paper_and_needs():
    assert Tip.paper.arxiv in Tip.paper.bibtex and Tip.paper.url == "https://huggingface.co/papers/2604.14084"
    assert [rule for rule in NEEDS if "divergence" in tip(rule=rule).needs] == ["soft_or", "divergence", "bottom"]
    assert tip(rule="q3").needs == ("forward_divergence",)
    assert not tip(rule="none").selects and not tip(ratio=1.0).selects and tip().selects
    assert Tip(SimpleNamespace(**vars(TipConfig()))).ratio == 0.5


# Searched by test_fuzzing.py


@covers(rescale, soft_or)
def scores_of_tip(draw):
    shape = draw_shape(draw)
    values, others = draw_tensor(draw, shape, (-1e18, 1e18)), draw_tensor(draw, shape, ENTROPIES)
    low, high = sorted(draw(st.tuples(floats((-1e18, 1e18)), floats((-1e18, 1e18)))))
    one, two = rescale(values, low, high), rescale(others, others.min(), others.max())
    for axis in (one, two):
        assert axis.isfinite().all() and (axis >= 0).all() and (axis <= 1).all()
    assert low == high or (one[values >= high] == 1).all() and (one[values <= low] == 0).all()
    score = soft_or(one, two)
    assert (score >= torch.maximum(one, two) - 1e-6).all() and (score <= 1 + 1e-6).all()


@covers(draws, quantile_or_none)
def draws_of_tip(draw):
    """Positive, reproducible, and independent of padding."""
    shape, place = draw_shape(draw), draw(st.tuples(*[st.integers(0, 99)] * 3))
    mask = draw_flags(draw, shape)
    found = draws(TipTokens(torch.zeros(shape), mask, draw=place), False)
    wider = torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1)
    again = draws(TipTokens(torch.zeros(wider.shape), wider, draw=place), False)
    assert (found > 0).all() and found.isfinite().all() and torch.equal(found[mask], again[wider])
    quantile = draw(st.none() | st.floats(1e-6, 1))
    assert quantile_or_none(type("Config", (), {"field": quantile}), "field") == quantile


@covers(functional.row_top_mask, kept_counts)
def tops_of_rows(draw):
    """The requested number, no dropped token larger, and ties in order."""
    shape, ratio, least = draw_shape(draw), draw(SHARES), draw(st.integers(0, 3))
    values, mask = draw_tensor(draw, shape, ENTROPIES), draw_flags(draw, shape)
    counts = kept_counts(mask, ratio, least)
    assert torch.equal(counts, torch.minimum(counts, mask.sum(1))) and (counts >= mask.sum(1).clamp(max=least)).all()
    chosen = functional.row_top_mask(spoiled(draw, values, mask), mask, counts)
    assert torch.equal(chosen.sum(1), counts) and not (chosen & ~mask).any()
    for row, own, kept in zip(values, mask, chosen, strict=True):
        for at in (own & ~kept).nonzero().flatten():
            assert (row[kept] >= row[at]).all() and not (kept & (row == row[at]))[at:].any()
