# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support.fuzzing import covers, draw_tokens
from support.reference import policy_terms
from support.registry import MethodSettings
from support.tensors import F1_LOGITS, make_tokens, random_tokens, three_tokens
from support.tiny import FLOAT64, LOSS_TYPES

from trl_entropy import functional
from trl_entropy.methods import steer
from trl_entropy.methods.steer import exact_omega, released_omega, theorem_omega


METHOD_SETTINGS = {
    "steer": MethodSettings(
        variants=(dict(steer_omega="exact"), dict(steer_omega="released", steer_mapping="linear")),
        world=dict(steer_omega="exact"),
        batches=(256, 4096),
    )
}


def weights(tokens, **settings):
    method = cases.build("steer", **settings)
    return method.token_advantages(tokens)[1]["weight_mean"]


@pytest.mark.parametrize("mapping", ["exp", "linear"])
@pytest.mark.parametrize("omega", ["theorem", "exact", "released"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients(make_trainer, loss_type, omega, mapping):
    old_entropies = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) * 2

    def reference(logps, old_logps, entropy, advantages, mask, log_policy):
        pi, ratio = logps.detach().exp(), (logps - old_logps).detach().exp()
        if omega != "released":
            change = pi * (1 - pi) * (logps.detach() + entropy.detach())
            if omega == "exact":
                whole = log_policy.detach()
                scores = whole.exp() * (whole + -(whole.exp() * whole).sum(-1, keepdim=True))
                change = pi * (logps.detach() + entropy.detach()) - (whole.exp() * scores).sum(-1)
            size = (ratio * advantages * change).abs()
            if loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo"):
                cut = ((advantages > 0) & (ratio > 1.2)) | ((advantages < 0) & (ratio < 0.8))
                assert cut.any()
                size = torch.where(cut, 0.0, size)
        else:
            size = (advantages / old_logps.exp() * pi * (1 - pi) * (logps.detach() + old_entropies)).abs()
        valid = size[mask]
        if mapping == "exp":
            top = max(valid.max().item(), 0.02) if omega == "released" else valid.max().item()
            weight = torch.exp(math.log(0.7) * size / top)
        else:
            weight = 1.3 - (size - valid.min()) / (valid.max() - valid.min()) * (1.3 - 0.7)
        return weight * policy_terms(loss_type, logps, old_logps, advantages, mask)

    cases.check_against_reference(
        make_trainer,
        "steer",
        loss_type,
        reference,
        dict(steer_omega=omega, steer_mapping=mapping, steer_lambda_max=1.3 if mapping == "linear" else 1.0),
        batch_keys=dict(old_entropies=old_entropies),
        policy=True,
    )


def test_worked_example_omega():
    policy = torch.tensor(F1_LOGITS, dtype=torch.float64).log_softmax(-1)
    open_range = three_tokens(
        clip_low=-torch.inf,
        clip_high=torch.inf,
        sum_sq_probs=policy.exp().square().sum(-1)[None],
        sum_sq_probs_log_probs=(policy.exp().square() * policy).sum(-1)[None],
    )
    exact = [[0.1703169443, 0.0192991586, 0.1341795518]]
    torch.testing.assert_close(exact_omega(open_range).abs(), torch.tensor(exact, dtype=torch.float64), **FLOAT64)
    expected = {
        theorem_omega: [[0.1255001749, 0.0121788816, 0.0506547186]],
        released_omega: [[0.1949019967, 0.0515338546, 2.8417988434]],
    }
    # The released metric of the example takes the entropy of the current policy.
    current = make_tokens(open_range.logps, open_range.old_logps, open_range.advantages, entropy=open_range.entropy)
    torch.testing.assert_close(
        theorem_omega(open_range).abs(), torch.tensor(expected[theorem_omega], dtype=torch.float64), **FLOAT64
    )
    torch.testing.assert_close(
        released_omega(current).abs(), torch.tensor(expected[released_omega], dtype=torch.float64), **FLOAT64
    )


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(), [0.7, 0.9659794523, 0.8659205646]),
        (dict(steer_omega="released", steer_lambda_min=0.8), [0.9848124299, 0.9959616381, 0.8]),
        (
            dict(steer_omega="released", steer_mapping="linear", steer_lambda_min=0.8, steer_lambda_max=1.2),
            [1.1794473797, 1.2, 0.8],
        ),
    ],
    ids=["theorem", "released", "released_linear"],
)
def test_worked_example_weights(settings, expected):
    tokens = three_tokens(clip_low=-torch.inf, clip_high=torch.inf)
    tokens = make_tokens(
        tokens.logps, tokens.old_logps, tokens.advantages, tokens.entropy, clip_low=-torch.inf, clip_high=torch.inf
    )
    torch.testing.assert_close(
        weights(tokens, **settings), torch.tensor([expected], dtype=torch.float64), rtol=0, atol=2e-10
    )


