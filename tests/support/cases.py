# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks that every method must pass. The method's own test calls them with its name."""

from copy import deepcopy
from dataclasses import fields, replace

import torch
from support.reference import dense_log_policy, dense_logps_and_entropy, reduce_terms
from support.tensors import config_of, make_loss_batch, random_rollouts, random_tokens
from support.tiny import EXACT, FLOAT32, build_model, loss_and_gradients

from trl_entropy.methods import METHODS
from trl_entropy.trainers.update import Update


def build(name, **settings):
    return METHODS[name](config_of(methods=[name], **settings))


def off_policy_batch(model, spread=0.35, **extra):
    """A batch whose old policy differs from `model`: ratios on both sides of every clip bound."""
    batch = make_loss_batch(**extra)
    with torch.no_grad():
        logps, _ = dense_logps_and_entropy(model, batch)
    noise = torch.randn(logps.shape, generator=torch.Generator().manual_seed(11))
    batch["old_per_token_logps"] = logps + spread * noise
    return batch


def check_against_reference(
    make_trainer, name, loss_type, reference, settings, batch_keys=(), prepare=None, scalar=None, policy=False
):
    """Loss and every gradient of the trainer, against `reference(logps, old_logps, entropy, advantages, mask)`.

    The reference gives the (B, T) loss of each token, method included, from dense logits and with gradient; with
    `policy` it also receives the whole log-softmax (B, T, V). `scalar(entropy, policy, mask)` is a term that is not a
    mean over tokens. `prepare(method)` sets a state.
    """
    model = build_model()
    batch = {**off_policy_batch(model), **dict(batch_keys)}
    trainer = make_trainer(model=model, loss_type=loss_type, methods=[name], **settings)
    if prepare is not None:
        prepare(trainer.methods[0])
    loss, gradients = loss_and_gradients(trainer, batch)

    other = build_model()
    logps, entropy = dense_logps_and_entropy(other, batch)
    log_policy = dense_log_policy(other, batch)
    mask = batch["completion_mask"].bool()
    advantages = batch["advantages"][:, None].expand(logps.shape)
    extra = (log_policy,) if policy else ()
    terms = reference(logps, batch["old_per_token_logps"], entropy, advantages, mask, *extra)
    expected = reduce_terms(loss_type, terms, mask)
    if scalar is not None:
        expected = expected + scalar(entropy, log_policy, mask)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), **FLOAT32)
    for parameter_name, parameter in other.named_parameters():
        torch.testing.assert_close(
            gradients[parameter_name], parameter.grad, msg=lambda m, p=parameter_name: f"{p}: {m}", **FLOAT32
        )
    return trainer, batch, expected.detach()


def outcome(method, tokens):
    """The effect of a method on a batch: advantages, and its loss term with gradient, if any.

    The method itself stays as it is, state included.
    """
    method = deepcopy(method)
    names = ("logps", "entropy", "nucleus_entropy", "top_logps")
    leaves = {name: getattr(tokens, name).detach().requires_grad_() for name in names}
    tokens = replace(tokens, **leaves)
    advantages = method.token_advantages(tokens)[0].detach()
    results = [advantages]
    term, _ = method.loss(replace(tokens, advantages=advantages))
    if term is not None:
        gradient = torch.autograd.grad(term.sum(), [*leaves.values()], allow_unused=True)
        scalar_or_tokens = [term.detach()] if term.dim() else [term.detach().expand_as(tokens.logps)]
        results += scalar_or_tokens + [g for g in gradient if g is not None]
    return results


def map_rows(tokens, change):
    return replace(
        tokens, **{f.name: change(v) for f in fields(tokens) if isinstance(v := getattr(tokens, f.name), torch.Tensor)}
    )


def check_padding_does_not_matter(method, **extra):
    tokens = random_tokens(**extra)

    def widened(value):
        if value.dim() == 1:
            return value
        garbage = value.new_zeros((len(value), 3, *value.shape[2:]))
        return torch.cat([value, garbage if value.dtype == torch.bool else garbage + 37.0], 1)

    wider = map_rows(tokens, widened)
    for narrow, wide in zip(outcome(method, tokens), outcome(method, wider), strict=True):
        torch.testing.assert_close(wide[:, :-3][tokens.mask], narrow[tokens.mask])


def check_rows_permute(method, **extra):
    tokens = random_tokens(**extra)
    order = torch.tensor([2, 0, 3, 1])
    for plain, permuted in zip(
        outcome(method, tokens), outcome(method, map_rows(tokens, lambda value: value[order])), strict=True
    ):
        torch.testing.assert_close(permuted[tokens.mask[order]], plain[order][tokens.mask[order]])


