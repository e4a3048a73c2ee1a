# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`EntropyGRPOTrainer`: runs the chosen methods around TRL's own loss.

TRL computes the loss; a method changes what goes into it and adds to what comes out. TRL's `_compute_loss` makes its
forward first and reads the advantages afterwards. So it is given a copy of the batch without advantages, and the
overridden forward puts them back once the methods have seen the tokens. Should TRL ever read them before its forward,
that is a `KeyError`, not a method silently ignored.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id

from ..collectives import collectives_of
from ..functional import aggregate
from ..head import add_entropy_head
from ..kappa.wiring import with_kappa
from ..methods import Method, build_methods
from ..runs.card_hooks import CardHooks
from ..runs.reporting import ReportsLast
from ..runs.resuming import ResumesWhole
from ..runs.states import SavesStates
from ..runs.token_log import SettingsCallback, TokenLogHooks
from ..tokens import CLIPPING_LOSSES, TokenBatch
from .checks import check_model, check_none_changes_prompts, check_prompts, check_rewards, refuse_unsloth
from .entropy_bonus import EntropyBonus
from .forecast import EntropyForecast
from .grpo_config import EntropyGRPOConfig
from .head_statistics import HeadStatistics
from .metrics import entropy_metrics, named_metrics, reduce_metrics
from .rollouts import RolloutHooks, forward_inputs, loss_mask


