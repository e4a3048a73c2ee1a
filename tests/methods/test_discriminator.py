# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support.fuzzing import ADVANTAGES, SHARES, covers, draw_flags, draw_shape, draw_tensor, spoiled
from support.reference import dense_log_policy, dense_logps_and_entropy, policy_terms, reduce_terms
from support.registry import MethodSettings
from support.tensors import F1_LOGITS, make_loss_batch, three_tokens
from support.tiny import EXACT, FLOAT32, FLOAT64, LOSS_TYPES, build_model, loss_and_gradients

from trl_entropy import functional
from trl_entropy.functional import discriminator
from trl_entropy.methods.discriminator import clip_b_mask, clip_v_mask
from trl_entropy.tokens import Rollouts
from trl_entropy.trainers import rollouts


METHOD_SETTINGS = {
    "clip_b": MethodSettings(
        strong=dict(clip_b_mu=0.5),
        world=dict(clip_b_mu=0.4),
        world_loss=dict(clip_b_renormalize=False),
        batches=(1024, 1024),
    ),
    "clip_v": MethodSettings(
        strong=dict(clip_v_mu=0.3, clip_v_max_ratio=0.3),
        world=dict(clip_v_mu=0.3, clip_v_max_ratio=0.1),
        batches=(512, 512),
    ),
}


def mask_by_hand(logps, entropy, advantages, mask, mu):
    scores = logps.exp() * (entropy + logps)
    valid = scores[mask]
    deviation = ((valid - valid.mean()) ** 2).mean().sqrt()
    return mask & ((advantages >= 0) | (scores - valid.mean() >= -mu * deviation))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_on_policy_loss_and_gradients(make_trainer, loss_type):
    """One update per generation batch: S comes from the forward of the loss."""
    batch = make_loss_batch()
    trainer = make_trainer(model=build_model(), loss_type=loss_type, methods=["clip_b"], clip_b_mu=0.4)
    loss, gradients = loss_and_gradients(trainer, batch)
    model = build_model()
    logps, entropy = dense_logps_and_entropy(model, batch)
    mask, advantages = batch["completion_mask"].bool(), batch["advantages"][:, None].expand(logps.shape)
    with torch.no_grad():
        kept = mask_by_hand(logps, entropy, advantages, mask, 0.4)
    assert 0 < kept.sum() < mask.sum()
    terms = policy_terms(loss_type, logps, logps.detach(), advantages, mask) * kept
    expected = reduce_terms(loss_type, terms, mask)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), **FLOAT32)
    torch.testing.assert_close(gradients, {n: p.grad for n, p in model.named_parameters()}, **FLOAT32)
    assert trainer._metrics["train"]["clip_b/kept_fraction"][0] == pytest.approx((kept.sum() / mask.sum()).item())


def rollouts_of(trainer):
    """One generation batch: the output of the trainer, and what stock TRL would have made of the same rollouts."""
    found = {}
    original = rollouts.apply_group_hooks

    def spy(trainer, generation, output):
        found["stock"] = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in output.items()}
        original(trainer, generation, output)
        found["ours"] = output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "apply_group_hooks", spy)
        trainer._prepare_inputs([{"prompt": row["prompt"]} for row in trainer.train_dataset.select([0] * 4 + [1] * 4)])
    return found["stock"], found["ours"]


@pytest.mark.parametrize("renormalize", [False, True])
def test_generation_batch(make_trainer, renormalize):
    """Several updates per generation batch: S and its moments are those of the old policy and its batch."""
    trainer = make_trainer(
        methods=["clip_b"],
        clip_b_mu=0.4,
        clip_b_renormalize=renormalize,
        steps_per_generation=2,
        mask_truncated_completions=False,
    )
    stock, ours = rollouts_of(trainer)
    with torch.no_grad():
        logps, entropy = dense_logps_and_entropy(trainer.model, stock)
    mask = stock["completion_mask"].bool()
    torch.testing.assert_close(ours["old_entropies"] * mask, entropy, **FLOAT32)
    advantages = stock["advantages"][:, None].expand(logps.shape)
    kept = mask_by_hand(logps, entropy, advantages, mask, 0.4)
    assert 0 < kept.sum() < mask.sum()
    torch.testing.assert_close(ours["advantages"] * mask, advantages * kept, **EXACT)
    if renormalize:
        assert torch.equal(ours["tool_mask"].bool() & mask, kept)
        assert ours["num_items_in_batch"] == kept.sum()
        assert torch.equal(ours["completion_mask"], stock["completion_mask"])
    else:
        assert "tool_mask" not in ours
        assert ours["num_items_in_batch"] == mask.sum()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_renormalized_loss(make_trainer, loss_type):
    """The left-out tokens are gone from numerator and denominators, for every way of taking the mean."""
    trainer = make_trainer(
        methods=["clip_b"], clip_b_mu=0.4, clip_b_renormalize=True, loss_type=loss_type, per_device_train_batch_size=8
    )
    stock, ours = rollouts_of(trainer)
    batch = {key: ours[key] for key in ours if key != "old_entropies"}
    loss, gradients = loss_and_gradients(trainer, batch)
    model = build_model()
    logps, entropy = dense_logps_and_entropy(model, batch)
    mask = batch["completion_mask"].bool()
    advantages = stock["advantages"][:, None].expand(logps.shape)
    with torch.no_grad():
        kept = mask_by_hand(logps, entropy, advantages, mask, 0.4)
    assert 0 < kept.sum() < mask.sum()
    expected = reduce_terms(loss_type, policy_terms(loss_type, logps, logps.detach(), advantages, kept), kept)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), **FLOAT32)
    torch.testing.assert_close(gradients, {n: p.grad for n, p in model.named_parameters()}, **FLOAT32)


