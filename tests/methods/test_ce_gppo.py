# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import logging
from dataclasses import replace

import pytest
import torch
from support import cases
from support.fuzzing import LOGPS, covers, draw_shape, draw_tensor, finite_gradients
from support.reference import dense_logps_and_entropy, policy_terms, reduce_terms
from support.registry import MethodSettings
from support.tensors import make_loss_batch, make_tokens, random_tokens
from support.tiny import EXACT, FLOAT32, FLOAT64, build_model, loss_and_gradients

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import ce_gppo
from trl_entropy.tokens import CLIPPING_LOSSES


METHOD_SETTINGS = {
    "ce_gppo": MethodSettings(
        variants=(dict(ce_gppo_low=0.0, ce_gppo_high=2.0),),
        batches=(128, 1024),
        reaches="loss",
        losses=CLIPPING_LOSSES,
    )
}


def three_cases(logps, old_logps, advantages, low=0.8, high=1.2, betas=(0.75, 1.0), delta=torch.inf):
    """The loss of each token as the paper has it, one token after the other."""
    terms = []
    for ell, old, advantage in zip(logps.flatten(), old_logps.flatten(), advantages.flatten(), strict=True):
        ratio = (ell - old).exp()
        if ratio < low and advantage < 0:
            term = -betas[0] * low / ratio.detach() * ratio * advantage
        elif ratio > high and advantage > 0:
            term = -betas[1] * high / ratio.detach() * ratio * advantage
        else:
            term = -ratio * advantage
        terms.append(torch.minimum(term, -delta * advantage) if advantage < 0 else term)
    return torch.stack(terms).view(logps.shape)


@pytest.mark.parametrize("loss_type", CLIPPING_LOSSES)
def test_loss_and_gradients(make_trainer, loss_type):
    def reference(logps, old_logps, entropy, advantages, mask):
        ratio = (logps - old_logps).exp()
        assert (ratio[mask & (advantages < 0)] < 0.8).any() and (ratio[mask & (advantages > 0)] > 1.2).any()
        return three_cases(logps, old_logps, advantages, betas=(0.4, 1.7))

    settings = dict(ce_gppo_low=0.4, ce_gppo_high=1.7)
    cases.check_against_reference(make_trainer, "ce_gppo", loss_type, reference, settings)


def clipped_loss(tokens, delta=torch.inf):
    """TRL's loss of each token: PPO's clip after `delta`."""
    ratio = (tokens.logps - tokens.old_logps).exp()
    clipped = ratio.clamp(tokens.clip_low, tokens.clip_high)
    return -torch.minimum(ratio.clamp(max=delta) * tokens.advantages, clipped * tokens.advantages)


@pytest.mark.parametrize("seed", range(8))
def test_definition_in_float64(seed):
    """Loss and gradient by autograd, with random bounds, scales and `delta`, and ratios from e^-30 to e^30."""
    generator = torch.Generator().manual_seed(seed)
    epsilon, above, low, high, extra = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    values = random_tokens(seed=seed, rows=6, length=9)
    spread = torch.randn(6, 9, generator=generator, dtype=torch.float64) * torch.tensor([[0.2], [30.0]] * 3)
    advantages = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    logps = (values.old_logps + spread.clamp(-30, 30)).requires_grad_()
    tokens = replace(
        values,
        logps=logps,
        ratio=(logps - values.old_logps).exp().detach(),
        advantages=advantages,
        mask=torch.ones(6, 9, dtype=torch.bool),
        clip_low=1 - epsilon,
        clip_high=1 + above,
    )
    delta = 1 + above + extra
    method = cases.build("ce_gppo", ce_gppo_low=low, ce_gppo_high=2 * high)
    loss = clipped_loss(tokens, delta) + method.loss(tokens)[0]
    expected = three_cases(
        logps, tokens.old_logps, advantages, tokens.clip_low, tokens.clip_high, (low, 2 * high), delta
    )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    (found,), (gradient,) = (torch.autograd.grad(value.sum(), logps) for value in (loss, expected))
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-12)
    # Bounds of each token, as a method may set them.
    wide = torch.ones(6, 9, dtype=torch.float64)
    tensors = replace(tokens, clip_low=(1 - epsilon) * wide, clip_high=(1 + above) * wide)
    assert torch.equal(method.loss(tensors)[0], method.loss(tokens)[0])


