# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import logging
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support.fuzzing import ENTROPIES, covers, draw_shape, draw_tensor
from support.reference import dense_logps_and_entropy, policy_terms
from support.registry import MethodSettings
from support.tensors import make_loss_batch, make_tokens, random_tokens
from support.tiny import LOSS_TYPES, build_model

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import erc
from trl_entropy.methods.erc import entropy_ratio


METHOD_SETTINGS = {"erc": MethodSettings(strong=dict(erc_low=0.9, erc_high=1.1), batches=(128, 1024))}


def old_entropies(spread=0.06):
    """Entropies of an old policy near those of the tiny model."""
    batch = make_loss_batch()
    with torch.no_grad():
        _, entropy = dense_logps_and_entropy(build_model(), batch)
    return entropy * (1 + spread * torch.randn(entropy.shape, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients(make_trainer, loss_type):
    old = old_entropies()

    def reference(logps, old_logps, entropy, advantages, mask):
        kept = torch.zeros_like(mask)
        for row, column in mask.nonzero().tolist():
            kept[row, column] = 0.95 < (entropy[row, column] + 1e-8) / (old[row, column] + 1e-8) < 1.05
        assert 2 < kept.sum() < mask.sum() - 2
        return policy_terms(loss_type, logps, old_logps, advantages * kept, mask)

    cases.check_against_reference(make_trainer, "erc", loss_type, reference, {}, batch_keys=dict(old_entropies=old))


def test_worked_example():
    tokens = make_tokens([-1.0] * 6, [-1.1] * 6, [1.5] * 3 + [-0.75] * 3, entropy=[0.5, 0.001, 2, 0.8, 1e-9, 0])
    tokens = replace(tokens, old_entropy=torch.tensor([[0.49, 0.0012, 2.09, 0.85, 3e-9, 0]], dtype=torch.float64))
    found, logs = cases.build("erc").token_advantages(tokens)
    expected = [1.020408163, 0.8333347222, 0.9569377992, 0.9411764713, 0.8461538462, 1]
    torch.testing.assert_close(logs["ratio"], torch.tensor([expected], dtype=torch.float64), rtol=0, atol=1e-9)
    assert logs["dropped_fraction"].tolist() == [[False, True, False, True, True, False]]
    assert found.tolist() == [[1.5, 0, 1.5, 0, 0, -0.75]]


@pytest.mark.parametrize("gap, change, ratio", [(10, 0.0625, 0.945), (4, 0.03125, 0.976)])
def test_rounding_of_a_logit_drops_confident_tokens(gap, change, ratio):
    """The numbers of the warning in the module's docstring."""
    entropies = []
    for distance in (gap, gap + change):
        policy = torch.tensor([float(distance), 0.0], dtype=torch.float64).log_softmax(0)
        entropies.append(-(policy.exp() * policy).sum()[None, None])
    assert entropy_ratio(entropies[1], entropies[0]).item() == pytest.approx(ratio, abs=1e-3)
    assert gap != 10 or entropies[0].item() == pytest.approx(0.000499, abs=1e-6)


def moved(ratio, **extra):
    """Tokens whose entropy is `ratio` times the old one."""
    tokens = random_tokens(**extra)
    return replace(tokens, old_entropy=tokens.entropy / ratio)


def test_departure_1_one_more_mask():
    """Through the advantage, so the tokens stay in the denominators: see `test_loss_and_gradients`."""
    tokens = moved(1.0)
    old = tokens.old_entropy.clone()
    old[:, ::2] *= 2
    found, _ = cases.build("erc").token_advantages(replace(tokens, old_entropy=old))
    assert (found[:, ::2] == 0).all() and torch.equal(found[:, 1::2], tokens.advantages[:, 1::2])


@pytest.mark.parametrize("ratio, kept", [(0.9, False), (0.96, True), (1.04, True), (1.1, False)])
def test_departure_2_two_bounds_whatever_the_sign(ratio, kept):
    tokens = moved(ratio)
    assert (tokens.advantages > 0).any() and (tokens.advantages < 0).any()
    found, _ = cases.build("erc").token_advantages(tokens)
    assert torch.equal(found[tokens.mask], tokens.advantages[tokens.mask] * kept)


def test_departure_3_the_clip_of_ppo_still_applies():
    tokens = moved(1.0)
    found, _ = cases.build("erc").token_advantages(tokens)
    after = replace(tokens, advantages=found)
    assert tokens.clipped.any() and torch.equal(after.clipped, tokens.clipped)


def test_bounds_are_strict():
    tokens = make_tokens([-1.0] * 4, [-1.0] * 4, [1.0] * 4, entropy=[0.5, 2.0, 0.51, 1.99])
    tokens = replace(tokens, old_entropy=torch.ones(1, 4, dtype=torch.float64))
    at_bounds = entropy_ratio(tokens.entropy, tokens.old_entropy)[0, :2].tolist()
    method = cases.build("erc", erc_low=at_bounds[0], erc_high=at_bounds[1])
    assert method.token_advantages(tokens)[0].tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_wide_bounds_are_grpo_to_the_bit(make_trainer, loss_type):
    settings = dict(erc_low=1e-12, erc_high=1e12, extra=dict(old_entropies=old_entropies()))
    cases.check_neutral(make_trainer, "erc", loss_type, **settings)


def test_on_policy_it_is_grpo_to_the_bit(make_trainer):
    cases.check_neutral(make_trainer, "erc", "dapo", batches=["on_policy"])


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_accumulation_changes_nothing(make_trainer, loss_type):
    with torch.no_grad():
        _, entropy = dense_logps_and_entropy(build_model(), batch := make_loss_batch(rows=8))
    noise = torch.randn(entropy.shape, generator=torch.Generator().manual_seed(2))
    extra = dict(old_entropies=entropy * (1 + 0.06 * noise))
    assert batch["completion_mask"].sum() > 20
    cases.check_accumulation(make_trainer, "erc", loss_type, extra=extra)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_first_update_of_a_generation_batch_drops_nothing(make_trainer, lora):
    from peft import LoraConfig

    peft_config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False) if lora else None
    trainer = make_trainer(methods=["erc"], peft_config=peft_config, steps_per_generation=2, max_steps=4)
    with warnings.catch_warnings(record=True):
        trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["erc/dropped_fraction"] > 0 for row in rows] == [False, True, False, True]
    assert rows[0]["erc/ratio"] == pytest.approx(1, abs=1e-4) != rows[1]["erc/ratio"]


