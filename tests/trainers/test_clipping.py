# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`clip_bounds`: set on the trainer for the duration of TRL's loss, seen by methods and metrics, then restored."""

import math
from dataclasses import replace

import pytest
import torch
from support import cases
from support.tensors import config_of, random_tokens
from support.tiny import EXACT, build_model, loss_and_gradients

import trl_entropy
from trl_entropy.methods import METHODS, REGISTRY, Method, Paper, build_methods
from trl_entropy.tokens import CLIPPING_LOSSES


AEPO = dict(aepo_target_entropy=1.0, aepo_mode="rollout")


@pytest.fixture
def bounding():
    """`bounding(function)` registers a method whose `clip_bounds` is `function(tokens)`."""

    def add(function):
        class Bounding(Method):
            name, summary = "bounding", "sets clip bounds"
            paper = Paper("2506.01347", "A title", "@article{x, arXiv:2506.01347}")

            def clip_bounds(self, tokens):
                return function(tokens), {}

        trl_entropy.register(Bounding)

    yield add
    if "bounding" in METHODS:
        REGISTRY.unregister("bounding")


@pytest.fixture
def batch():
    return cases.off_policy_batch(build_model())


def stock_result(make_trainer, batch, low, high, loss_type="dapo"):
    trainer = make_trainer(stock=True, loss_type=loss_type)
    trainer.epsilon_low, trainer.epsilon_high = 1 - low, high - 1
    return loss_and_gradients(trainer, batch), trainer._metrics["train"]["clip_ratio/region_mean"]


@pytest.mark.parametrize("loss_type", CLIPPING_LOSSES)
@pytest.mark.parametrize("kind", ["floats", "scalars", "tensors"])
def test_constant_bounds_are_trls_own_clip_range(make_trainer, bounding, batch, loss_type, kind):
    def bounds(tokens):
        values = {"floats": lambda x: x, "scalars": torch.tensor}.get(kind, lambda x: torch.full_like(tokens.logps, x))
        return values(0.75), values(1.125)

    bounding(bounds)
    trainer = make_trainer(methods=["bounding"], loss_type=loss_type, fused_head=False)
    found = loss_and_gradients(trainer, batch)
    expected, clipped = stock_result(make_trainer, batch, 0.75, 1.125, loss_type)
    torch.testing.assert_close(found, expected, **EXACT)
    assert trainer._metrics["train"]["clip_ratio/region_mean"] == clipped and clipped[0] > 0
    assert (trainer.epsilon_low, trainer.epsilon_high) == (0.2, 0.2)


def test_the_default_leaves_the_configured_bounds(make_trainer, bounding, batch):
    bounding(lambda tokens: (tokens.clip_low, tokens.clip_high))
    trainer = make_trainer(methods=["bounding"], epsilon=0.1, epsilon_high=0.3, fused_head=False)
    expected = loss_and_gradients(make_trainer(stock=True, epsilon=0.1, epsilon_high=0.3), batch)
    torch.testing.assert_close(loss_and_gradients(trainer, batch), expected, **EXACT)
    tokens = random_tokens()
    assert Method(None).clip_bounds(tokens) == ((tokens.clip_low, tokens.clip_high), {})


def test_each_token_has_its_own_bounds(make_trainer, bounding, batch, monkeypatch):
    """Later hooks see in `clipped` what TRL clips."""
    high = torch.linspace(0.9, 1.5, 24).view(4, 6)
    bounding(lambda tokens: (high - 0.4, high))
    trainer = make_trainer(methods=["bounding", "clip_cov"], loss_type="bnpo", clip_cov_ratio=1e-6)
    update = cases.record_update(monkeypatch)
    loss_and_gradients(trainer, batch)
    tokens, mask = update["taken"].acted, batch["completion_mask"].bool()
    advantages = update["taken"].advantages.unsqueeze(1).expand(4, 6)
    tokens = replace(tokens, advantages=advantages)
    by_hand = ((tokens.ratio < high - 0.4) & (advantages < 0)) | ((tokens.ratio > high) & (advantages > 0))
    assert torch.equal(tokens.clipped, by_hand) and 0 < by_hand[mask].sum() < mask.sum()


@pytest.mark.parametrize("wrong", [(math.nan, 1.1), (torch.tensor(math.nan), torch.tensor(1.1)), (math.inf, 1.1)])
def test_a_bound_that_is_no_number_keeps_the_configured_one(make_trainer, bounding, batch, wrong):
    bounding(lambda tokens: wrong)
    trainer = make_trainer(methods=["bounding"], fused_head=False)
    found = loss_and_gradients(trainer, batch)
    expected, _ = stock_result(make_trainer, batch, 0.8, 1.1)
    torch.testing.assert_close(found, expected, **EXACT)
    logged = trainer._metrics["train"].get("bounding/kept_bounds_fraction")
    assert logged == ([1.0] if isinstance(wrong[0], torch.Tensor) else None)


def test_kept_bounds_are_counted_by_token(make_trainer, bounding, batch):
    def bounds(tokens):
        low = torch.full((4, 6), 0.7)
        low[0], low[1] = math.nan, math.inf
        return low, math.inf

    bounding(bounds)
    trainer = make_trainer(methods=["bounding"])
    loss, _ = loss_and_gradients(trainer, batch)
    lengths = batch["completion_mask"].sum(1).float()
    (logged,) = trainer._metrics["train"]["bounding/kept_bounds_fraction"]
    assert loss.isfinite() and logged == pytest.approx((lengths[:2].sum() / lengths.sum()).item())


@pytest.mark.parametrize("loss_type", ["cispo", "sapo", "vespo"])
def test_a_loss_that_does_not_clip_asks_for_no_bounds(make_trainer, bounding, batch, loss_type):
    def refuse(tokens):
        raise AssertionError("asked")

    bounding(refuse)
    loss_and_gradients(make_trainer(methods=["bounding"], loss_type=loss_type), batch)


def test_bounds_are_restored_after_an_error(make_trainer, bounding, batch):
    bounding(lambda tokens: (torch.ones(7, 7), math.inf))
    trainer = make_trainer(methods=["bounding"])
    with pytest.raises(RuntimeError, match="size of tensor"):
        loss_and_gradients(trainer, batch)
    assert (trainer.epsilon_low, trainer.epsilon_high) == (0.2, 0.2)


def test_two_methods_that_set_bounds_are_refused(bounding):
    bounding(lambda tokens: (0.0, math.inf))
    with pytest.raises(ValueError, match="`methods` must not list both 'kl_cov' and 'bounding': both set the ratios"):
        build_methods(config_of(methods=["kl_cov", "clip_cov", "bounding"]))


def test_auxiliary_rollouts_are_clipped_alike(make_trainer, bounding):
    """AEPO's term on its own rollouts sees the bounds of the forward that it is about, not of the last loss."""
    shapes = []

    def bounds(tokens):
        shapes.append(tokens.logps.shape)
        return torch.full_like(tokens.logps, -math.inf), torch.full_like(tokens.logps, math.inf)

    bounding(bounds)
    trainer = make_trainer(methods=["bounding", "aepo"], max_steps=1, **AEPO)
    seen, term = [], trainer.methods[1].auxiliary_loss

    def spy(tokens):
        seen.append((tokens.clip_high, tokens.logps.shape))
        return term(tokens)

    trainer.methods[1].auxiliary_loss = spy
    trainer.train()
    ((high, shape),) = seen
    assert len(shapes) == 2 and shapes[1] == shape == high.shape and (high == math.inf).all()
