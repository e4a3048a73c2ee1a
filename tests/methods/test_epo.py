# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support.fuzzing import ENTROPIES, covers, draw_flags, draw_shape, draw_tensor, finite_gradients, spoiled
from support.reference import policy_terms
from support.registry import MethodSettings
from support.tensors import random_tokens
from support.tiny import FLOAT64, LOSS_TYPES

from trl_entropy.methods import epo
from trl_entropy.methods.epo import corridor_penalty, phase_weight, turn_mean


METHOD_SETTINGS = {
    "epo": MethodSettings(
        strong=dict(epo_coef=0.1, epo_low=0.8, epo_high=1.2),
        state=dict(history_total=1.5, history_steps=1),
        world=dict(epo_coef=0.3, epo_low=0.8, epo_high=1.2),
        ignores_rewards=True,
    )
}


def nested_mean(values, mask):
    """Mean over sequences of the mean over turns of the mean over tokens, written out."""
    rows = []
    for row, valid in zip(values, mask.tolist(), strict=True):
        turns, open_turn = [], []
        for value, inside in zip(row, [*valid, False][: len(row)], strict=True):
            if inside:
                open_turn.append(value)
            elif open_turn:
                turns.append(torch.stack(open_turn).mean())
                open_turn = []
        if open_turn:
            turns.append(torch.stack(open_turn).mean())
        rows.append(torch.stack(turns).mean() if turns else row.sum() * 0)
    return torch.stack(rows).mean()


TOOL_MASK = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1]])


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients(make_trainer, loss_type, tools):
    def prepare(method):
        method.history_total, method.history_steps = 3.0, 2

    keep = TOOL_MASK.bool() if tools else torch.ones(4, 6, dtype=torch.bool)

    def reference(logps, old_logps, entropy, advantages, mask):
        return policy_terms(loss_type, logps, old_logps, advantages, mask)

    def scalar(entropy, log_policy, mask):
        whole = -(log_policy.exp() * log_policy).sum(-1)
        hinge = torch.relu(0.9 * 1.5 - whole) + torch.relu(whole - 1.1 * 1.5)
        assert (hinge[mask] > 0).any() and (hinge[mask] == 0).any()
        beta = 1 + math.exp(-3.0 * 0 / 1)
        return -0.7 * (nested_mean(whole, mask) - beta * 0.4 * nested_mean(hinge, mask))

    batch_keys = dict(completion_mask=torch.ones(4, 6, dtype=torch.long), num_items_in_batch=torch.tensor(24))
    if tools:
        batch_keys["tool_mask"] = TOOL_MASK
    # The reference reads its mask from the completion mask: give it the tokens that the loss counts.
    check = cases.check_against_reference
    if tools:
        inner_reference, inner_scalar = reference, scalar

        def reference(logps, old_logps, entropy, advantages, mask):
            return inner_reference(logps, old_logps, entropy, advantages, keep) * keep

        def scalar(entropy, log_policy, mask):
            return inner_scalar(entropy, log_policy, keep)

        if loss_type not in ("dr_grpo", "luspo"):  # the others divide by counts that the tool mask changes
            loss_type = "dr_grpo"
    check(
        make_trainer,
        "epo",
        loss_type,
        reference,
        dict(epo_coef=0.7, epo_low=0.9, epo_high=1.1, epo_alpha=0.4),
        batch_keys=batch_keys,
        prepare=prepare,
        scalar=scalar,
    )


ENTROPY = torch.tensor([[0.05, 0.6, 2.6, 1.1]], dtype=torch.float64)