def check_empty_mask(make_trainer, name, **settings):
    batch = make_loss_batch()
    batch["old_per_token_logps"] = torch.zeros(batch["completion_ids"].shape)
    batch["completion_mask"] = torch.zeros_like(batch["completion_mask"])
    batch["num_items_in_batch"] = torch.tensor(0)
    loss, gradients = loss_and_gradients(make_trainer(methods=[name], **settings), batch)
    assert loss.item() == 0
    assert all(gradient.abs().max() == 0 for gradient in gradients.values()) and gradients


def check_extremes_stay_finite(method, **extra):
    """Log-ratios of ±200 and probabilities of 0 and 1, as a broken rollout engine may give them."""
    tokens = random_tokens(**extra)
    logps, old_logps = tokens.logps.float().clone(), tokens.old_logps.float().clone()
    logps[0], old_logps[0] = -200.0, 0.0
    logps[1], old_logps[1] = 0.0, -200.0
    tokens = replace(
        tokens,
        logps=logps,
        old_logps=old_logps,
        entropy=tokens.entropy.float() * 0,
        old_entropy=tokens.entropy.float() * 0,
        advantages=tokens.advantages.float(),
        ratio=(logps - old_logps).exp(),
        mask=torch.ones_like(tokens.mask),
    )
    assert not tokens.ratio.isfinite().all()
    for result in outcome(method, tokens):
        assert result.isfinite().all()


def check_rollouts(build_method):
    """Holds for every method that acts on generation batches: padding, order of groups, tokens outside the mask."""
    rollouts = random_rollouts()
    plain = build_method().group_advantages(rollouts)[0]
    assert plain.shape == rollouts.mask.shape and plain[rollouts.mask].isfinite().all()
    assert not plain.requires_grad

    padding = {
        "advantages": 37.0,
        "entropy": 37.0,
        "logps": 37.0,
        "mask": False,
        "generated": False,
        "completion_ids": 0,
    }
    wider = replace(
        rollouts,
        **{name: torch.nn.functional.pad(getattr(rollouts, name), (0, 3), value=v) for name, v in padding.items()},
    )
    torch.testing.assert_close(build_method().group_advantages(wider)[0][:, :-3][rollouts.mask], plain[rollouts.mask])

    order = torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])
    permuted = build_method().group_advantages(map_rows(rollouts, lambda value: value[order]))[0]
    torch.testing.assert_close(permuted[rollouts.mask[order]], plain[order][rollouts.mask[order]])

    garbage = {name: getattr(rollouts, name).masked_fill(~rollouts.generated, 1e6) for name in ("entropy", "logps")}
    found = build_method().group_advantages(replace(rollouts, **garbage))[0]
    torch.testing.assert_close(found[rollouts.mask], plain[rollouts.mask])

    nothing = replace(rollouts, mask=torch.zeros_like(rollouts.mask), generated=torch.zeros_like(rollouts.mask))
    assert build_method().group_advantages(nothing)[0].isfinite().all()


def record_update(monkeypatch):
    """The next update, under "taken"."""
    found, take = {}, Update.take_turns

    def spy(update, *arguments):
        take(update, *arguments)
        found["taken"] = update

    monkeypatch.setattr(Update, "take_turns", spy)
    return found


def check_neutral(make_trainer, name, loss_type, batches=("on_policy", "off_policy"), extra=(), **settings):
    """With these settings the method is GRPO: loss and gradients are TRL's to the bit."""
    found = {"on_policy": make_loss_batch(), "off_policy": off_policy_batch(build_model())}
    for batch in ({**found[key], **dict(extra)} for key in batches):
        stock = make_trainer(stock=True, model=build_model(), loss_type=loss_type)
        ours = make_trainer(
            model=build_model(), loss_type=loss_type, methods=[name], **{"fused_head": False, **settings}
        )
        expected = loss_and_gradients(stock, batch)
        assert expected[0].item() != 0
        torch.testing.assert_close(loss_and_gradients(ours, batch), expected, **EXACT)


def check_accumulation(make_trainer, name, loss_type, extra=(), **settings):
    """Two micro-batches of four rows give the loss and gradients of one micro-batch of eight."""
    batch = off_policy_batch(build_model(), rows=8, **dict(extra))
    found = []
    for parts in (1, 2):
        settings = {**settings, "gradient_accumulation_steps": parts}
        trainer = make_trainer(model=build_model(), loss_type=loss_type, methods=[name], **settings)
        results = []
        for part in range(parts):
            rows = slice(8 // parts * part, 8 // parts * (part + 1))
            results.append(loss_and_gradients(trainer, {k: v if v.dim() == 0 else v[rows] for k, v in batch.items()}))
        losses, gradients = zip(*results, strict=True)
        found.append((sum(losses), {k: sum(part[k] for part in gradients) for k in gradients[0]}))
    torch.testing.assert_close(found[1], found[0], **FLOAT32)