def test_clipped_tokens_move_nothing():
    """Token 2 has the ratio 0.745 and a negative advantage: PPO cuts it, so that its weight is 1."""
    found = weights(three_tokens(clip_low=0.8, clip_high=1.28))
    torch.testing.assert_close(found, torch.tensor([[0.7, 0.9659794523, 1.0]], dtype=torch.float64), **FLOAT64)


def test_released_reads_the_old_entropy():
    old = weights(three_tokens(), steer_omega="released")
    current = three_tokens()
    current = make_tokens(current.logps, current.old_logps, current.advantages, entropy=current.entropy)
    assert not torch.allclose(old, weights(current, steer_omega="released"))


def test_nothing_moves_entropy():
    tokens = random_tokens()
    still = make_tokens(tokens.logps, tokens.old_logps, torch.zeros_like(tokens.logps), mask=tokens.mask)
    for omega in ("theorem", "released"):
        assert (weights(still, steer_omega=omega) == 1).all()
        middle = weights(still, steer_omega=omega, steer_mapping="linear", steer_lambda_min=0.8, steer_lambda_max=1.4)
        torch.testing.assert_close(middle[tokens.mask], torch.full_like(middle, 1.1)[tokens.mask])


def test_neutral_setting_is_all_ones():
    tokens = random_tokens()
    assert (weights(tokens, steer_lambda_min=1.0)[tokens.mask] == 1).all()


def test_invalid_tokens_do_not_set_the_scale():
    tokens = make_tokens([-0.5, -0.7, -0.6], [-0.5, -0.7, -0.6], [[0.1, 0.2, 900.0]], mask=[True, True, False])
    assert weights(tokens)[0, :2].min().item() == pytest.approx(0.7)


@pytest.mark.parametrize("omega", ["theorem", "exact", "released"])
@pytest.mark.parametrize("mapping", ["exp", "linear"])
def test_properties(make_trainer, omega, mapping):
    settings = dict(steer_omega=omega, steer_mapping=mapping)
    method = cases.build("steer", **settings)
    cases.check_padding_does_not_matter(method)
    cases.check_rows_permute(method)
    cases.check_extremes_stay_finite(method)
    cases.check_empty_mask(make_trainer, "steer", **settings)


def test_metrics(make_trainer):
    trainer = make_trainer(methods=["steer"])
    batch = cases.off_policy_batch(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(trainer.model, batch)
    logged = {key: values[0] for key, values in trainer._metrics["train"].items()}
    assert logged["steer/weight_min"] == pytest.approx(0.7)
    assert logged["steer/weight_min"] < logged["steer/weight_mean"] < logged["steer/weight_max"] <= 1


# Searched by test_fuzzing.py


@covers(steer.theorem_omega, steer.exact_omega, steer.released_omega, steer.exp_weights, steer.linear_weights)
def steer_weights(draw):
    tokens = draw_tokens(draw)
    for omega in (steer.theorem_omega, steer.exact_omega, steer.released_omega):
        size = (
            omega(tokens).abs().nan_to_num(nan=0.0)
        )  # an infinite ratio times a probability of 0, which `Steer` reads as 0
        size = size.clamp(max=torch.finfo(size.dtype).max)
        largest = functional.masked_max(size, tokens.mask)
        low, high = sorted(draw(st.lists(st.floats(1e-3, 2.0), min_size=2, max_size=2)))
        weights = steer.exp_weights(size, largest, min(low, 1.0))
        assert (weights[tokens.mask] >= min(low, 1.0) * (1 - 1e-5)).all() and (weights <= 1).all()
        smallest = -functional.masked_max(-size, tokens.mask)
        weights = steer.linear_weights(size, smallest, largest, low, high)
        assert ((weights - high)[tokens.mask] <= 1e-6).all() and ((low - weights)[tokens.mask] <= 1e-6).all()
