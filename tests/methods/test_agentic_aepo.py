# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import logging
import statistics
from dataclasses import replace

import pytest
import torch
from support import cases
from support.fuzzing import ENTROPIES, covers, draw_flags, draw_shape, draw_tensor, spoiled
from support.reference import dense_logps_and_entropy, policy_terms
from support.registry import MethodSettings
from support.tensors import make_rollouts, make_tokens, random_tokens
from support.tiny import EXACT, FLOAT64, LOSS_TYPES, build_model, loss_and_gradients
from trl import GRPOTrainer

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import agentic_aepo
from trl_entropy.methods.agentic_aepo import entropy_scores
from trl_entropy.trainers import rollouts


METHOD_SETTINGS = {"agentic_aepo": MethodSettings(variants=(dict(agentic_aepo_scope="micro_batch"),))}


NEW = [0.22, 0.30, 0.12, 0.30, 0.12]
ADVANTAGES = [1.0, 1, 1, -1, -1]


def test_worked_example_of_the_advantage():
    rollouts = make_rollouts([[0, 0.2, 9.0], [0.6, 1.2, 9.0]], [1.0, -1.0], [[1, 1, 0]] * 2)
    found = cases.build("agentic_aepo").group_advantages(rollouts)[0][:, :2]
    expected = [[0.811017763, 0.886610658], [-1.037796447, -1.264575131]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    scores = entropy_scores(rollouts.entropy, rollouts.mask)
    expected = [[-0.944911183, -0.566946710, 0], [0.188982237, 1.322875656, 0]]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("keep", [True, False])
def test_worked_example_of_the_clip(keep):
    """Loss and gradient of PPO's clip at 0.2 and 0.28, and with the gradient kept."""
    logps = torch.tensor([NEW], dtype=torch.float64).log().requires_grad_()
    tokens = make_tokens(logps.detach(), torch.full((1, 5), 0.2, dtype=torch.float64).log(), ADVANTAGES)
    tokens = replace(tokens, logps=logps, clip_low=0.8, clip_high=1.28)
    method = cases.build("agentic_aepo", agentic_aepo_coef=0.0, agentic_aepo_keep_gradient=keep)
    ratio = (logps - tokens.old_logps).exp()
    loss = -torch.minimum(ratio * tokens.advantages, ratio.clamp(0.8, 1.28) * tokens.advantages)
    term = method.loss(tokens)[0]
    loss = loss if term is None else loss + term
    torch.testing.assert_close(
        loss[0].detach(), torch.tensor([-1.1, -1.28, -0.6, 1.5, 0.8], dtype=torch.float64), **FLOAT64
    )
    loss.sum().backward()
    expected = [-1.1, -1.28 if keep else 0, -0.6, 1.5, 0]
    torch.testing.assert_close(logps.grad[0], torch.tensor(expected, dtype=torch.float64), **FLOAT64)


def preserving(logps, old_logps, advantages):
    """min(d A, clip(d, 1 - e_l, (1 + e_h) / sg(d) d) A), written as in the paper."""
    ratio = (logps - old_logps).exp()
    above = torch.where(ratio > 1.2, 1.2 / ratio.detach() * ratio, ratio)
    clipped = torch.where(ratio < 0.8, torch.full_like(ratio, 0.8), above)
    return -torch.minimum(ratio * advantages, clipped * advantages)


@pytest.mark.parametrize("scope", ["world", "micro_batch"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients(make_trainer, loss_type, scope):
    def reference(logps, old_logps, entropy, advantages, mask):
        if scope == "micro_batch":
            values = entropy[mask].tolist()
            mean, std = statistics.fmean(values), statistics.stdev(values)
            advantages = advantages * (1 + 0.3 * (entropy.detach() - mean) / std)
        if loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo"):
            assert ((logps - old_logps).exp()[mask & (advantages > 0)] > 1.2).any()
            return preserving(logps, old_logps, advantages)
        return policy_terms(loss_type, logps, old_logps, advantages, mask)

    cases.check_against_reference(
        make_trainer, "agentic_aepo", loss_type, reference, dict(agentic_aepo_coef=0.3, agentic_aepo_scope=scope)
    )


def test_correction_for_the_engine_weighs_the_term():
    tokens = replace(random_tokens(), clip_high=0.5, advantages=torch.ones(4, 7).double())
    logps = tokens.logps.clone().requires_grad_()
    gradients = []
    for ratio in (None, torch.full((4, 1), 0.4, dtype=torch.float64)):
        method = cases.build("agentic_aepo")
        tokens = replace(tokens, logps=logps, engine_ratio=ratio)
        gradients.append(torch.autograd.grad(method.loss(tokens)[0].sum(), logps)[0])
    torch.testing.assert_close(gradients[1], 0.4 * gradients[0], **FLOAT64)
    assert gradients[0].abs().max() == 0.5


def tokens_in_the_gradient(trainer, batch):
    """(B, T) bool, and the entropies."""
    forward, seen = trainer._get_per_token_logps_and_entropies, []

    def spy(*args, **kwargs):
        seen.extend(forward(*args, **kwargs))
        seen[0].retain_grad()
        return seen

    trainer._get_per_token_logps_and_entropies = spy
    loss_and_gradients(trainer, batch)
    return seen[0].grad != 0, seen[1]


@pytest.mark.parametrize("quantile", [1.0, 0.2])
def test_tokens_that_the_80_20_mask_leaves_out_stay_out(make_trainer, quantile):
    batch, found = cases.off_policy_batch(build_model()), []
    for keep in (False, True):
        trainer = make_trainer(
            model=build_model(), methods=["agentic_aepo"], agentic_aepo_coef=0.0, agentic_aepo_keep_gradient=keep,
            top_entropy_quantile=quantile,
        )  # fmt: skip
        acts, entropy = tokens_in_the_gradient(trainer, batch)
        found.append(acts)
    stock, kept = found
    if quantile == 1:
        assert (kept & ~stock).any()
        return
    mask = batch["completion_mask"]
    out = mask.bool() & ~GRPOTrainer.get_high_entropy_mask(trainer, entropy, mask, 1 - quantile)
    assert out.sum() > 10 and not (kept & out).any()


def test_no_spread_no_change():
    for entropy, mask in (
        ([[0.5] * 3], [[1, 1, 1]]),
        ([[0.5, 0.1, 0.2]], [[1, 0, 0]]),
        ([[0.5, 0.1, 0.2]], [[0, 0, 0]]),
    ):
        rollouts = make_rollouts(entropy, [2.0], mask)
        assert (cases.build("agentic_aepo").group_advantages(rollouts)[0] == 2).all()


def test_properties(make_trainer):
    cases.check_rollouts(lambda: cases.build("agentic_aepo"))
    method = cases.build("agentic_aepo", agentic_aepo_scope="micro_batch")
    cases.check_padding_does_not_matter(method)
    cases.check_rows_permute(method)
    cases.check_extremes_stay_finite(method)
    cases.check_empty_mask(make_trainer, "agentic_aepo")


def test_neutral_settings_are_stock_to_the_bit(make_trainer):
    batch = cases.off_policy_batch(build_model())
    found = [
        loss_and_gradients(make_trainer(model=build_model(), stock=stock, **settings), batch)
        for stock, settings in (
            (True, {}),
            (
                False,
                dict(
                    methods=["agentic_aepo"], agentic_aepo_coef=0.0, agentic_aepo_keep_gradient=False, fused_head=False
                ),
            ),
        )
    ]
    torch.testing.assert_close(*found, **EXACT)


def test_settings_that_cannot_work(caplog, tmp_path):
    settings = dict(methods=["agentic_aepo"], use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="`importance_sampling_level` must be 'token' with method 'agentic_aepo'"):
        EntropyGRPOConfig(str(tmp_path), importance_sampling_level="sequence", **settings)
    for steps, count in ((1, 1), (4, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="trl_entropy"):
            EntropyGRPOConfig(str(tmp_path), steps_per_generation=steps, **settings)
        assert sum("does nothing if each generation batch" in r.getMessage() for r in caplog.records) == count


def test_training(make_trainer, monkeypatch):
    trainer = make_trainer(methods=["agentic_aepo"], steps_per_generation=2, learning_rate=0.5, max_steps=4)
    seen = []
    hook = rollouts.apply_group_hooks

    def spy(trainer, generation, output):
        seen.append((output["advantages"].clone(), output))
        hook(trainer, generation, output)

    monkeypatch.setattr(rollouts, "apply_group_hooks", spy)
    trainer.train()
    stock, output = seen[0]
    mask = output["completion_mask"].bool()
    with torch.no_grad():
        _, entropy = dense_logps_and_entropy(build_model(), output)
    values = entropy[mask].tolist()
    expected = stock[:, None] * (1 + 0.2 * (entropy - statistics.fmean(values)) / statistics.stdev(values))
    torch.testing.assert_close(output["advantages"][mask], expected[mask], rtol=1e-4, atol=1e-4)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert rows[0]["agentic_aepo/weight_mean"] == pytest.approx(1, abs=1e-5) and rows[0]["agentic_aepo/weight_min"] < 1
    assert rows[0]["agentic_aepo/kept_gradient_fraction"] == 0 and rows[1]["agentic_aepo/kept_gradient_fraction"] > 0


# Searched by test_fuzzing.py


@covers(agentic_aepo.entropy_scores)
def agentic_scores(draw):
    shape = draw_shape(draw)
    entropy, mask = draw_tensor(draw, shape, ENTROPIES), draw_flags(draw, shape)
    scores = agentic_aepo.entropy_scores(entropy, mask)
    assert scores.isfinite().all() and (scores[~mask] == 0).all()
    assert torch.equal(scores, agentic_aepo.entropy_scores(spoiled(draw, entropy, mask), mask))
    assert (scores.abs() <= max(int(mask.sum()), 1) ** 0.5).all()  # no value lies further out among n
