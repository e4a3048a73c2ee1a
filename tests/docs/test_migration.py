# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The settings paired in docs/migrating_from_verl.md give the same loss in verl's formula and in the trainer."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from support import cases
from support.reference import covariance, dense_logps_and_entropy, policy_terms, reduce_terms
from support.tiny import FLOAT32, build_model, loss_and_gradients

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import MethodsConfig


PAGE = (Path(__file__).parents[2] / "docs" / "migrating_from_verl.md").read_text()
BLOCKS = {
    tuple(name.split()): yaml.safe_load(text)
    for name, text in re.findall(r"<!-- (.*?) -->\n```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
}


def verl_terms(actor, logps, old_logps, advantages, mask, dropped):
    """(B, T) loss of each token by verl's settings; `dropped` are the tokens that Clip-Cov has drawn."""
    policy_loss = actor["policy_loss"]
    products = covariance(logps.detach(), advantages, mask)
    count = int(mask.sum())
    if policy_loss["loss_mode"] == "kl_cov":
        chosen = torch.zeros_like(mask)
        order = products.masked_fill(~mask, -torch.inf).flatten().argsort(descending=True)
        chosen.view(-1)[order[: max(1, int(policy_loss["kl_cov_ratio"] * count))]] = True
        penalty = policy_loss["ppo_kl_coef"] * (logps - old_logps).abs()
        return -advantages * (logps - old_logps).exp() + penalty * chosen
    low, high = 1 - actor["clip_ratio_low"], 1 + actor["clip_ratio_high"]
    ratio = (logps - old_logps).exp().detach()
    clipped = -advantages * ratio.clamp(low, high) > -advantages * ratio
    inside = (products > policy_loss["clip_cov_lb"]) & (products < policy_loss["clip_cov_ub"])
    eligible = inside & mask & ~clipped
    assert not (dropped & ~eligible).any()
    drawn = max(int(policy_loss["clip_cov_ratio"] * count), 1)
    assert dropped.sum() == min(drawn, int(eligible.sum())) > 0
    return policy_terms("dapo", logps, old_logps, advantages, mask, low, high) * ~dropped


@pytest.mark.parametrize("method", ["kl_cov", "clip_cov"])
def test_paired_settings_give_one_loss(make_trainer, monkeypatch, method):
    actor, ours = BLOCKS["verl", method]["actor_rollout_ref"]["actor"], BLOCKS["trl", method]
    assert actor["loss_agg_mode"] == "token-mean"  # which `reduce_terms` calls dapo
    batch = cases.off_policy_batch(build_model())
    batch["advantages"] = batch["advantages"] * 4  # so that some covariances lie within the band
    trainer = make_trainer(model=build_model(), **ours)
    update = cases.record_update(monkeypatch)
    loss, gradients = loss_and_gradients(trainer, batch)
    model, mask = build_model(), batch["completion_mask"].bool()
    logps, _ = dense_logps_and_entropy(model, batch)
    advantages = batch["advantages"][:, None].expand(logps.shape)
    kept = update["taken"].logs["clip_cov/kept_fraction"] if method == "clip_cov" else mask
    dropped = mask & ~kept
    terms = verl_terms(actor, logps, batch["old_per_token_logps"], advantages, mask, dropped)
    expected = reduce_terms("dapo", terms, mask)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), **FLOAT32)
    torch.testing.assert_close(gradients, {n: p.grad for n, p in model.named_parameters()}, **FLOAT32)


def test_names_and_defaults_of_the_page_are_ours():
    ours = {field.name: field.default for field in fields(EntropyGRPOConfig)}
    right = {
        name
        for row in re.findall(r"^\| .*? \| (.*?) \|", PAGE, flags=re.MULTILINE)
        for name in re.findall(r"`(\w+)[`:]", row)
    }
    known = {"k_percent", "ppo_kl_coef"}  # the authors', in the table of values
    assert len(right) > 15 and {name for name in right - known if "_" in name} <= set(ours)
    for name, value in (("kl_cov_ratio", 2e-3), ("kl_cov_coef", 1.0), ("clip_cov_ratio", 2e-4)):
        assert ours[name] == value and re.search(rf"`{name}: ({value:.0e}|{value})`".replace("e-0", "e-"), PAGE)
    for kind, method in BLOCKS:
        if kind == "trl":
            assert {name for name in BLOCKS[kind, method] if name.startswith(method)} <= {
                f.name for f in fields(MethodsConfig)
            }
