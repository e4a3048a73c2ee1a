# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The penalty on attention entropy and its gradient against attention maps of the model."""

import math

import pytest
import torch
from support.tiny import build_model

from trl_entropy.experimental.attention_penalty import AttentionPenalty, entropy_of_scores, head_penalties


ROWS = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]], dtype=torch.float64)
CAUSAL = torch.ones(3, 3, dtype=torch.bool).tril()
HALF = torch.tensor([0.5], dtype=torch.float64)


def example():
    """(1, 1, 3) entropies of the rows."""
    return entropy_of_scores(ROWS.log().masked_fill(~CAUSAL, 5.0)[None, None], CAUSAL)


def test_worked_example():
    entropy = example()
    assert entropy.flatten().tolist() == pytest.approx([0, 0.6931471806, 1.0296530141], abs=1e-9)
    found = head_penalties(entropy, HALF, 3)
    assert found.flatten().tolist() == pytest.approx([0.3017372402, 0, 0.2307331153], abs=1e-9)
    assert found.sum().item() == pytest.approx(0.5324703555, abs=1e-9)
    assert found.mean().item() == pytest.approx(0.1774901185, abs=1e-9)


def test_margin():
    entropy = torch.tensor([[[0.3, 0.7, 0.71, 0.29]]], dtype=torch.float64) * math.log(8)
    found = head_penalties(entropy, HALF, 8, margin=0.2)
    assert found[0, 0, :2].tolist() == [0, 0] and (found[0, 0, 2:] > 0).all()
    assert not head_penalties(example(), HALF, 3, margin=1.0).any()


def test_rows_without_keys_give_0_and_no_nan():
    scores = torch.randn(2, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    allowed = torch.ones(2, 2, 4, dtype=torch.bool)
    allowed[0, 1] = False
    allowed[1, 0, 2:] = False
    found = entropy_of_scores(scores, allowed)
    found.square().sum().backward()
    assert found[0, 1] == 0 and scores.grad.isfinite().all()
    assert not scores.grad[0, 1].any() and not scores.grad[1, 0, 2:].any() and scores.grad[1, 0, :2].any()


def test_gradient_of_the_entropy():
    """dH/ds_j = -A_j (ln A_j + H)."""
    scores = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    allowed = torch.ones(5, 7, dtype=torch.bool).tril(1)
    entropy = entropy_of_scores(scores, allowed)
    entropy.sum().backward()
    a = scores.detach().masked_fill(~allowed, -torch.inf).softmax(-1)
    logs = torch.where(allowed, a.clamp(min=1e-300).log(), 0)
    literal = -(a * logs).sum(-1)
    torch.testing.assert_close(entropy.detach(), literal, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scores.grad, -a * (logs + literal[:, None]), rtol=1e-9, atol=1e-12)


def literal_loss(model, ids, mask, thresholds, margin=0.2):
    """The mean penalty by the maps of the eager implementation, one query after the other."""
    model.set_attn_implementation("eager")
    maps = model(ids, attention_mask=mask, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    context, terms = ids.size(1), []
    for layer, found in enumerate(maps):
        for b in range(len(ids)):
            for t in range(context):
                if not mask[b, t]:
                    continue
                keys = [k for k in range(t + 1) if mask[b, k]]
                for h in range(found.size(1)):
                    a = found[b, h, t, keys]
                    e = -(a * a.log()).sum() - thresholds[layer, h] * math.log(context)
                    far = e.detach().abs() > margin * math.log(context)
                    terms.append(e * e if far else 0 * e)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize("groups", [1, 2])
def test_loss_and_gradients_are_those_of_the_maps(side, groups):
    ids = torch.tensor([[3, 4, 5, 6, 7, 8, 9], [8, 9, 10, 11, 12, 13, 14]])
    mask = torch.ones_like(ids)
    if side != "none":
        mask[1, slice(4, None) if side == "right" else slice(None, 3)] = 0
    model = build_model(num_attention_heads=2, num_key_value_heads=groups)
    penalty = AttentionPenalty(model, coef=0.5, threshold=0.3, learn_thresholds=True)
    with torch.no_grad():
        penalty.thresholds += torch.tensor([[0.1, 0.3], [-0.2, 0.4]])
    with penalty.watching(mask):
        model(ids, attention_mask=mask)
    found = penalty.loss()
    found.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    thresholds = penalty.thresholds.detach().clone().requires_grad_()
    model.zero_grad()
    expected = 0.5 * literal_loss(model, ids, mask, thresholds)
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5) and found.item() > 0
    torch.testing.assert_close(penalty.thresholds.grad, thresholds.grad, rtol=1e-4, atol=1e-6)
    names = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert names == set(gradients) and any("q_proj" in name for name in names)
    for name in names:
        torch.testing.assert_close(gradients[name], model.get_parameter(name).grad, rtol=1e-4, atol=1e-5)


def test_sampled_queries():
    """Of nine queries two are looked at: the first and the last."""
    ids, model = torch.arange(3, 12)[None], build_model()
    penalty = AttentionPenalty(model, coef=1.0, threshold=1.0, queries=2)
    with penalty.watching(torch.ones_like(ids)):
        logits = model(ids).logits
        with torch.no_grad():
            model(ids.flip(1))  # a second forward does not count
    model.set_attn_implementation("eager")
    maps = model(ids, output_attentions=True).attentions
    e = [torch.special.entr(found[0, :, t]).sum(-1) - math.log(9) for found in maps for t in (0, 8)]
    literal = torch.cat([torch.where(x.abs() > 0.2 * math.log(9), x * x, 0) for x in e]).mean()
    assert float(penalty.loss()) == pytest.approx(float(literal), rel=1e-5)
    model.set_attn_implementation("sdpa")
    assert model(ids).logits.equal(logits)  # nothing is left behind, and outputs are the same to the bit


def test_sequences_without_tokens_and_thresholds_that_are_fixed():
    model = build_model()
    penalty = AttentionPenalty(model)
    assert not any(weight.requires_grad for weight in penalty.parameters())
    assert "_model" not in dict(penalty.named_modules()) and len(list(penalty.parameters())) == 1
    ids, mask = torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.tensor([[1, 1, 1], [0, 0, 0]])
    with penalty.watching(mask):
        model(ids, attention_mask=mask)
    both = penalty.loss()
    both.backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())
    with penalty.watching(mask[:1]):
        model(ids[:1], attention_mask=mask[:1])
    assert float(penalty.loss()) == pytest.approx(float(both), rel=1e-6)
    with penalty.watching(0 * mask):
        model(ids, attention_mask=mask)
    assert float(penalty.loss()) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(coef=-1), "`coef` must be a finite number >= 0, got -1"),
        (dict(threshold=1.5), r"`threshold` must be a number in \[0, 1\], got 1.5"),
        (dict(margin=-0.1), r"`margin` must be a number in \[0, 1\], got -0.1"),
        (dict(queries=0), "`queries` must be a whole number >= 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttentionPenalty(build_model(), **arguments)


def test_models_that_do_not_fit():
    model = build_model()
    penalty = AttentionPenalty(model)
    mask = torch.ones(1, 3)
    with pytest.raises(ValueError, match="saw no layer that attends"), penalty.watching(mask):
        pass
    model.train().activation_checkpointing_enable()
    with pytest.raises(ValueError, match="without activation checkpointing"), penalty.watching(mask):
        pass
    model.eval()
    with penalty.watching(mask):
        model(torch.tensor([[3, 4, 5]]))
    with pytest.raises(ValueError, match="must call its attention through.*got Linear"):
        AttentionPenalty(torch.nn.Linear(2, 2))