LOGPS_OF_EXAMPLE = [-0.05, -0.10, -3.0, -0.02, -5.0, -0.4]
OLD_LOGPS_OF_EXAMPLE = [-0.06, -0.60, -2.9, -0.02, -4.6, -0.5]


def example():
    tokens = make_tokens(LOGPS_OF_EXAMPLE, OLD_LOGPS_OF_EXAMPLE, [1.5] * 3 + [-0.75] * 3)
    return replace(tokens, logps=tokens.logps.clone().requires_grad_(), clip_high=1.28)


@pytest.mark.parametrize(
    "low, loss, low_gradient", [(None, -0.4355755315, 0), (0.75, -0.4605755315, 0.075), (0.5, -0.4855755315, 0.05),
                                (1.0, -0.4355755315, 0.1)]
)  # fmt: skip
def test_worked_example(low, loss, low_gradient):
    tokens = example()
    terms = clipped_loss(tokens)
    if low is not None:
        term, logs = cases.build("ce_gppo", ce_gppo_low=low).loss(tokens)
        terms = terms + term
        assert logs["high_fraction"][0].tolist() == [False, True, False, False, False, False]
        assert logs["low_fraction"][0].tolist() == [False, False, False, False, True, False]
    assert terms.mean().item() == pytest.approx(loss, abs=1e-9)
    (gradient,) = torch.autograd.grad(terms.mean(), tokens.logps)
    high_gradient = 0 if low is None else -0.32
    expected = [-0.2525125418, high_gradient, -0.2262093545, 0.125, low_gradient, 0.1381463648]
    torch.testing.assert_close(gradient[0], torch.tensor(expected, dtype=torch.float64), **FLOAT64)


def test_departure_1_clipped_tokens_keep_a_gradient():
    tokens = example()
    (plain,) = torch.autograd.grad(clipped_loss(tokens).sum(), tokens.logps)
    (found,) = torch.autograd.grad(cases.build("ce_gppo").loss(tokens)[0].sum(), tokens.logps)
    assert torch.equal(plain == 0, tokens.clipped) and torch.equal(found != 0, tokens.clipped)


@pytest.mark.parametrize("low, high", [(1.0, 1.0), (0.3, 2.0)])
def test_departure_2_the_gradient_is_that_at_the_bound_times_a_scale(low, high):
    """Values of the loss stay PPO's if both scales are 1."""
    tokens = example()
    term = cases.build("ce_gppo", ce_gppo_low=low, ce_gppo_high=high).loss(tokens)[0]
    (gradient,) = torch.autograd.grad(term.sum(), tokens.logps)
    assert gradient[0, 1].item() == pytest.approx(-1.28 * 1.5 * high)
    assert gradient[0, 4].item() == pytest.approx(0.8 * 0.75 * low)
    assert low != 1 or term.abs().max() == 0


@pytest.mark.parametrize("loss_type", CLIPPING_LOSSES)
def test_departure_3_on_policy_it_is_grpo_to_the_bit(make_trainer, loss_type):
    cases.check_neutral(make_trainer, "ce_gppo", loss_type, batches=["on_policy"])


def test_scales_of_0_leave_the_gradient_of_ppo_to_the_bit(make_trainer):
    batch, found = cases.off_policy_batch(build_model()), []
    for settings in (dict(), dict(methods=["ce_gppo"], ce_gppo_low=0.0, ce_gppo_high=0.0)):
        found.append(loss_and_gradients(make_trainer(model=build_model(), **settings), batch))
    torch.testing.assert_close(found[1][1], found[0][1], **EXACT)
    assert found[0][0] != found[1][0]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_accumulation_changes_nothing(make_trainer, loss_type):
    cases.check_accumulation(make_trainer, "ce_gppo", loss_type)


def test_correction_for_the_engine_and_the_80_20_mask_weigh_the_term():
    tokens, method = example(), cases.build("ce_gppo")
    plain = method.loss(tokens)[0]
    engine = torch.tensor([[1.0, 0.5, 1.0, 1.0, 2.0, torch.inf]], dtype=torch.float64)
    torch.testing.assert_close(
        method.loss(replace(tokens, engine_ratio=engine))[0], plain * engine.nan_to_num(posinf=0.0), **FLOAT64
    )
    kept = torch.tensor([[True, False, True, True, True, True]])
    term, logs = method.loss(replace(tokens, loss_weights=lambda advantages: tokens.ratio * kept))
    torch.testing.assert_close(term, plain * kept, **FLOAT64)
    assert not logs["high_fraction"].any() and logs["low_fraction"].any()


