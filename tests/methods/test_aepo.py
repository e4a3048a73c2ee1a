# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support.fuzzing import ADVANTAGES, covers, draw_flags, draw_shape, draw_tensor
from support.reference import dense_log_policy, dense_logps_and_entropy, policy_terms, reduce_terms
from support.registry import MethodSettings
from support.tensors import make_loss_batch, random_tokens
from support.tiny import FLOAT32, FLOAT64, LOSS_TYPES, build_model, loss_and_gradients

from trl_entropy.methods import aepo
from trl_entropy.methods.aepo import regulated_temperature, reweighted_advantages
from trl_entropy.trainers.rollouts import whole_groups


METHOD_SETTINGS = {
    "aepo": MethodSettings(
        required=dict(aepo_target_entropy=0.5),
        strong=dict(aepo_target_entropy=1.0),
        variants=(dict(aepo_mode="reweight"),),
        state=dict(entropy=0.8),
        world_loss=dict(aepo_mode="reweight"),
        batches=(128, 2560),
    )
}


REWARDS = torch.tensor([0.0, 1.0, 0.3, 1.0])


@pytest.mark.parametrize("entropy", [0.42, 0.9, 1.8])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients(make_trainer, loss_type, entropy):
    """Old log-probabilities at the second temperature come with the rollouts."""
    noise = torch.randn(4, 6, generator=torch.Generator().manual_seed(8))
    old_second = cases.off_policy_batch(build_model())["old_per_token_logps"] + 0.3 * noise

    def prepare(method):
        method.entropy = entropy
        method.step_mean.step = 0

    def reference(logps, old_logps, entropies, advantages, mask):
        strength = 3 * min(abs(0.5 - entropy), 0.1) / 0.5  # two of four sequences have a reward above 0.5
        alpha = strength / (1 + strength)
        positive = (REWARDS > 0.5).float()[:, None]
        changed = (1 - alpha) * advantages + alpha * positive * (old_second - old_logps).exp()
        return policy_terms(loss_type, logps, old_logps, changed, mask)

    cases.check_against_reference(
        make_trainer,
        "aepo",
        loss_type,
        reference,
        dict(aepo_mode="reweight", aepo_target_entropy=0.5, aepo_positive_reward=0.5, aepo_gain=3),
        batch_keys=dict(rewards=REWARDS, old_second_logps=old_second),
        prepare=prepare,
    )


