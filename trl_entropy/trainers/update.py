# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`Update`: one loss, around TRL's own.

TRL's `_compute_loss` first makes its forward, then reads the advantages. So TRL gets a copy of the batch without them,
and our forward adds them once the methods have seen the tokens. If TRL ever reads them before its forward, it raises
`KeyError`; the methods are never silently ignored.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..functional import aggregate
from ..methods import Method
from ..tokens import CLIPPING_LOSSES, TokenBatch
from .clipping import bounds_restored, set_bounds
from .metrics import entropy_metrics
from .rollouts import forward_inputs, loss_mask


class Update:
    """One call of TRL's `_compute_loss`. B sequences, T completion tokens.

    Attributes:
        batch: TRL's copy of the batch, without `advantages` until the forward has been made.
        advantages: (B,) or (B, T) from the rewards and the `group_advantages` hooks.
        turns: each method with the tokens as it left them.
        acted: the tokens as the last method left them.
        policy_mask: (B, T) bool, the tokens that TRL's 80/20 mask keeps, once TRL has made it.
        logs: log values of the methods, by key.
    """

    def __init__(self, trainer: Any, batch: dict[str, Any]):
        self.trainer = trainer
        self.advantages = batch["advantages"]
        self.batch = {key: value for key, value in batch.items() if key != "advantages"}
        self.turns: list[tuple[Method, TokenBatch]] = []
        self.policy_mask: Tensor | None = None
        self.logs: dict[str, Tensor] = {}

    def loss(self, stock: Callable, model: Any) -> Tensor:
        """TRL's loss on the advantages that the methods changed, plus the methods' loss terms."""
        trainer = self.trainer
        trainer._update = self
        trainer._bonus.before_loss(trainer)
        try:
            with bounds_restored(trainer):
                loss = stock(model, self.batch)
            trainer._bonus.after_loss(trainer)
        finally:
            trainer._update = None
        for method, tokens in self.turns:
            tokens = tokens if self.policy_mask is None else replace(tokens, policy_mask=self.policy_mask)
            term, logs = method.loss(tokens)
            self._log(method, logs)
            if term is not None:
                loss = loss + self.reduce(term, tokens.mask)
        if trainer.model.training:
            for method, _ in self.turns:
                if "auxiliary_rollouts" in method.needs:
                    loss = loss + self._auxiliary_loss(model, method) / trainer.current_gradient_accumulation_steps
        self._record()
        return loss

    def take_turns(self, logps: Tensor, entropy: Tensor, statistics: dict[str, Tensor]) -> None:
        """After the forward: lets the methods set the clip bounds and the advantages that TRL reads next."""
        advantages = self.advantages if self.advantages.dim() == 2 else self.advantages.unsqueeze(1)
        tokens = read_tokens(self.trainer, self.batch, logps, entropy, advantages.expand_as(logps), statistics)
        tokens, logs = set_bounds(self.trainer, tokens)
        self.logs |= logs
        for method in self.trainer.methods:
            advantages, logs = method.token_advantages(tokens)
            self._log(method, logs)
            tokens = replace(tokens, advantages=advantages.detach())
            self.turns.append((method, tokens))
        self.acted = tokens
        changed = any(method.overrides("token_advantages") for method in self.trainer.methods)
        self.batch["advantages"] = tokens.advantages if changed else self.advantages

    def reduce(self, term: Tensor, mask: Tensor) -> Tensor:
        """A loss term, (B, T) or scalar, reduced and scaled for accumulation as TRL does with its own loss."""
        trainer = self.trainer
        steps = trainer.current_gradient_accumulation_steps if trainer.model.training else 1
        if term.dim() == 0:
            return term / steps
        items = self.batch["num_items_in_batch"].clamp(min=1) / trainer.accelerator.num_processes
        if trainer.model.training:  # the count covers the generation batch, the loss one accumulation
            items = items / trainer.args.steps_per_generation
        return aggregate(term, mask, trainer.loss_type, items, trainer.max_completion_length) / steps

    def _auxiliary_loss(self, model: Any, method: Method) -> Tensor:
        """The method's loss term on this update's part of its extra rollouts, at the cost of one more forward."""
        trainer = self.trainer
        part = trainer._auxiliary[method.name][trainer._step % trainer.args.steps_per_generation]
        logps, entropy, _ = trainer._get_per_token_logps_and_entropies(
            model, **forward_inputs(part), compute_entropy=True
        )
        advantages = part["advantages"].unsqueeze(1).expand_as(logps)
        with bounds_restored(trainer):
            tokens, _ = set_bounds(trainer, read_tokens(trainer, part, logps, entropy, advantages, {}))
        term, logs = method.auxiliary_loss(tokens)
        self._log(method, logs)
        return term

    def _record(self) -> None:
        """Logs the forward, adds it to the forecast, and keeps its tokens for the token log."""
        trainer = self.trainer
        trainer._log_values(entropy_metrics(self.acted, self.advantages) | self.logs, self.acted.mask)
        if trainer._forecast is not None and trainer.model.training:
            for key, value in trainer._forecast.update(self.acted).items():
                trainer._metrics["train"][key].append(value)
        trainer._token_log.keep({**self.batch, "advantages": self.advantages}, self.acted)

    def _log(self, method: Method, logs: dict[str, Tensor]) -> None:
        self.logs |= {f"{method.name}/{key}": value for key, value in logs.items()}


def read_tokens(
    trainer: Any,
    batch: dict[str, Any],
    logps: Tensor,
    entropy: Tensor,
    advantages: Tensor,
    statistics: dict[str, Tensor],
) -> TokenBatch:
    """The tokens of a forward of `batch`, for the methods. Tensors are (B, T)."""
    mask = loss_mask(batch).bool()
    old_logps = batch.get("old_per_token_logps", logps.detach())
    log_ratio = logps.detach() - old_logps
    if trainer.importance_sampling_level == "sequence":
        mean = log_ratio.masked_fill(~mask, 0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        log_ratio = mean.expand_as(log_ratio)
    clips = trainer.loss_type in CLIPPING_LOSSES
    return TokenBatch(
        logps=logps,
        old_logps=old_logps,
        entropy=entropy,
        old_entropy=batch.get("old_entropies", entropy.detach()),
        advantages=advantages,
        mask=mask,
        ratio=log_ratio.exp(),
        clip_low=1 - trainer.epsilon_low if clips else -torch.inf,
        clip_high=1 + trainer.epsilon_high if clips else torch.inf,
        on_policy="old_per_token_logps" not in batch,
        training=trainer.model.training,
        draw=(trainer.args.seed, trainer.state.global_step, trainer._step % trainer.args.gradient_accumulation_steps),
        total_steps=max(trainer.state.max_steps, 1),
        rewards=batch.get("rewards"),
        sum_sq_probs=statistics.get("sum_sq_probs"),
        sum_sq_probs_log_probs=statistics.get("sum_sq_probs_log_probs"),
        nucleus_entropy=statistics.get("nucleus_entropy"),
        top_logps=statistics.get("top_log_probs"),
        old_second_logps=batch.get("old_second_logps", statistics.get("second_log_probs")),
        engine_ratio=batch.get("importance_sampling_ratio"),
        world=trainer._world,
    )