def test_tokens_that_the_80_20_mask_leaves_out_stay_out(make_trainer):
    batch = cases.off_policy_batch(build_model())
    trainer = make_trainer(model=build_model(), methods=["ce_gppo"], loss_type="bnpo", top_entropy_quantile=0.5)
    loss, gradients = loss_and_gradients(trainer, batch)

    model = build_model()
    logps, entropy = dense_logps_and_entropy(model, batch)
    mask = batch["completion_mask"].bool()
    kept = mask & (entropy >= entropy[mask].quantile(0.5))
    terms = three_cases(logps, batch["old_per_token_logps"], batch["advantages"][:, None].expand(logps.shape))
    assert (terms - policy_terms("bnpo", logps, batch["old_per_token_logps"], batch["advantages"][:, None], mask)
            )[kept].abs().max() > 0  # fmt: skip
    expected = reduce_terms("bnpo", terms * kept, mask)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), **FLOAT32)
    torch.testing.assert_close(gradients, {n: p.grad for n, p in model.named_parameters()}, **FLOAT32)


def test_on_the_bounds_of_m2po(make_trainer):
    """Bounds of a forward, which M2PO reads off its tokens."""
    batch = cases.off_policy_batch(build_model())
    trainer = make_trainer(
        model=build_model(), methods=["m2po", "ce_gppo"], loss_type="bnpo", m2po_budget=0.02, m2po_min_low=0.05,
        m2po_min_high=0.1, ce_gppo_low=0.4, ce_gppo_high=1.7,
    )  # fmt: skip
    loss, gradients = loss_and_gradients(trainer, batch)
    low, high = (trainer._metrics["train"][f"m2po/clip_{side}"][0] for side in ("low", "high"))
    assert 0.5 < low < 0.95 and 1.1 <= high < 1.5 and not {low, high} & {0.8, 1.2}

    model = build_model()
    logps, _ = dense_logps_and_entropy(model, batch)
    advantages = batch["advantages"][:, None].expand(logps.shape)
    terms = three_cases(logps, batch["old_per_token_logps"], advantages, low, high, (0.4, 1.7))
    expected = reduce_terms("bnpo", terms, batch["completion_mask"].bool())
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), **FLOAT32)
    torch.testing.assert_close(gradients, {n: p.grad for n, p in model.named_parameters()}, **FLOAT32)


@pytest.mark.parametrize("first", ["erc", "clip_cov"])
def test_tokens_that_another_method_drops_get_no_term(make_trainer, monkeypatch, first):
    """ERC before CE-GPPO is the authors' own pair."""
    batch = cases.off_policy_batch(build_model())
    batch["old_entropies"] = torch.rand(4, 6, generator=torch.Generator().manual_seed(9)) * 3
    settings = dict(erc_low=0.6, erc_high=1.6, clip_cov_ratio=0.5, clip_cov_low=0.01, clip_cov_high=9.0)
    trainer = make_trainer(
        model=build_model(), methods=[first, "ce_gppo"], loss_type="bnpo",
        **{key: value for key, value in settings.items() if key.startswith(first)},
    )  # fmt: skip
    update = cases.record_update(monkeypatch)
    loss, gradients = loss_and_gradients(trainer, batch)
    mask = batch["completion_mask"].bool()
    kept = update["taken"].acted.advantages != 0
    assert 0 < kept[mask].sum() < mask.sum()

    model = build_model()
    logps, _ = dense_logps_and_entropy(model, batch)
    advantages = batch["advantages"][:, None] * kept
    terms = three_cases(logps, batch["old_per_token_logps"], advantages)
    expected = reduce_terms("bnpo", terms, mask)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), **FLOAT32)
    torch.testing.assert_close(gradients, {n: p.grad for n, p in model.named_parameters()}, **FLOAT32)


