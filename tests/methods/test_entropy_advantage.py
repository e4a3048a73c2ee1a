# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support.fuzzing import ADVANTAGES, ENTROPIES, covers, draw_shape, draw_tensor
from support.reference import policy_terms
from support.registry import MethodSettings
from support.tensors import make_tokens, random_tokens
from support.tiny import FLOAT64, LOSS_TYPES, build_model

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import entropy_advantage
from trl_entropy.methods.entropy_advantage import entropy_bonus


METHOD_SETTINGS = {"entropy_advantage": MethodSettings(batches=(256, 2048), reaches="loss")}


def shaped(advantages, entropy, coef, cap):
    """A + min(α H, |A| / κ), token by token."""
    found = torch.zeros_like(entropy)
    for row, values in enumerate(entropy.tolist()):
        for column, value in enumerate(values):
            advantage = float(advantages[row, column])
            found[row, column] = advantage + min(coef * value, abs(advantage) / cap)
    return found


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients(make_trainer, loss_type):
    def reference(logps, old_logps, entropy, advantages, mask):
        bonus = shaped(advantages, entropy.detach(), 0.2, 1.5) - advantages
        capped = (bonus >= advantages.abs() / 1.5 * 0.999)[mask]
        assert capped.any() and not capped.all()
        return policy_terms(loss_type, logps, old_logps, advantages + bonus, mask)

    settings = dict(entropy_advantage_coef=0.2, entropy_advantage_cap=1.5)
    cases.check_against_reference(make_trainer, "entropy_advantage", loss_type, reference, settings)


@pytest.mark.parametrize(
    "coef, bonus, expected",
    [
        (0.4, [0.02, 0.75, 0.24, 0.375, 0], [1.52, 2.25, -0.51, -0.375, 0]),
        (0.1, [0.005, 0.26, 0.06, 0.11, 0], [1.505, 1.76, -0.69, -0.64, 0]),
    ],
)
def test_worked_example(coef, bonus, expected):
    tokens = make_tokens([-1.0] * 5, [-1.0] * 5, [1.5, 1.5, -0.75, -0.75, 0], entropy=[0.05, 2.6, 0.6, 1.1, 2.0])
    found, logs = cases.build("entropy_advantage", entropy_advantage_coef=coef).token_advantages(tokens)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), **FLOAT64)
    torch.testing.assert_close(logs["bonus"], torch.tensor([bonus], dtype=torch.float64), **FLOAT64)
    capped = [0, 1, 0, 1] if coef == 0.4 else [0, 0, 0, 0]
    assert logs["capped_fraction"][0, :4].tolist() == capped and logs["capped_fraction"][0, 4].isnan()


def test_departure_1_a_bonus_of_each_token_without_gradient():
    tokens = random_tokens()
    entropy = tokens.entropy.clone().requires_grad_()
    found, _ = cases.build("entropy_advantage").token_advantages(replace(tokens, entropy=entropy))
    assert not found.requires_grad
    bonus = (found - tokens.advantages)[tokens.mask]
    assert (bonus > 0).all() and len(bonus.unique()) > len(tokens.mask)


def test_departure_2_the_cap_keeps_every_sign():
    method = cases.build("entropy_advantage", entropy_advantage_coef=1e6)
    tokens = random_tokens()
    found, logs = method.token_advantages(tokens)
    expected = tokens.advantages + tokens.advantages.abs() / 2
    torch.testing.assert_close(found[tokens.mask], expected[tokens.mask], **FLOAT64)
    assert (found.sign() == tokens.advantages.sign()).all() and logs["capped_fraction"][tokens.mask].all()


def test_departure_3_advantages_of_0_stay_at_0():
    tokens = random_tokens()
    tokens = replace(tokens, advantages=torch.zeros_like(tokens.advantages), entropy=-tokens.entropy)
    assert cases.build("entropy_advantage").token_advantages(tokens)[0].abs().max() == 0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_coefficient_0_is_grpo_to_the_bit(make_trainer, loss_type):
    cases.check_neutral(make_trainer, "entropy_advantage", loss_type, entropy_advantage_coef=0.0)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_accumulation_changes_nothing(make_trainer, loss_type):
    cases.check_accumulation(make_trainer, "entropy_advantage", loss_type)


def test_no_entropy_gives_no_bonus():
    tokens = random_tokens()
    bonus = cases.build("entropy_advantage").token_advantages(replace(tokens, entropy=tokens.entropy * 0))[0]
    assert torch.equal(bonus, tokens.advantages)