class EntropyGRPOTrainer(CardHooks, TokenLogHooks, RolloutHooks, ResumesWhole, SavesStates, ReportsLast, GRPOTrainer):
    """
    [`~trl.GRPOTrainer`] with entropy methods. Same arguments; `args` is an [`EntropyGRPOConfig`], whose `methods`
    lists what to apply. With `methods` empty, losses and gradients are those of `GRPOTrainer` to the bit.

    A reward function may name `token_entropies` among its parameters: one list per completion, with the entropy in nats of
    the policy that generated at each token, at the sampling temperature (0 at the results of tools, for which `token_mask`
    is `False`). They cost nothing where TRL scores the rollouts anyway, and one forward without gradient elsewhere.

    Raises:
        `TypeError`: `args` is not an `EntropyGRPOConfig`.
        `ValueError`: the model or a reward function is none, or the dataset has no prompts.
        `RuntimeError`: Unsloth has patched TRL's trainer.

    Example:

    ```python
    from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer

    trainer = EntropyGRPOTrainer(
        model="Qwen/Qwen3-0.6B",
        reward_funcs=accuracy_reward,
        args=EntropyGRPOConfig("out", methods=["clip_cov"], steps_per_generation=8),
        train_dataset=dataset,
    )
    trainer.train()
    ```

    A reward function that takes entropies:

    ```python
    def confident_reward(completions, token_entropies, **kwargs):
        return [-sum(entropies) / len(entropies) for entropies in token_entropies]
    ```
    """

    _tag_names = ["trl", "grpo", "trl-entropy"]

    def __init__(
        self,
        model: "str | PreTrainedModel",
        reward_funcs=None,
        args: EntropyGRPOConfig | None = None,
        *positional,
        **keywords,
    ):
        refuse_unsloth(type(self))
        check_model(model)
        check_rewards(reward_funcs)
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = EntropyGRPOConfig(f"{model_name.split('/')[-1]}-GRPO")
        if not isinstance(args, EntropyGRPOConfig):
            raise TypeError(f"`args` must be an `EntropyGRPOConfig`, got `{type(args).__name__}`.")
        self.methods: list[Method] = build_methods(args)
        self._needs = set().union(*(method.needs for method in self.methods))
        self._batch: dict[str, Any] | None = None  # the batch of the loss that is being computed
        self._scores: list[dict[str, Tensor]] | None = None  # statistics of each pass over a generation batch
        self._auxiliary: dict[str, list[dict[str, Any]]] = {}  # extra rollouts by method, in micro-batches
        self._statistics = HeadStatistics(None, [], set(), 1.0)
        arguments = with_kappa(GRPOTrainer, model, reward_funcs, args, *positional, **keywords)
        if arguments.get("environment_factory") is not None:  # which writes prompts itself
            check_none_changes_prompts(self.methods)
        super().__init__(**arguments)
        if self.environment_factories is None:  # which may make up prompts of their own
            check_prompts(self.train_dataset, "train_dataset")
        self._tag_names = [*self._tag_names, *args.methods]
        self.card_facts = {}
        self.model.add_model_tags(self._tag_names)
        self._world = collectives_of(self.accelerator)
        self.add_callback(SettingsCallback)
        if args.record_entropies and self.rollout_func is not None:
            raise ValueError("`record_entropies` must be false with `rollout_func`, got True.")
        self._set_up_rewards()
        for method in self.methods:
            method.setup(self._decode_all)
        if self.loss_type in CLIPPING_LOSSES:
            low, high = 1 - self.epsilon_low, 1 + self.epsilon_high
            for method in self.methods:
                low, high = method.clip_range(low, high)
            if (low, high) != (1 - self.epsilon_low, 1 + self.epsilon_high):
                self.epsilon_low, self.epsilon_high = 1 - low, high - 1
        if args.entropy_forecast or "second_moments" in self._needs:
            self._needs.add("second_moments")
            self._forecast = EntropyForecast()
        else:
            self._forecast = None
        self._bonus = EntropyBonus(args)
        if args.fused_head:
            head = add_entropy_head(self.model, self.temperature, args.cast_lm_head_to_fp32)
            self._statistics = HeadStatistics(head, self.methods, self._needs, self.temperature)

    # Loss

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        scores = self._scores is not None and not self._scores and model is self.model  # a reference comes later
        if scores:  # the head computes entropies in any case, so that asking costs nothing
            kwargs["compute_entropy"] = True
        self._statistics.ask()
        logps, entropy, aux_loss = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        statistics = self._statistics.read(logps.size(1))
        if scores:
            self._scores.append({"logps": logps, "entropy": entropy, **statistics})
        if self._batch is not None:
            advantages = self._advantages if self._advantages.dim() == 2 else self._advantages.unsqueeze(1)
            tokens = self._tokens_of(self._batch, logps, entropy, advantages.expand_as(logps), statistics)
            self._take_turns(tokens)
        return logps, entropy, aux_loss

    def _compute_loss(self, model, inputs):
        self._advantages = inputs["advantages"]
        self._batch = {key: value for key, value in inputs.items() if key != "advantages"}
        self._policy_mask = None
        self._bonus.before_loss(self)
        try:
            loss = super()._compute_loss(model, self._batch)
            self._bonus.after_loss(self)
            if self._policy_mask is not None:
                self._turns = [(m, replace(tokens, policy_mask=self._policy_mask)) for m, tokens in self._turns]
            for method, tokens in self._turns:
                term = method.loss(tokens)
                if term is not None:
                    loss = loss + self._reduce(term, tokens.mask)
            self._batch = None
            for method, _ in self._turns:
                if self.model.training and "auxiliary_rollouts" in method.needs:
                    loss = loss + self._auxiliary_loss(model, method) / self.current_gradient_accumulation_steps
            self._log_forward()
            self._keep_tokens(inputs, self._acted)
        finally:
            self._batch = self._advantages = self._turns = self._acted = None
        return loss

    def get_high_entropy_mask(self, *args, **kwargs):
        self._policy_mask = super().get_high_entropy_mask(*args, **kwargs)
        return self._policy_mask

    def _tokens_of(
        self,
        batch: dict[str, Any],
        logps: Tensor,
        entropy: Tensor,
        advantages: Tensor,
        statistics: dict[str, Tensor],
    ) -> TokenBatch:
        """What a forward of `batch` knows about its tokens; all (B, T)."""
        mask = loss_mask(batch).bool()
        old_logps = batch.get("old_per_token_logps", logps.detach())
        log_ratio = logps.detach() - old_logps
        if self.importance_sampling_level == "sequence":
            mean = log_ratio.masked_fill(~mask, 0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
            log_ratio = mean.expand_as(log_ratio)
        clips = self.loss_type in CLIPPING_LOSSES
        return TokenBatch(
            logps=logps,
            old_logps=old_logps,
            entropy=entropy,
            old_entropy=batch.get("old_entropies", entropy.detach()),
            advantages=advantages,
            mask=mask,
            ratio=log_ratio.exp(),
            clip_low=1 - self.epsilon_low if clips else -torch.inf,
            clip_high=1 + self.epsilon_high if clips else torch.inf,
            on_policy="old_per_token_logps" not in batch,
            training=self.model.training,
            draw=(self.args.seed, self.state.global_step, self._step % self.args.gradient_accumulation_steps),
            total_steps=max(self.state.max_steps, 1),
            rewards=batch.get("rewards"),
            sum_sq_probs=statistics.get("sum_sq_probs"),
            sum_sq_probs_log_probs=statistics.get("sum_sq_probs_log_probs"),
            nucleus_entropy=statistics.get("nucleus_entropy"),
            old_second_logps=batch.get("old_second_logps", statistics.get("second_log_probs")),
            engine_ratio=batch.get("importance_sampling_ratio"),
            world=self._world,
        )

    def _take_turns(self, tokens: TokenBatch) -> None:
        """Lets each method change the advantages, and gives the batch of TRL's loss what comes out."""
        self._turns = []
        for method in self.methods:
            self._turns.append((method, tokens))
            tokens = replace(tokens, advantages=method.token_advantages(tokens).detach())
        self._acted = tokens
        changed = any(method.overrides("token_advantages") for method in self.methods)
        self._batch["advantages"] = tokens.advantages if changed else self._advantages

    def _reduce(self, term: Tensor, mask: Tensor) -> Tensor:
        """A term of the loss, (B, T) or scalar, reduced and scaled for accumulation as TRL does with its own."""
        training = self.model.training
        steps = self.current_gradient_accumulation_steps if training else 1
        if term.dim() == 0:
            return term / steps
        items = self._batch["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if training:  # the count spans the generation batch; the loss is a mean over one accumulation window
            items = items / self.args.steps_per_generation
        return aggregate(term, mask, self.loss_type, items, self.max_completion_length) / steps

    def _auxiliary_loss(self, model, method: Method) -> Tensor:
        """The method's term on its own part of the rollouts that it asked for; one more forward."""
        part = self._auxiliary[method.name][self._step % self.args.steps_per_generation]
        logps, entropy, _ = self._get_per_token_logps_and_entropies(
            model, **forward_inputs(part), compute_entropy=True
        )
        advantages = part["advantages"].unsqueeze(1).expand_as(logps)
        return method.auxiliary_loss(self._tokens_of(part, logps, entropy, advantages, {}))

    # Metrics

    def _log_forward(self) -> None:
        values = entropy_metrics(self._acted, self._advantages)
        for method, tokens in self._turns:
            values |= named_metrics(method, tokens)
        self._log_values(values, self._acted.mask)
        if self._forecast is not None and self.model.training:
            for key, value in self._forecast.update(self._acted).items():
                self._metrics["train"][key].append(value)

    def _log_values(self, values: dict[str, Tensor], mask: Tensor) -> None:
        log = self._metrics["train" if self.model.training else "eval"]
        for key, value in reduce_metrics(values, mask, self._world).items():
            log[key].append(value)

    # Checkpoints

    @property
    def _stateful(self) -> dict[str, Any]:
        parts = {method.name: method for method in self.methods}
        parts |= {"entropy_bonus": self._bonus} if self.args.entropy_controller == "pi" else {}
        return parts | ({"entropy_forecast": self._forecast} if self._forecast is not None else {})