def test_a_ratio_that_overflows_gives_a_finite_term():
    tokens = make_tokens([-1.0, -120.0, -torch.inf], [-200.0, -1.0, -1.0], [[1.0, -1.0, -1.0]])
    tokens = replace(tokens, logps=tokens.logps.float().requires_grad_(), ratio=tokens.ratio.float())
    assert cases.build("ce_gppo").loss(replace(tokens, ratio=tokens.ratio * torch.inf))[0][:, :1].isfinite().all()
    term = cases.build("ce_gppo", ce_gppo_high=0.5).loss(tokens)[0]
    (gradient,) = torch.autograd.grad(term.sum(), tokens.logps)
    assert term.isfinite().all() and gradient.isfinite().all()
    assert gradient[0, 0] == pytest.approx(-0.6) and gradient[0, 1] == pytest.approx(0.6) and gradient[0, 2] == 0


def test_properties(make_trainer):
    method = cases.build("ce_gppo")
    cases.check_padding_does_not_matter(method)
    cases.check_rows_permute(method)
    cases.check_extremes_stay_finite(method)
    cases.check_empty_mask(make_trainer, "ce_gppo")


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(ce_gppo_low=-1), "`ce_gppo_low` must be a finite number >= 0, got -1."),
        (dict(ce_gppo_high="x"), "`ce_gppo_high` must be a finite number >= 0, got 'x'."),
        (dict(loss_type="cispo"), "`loss_type` must be one of 'grpo', 'bnpo', 'dr_grpo', 'dapo', 'luspo' with method "
         "'ce_gppo', which acts on clipped tokens, got 'cispo'."),
        (dict(loss_type="grpo", importance_sampling_level="sequence"),
         "`importance_sampling_level` must be 'token' with method 'ce_gppo', got 'sequence'."),
        (dict(delta=1.1, epsilon_high=0.28),
         "`delta` must be at least 1.28 for method 'ce_gppo', the largest ratio of its kept gradients, got 1.1."),
        (dict(methods=["ce_gppo", "kl_cov"]), "`methods` must not list both 'ce_gppo' and 'kl_cov': KL-Cov turns off"),
        (dict(methods=["agentic_aepo", "ce_gppo"]), "`methods` must not list both 'ce_gppo' and 'agentic_aepo'"),
    ],
)  # fmt: skip
def test_wrong_settings_give_one_error(tmp_path, settings, message):
    with pytest.raises(ValueError) as error:
        EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **{"methods": ["ce_gppo"], **settings})
    assert message in str(error.value)


def test_warnings(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        EntropyGRPOConfig(
            str(tmp_path), use_cpu=True, bf16=False, methods=["ce_gppo"], ce_gppo_low=0, ce_gppo_high=0.0
        )
    assert "Method 'ce_gppo' keeps no gradient" in caplog.text
    assert "Method 'ce_gppo' acts on the ratio between the current and the old policy" in caplog.text
    assert "in `methods`" not in caplog.text
    with caplog.at_level(logging.WARNING):
        EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, methods=["ce_gppo", "clip_b", "epo"])
    assert "Method 'ce_gppo' comes before 'clip_b' in `methods`" in caplog.text


def test_metrics(make_trainer):
    trainer = make_trainer(methods=["ce_gppo"])
    batch = cases.off_policy_batch(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(trainer.model, batch)
    trainer.compute_loss(trainer.model, make_loss_batch())
    logged = trainer._metrics["train"]
    for side in ("low", "high"):
        assert logged[f"ce_gppo/{side}_fraction"][0] > 0
        assert logged[f"ce_gppo/{side}_fraction"][0] == pytest.approx(logged[f"clip_ratio/{side}_mean"][0])
    assert logged["ce_gppo/low_fraction"][1] == logged["ce_gppo/high_fraction"][1] == 0


# Searched by test_fuzzing.py


@covers(ce_gppo.preserved_terms)
def preserved(draw):
    shape = draw_shape(draw)
    logps, size = draw_tensor(draw, shape, LOGPS).requires_grad_(), draw_tensor(draw, shape, (-1e6, 1e6))
    scale = draw_tensor(draw, shape, (0.0, 10.0))
    terms = ce_gppo.preserved_terms(logps, size, scale)
    (gradient,) = finite_gradients(terms, logps)
    torch.testing.assert_close(gradient, -size * scale)
    torch.testing.assert_close(terms.detach(), -size * (scale - 1))
    assert (terms[size == 0] == 0).all()
