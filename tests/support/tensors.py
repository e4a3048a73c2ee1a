# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Batches for losses and methods: what TRL gives to a loss, `TokenBatch`, `Rollouts`, and the fields of methods."""

import torch
from support.tiny import VOCABULARY

from trl_entropy.methods import MethodsConfig
from trl_entropy.tokens import Rollouts, TokenBatch


def config_of(**fields):
    """The method fields at their defaults, except those given."""
    return MethodsConfig(**fields)


def make_loss_batch(rows: int = 4, length: int = 6, seed: int = 3, **extra) -> dict[str, torch.Tensor]:
    """A batch as TRL's `_compute_loss` takes it: padding, mixed advantage signs, ratios beyond each clip bound."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([length - row % 3 for row in range(rows)])
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {
        "prompt_ids": torch.randint(2, VOCABULARY, (rows, 3), generator=generator),
        "prompt_mask": torch.ones(rows, 3, dtype=torch.long),
        "completion_ids": torch.randint(2, VOCABULARY, (rows, length), generator=generator) * mask,
        "completion_mask": mask,
        "advantages": torch.linspace(-1.3, 1.1, rows),
        "num_items_in_batch": mask.sum(),
        **extra,
    }


def make_tokens(logps, old_logps, advantages, entropy=None, mask=None, epsilon=0.2, **extra):
    """A `TokenBatch` from nested lists, in float64; one row where a flat list is given."""

    def tensor(values):
        return torch.atleast_2d(torch.as_tensor(values, dtype=torch.float64))

    logps, old_logps = tensor(logps), tensor(old_logps)
    entropy = torch.ones_like(logps) if entropy is None else tensor(entropy)
    fields = dict(
        old_entropy=entropy,
        mask=torch.ones_like(logps, dtype=torch.bool)
        if mask is None
        else torch.atleast_2d(torch.as_tensor(mask)).bool(),
        ratio=(logps - old_logps).exp(),
        clip_low=1 - epsilon,
        clip_high=1 + epsilon,
    )
    return TokenBatch(
        logps=logps, old_logps=old_logps, entropy=entropy, advantages=tensor(advantages), **{**fields, **extra}
    )


# Logits of three tokens over four entries, under the current and the old policy.
F1_LOGITS = [[2, 1, 0, -1], [0.5, 0.4, 0.3, 0.2], [4, 0, -1, -2]]
F1_OLD_LOGITS = [[1.8, 1, 0, -1], [0.5, 0.4, 0.2, 0.2], [4, 0.3, -1, -2]]


def three_tokens(**extra):
    """Three tokens over four entries: current and old policy, sampled entries 0, 2, 1, advantages 1, 1, -1."""
    policies = [torch.tensor(rows, dtype=torch.float64).log_softmax(-1) for rows in (F1_LOGITS, F1_OLD_LOGITS)]
    picks = torch.tensor([[0], [2], [1]])
    logps, old_logps = (policy.gather(1, picks).T for policy in policies)
    entropy, old_entropy = (-(policy.exp() * policy).sum(1)[None] for policy in policies)
    return make_tokens(logps, old_logps, [1, 1, -1], entropy=entropy, old_entropy=old_entropy, **extra)


def random_tokens(rows=4, length=7, seed=0, **extra):
    """A `TokenBatch` of random values with ragged rows."""
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(rows, length, generator=generator, dtype=torch.float64)

    logits = 2 * torch.randn(rows, length, 9, generator=generator, dtype=torch.float64)
    policy = logits.log_softmax(-1)
    logps = policy[..., 0]
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    return make_tokens(
        logps,
        logps + 0.2 * normal(),
        normal()[:, :1].expand(rows, length),
        entropy=-(policy.exp() * policy).sum(-1),
        mask=torch.arange(length) < lengths,
        **{
            "sum_sq_probs": policy.exp().square().sum(-1),
            "sum_sq_probs_log_probs": (policy.exp().square() * policy).sum(-1),
            "nucleus_entropy": normal().abs(),
            "top_logps": policy.topk(3).values,
            "old_second_logps": (logits / 1.2).log_softmax(-1)[..., 0],
            "rewards": torch.randint(2, (rows,), generator=generator).double(),
            **extra,
        },
    )


def make_rollouts(entropy, advantages=None, mask=None, **extra):
    """A generation batch from nested lists, in float64. The policy wrote all its tokens."""
    entropy = torch.as_tensor(entropy, dtype=torch.float64)
    mask = torch.ones_like(entropy, dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool()
    advantages = torch.zeros(len(entropy)) if advantages is None else torch.as_tensor(advantages)
    advantages = advantages.double().unsqueeze(1) if advantages.dim() == 1 else advantages.double()
    return Rollouts(
        advantages=advantages.expand(entropy.shape),
        mask=mask,
        **{"generated": mask, "entropy": entropy, "completion_ids": torch.full(entropy.shape, 2), **extra},
    )


def random_rollouts(rows=8, length=7, seed=0, group=4, **extra):
    """Ragged rows, one of them empty, tokens of tools, and rewards of 0 and 1 of which one is missing."""
    generator = torch.Generator().manual_seed(seed)
    entropy = 3 * torch.rand(rows, length, generator=generator, dtype=torch.float64)
    lengths = torch.randint(2, length + 1, (rows, 1), generator=generator)
    generated = (torch.arange(length) < lengths) & (torch.rand(rows, length, generator=generator) < 0.8)
    generated[:, 0] = True
    mask = generated.clone()
    mask[2] = False  # left out of the loss
    rewards = torch.randint(2, (rows,), generator=generator).double()
    rewards[5] = torch.nan
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    logps = -3 * torch.rand(rows, length, generator=generator, dtype=torch.float64)
    fields = {"generated": generated, "rewards": rewards, "logps": logps, "num_generations": group}
    return make_rollouts(entropy, advantages, mask, **{**fields, **extra})


def part(batch, rank, processes):
    """The share of process `rank` in a batch of eight sequences, in order."""
    rows = 8 // processes
    return {k: v if v.dim() == 0 else v[rank * rows : (rank + 1) * rows] for k, v in batch.items()}