@pytest.mark.parametrize(
    "low, high, penalty, extra",
    [(0.0, 2.0, [0, 0, 0.6, 0], -0.0010642678), (0.8, 1.2, [0.75, 0.2, 1.4, 0], -0.0009965073)],
)
def test_worked_example(low, high, penalty, extra):
    found = corridor_penalty(ENTROPY, 1.0, low, high)
    torch.testing.assert_close(found, torch.tensor([penalty], dtype=torch.float64), **FLOAT64)
    assert phase_weight(10, 100, 3.0) == pytest.approx(1.5488116361, abs=1e-9)
    method = cases.build("epo", epo_low=low, epo_high=high)
    method.history_total, method.history_steps = 1.2 + 0.8, 2
    tokens = replace(
        random_tokens(rows=1, length=4, training=False),
        entropy=ENTROPY,
        mask=torch.ones(1, 4, dtype=torch.bool),
        draw=(0, 10, 0),
        total_steps=100,
    )
    assert method.loss(tokens)[0].item() == pytest.approx(extra, abs=1e-10)


@pytest.mark.parametrize("step, weight", [(0, 2), (37, 1.2276376884), (75, 1.0497870684), (150, 1.0024787522)])
def test_phase_weight(step, weight):
    assert phase_weight(step, 150, 3.0) == pytest.approx(weight, abs=1e-9)


def test_turns_are_runs_of_valid_tokens():
    values = torch.arange(6, dtype=torch.float64).repeat(3, 1)
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]).bool()
    assert turn_mean(values, mask).tolist() == [(0.5 + 3) / 2, 3.5, 0.0]
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        values, mask = torch.randn(5, 9, generator=generator), torch.rand(5, 9, generator=generator) < 0.6
        torch.testing.assert_close(turn_mean(values, mask).mean(), nested_mean(values, mask))


def test_gradcheck():
    mask = torch.tensor([[True, True, False, True]])
    entropy = ENTROPY.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda h: turn_mean(corridor_penalty(h, 1.0, 0.8, 1.2), mask), entropy)


def test_history_is_the_mean_over_finished_steps():
    method = cases.build("epo")
    batches = [random_tokens(seed=seed) for seed in range(4)]
    means = [batch.entropy[batch.mask].mean().item() for batch in batches]
    sizes = [int(batch.mask.sum()) for batch in batches]
    for batch, step in zip(batches, (0, 0, 1, 2), strict=True):
        method.loss(replace(batch, draw=(0, step, 0)))
    first = (means[0] * sizes[0] + means[1] * sizes[1]) / (sizes[0] + sizes[1])
    assert method.history_steps == 2
    assert method.history_total == pytest.approx(first + means[2])
    method.loss(replace(batches[0], draw=(0, 9, 0), training=False))
    assert method.history_steps == 2


def test_without_history_it_is_an_entropy_bonus():
    tokens = random_tokens()
    found = cases.build("epo").loss(tokens)[0]
    torch.testing.assert_close(found, -1e-3 * nested_mean(tokens.entropy, tokens.mask))


def test_a_history_near_zero_has_a_floor():
    assert corridor_penalty(torch.tensor([[5e-4]]), 1e-9, 0.0, 2.0).item() == 0


def test_properties(make_trainer):
    method = cases.build("epo", epo_low=0.8, epo_high=1.2)
    method.history_total, method.history_steps = 1.0, 1
    cases.check_padding_does_not_matter(method)
    cases.check_rows_permute(method)
    cases.check_extremes_stay_finite(method)
    cases.check_empty_mask(make_trainer, "epo")


def test_state_survives_json():
    method, other = cases.build("epo"), cases.build("epo")
    for step in range(3):
        method.loss(replace(random_tokens(seed=step), draw=(0, step, 0)))
    other.load_state_dict(json.loads(json.dumps(method.state_dict())))
    tokens = replace(random_tokens(seed=7), draw=(0, 3, 0))
    assert other.loss(tokens)[0].item() == method.loss(tokens)[0].item()
    assert other.state_dict() == method.state_dict()


def test_metrics(make_trainer):
    trainer = make_trainer(methods=["epo"], max_steps=3, epo_high=0.5)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert "epo/history_entropy" not in rows[0]
    assert rows[1]["epo/history_entropy"] == pytest.approx(rows[0]["entropy"], rel=1e-5)
    assert rows[1]["epo/penalty_mean"] > 0 and 0 < rows[1]["epo/outside_fraction"] <= 1


# Searched by test_fuzzing.py


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
