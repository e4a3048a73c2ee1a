# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The policy gradient that TRL's loss gives each token: its clip, its masks and the weights of its loss types.

TRL applies them after its forward. Methods choose tokens before, so they are derived here from the same inputs, and by
TRL's own functions if it has one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..tokens import CLIPPING_LOSSES, TokenBatch


def clip_bounds(trainer: Any) -> dict[str, Any]:
    """The bounds of the ratio in [`TokenBatch`]: those of the minimum of the clipped term and that of `delta`."""
    if trainer.loss_type not in CLIPPING_LOSSES:
        return {}
    high = 1 + trainer.epsilon_high
    delta = torch.inf if trainer.args.delta is None else trainer.args.delta
    if isinstance(high, Tensor):
        low = 1 - trainer.epsilon_low
        return {"clip_low": low, "clip_high": high.clamp(max=delta), "clip_negative": high.clamp(min=delta)}
    return {"clip_low": 1 - trainer.epsilon_low, "clip_high": min(high, delta), "clip_negative": max(high, delta)}


def policy_weights(
    trainer: Any, batch: dict[str, Any], tokens: TokenBatch, entropy_mask: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """`TokenBatch.loss_weights` of a forward. They depend on the advantages, which methods change.

    Args:
        trainer: the trainer.
        batch: what TRL's loss gets.
        tokens: the tokens of the forward.
        entropy_mask: (B, T) bool, TRL's 80/20 mask, if there is one.
    """
    mask = tokens.mask.to(batch["completion_mask"].dtype)
    logps, old_logps = tokens.logps.detach(), tokens.old_logps

    def weights(advantages: Tensor) -> Tensor:
        found = loss_type_weights(trainer, batch, advantages, tokens.ratio, logps - old_logps, mask)
        if trainer.off_policy_mask_threshold is not None:
            found = found * trainer.get_off_policy_mask(
                advantages=advantages,
                per_token_logps=logps,
                sampling_per_token_logps=batch.get("sampling_per_token_logps", old_logps),
                mask=mask,
                off_policy_threshold=trainer.off_policy_mask_threshold,
            )
        if trainer.use_vllm and trainer.vllm_importance_sampling_correction and trainer.loss_type != "vespo":
            found = found * batch["importance_sampling_ratio"]
        return found if entropy_mask is None else found.masked_fill(~entropy_mask, 0)

    return weights


def loss_type_weights(
    trainer: Any, batch: dict[str, Any], advantages: Tensor, ratio: Tensor, log_ratio: Tensor, mask: Tensor
) -> Tensor:
    """(B, T) derivative of the policy term of `loss_type` by log π, divided by -A, before clip and masks."""
    args = trainer.args
    if trainer.loss_type == "cispo":
        return ratio.clamp(max=trainer.epsilon_high)
    if trainer.loss_type == "sapo":
        gate = torch.where(advantages > 0, args.sapo_temperature_pos, args.sapo_temperature_neg)
        soft = torch.sigmoid(gate * (ratio - 1))
        return 4 * soft * (1 - soft) * ratio
    if trainer.loss_type == "vespo":
        return trainer.get_gamma_weights(
            advantages=advantages,
            log_ratio_per_token=log_ratio,
            mask=mask,
            importance_sampling_ratio=batch.get("importance_sampling_ratio"),
            k_pos=args.vespo_k_pos,
            lambda_pos=args.vespo_lambda_pos,
            k_neg=args.vespo_k_neg,
            lambda_neg=args.vespo_lambda_neg,
        )
    return ratio