def test_entropies_that_are_no_numbers_reach_no_advantage():
    tokens = random_tokens()
    entropy = tokens.entropy.masked_fill(~tokens.mask, torch.nan)
    entropy[0, 0], entropy[1, 0] = torch.nan, torch.inf
    found, _ = cases.build("entropy_advantage").token_advantages(replace(tokens, entropy=entropy))
    assert found.isfinite().all() and found[0, 0] == tokens.advantages[0, 0]
    assert found[1, 0] == tokens.advantages[1, 0] + tokens.advantages[1, 0].abs() / 2


def test_tokens_that_a_mask_takes_out_of_the_loss_get_no_bonus():
    tokens = random_tokens()
    method = cases.build("entropy_advantage")
    kept = torch.rand(4, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    plain, plain_logs = method.token_advantages(tokens)
    found, logs = method.token_advantages(replace(tokens, loss_weights=lambda advantages: tokens.ratio * kept))
    assert torch.equal(found, torch.where(kept, plain, tokens.advantages)) and not torch.equal(found, plain)
    inside = kept & tokens.mask
    for name, values in logs.items():
        assert values[~inside].isnan().all() and torch.equal(values[inside], plain_logs[name][inside])


def test_properties(make_trainer):
    method = cases.build("entropy_advantage")
    cases.check_padding_does_not_matter(method)
    cases.check_rows_permute(method)
    cases.check_extremes_stay_finite(method)
    cases.check_empty_mask(make_trainer, "entropy_advantage")


def test_order_with_other_methods_counts(make_trainer, monkeypatch):
    """It adds to the advantages that the methods before it left."""
    batch = cases.off_policy_batch(build_model())
    found = {}
    for order in (["steer", "entropy_advantage"], ["entropy_advantage", "steer"]):
        update = cases.record_update(monkeypatch)
        trainer = make_trainer(methods=order, model=build_model())
        trainer.current_gradient_accumulation_steps = 1
        trainer.compute_loss(trainer.model, batch)
        found[order[0]] = update["taken"]
    (_, weighted), (_, after) = found["steer"].turns
    expected = shaped(weighted.advantages, after.entropy.detach(), 0.4, 2.0)
    torch.testing.assert_close(after.advantages, expected.float())
    assert not torch.equal(found["steer"].acted.advantages, found["entropy_advantage"].acted.advantages)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(entropy_advantage_coef=-0.1), "`entropy_advantage_coef` must be a finite number >= 0, got -0.1."),
        (dict(entropy_advantage_cap=1.0), "`entropy_advantage_cap` must be a finite number above 1, got 1.0."),
    ],
)
def test_wrong_fields_give_one_error(fields, message):
    with pytest.raises(ValueError) as error:
        cases.build("entropy_advantage", **fields)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "settings, warning",
    [
        (dict(entropy_advantage_coef=0.0), "does nothing, since `entropy_advantage_coef` is 0"),
        (dict(methods=["empg", "entropy_advantage"]), "comes after 'empg' in `methods`"),
        (dict(importance_sampling_level="sequence", loss_type="grpo"), "has token-level ratios"),
        (dict(methods=["entropy_advantage", "empg"]), ""),
    ],
)
def test_warnings(tmp_path, caplog, settings, warning):
    with caplog.at_level(logging.WARNING):
        settings = {"methods": ["entropy_advantage"], **settings}
        EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)
    assert warning in caplog.text and bool(warning) == ("entropy_advantage" in caplog.text)


def test_metrics(make_trainer):
    trainer = make_trainer(methods=["entropy_advantage"])
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["entropy_advantage/bonus"] > 0 and 0 < row["entropy_advantage/capped_fraction"] <= 1


# Searched by test_fuzzing.py


@covers(entropy_advantage.entropy_bonus)
def entropy_bonuses(draw):
    shape = draw_shape(draw)
    entropy, advantages = draw_tensor(draw, shape, ENTROPIES), draw_tensor(draw, shape, ADVANTAGES)
    bonus, capped = entropy_bonus(entropy, advantages, draw(st.floats(0, 1e6)), draw(st.floats(1.001, 1e3)))
    assert bonus.isfinite().all() and (bonus >= 0).all() and (bonus[entropy == 0] == 0).all()
    normal = (advantages == 0) | (advantages.abs() >= 1e-30)
    assert ((advantages + bonus).sign() == advantages.sign())[normal].all()
    assert not capped[entropy == 0].any()
