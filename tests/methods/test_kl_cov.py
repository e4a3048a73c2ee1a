# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from support import cases
from support.fuzzing import SHARES, covers, draw_flags, draw_shape, draw_tensor, finite_gradients, spoiled
from support.reference import covariance, policy_terms
from support.registry import MethodSettings
from support.tensors import config_of, make_tokens, random_tokens
from support.tiny import FLOAT64, LOSS_TYPES

from trl_entropy.methods import METHODS, kl_cov
from trl_entropy.methods.kl_cov import kl_cov_penalty


UNCLIPPED = dict(clip_low=-torch.inf, clip_high=torch.inf)  # as the method sets it
METHOD_SETTINGS = {
    "kl_cov": MethodSettings(
        strong=dict(kl_cov_ratio=0.3),
        variants=(dict(kl_cov_penalty="k3", kl_cov_ratio=0.5),),
        world=dict(kl_cov_ratio=0.3, kl_cov_scope="world"),
        batches=(256, 2048),
    )
}


def selected_by_hand(cov, mask, share):
    places = sorted(mask.nonzero().tolist(), key=lambda place: -cov[tuple(place)].item())
    selected = torch.zeros_like(mask)
    for place in places[: max(1, int(share * len(places)))]:
        selected[tuple(place)] = True
    return selected


PENALTIES = {
    "abs": lambda d: d.abs(),
    "k2": lambda d: d**2 / 2,
    "k3": lambda d: torch.exp(-d) - 1 + d,
}


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients(make_trainer, loss_type, penalty):
    def reference(logps, old_logps, entropy, advantages, mask):
        selected = selected_by_hand(covariance(logps, advantages, mask), mask, 0.3)
        assert 1 < selected.sum() < mask.sum()
        # CISPO's cap on its weight is no PPO clip and stays.
        low, high = (0.8, 1.2) if loss_type == "cispo" else (-torch.inf, torch.inf)
        terms = policy_terms(loss_type, logps, old_logps, advantages, mask, low, high)
        return terms + 0.7 * PENALTIES[penalty](logps - old_logps) * selected

    settings = dict(kl_cov_ratio=0.3, kl_cov_coef=0.7, kl_cov_penalty=penalty)
    cases.check_against_reference(make_trainer, "kl_cov", loss_type, reference, settings)


def test_ppo_clip_can_stay(make_trainer):
    def reference(logps, old_logps, entropy, advantages, mask):
        selected = selected_by_hand(covariance(logps, advantages, mask), mask, 0.3)
        return policy_terms("dapo", logps, old_logps, advantages, mask) + (logps - old_logps).abs() * selected

    trainer, _, _ = cases.check_against_reference(
        make_trainer, "kl_cov", "dapo", reference, dict(kl_cov_ratio=0.3, kl_cov_ppo_clip=True)
    )
    assert trainer._metrics["train"]["clip_ratio/region_mean"][0] > 0


def test_worked_example():
    logps = torch.tensor([[-0.05, -0.10, -3.0, -0.02, -5.0, -0.4]], dtype=torch.float64, requires_grad=True)
    tokens = make_tokens(logps, [-0.06, -0.30, -2.9, -0.02, -4.8, -0.5], [1.5] * 3 + [-0.75] * 3)
    policy = -tokens.advantages * (tokens.logps - tokens.old_logps).exp()
    for coef, expected in {1.0: -0.3852515436, 0.1: -0.4152515436}.items():
        term = METHODS["kl_cov"](config_of(kl_cov_ratio=0.2, kl_cov_coef=coef)).loss(tokens)[0]
        assert (policy + term).mean().item() == pytest.approx(expected, abs=1e-9)
        assert term.nonzero().tolist() == [[0, 4]]
        if coef == 1.0:
            expected_terms = [[-1.5150752506, -1.8321041372, -1.3572561271, 0.75, 0.8140480648, 0.8288781886]]
            torch.testing.assert_close(policy + term, torch.tensor(expected_terms, dtype=torch.float64), **FLOAT64)
            (gradient,) = torch.autograd.grad((policy + term).mean(), logps)
            assert gradient[0, 4].item() == pytest.approx(-0.0643253225, abs=1e-9)


@pytest.mark.parametrize("kind", PENALTIES)
def test_penalty_gradcheck(kind):
    log_ratio = torch.tensor([[-3.0, -0.4, 0.3, 2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d: kl_cov_penalty(d, kind), log_ratio)
    assert kl_cov_penalty(torch.zeros(1, 1), kind).item() == 0


def test_constant_advantages_select_nothing():
    method = cases.build("kl_cov", kl_cov_ratio=0.5)
    tokens = random_tokens()
    tokens = make_tokens(tokens.logps, tokens.old_logps, torch.full_like(tokens.logps, 0.25), mask=tokens.mask)
    assert method.loss(tokens)[0].abs().max() == 0


def test_a_share_of_one_selects_everything():
    tokens = random_tokens(**UNCLIPPED)
    method = cases.build("kl_cov", kl_cov_ratio=1.0)
    _, logs = method.loss(tokens)
    assert torch.equal(logs["selected_fraction"], tokens.mask)


def test_ties_go_to_the_earlier_token():
    method = cases.build("kl_cov", kl_cov_ratio=0.25)
    tokens = make_tokens([[-1.0, -3.0, -1.0, -3.0]] * 2, [[-2.0] * 4] * 2, [[1.0] * 4, [-1.0] * 4], **UNCLIPPED)
    _, logs = method.loss(tokens)
    assert logs["selected_fraction"].nonzero().tolist() == [[0, 0], [0, 2]]


def test_on_policy_the_abs_penalty_has_no_gradient():
    tokens = random_tokens()
    logps = tokens.logps.clone().requires_grad_()
    term = kl_cov_penalty(logps - logps.detach(), "abs")
    (gradient,) = torch.autograd.grad(term.sum(), logps)
    assert gradient.abs().max() == 0


def test_properties(make_trainer):
    method = cases.build("kl_cov", kl_cov_ratio=0.3)
    cases.check_padding_does_not_matter(method)
    cases.check_rows_permute(method)
    for penalty in PENALTIES:
        cases.check_extremes_stay_finite(cases.build("kl_cov", kl_cov_ratio=1.0, kl_cov_penalty=penalty))
    cases.check_empty_mask(make_trainer, "kl_cov")


def test_metrics(make_trainer):
    trainer = make_trainer(methods=["kl_cov"], kl_cov_ratio=0.3)
    batch = cases.off_policy_batch(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(trainer.model, batch)
    logged = {key: values[0] for key, values in trainer._metrics["train"].items()}
    count = int(batch["completion_mask"].sum())
    assert logged["kl_cov/selected_fraction"] == pytest.approx(int(0.3 * count) / count)
    assert logged["kl_cov/penalty_mean"] > 0
    assert logged["clip_ratio/region_mean"] == 0  # nothing is clipped


# Searched by test_fuzzing.py


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
