# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`EntropyGRPOTrainer`: runs the chosen methods around TRL's own loss.

TRL computes the loss; a method changes what goes into it and adds to what comes out. TRL's `_compute_loss` makes its
forward first and reads the advantages afterwards. So it is given a copy of the batch without advantages, and the
overridden forward puts them back once the methods have seen the tokens. Should TRL ever read them before its forward,
that is a `KeyError`, not a method silently ignored.
"""

import json
import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import get_config_model_id

from .config import EntropyGRPOConfig
from .functional import aggregate
from .methods import Method, build_methods
from .metrics import entropy_metrics, named_metrics, reduce_metrics
from .processes import collectives_of
from .tokens import Rollouts, TokenBatch


STATE_FILE = "entropy_methods_state.json"
CLIPPING_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
# The inputs of a forward that TRL stores with the rollouts, beside the token ids and masks.
FORWARD_KEYS = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)


def refuse_unsloth(trainer_class: type) -> None:
    """Raises `RuntimeError` where Unsloth has patched the trainer: its forward returns no entropies."""
    sources = [*trainer_class.__mro__, GRPOTrainer._get_per_token_logps_and_entropies, GRPOTrainer._compute_loss]
    for source in sources:
        if "unsloth" in f"{source.__module__}.{source.__qualname__}".lower():
            raise RuntimeError(
                f"Unsloth has patched the GRPO trainer (`{source.__module__}.{source.__qualname__}`). Its forward "
                "returns no token entropies, which every method needs. Do not import unsloth in this program."
            )


class EntropyGRPOTrainer(GRPOTrainer):
    """
    [`~trl.GRPOTrainer`] with entropy methods. Same arguments; `args` is an [`EntropyGRPOConfig`], whose `methods`
    lists what to apply. With `methods` empty, losses and gradients are those of `GRPOTrainer` to the bit.

    Raises:
        `TypeError`: `args` is not an `EntropyGRPOConfig`.
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
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = EntropyGRPOConfig(f"{model_name.split('/')[-1]}-GRPO")
        if not isinstance(args, EntropyGRPOConfig):
            raise TypeError(f"`args` must be an `EntropyGRPOConfig`, got `{type(args).__name__}`.")
        self.methods: list[Method] = build_methods(args)
        self._batch: dict[str, Any] | None = None  # the batch of the loss that is being computed
        self._old_entropy: list[Tensor] | None = None  # entropies of the passes over a generation batch
        super().__init__(model, reward_funcs, args, *positional, **keywords)
        self._tag_names = [*self._tag_names, *args.methods]
        self.model.add_model_tags(self._tag_names)
        self._world = collectives_of(self.accelerator)
        if self.loss_type in CLIPPING_LOSSES:
            low, high = 1 - self.epsilon_low, 1 + self.epsilon_high
            for method in self.methods:
                low, high = method.clip_range(low, high)
            if (low, high) != (1 - self.epsilon_low, 1 + self.epsilon_high):
                self.epsilon_low, self.epsilon_high = 1 - low, high - 1

    # Rollouts

    def _generate_and_score_completions(self, inputs):
        self._old_entropy = [] if self.methods else None
        try:
            output = super()._generate_and_score_completions(inputs)
            if self.methods and "old_per_token_logps" in output:
                output["old_entropies"] = self._old_entropy[0]  # TRL scores the rollouts before it asks a reference
        finally:
            self._old_entropy = None
        if any(method.overrides("group_advantages") for method in self.methods):
            self._apply_group_hooks(output)
        return output

    def _apply_group_hooks(self, output: dict[str, Any]) -> None:
        logps, entropy = output.get("old_per_token_logps"), output.get("old_entropies")
        if entropy is None and any("rollout_entropy" in method.needs for method in self.methods):
            logps, entropy = self._score_rollouts(output)
        loss_mask = self._loss_mask(output).bool()
        rollouts = Rollouts(
            advantages=output["advantages"].unsqueeze(1).expand(output["completion_ids"].shape),
            mask=loss_mask,
            logps=logps,
            entropy=entropy,
            world=self._world,
        )
        for method in self.methods:
            if not method.overrides("group_advantages"):
                continue
            advantages, mask = method.group_advantages(rollouts), method.group_mask(rollouts)
            self._log_values(named_metrics(method, rollouts), rollouts.mask)
            rollouts = replace(rollouts, advantages=advantages, mask=mask)
        output["advantages"] = rollouts.advantages.contiguous()
        if rollouts.mask is not loss_mask:
            # The tool mask takes tokens out of the loss and its denominators, and leaves attention as it is.
            output["tool_mask"] = rollouts.mask.to(output["completion_mask"].dtype)
            output["num_items_in_batch"] = self._world.sum(self._loss_mask(output).sum())

    def _score_rollouts(self, output: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """(B, T) log-probabilities and entropies of the policy that has just generated, by one forward."""
        training = self.model.training
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            logps, entropy, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                output["completion_ids"].size(1),
                self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size,
                compute_entropy=True,
                **{key: output[key] for key in FORWARD_KEYS if key in output},
            )
        return logps, entropy

    # Loss

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        if self._old_entropy is not None:  # the head computes entropies in any case, so that asking costs nothing
            kwargs["compute_entropy"] = True
        logps, entropy, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._old_entropy is not None:
            self._old_entropy.append(entropy)
        if self._batch is not None:
            self._take_turns(self._read_tokens(logps, entropy))
        return logps, entropy, aux_loss

    def _compute_loss(self, model, inputs):
        self._advantages = inputs["advantages"]
        self._batch = {key: value for key, value in inputs.items() if key != "advantages"}
        try:
            loss = super()._compute_loss(model, self._batch)
            for method, tokens in self._turns:
                term = method.loss(tokens)
                if term is not None:
                    loss = loss + self._reduce(term, tokens.mask)
            self._log_forward()
        finally:
            self._batch = self._advantages = self._tokens = self._turns = None
        return loss

    def _read_tokens(self, logps: Tensor, entropy: Tensor) -> TokenBatch:
        batch = self._batch
        mask = self._loss_mask(batch).bool()
        old_logps = batch.get("old_per_token_logps", logps.detach())
        log_ratio = logps.detach() - old_logps
        if self.importance_sampling_level == "sequence":
            mean = log_ratio.masked_fill(~mask, 0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
            log_ratio = mean.expand_as(log_ratio)
        clips = self.loss_type in CLIPPING_LOSSES
        advantages = self._advantages if self._advantages.dim() == 2 else self._advantages.unsqueeze(1)
        return TokenBatch(
            logps=logps,
            old_logps=old_logps,
            entropy=entropy,
            old_entropy=batch.get("old_entropies", entropy.detach()),
            advantages=advantages.expand_as(logps),
            mask=mask,
            ratio=log_ratio.exp(),
            clip_low=1 - self.epsilon_low if clips else -torch.inf,
            clip_high=1 + self.epsilon_high if clips else torch.inf,
            on_policy="old_per_token_logps" not in batch,
            training=self.model.training,
            draw=(self.args.seed, self.state.global_step, self._step % self.args.gradient_accumulation_steps),
            world=self._world,
        )

    def _take_turns(self, tokens: TokenBatch) -> None:
        """Lets each method change the advantages, and gives the batch of TRL's loss what comes out."""
        self._tokens, self._turns = tokens, []
        for method in self.methods:
            self._turns.append((method, tokens))
            tokens = replace(tokens, advantages=method.token_advantages(tokens).detach())
        acted = any(method.overrides("token_advantages") for method in self.methods)
        self._batch["advantages"] = tokens.advantages if acted else self._advantages

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

    @staticmethod
    def _loss_mask(batch: dict[str, Any]) -> Tensor:
        return batch["completion_mask"] * batch["tool_mask"] if "tool_mask" in batch else batch["completion_mask"]

    # Metrics

    def _log_forward(self) -> None:
        values = entropy_metrics(self._tokens)
        for method, tokens in self._turns:
            values |= named_metrics(method, tokens)
        self._log_values(values, self._tokens.mask)

    def _log_values(self, values: dict[str, Tensor], mask: Tensor) -> None:
        log = self._metrics["train" if self.model.training else "eval"]
        for key, value in reduce_metrics(values, mask, self._world).items():
            log[key].append(value)

    # Checkpoints

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.methods and self.args.should_save:
            states = {method.name: method.state_dict() for method in self.methods}
            with open(os.path.join(output_dir, STATE_FILE), "w") as file:
                json.dump(states, file)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not os.path.exists(path := os.path.join(checkpoint, STATE_FILE)):
            return
        with open(path) as file:
            states = json.load(file)
        for method in self.methods:
            if method.name in states:  # a method may join on resume
                method.load_state_dict(states[method.name])