def test_on_policy_the_second_temperature_is_that_of_the_forward(make_trainer):
    trainer = make_trainer(
        model=build_model(), methods=["aepo"], aepo_mode="reweight", aepo_target_entropy=2.0, temperature=0.9
    )
    method = trainer.methods[0]
    method.entropy, method.step_mean.step = 1.9, 0
    seen = []
    hook = method.token_advantages
    method.token_advantages = lambda tokens: (seen.append(tokens), hook(tokens))[1]
    batch = make_loss_batch(rewards=REWARDS)
    loss_and_gradients(trainer, batch)
    assert method.temperature == pytest.approx(1.1)
    log_policy = dense_log_policy(build_model(), batch, temperature=0.9 * 1.1)
    expected = log_policy.gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)
    mask = batch["completion_mask"].bool()
    torch.testing.assert_close(seen[0].old_second_logps[mask], expected[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "entropy, binary, clipped", [(0.2, 1.2, 1.2), (0.5, 1.2, 1.0), (0.55, 0.8, 0.95), (1.0, 0.8, 0.8), (None, 1, 1)]
)
def test_regulated_temperature(entropy, binary, clipped):
    assert regulated_temperature(entropy, 0.5, 0.8, 1.2, "binary") == binary
    assert regulated_temperature(entropy, 0.5, 0.8, 1.2, "clip") == pytest.approx(clipped)


@pytest.mark.parametrize("temperature, change", [(0.8, -0.0328164738), (1.2, 0.0252619336)])
def test_reinforcing_a_tempered_policy_moves_entropy_as_claimed(temperature, change):
    """The worked example: the expected logit move towards the tempered policy, and the entropy change it causes."""
    logits = torch.tensor([2.0, 1, 0, -1], dtype=torch.float64, requires_grad=True)
    policy = logits.log_softmax(-1)
    entropy = -(policy.exp() * policy).sum()
    (gradient,) = torch.autograd.grad(entropy, logits)
    move = (logits / temperature).softmax(-1) - policy.exp()
    assert (gradient @ move).item() == pytest.approx(change, abs=1e-9)


def test_no_positive_sequence_changes_nothing():
    tokens = random_tokens()
    none = torch.zeros(4, dtype=torch.bool)
    found = reweighted_advantages(tokens.advantages, none, torch.ones_like(tokens.logps), 0.3, torch.tensor(0.0))
    assert torch.equal(found, tokens.advantages)


def test_controller_measures_the_mean_of_the_step_before():
    method = cases.build("aepo", aepo_target_entropy=0.5, aepo_mode="reweight")
    first, second = random_tokens(seed=1), random_tokens(seed=2)
    assert torch.equal(method.token_advantages(first)[0], first.advantages) and method.temperature == 1
    method.token_advantages(replace(second, draw=(0, 1, 0)))
    assert method.entropy == pytest.approx(first.entropy[first.mask].mean().item())
    method.token_advantages(replace(first, draw=(0, 2, 0), training=False))
    assert method.entropy == pytest.approx(first.entropy[first.mask].mean().item())


def test_properties(make_trainer):
    method = cases.build("aepo", aepo_target_entropy=0.5, aepo_mode="reweight")
    method.entropy, method.step_mean.step = 0.4, 0
    cases.check_padding_does_not_matter(method)
    cases.check_rows_permute(method)
    cases.check_extremes_stay_finite(method)


def test_state_survives_json():
    method, other = (cases.build("aepo", aepo_target_entropy=0.5, aepo_mode="reweight") for _ in range(2))
    for step in range(2):
        method.token_advantages(replace(random_tokens(seed=step), draw=(0, step, 0)))
    other.load_state_dict(json.loads(json.dumps(method.state_dict())))
    tokens = replace(random_tokens(seed=5), draw=(0, 2, 0))
    assert torch.equal(other.token_advantages(tokens)[0], method.token_advantages(tokens)[0])
    assert other.temperature == method.temperature != 1


@pytest.mark.parametrize("mode", ["rollout", "reweight"])
@pytest.mark.parametrize("steps_per_generation", [1, 2])
def test_training(make_trainer, steps_per_generation, mode):
    trainer = make_trainer(
        methods=["aepo"],
        aepo_mode=mode,
        aepo_target_entropy=1.0,
        aepo_positive_reward=0.3,
        max_steps=4,
        steps_per_generation=steps_per_generation,
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert rows[0]["aepo/temperature"] == 1 and rows[1]["aepo/temperature"] == pytest.approx(0.8)
    assert rows[3]["aepo/target_entropy"] == 1


WIDE = dict(aepo_temperature_min=0.1, aepo_temperature_max=10.0)  # temperatures between the bounds


@pytest.mark.parametrize("settings", [{}, dict(entropy_keep=0.9, entropy_keep_batches=1)], ids=["target", "driven"])
def test_temperature_is_complete_before_the_forward_that_reads_it(make_trainer, settings):
    """Also for the first forward of a step, which begins it: the only one without accumulation."""
    trainer = make_trainer(
        methods=["aepo"],
        aepo_mode="reweight",
        aepo_target_entropy=None if settings else 2.1,
        max_steps=4,
        **WIDE,
        **settings,
    )
    method, of_head, logged = trainer.methods[0], [], []
    head_settings, token_advantages = method.head_settings, method.token_advantages

    def spied(tokens):
        advantages, logs = token_advantages(tokens)
        logged.append(logs["temperature"].item())
        return advantages, logs

    method.head_settings = lambda: (found := head_settings(), of_head.append(found["second_temperature"]))[0]
    method.token_advantages = spied
    trainer.train()
    assert of_head == pytest.approx(logged) and len(logged) == 4
    assert logged[0] == 1 and len(set(logged)) == 4  # each step moved it


# A second rollout


def test_second_rollout_has_the_temperature_of_the_step_before(make_trainer):
    trainer = make_trainer(methods=["aepo"], aepo_target_entropy=2.1, max_steps=4, **WIDE)
    drawn, generate = [], trainer.model.generate
    trainer.model.generate = lambda *a, **k: (drawn.append(k["generation_config"].temperature), generate(*a, **k))[1]
    trainer.train()
    logged = [row["aepo/temperature"] for row in trainer.state.log_history if "loss" in row]
    assert drawn[::2] == [1] * 4 and drawn[1::2] == pytest.approx(logged) and len(set(logged)) == 4


def test_auxiliary_rollouts_are_drawn_at_the_regulated_temperature_and_leave_no_trace(make_trainer):
    trainer = make_trainer(
        methods=["aepo"], aepo_target_entropy=3.0, aepo_ratio=0.5, steps_per_generation=4, temperature=0.9, max_steps=4
    )
    method = trainer.methods[0]
    method.entropy = 2.9
    drawn = []
    generate = trainer.model.generate
    trainer.model.generate = lambda *a, **k: (
        drawn.append((k["generation_config"].temperature, len(k["input_ids"]))),
        generate(*a, **k),
    )[1]
    trainer.train()
    assert drawn == [(0.9, 16), (pytest.approx(0.9 * 1.1), 8)]
    assert trainer.generation_config.temperature == 0.9
    row = next(row for row in trainer.state.log_history if "reward" in row)
    assert len(trainer._logs["completion"]) == 16 and 0 <= row["aepo/auxiliary_positive_fraction"] <= 1
    parts = trainer._auxiliary["aepo"]
    assert len(parts) == 4 and all(len(part["rewards"]) == 2 for part in parts)
    for part in parts:  # rewards stayed with their rows
        for ids, mask, reward in zip(part["completion_ids"], part["completion_mask"], part["rewards"], strict=True):
            tokens = ids[mask.bool()].tolist()
            assert reward.item() == pytest.approx(sum(token % 2 == 0 for token in tokens) / len(tokens))


@pytest.mark.parametrize("old", [True, False], ids=["off_policy", "on_policy"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_auxiliary_loss_and_gradients(make_trainer, accumulation, old):
    batch, extra = make_loss_batch(seed=3), make_loss_batch(seed=5)
    extra["rewards"] = REWARDS
    if old:
        batch = cases.off_policy_batch(build_model())
        extra["old_per_token_logps"] = cases.off_policy_batch(build_model(), seed=5)["old_per_token_logps"]
    trainer = make_trainer(
        model=build_model(),
        loss_type="bnpo",
        methods=["aepo"],
        aepo_target_entropy=0.5,
        aepo_coef=0.5,
        aepo_positive_reward=0.5,
        gradient_accumulation_steps=accumulation,
    )
    trainer._auxiliary["aepo"] = [extra] * accumulation
    loss, gradients = loss_and_gradients(trainer, batch)

    model = build_model()
    logps, _ = dense_logps_and_entropy(model, batch)
    mask = batch["completion_mask"].bool()
    advantages = batch["advantages"][:, None].expand(logps.shape)
    terms = policy_terms("bnpo", logps, batch.get("old_per_token_logps", logps.detach()), advantages, mask)
    expected = reduce_terms("bnpo", terms, mask)
    extra_logps, _ = dense_logps_and_entropy(model, extra)
    ratio = (extra_logps - extra.get("old_per_token_logps", extra_logps.detach())).exp()
    gain = torch.minimum(ratio, ratio.clamp(0.8, 1.2))
    extra_mask = extra["completion_mask"].bool()
    rows = [gain[row][extra_mask[row]].mean() * (REWARDS[row] > 0.5) for row in range(4)]
    expected = (expected - 0.5 * torch.stack(rows).mean()) / accumulation
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), **FLOAT32)
    torch.testing.assert_close(gradients, {n: p.grad for n, p in model.named_parameters()}, **FLOAT32)


def test_what_counts_as_positive_in_the_second_rollout():
    """By reward rows 0 and 2 count; by advantage, as in the released code, row 2 alone: its group is not all right."""
    tokens = random_tokens()
    advantages = torch.tensor([0.0, -1.2, 0.8, 0.04], dtype=torch.float64).unsqueeze(1).expand(tokens.mask.shape)
    tokens = replace(tokens, rewards=torch.tensor([1.0, 0.0, 1.0, 0.0]).double(), advantages=advantages)
    for by, expected in (("reward", [0, 2]), ("advantage", [2])):
        method = cases.build("aepo", aepo_target_entropy=0.5, aepo_positive_by=by, aepo_coef=1.0)
        term, logs = method.auxiliary_loss(tokens)
        ratio = (tokens.logps - tokens.old_logps).exp().clamp(max=1.2)
        means = [ratio[row][tokens.mask[row]].mean() for row in expected]
        torch.testing.assert_close(term, -torch.stack(means).sum() / 4, **FLOAT64)
        assert logs["auxiliary_positive_fraction"].nonzero().flatten().tolist() == expected


def test_no_positive_auxiliary_completion_gives_a_differentiable_zero():
    method = cases.build("aepo", aepo_target_entropy=0.5, aepo_positive_reward=9.0)
    tokens = random_tokens()
    logps = tokens.logps.clone().requires_grad_()
    term = method.auxiliary_loss(replace(tokens, logps=logps))[0]
    assert term.item() == 0
    (gradient,) = torch.autograd.grad(term, logps)
    assert gradient.abs().max() == 0


@pytest.mark.parametrize(
    "rows, share, group, steps, expected",
    [(64, 0.25, 8, 4, 16), (64, 0.25, 16, 4, 16), (64, 0.3, 8, 4, 24), (16, 0.25, 4, 8, 8), (4, 0.25, 8, 4, 4)],
)
def test_whole_groups(rows, share, group, steps, expected):
    assert whole_groups(rows, share, group, steps) == expected


# Searched by test_fuzzing.py


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