@pytest.mark.parametrize(
    "settings, forwards",
    [
        (dict(), 1),
        (dict(clip_b_renormalize=True), 2),
        (dict(steps_per_generation=2), 1 + 2),
        (dict(steps_per_generation=2, clip_b_renormalize=True), 1 + 2),
    ],
    ids=["on_policy", "on_policy_renormalized", "several_updates", "several_updates_renormalized"],
)
def test_number_of_forwards(make_trainer, settings, forwards):
    """An extra forward only if TRL makes none and the denominators must be known before the loss."""
    trainer = make_trainer(methods=["clip_b"], max_steps=settings.get("steps_per_generation", 1), **settings)
    calls = []
    head = trainer.model.forward

    def count(*args, **kwargs):
        if kwargs.get("fused_lm_head"):
            calls.append(kwargs["input_ids"].size(0))
        return head(*args, **kwargs)

    trainer.model.forward = count
    trainer.train()
    scored = 4 * settings.get("steps_per_generation", 1)
    expected_rows = 4 * trainer.args.max_steps + (scored if forwards > trainer.args.max_steps else 0)
    assert sum(calls) == expected_rows


def test_worked_example():
    tokens = three_tokens()
    scores = discriminator(tokens.logps, tokens.entropy)
    expected = [[0.3266881389, -0.0147621483, -0.0691861858]]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), **FLOAT64)
    assert clip_b_mask(scores, tokens.advantages, tokens.mask, 2.5).tolist() == [[True, True, True]]
    assert clip_b_mask(scores, tokens.advantages, tokens.mask, 0.5).tolist() == [[True, True, False]]
    # (S - mean) / std of the third token is -0.8567143743: the bound lies there, and equality keeps.
    assert clip_b_mask(scores, tokens.advantages, tokens.mask, 0.8567143742).tolist() == [[True, True, False]]
    assert clip_b_mask(scores, tokens.advantages, tokens.mask, 0.8567143744).tolist() == [[True, True, True]]


def test_no_spread_keeps_everything():
    scores = torch.full((2, 3), 0.3)
    mask = torch.tensor([[True] * 3, [True, False, False]])
    assert torch.equal(clip_b_mask(scores, -torch.ones(2, 3), mask, 0.0), mask)


def test_rewarded_tokens_are_never_left_out():
    scores = torch.tensor([[-9.0, 1.0, 1.0, 1.0]])
    for advantage, kept in ((1.0, True), (0.0, True), (-1e-6, False)):
        assert clip_b_mask(scores, torch.full((1, 4), advantage), torch.ones(1, 4).bool(), 1.0)[0, 0] == kept


def test_without_rollout_entropies_the_group_hook_leaves_advantages_alone():
    rollouts = Rollouts(advantages=torch.randn(2, 3), mask=torch.ones(2, 3).bool())
    assert cases.build("clip_b").group_advantages(rollouts)[0] is rollouts.advantages


def test_properties(make_trainer):
    method = cases.build("clip_b", clip_b_mu=0.3)
    cases.check_padding_does_not_matter(method, on_policy=True)
    cases.check_rows_permute(method, on_policy=True)
    cases.check_extremes_stay_finite(method, on_policy=True)
    cases.check_empty_mask(make_trainer, "clip_b")
    tokens = replace(three_tokens(), on_policy=True)
    assert cases.build("clip_b", clip_b_mu=1e6).token_advantages(tokens)[0].equal(tokens.advantages)


# Clip_V


