# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The losses of TRL and the statistics of a policy, written out in full from dense logits."""

import torch


def dense_log_policy(model, batch, temperature=1.0):
    """(B, T, V) log-softmax at each completion token, with gradient."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1] / temperature
    return logits.log_softmax(-1)[:, -batch["completion_ids"].size(1) :]


def dense_logps_and_entropy(model, batch, temperature=1.0):
    """(B, T) log-probabilities of the completion tokens and entropies, from the whole softmax, with gradient."""
    logps = dense_log_policy(model, batch, temperature)
    chosen = logps.gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)
    entropy = -(logps.exp() * logps).sum(-1)
    mask = batch["completion_mask"].bool()
    return chosen.masked_fill(~mask, 0), entropy.masked_fill(~mask, 0)


def nucleus_entropy(log_policy, top_p, include=False):
    """(..., V) -> (...,) entropy renormalized on the longest prefix of mass below `top_p`, with gradient.

    With `include` the token that crosses `top_p` is in. Takes rows without ties.
    """
    ordered = log_policy.sort(-1, descending=True).values
    mass = ordered.exp().cumsum(-1).detach()
    inside = (mass - ordered.exp().detach() if include else mass) < top_p
    kept = torch.where(inside, ordered, -torch.inf)
    empty = ~inside.any(-1)
    kept = torch.where(empty.unsqueeze(-1), ordered, kept)
    share = kept.log_softmax(-1)
    entropy = -(share.exp() * torch.where(share.isinf(), 0.0, share)).sum(-1)
    return torch.where(empty, 0.0, entropy)


def policy_terms(loss_type, logps, old_logps, advantages, mask, low=0.8, high=1.2):
    """(B, T) loss of each token before any method, for every `loss_type` at its default settings."""
    ratio = (logps - old_logps).exp()
    if loss_type == "cispo":
        return -ratio.clamp(max=high - 1).detach() * advantages * logps
    if loss_type == "sapo":
        heat = torch.where(advantages > 0, 1.0, 1.05)
        return -torch.sigmoid(heat * (ratio - 1)) * 4 / heat * advantages
    if loss_type == "vespo":
        log_w = (
            ((logps - old_logps).detach().clamp(-20, 20) * mask).sum(1, keepdim=True).clamp(-18.420680743952367, 20)
        )
        k = torch.where(advantages >= 0, 2.0, 3.0)
        rate = torch.where(advantages >= 0, 3.0, 2.0)
        return -(rate + k * log_w - rate * log_w.exp()).exp() * advantages * logps
    return -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)


def reduce_terms(loss_type, terms, mask, max_length=8, accumulation=1):
    terms = torch.where(mask.bool(), terms, 0.0)
    if loss_type in ("grpo", "sapo"):
        loss = (terms.sum(1) / mask.sum(1).clamp(min=1)).mean()
    elif loss_type in ("bnpo", "dapo", "cispo", "vespo"):  # with one micro-batch the whole batch is the micro-batch
        loss = terms.sum() / mask.sum().clamp(min=1)
    elif loss_type == "dr_grpo":
        loss = terms.sum() / (terms.size(0) * max_length)
    else:
        loss = terms.sum(1).mean()
    return loss / accumulation


def covariance(logps, advantages, mask):
    """(B, T) centered product of log-probabilities and advantages over the valid tokens, token by token."""
    valid = mask.bool()
    centred = (logps - logps[valid].mean()) * (advantages - advantages[valid].mean())
    return torch.where(valid, centred, 0.0).detach()
