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

from torch import Tensor

from ..functional import aggregate
from ..methods import Method
from ..tokens import TokenBatch
from .clipping import bounds_restored, set_bounds
from .metrics import entropy_metrics, entropy_quantiles
from .policy_gradient import clip_bounds, policy_weights
from .rollouts import batches_made, begin_step, forward_inputs, loss_mask


class Update:
    """One call of TRL's `_compute_loss`. B sequences, T completion tokens.

    Attributes:
        batch: TRL's copy of the batch, without `advantages` until the forward has been made.
        kept: facts (B, 3) of the sequences that a method is to remember, by its name; `None` if it has them already.
        advantages: (B,) or (B, T) from the rewards and the `group_advantages` hooks.
        turns: each method with the tokens as it left them.
        acted: the tokens as the last method left them.
        entropy_mask: (B, T) bool, the tokens that TRL's 80/20 mask keeps; `None` without that mask.
        logs: log values of the methods, by key.
    """

    def __init__(self, trainer: Any, batch: dict[str, Any]):
        self.trainer = trainer
        self.advantages = batch["advantages"]
        # Out of TRL's own batch, so that its next iteration finds nothing to remember
        self.kept = {name: batch.pop(memory.key, None) for name, memory in trainer._replays.items()}
        self.batch = {key: value for key, value in batch.items() if key != "advantages"}
        self.turns: list[tuple[Method, TokenBatch]] = []
        self.entropy_mask: Tensor | None = None
        self.logs: dict[str, Tensor] = {}

    def loss(self, stock: Callable, model: Any) -> Tensor:
        """TRL's loss on the advantages that the methods changed, plus the methods' loss terms."""
        trainer = self.trainer
        trainer._update = self
        trainer._bonus.before_loss(trainer)
        begin_step(trainer)
        try:
            with bounds_restored(trainer):
                loss = stock(model, self.batch)
            mask = self.acted.mask
            trainer._bonus.after_loss(
                trainer, self.acted, mask if self.entropy_mask is None else mask & self.entropy_mask
            )
        finally:
            trainer._update = None
        for name, facts in self.kept.items():
            if facts is not None:
                trainer._replays[name].remember(facts, self.batch, self.acted)
        for method, tokens in self.turns:
            term, logs = method.loss(tokens)
            self.logs |= method.prefixed(logs)
            if term is not None:
                loss = loss + self.reduce(term, tokens.mask)
        if trainer.model.training:
            for method, _ in self.turns:
                if trainer._auxiliary.get(method.name):
                    loss = loss + self._auxiliary_loss(model, method)
        self._record()
        return loss

    def take_turns(self, logps: Tensor, entropy: Tensor, statistics: dict[str, Tensor]) -> None:
        """After the forward: lets the methods set the clip bounds and the advantages that TRL reads next."""
        trainer = self.trainer
        if trainer.top_entropy_quantile < 1:  # made now, with TRL's own arguments, since methods must know it
            trainer.get_high_entropy_mask(entropy, loss_mask(self.batch), 1 - trainer.top_entropy_quantile)
        advantages = self.advantages if self.advantages.dim() == 2 else self.advantages.unsqueeze(1)
        tokens = read_tokens(trainer, self.batch, logps, entropy, advantages.expand_as(logps), statistics)
        if trainer._thermostat is not None:
            trainer._thermostat.before_methods(tokens, batches_made(trainer))
        tokens = replace(tokens, loss_weights=policy_weights(trainer, self.batch, tokens, self.entropy_mask))
        tokens, logs = set_bounds(trainer, tokens)
        self.logs |= logs
        for method in trainer.methods:
            advantages, logs = method.token_advantages(tokens)
            self.logs |= method.prefixed(logs)
            tokens = replace(tokens, advantages=advantages.detach())
            self.turns.append((method, tokens))
        self.acted = tokens
        changed = any(method.overrides("token_advantages") for method in trainer.methods)
        self.batch["advantages"] = tokens.advantages if changed else self.advantages

    def high_entropy_mask(self, stock: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's 80/20 mask, made once: TRL gets the one that the methods have seen, and gathers no second time."""
        if self.entropy_mask is None:
            self.entropy_mask = stock(*args, **kwargs)
        return self.entropy_mask

    def reduce(self, term: Tensor, mask: Tensor, batch: dict[str, Any] | None = None) -> Tensor:
        """A loss term, (B, T) or scalar, reduced and scaled for accumulation as TRL does with its own loss.

        `batch` is the one that it is a term of, if that is not TRL's.
        """
        trainer = self.trainer
        steps = trainer.current_gradient_accumulation_steps if trainer.model.training else 1
        if term.dim() == 0:
            return term / steps
        items = (self.batch if batch is None else batch)["num_items_in_batch"].clamp(
            min=1
        ) / trainer.accelerator.num_processes
        if trainer.model.training:  # the count covers the generation batch, the loss one accumulation
            items = items / trainer.args.steps_per_generation
        return aggregate(term, mask, trainer.loss_type, items, trainer.max_completion_length) / steps

    def _auxiliary_loss(self, model: Any, method: Method) -> Tensor:
        """The method's loss term on this update's part of its extra rollouts or its replay: one more forward."""
        trainer = self.trainer
        part = trainer._auxiliary[method.name][trainer._step % trainer.args.steps_per_generation]
        if replayed := method.name in trainer._replays:
            part = {key: value.to(trainer.accelerator.device) for key, value in part.items()}
        logps, entropy, _ = trainer._get_per_token_logps_and_entropies(
            model, **forward_inputs(part), compute_entropy=True
        )
        advantages = part["advantages"].unsqueeze(1).expand_as(logps)
        tokens = read_tokens(trainer, part, logps, entropy, advantages, {})
        if replayed:  # clips with every loss type, and at the configured bounds
            tokens = replace(tokens, clip_low=1 - trainer.epsilon_low, clip_high=1 + trainer.epsilon_high)
        else:
            with bounds_restored(trainer):
                tokens, _ = set_bounds(trainer, tokens)
        term, logs = method.auxiliary_loss(tokens)
        found = {key: value[tokens.mask] if value.dim() == 2 else value for key, value in logs.items()}
        self.logs |= method.prefixed(found)
        return self.reduce(term, tokens.mask, part)

    def _record(self) -> None:
        """Logs the forward, adds it to the forecast, and keeps its tokens for the token log."""
        trainer = self.trainer
        trainer._log_values(entropy_metrics(self.acted, self.advantages) | self.logs, self.acted.mask)
        found = entropy_quantiles(self.acted)
        if trainer._forecast is not None and trainer.model.training:
            found |= trainer._forecast.update(self.acted)
        for key, value in found.items():
            trainer._metrics["train" if trainer.model.training else "eval"][key].append(value)
        trainer._token_log.keep({**self.batch, "advantages": self.advantages}, self.acted)


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
    return TokenBatch(
        logps=logps,
        old_logps=old_logps,
        entropy=entropy,
        old_entropy=batch.get("old_entropies", entropy.detach()),
        advantages=advantages,
        mask=mask,
        ratio=log_ratio.exp(),
        **clip_bounds(trainer),
        on_policy="old_per_token_logps" not in batch,
        training=trainer.model.training,
        draw=(trainer.args.seed, trainer.state.global_step, trainer._step % trainer.args.gradient_accumulation_steps),
        total_steps=max(trainer.state.max_steps, 1),
        rewards=batch.get("rewards"),
        sum_sq_probs=statistics.get("sum_sq_probs"),
        sum_sq_probs_log_probs=statistics.get("sum_sq_probs_log_probs"),
        nucleus_entropy=statistics.get("nucleus_entropy"),
        all_rewards=batch["all_rewards"][0] if "all_rewards" in batch else None,
        top_logps=statistics.get("top_log_probs"),
        old_second_logps=batch.get("old_second_logps", statistics.get("second_log_probs")),
        engine_ratio=batch.get("importance_sampling_ratio"),
        world=trainer._world,
    )