def drains_by_hand(log_policy, chosen):
    """D = N - S of each token, from the whole distribution."""
    entropy = -(log_policy.exp() * log_policy).sum(-1)
    scores = log_policy.exp() * (entropy.unsqueeze(-1) + log_policy)
    mean = (log_policy.exp() * scores).sum(-1)
    return mean - scores.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("max_fraction", [1.0, 0.1])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_clip_v_loss_and_gradients(make_trainer, loss_type, max_fraction):
    batch = make_loss_batch()
    trainer = make_trainer(
        model=build_model(), loss_type=loss_type, methods=["clip_v"], clip_v_mu=0.3, clip_v_max_ratio=max_fraction
    )
    loss, gradients = loss_and_gradients(trainer, batch)
    model = build_model()
    logps, _ = dense_logps_and_entropy(model, batch)
    mask, advantages = batch["completion_mask"].bool(), batch["advantages"][:, None].expand(logps.shape)
    with torch.no_grad():
        drains = drains_by_hand(dense_log_policy(model, batch), batch["completion_ids"])
        valid = drains[mask]
        bound = 0.3 * ((valid - valid.mean()) ** 2).mean().sqrt()
        out = mask & (advantages < 0) & (drains > bound)
        limit = max(int(max_fraction * mask.sum()), 1)
        worst = sorted(out.nonzero().tolist(), key=lambda place: -drains[tuple(place)].item())[:limit]
        assert len(worst) == (limit if max_fraction < 1 else out.sum()) > 0
        kept = mask.clone()
        for place in worst:
            kept[tuple(place)] = False
    terms = policy_terms(loss_type, logps, logps.detach(), advantages, mask) * kept
    expected = reduce_terms(loss_type, terms, mask)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), **FLOAT32)
    torch.testing.assert_close(gradients, {n: p.grad for n, p in model.named_parameters()}, **FLOAT32)


def test_clip_v_worked_example():
    log_policy = torch.tensor(F1_LOGITS, dtype=torch.float64).log_softmax(-1)
    drains = drains_by_hand(log_policy, torch.tensor([0, 2, 1]))[None]
    expected = [[-0.1578706782, 0.0178643625, 0.1800009296]]
    torch.testing.assert_close(drains, torch.tensor(expected, dtype=torch.float64), **FLOAT64)
    tokens = three_tokens()
    tokens = replace(
        tokens,
        sum_sq_probs=log_policy.exp().square().sum(-1)[None],
        sum_sq_probs_log_probs=(log_policy.exp().square() * log_policy).sum(-1)[None],
    )
    torch.testing.assert_close(cases.build("clip_v").scores(tokens), drains, **FLOAT64)
    assert clip_v_mask(drains, tokens.advantages, tokens.mask, 8.5, 1e-4).tolist() == [[True, True, True]]
    assert clip_v_mask(drains, tokens.advantages, tokens.mask, 0.5, 1.0).tolist() == [[True, True, False]]


def test_clip_v_generation_batch(make_trainer):
    """Second moments of the old policy reach the hook that acts before the loss."""
    trainer = make_trainer(methods=["clip_v"], clip_v_mu=0.2, clip_v_max_ratio=1.0, steps_per_generation=2)
    stock, ours = rollouts_of(trainer)
    with torch.no_grad():
        drains = drains_by_hand(dense_log_policy(trainer.model, stock), stock["completion_ids"])
    mask = stock["completion_mask"].bool()
    advantages = stock["advantages"][:, None].expand(mask.shape)
    valid = drains[mask]
    out = mask & (advantages < 0) & (drains > 0.2 * valid.std(correction=0))
    assert 0 < out.sum() < mask.sum()
    torch.testing.assert_close(ours["advantages"] * mask, advantages * (mask & ~out), **EXACT)


def test_clip_v_cap_with_ties_and_properties(make_trainer):
    drains = torch.tensor([[5.0, 5.0, 5.0, 0.0, 0.0, 0.0]])
    kept = clip_v_mask(drains, -torch.ones(1, 6), torch.ones(1, 6).bool(), 0.1, 1 / 3)
    assert kept.tolist() == [[False, False, True, True, True, True]]
    method = cases.build("clip_v", clip_v_mu=0.2, clip_v_max_ratio=1.0)
    cases.check_padding_does_not_matter(method, on_policy=True)
    cases.check_rows_permute(method, on_policy=True)
    cases.check_extremes_stay_finite(method, on_policy=True)
    cases.check_empty_mask(make_trainer, "clip_v")


# Searched by test_fuzzing.py


@covers(clip_b_mask, clip_v_mask)
def discriminator_masks(draw):
    shape, mu, share = draw_shape(draw), draw(st.floats(0, 10)), draw(SHARES)
    scores, advantages, mask = (
        draw_tensor(draw, shape, (-20.0, 20.0)),
        draw_tensor(draw, shape, ADVANTAGES),
        draw_flags(draw, shape),
    )
    other = spoiled(draw, scores, mask)
    for kept, again in (
        [clip_b_mask(values, advantages, mask, mu) for values in (scores, other)],
        [clip_v_mask(values, advantages, mask, mu, share) for values in (scores, other)],
    ):
        assert torch.equal(kept, again) and not (kept & ~mask).any()
        assert not (mask & ~kept & (advantages >= 0)).any()
    assert (mask & ~kept).sum() <= functional.ratio_count(share, int(mask.sum()))
