# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The policy gradient of each token as methods know it, against the gradient of TRL's own loss."""

import math

import pytest
import torch
from support import cases
from support.registry import IN_FORWARD, acts, covered, set_states, settings_of, strong
from support.tiny import EXACT, FLOAT32, LOSS_TYPES, build_model, loss_and_gradients
from trl import GRPOTrainer

from trl_entropy.tokens import CLIPPING_LOSSES
from trl_entropy.trainers.update import Update


MASKS = {
    "none": {},
    "quantile": dict(top_entropy_quantile=0.4),
    "delta": dict(delta=1.3),
    "low_delta": dict(delta=1.1),
    "off_policy": dict(off_policy_mask_threshold=0.05),
    "truncation": {},
    "engine": {},
    "all": dict(top_entropy_quantile=0.6, delta=1.3, off_policy_mask_threshold=0.05),
}


def masked_batch(mask, on_policy=False):
    """A batch on which the mask takes tokens out: rows far from the engine's policy, and engine weights of 0."""
    batch = cases.off_policy_batch(build_model(), rows=8)
    scored = batch["old_per_token_logps"]
    if on_policy:
        scored = batch.pop("old_per_token_logps")
    shift = torch.tensor([0.5, -0.5, 0.5, -0.5] * 2)[:, None]
    batch["sampling_per_token_logps"] = scored + shift
    if mask == "truncation":
        batch["completion_mask"][::3] = 0
        batch["num_items_in_batch"] = batch["completion_mask"].sum()
    if mask in ("engine", "all"):
        ratio = 0.5 + torch.rand(scored.shape, generator=torch.Generator().manual_seed(5))
        batch["importance_sampling_ratio"] = ratio.masked_fill(ratio < 0.8, 0)
    return batch


def prepared(trainer, mask):
    """A trainer that believes in an inference engine if the batch has its correction."""
    if mask in ("engine", "all"):
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
    return trainer


def stock_gradient(trainer, batch, logps, entropy):
    """(B, T) gradient of TRL's loss by the log-probabilities."""
    leaf = logps.detach().clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (leaf, entropy.detach(), None)
    trainer.current_gradient_accumulation_steps = 1
    (found,) = torch.autograd.grad(trainer._compute_loss(trainer.model, batch), leaf)
    return found


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradient_weight_is_that_of_the_loss(make_trainer, monkeypatch, loss_type, mask):
    settings, batch = dict(loss_type=loss_type, **MASKS[mask]), masked_batch(mask)
    trainer = prepared(make_trainer(**settings), mask)
    update = cases.record_update(monkeypatch)
    loss_and_gradients(trainer, batch)
    tokens = update["taken"].acted
    found = stock_gradient(prepared(make_trainer(stock=True, **settings), mask), batch, tokens.logps, tokens.entropy)
    leaf = tokens.logps.detach().clone().requires_grad_()
    term = -tokens.advantages * tokens.gradient_weight * leaf
    (expected,) = torch.autograd.grad(Update(trainer, batch).reduce(term, tokens.mask), leaf)
    torch.testing.assert_close(found, expected, **FLOAT32)
    assert torch.equal(tokens.has_gradient, found != 0)
    takes_out = {"quantile", "off_policy", "all"}
    takes_out |= {"delta", "low_delta"} if loss_type in CLIPPING_LOSSES else set()
    takes_out |= {"engine"} if loss_type != "vespo" else set()  # which takes it into the weight of the sequence
    assert (tokens.has_gradient != tokens.mask).any() or mask not in takes_out


def test_gradient_weight_of_a_sequence_level_ratio(make_trainer, monkeypatch):
    settings, batch = dict(loss_type="grpo", importance_sampling_level="sequence"), masked_batch("none")
    trainer = make_trainer(**settings)
    update = cases.record_update(monkeypatch)
    loss_and_gradients(trainer, batch)
    tokens = update["taken"].acted
    found = stock_gradient(make_trainer(stock=True, **settings), batch, tokens.logps, tokens.entropy)
    expected = -tokens.advantages * tokens.gradient_weight / tokens.mask.sum(1, keepdim=True) / len(tokens.mask)
    torch.testing.assert_close(found, expected, **FLOAT32)


def chosen_by(method, update):
    """(B, T) bool: the tokens whose advantage the method changed, or on whose log-probability its term acts."""
    before = update.advantages[:, None]
    tokens = update.acted
    chosen = tokens.mask & (tokens.advantages != before)
    leaf = tokens.logps.detach().clone().requires_grad_()
    term, _ = method.loss(cases.replace(tokens, logps=leaf))
    if term is None or not term.requires_grad:
        return chosen
    (gradient,) = torch.autograd.grad(term.sum(), leaf, allow_unused=True)
    return chosen if gradient is None else chosen | (gradient != 0)


@pytest.mark.parametrize("on_policy", [False, True], ids=["off", "on"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", [name for name in covered() if acts(name, IN_FORWARD) and settings_of(name).chooses])
def test_what_a_method_chooses_has_a_gradient(make_trainer, monkeypatch, name, mask, on_policy):
    """In TRL's loss without the method, at the clip range that it sets; a gradient that agentic AEPO keeps has none
    with the clip, and one without."""
    settings, batch = {"num_iterations": 2, **MASKS[mask]}, masked_batch(mask, on_policy)
    trainer = prepared(make_trainer(methods=[name], **strong([name]), **settings), mask)
    set_states(trainer.methods)
    if name == "aepo":
        trainer.model.eval()  # without a second rollout
    update = cases.record_update(monkeypatch)
    loss_and_gradients(trainer, batch)
    taken = update["taken"]
    chosen = chosen_by(trainer.methods[0], taken)
    if name == "agentic_aepo":
        settings = {key: value for key, value in settings.items() if key != "delta"}
    stock = prepared(make_trainer(stock=True, **settings), mask)
    if name == "kl_cov":
        stock.epsilon_low = stock.epsilon_high = math.inf
    if name == "agentic_aepo":
        stock.epsilon_high = math.inf
    gradient = stock_gradient(stock, batch, taken.acted.logps, taken.acted.entropy)
    assert not (chosen & (gradient == 0)).any(), f"{name} acts on tokens without a gradient: `chooses=False` allows it"
    in_forward = on_policy and "top_entropy_quantile" not in settings  # where entropies are high, few tokens drain it
    works_here = {"clip_b": in_forward, "clip_v": in_forward, "clip_cov": True, "steer": True, "kl_cov": not on_policy}
    assert chosen.any() or not works_here.get(name, False)


def test_high_entropy_mask_is_made_once_and_with_the_arguments_of_trl(make_trainer, monkeypatch):
    asked, made = [], []
    stock = GRPOTrainer.get_high_entropy_mask
    monkeypatch.setattr(
        GRPOTrainer, "get_high_entropy_mask", lambda self, *args: (made.append(args), stock(self, *args))[1]
    )
    trainer = make_trainer(top_entropy_quantile=0.4)
    ask = trainer.get_high_entropy_mask
    trainer.get_high_entropy_mask = lambda *args: (asked.append(args), ask(*args))[1]
    loss_and_gradients(trainer, masked_batch("none"))
    (ours, trls), ((entropies, _, threshold),) = asked, made
    assert ours[0] is trls[0] is entropies and ours[2] == trls[2] == threshold == 0.6
    torch.testing.assert_close(ours[1], trls[1], **EXACT)