def test_ratios_of_bfloat16_entropies_are_float32():
    tokens = moved(1.0)
    ratio = entropy_ratio(tokens.entropy.bfloat16(), tokens.old_entropy.bfloat16())
    assert ratio.dtype == torch.float32 and (ratio == 1).all()


def test_an_entropy_that_is_not_finite_drops_its_token():
    tokens = moved(1.0)
    entropy = tokens.entropy.clone()
    entropy[0, 0] = torch.nan
    found, _ = cases.build("erc").token_advantages(replace(tokens, entropy=entropy))
    assert found[0, 0] == 0 and torch.equal(found[1:], tokens.advantages[1:])


def test_a_forward_that_drops_nearly_all_warns_once():
    method = cases.build("erc")
    with pytest.warns(UserWarning, match="Method 'erc' drops 100% of the tokens of a forward"):
        method.token_advantages(moved(2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.token_advantages(moved(2.0))
        cases.build("erc").token_advantages(moved(1.0))
        tokens = moved(2.0)
        cases.build("erc").token_advantages(replace(tokens, mask=torch.zeros_like(tokens.mask)))


@pytest.mark.filterwarnings("ignore")
def test_properties(make_trainer):
    method, old = cases.build("erc"), random_tokens(seed=5).entropy
    cases.check_padding_does_not_matter(method)
    cases.check_rows_permute(method, old_entropy=old)
    cases.check_extremes_stay_finite(method)
    cases.check_empty_mask(make_trainer, "erc")


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(erc_low=1.0), "`erc_low` must be a ratio of entropies in (0, 1), got 1.0."),
        (dict(erc_high=1.0), "`erc_high` must be a finite ratio above 1, got 1.0."),
        (dict(loss_type="grpo", importance_sampling_level="sequence"),
         "`importance_sampling_level` must be 'token' with method 'erc', got 'sequence'."),
        (dict(record_entropies=True), "`record_entropies` must be false with method 'erc', got True."),
    ],
)  # fmt: skip
def test_wrong_settings_give_one_error(tmp_path, settings, message):
    with pytest.raises(ValueError) as error:
        EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **{"methods": ["erc"], **settings})
    assert str(error.value) == message


def test_on_policy_gives_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, methods=["erc"])
    assert "Method 'erc' acts on the ratio between the current and the old policy" in caplog.text


# Searched by test_fuzzing.py


@covers(erc.entropy_ratio)
def entropy_ratios(draw):
    shape = draw_shape(draw)
    entropy, old = draw_tensor(draw, shape, ENTROPIES), draw_tensor(draw, shape, ENTROPIES)
    ratio = entropy_ratio(entropy, old)
    assert ratio.isfinite().all() and (ratio > 0).all() and ((ratio > 1) <= (entropy > old)).all()
    scale = draw(st.floats(0, 1e-9))
    assert (entropy_ratio(-scale * entropy, torch.zeros_like(old)) == 1).all()
