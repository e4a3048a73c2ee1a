# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What happens to rollouts between generation and the loss: entropies, rewards, group hooks, extra completions."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from .methods import Method
from .metrics import named_metrics
from .tokens import Rollouts


# The inputs of a forward that TRL stores with the rollouts, beside the token ids and masks.
FORWARD_KEYS = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)


def loss_mask(batch: dict[str, Any]) -> Tensor:
    """(B, T): the tokens that the loss counts."""
    return batch["completion_mask"] * batch["tool_mask"] if "tool_mask" in batch else batch["completion_mask"]


def forward_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `_get_per_token_logps_and_entropies` for stored rollouts."""
    return {
        "input_ids": torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        "attention_mask": torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        "logits_to_keep": batch["completion_ids"].size(1),
        **{key: batch[key] for key in FORWARD_KEYS if key in batch},
    }


def whole_groups(rows: int, share: float, group: int, steps: int) -> int:
    """How many of `rows` sequences make up about `share` of them in whole groups and in `steps` equal parts."""
    unit = math.lcm(group, steps)
    return min(rows, math.ceil(share * rows / unit) * unit)


class RolloutHooks:
    """The part of the trainer that acts once per generation batch. Mixed in before TRL's trainer."""

    def _calculate_rewards(self, *args, **kwargs):
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _generate_and_score_completions(self, inputs):
        self._scores = [] if self.methods else None
        try:
            output = super()._generate_and_score_completions(inputs)
            # TRL scores the rollouts, where it does, before it asks a reference model.
            scores = self._scores[0] if self.methods and "old_per_token_logps" in output else {}
        finally:
            self._scores = None
        if "entropy" in scores:
            output["old_entropies"] = scores["entropy"]
        if "second_log_probs" in scores:
            output["old_second_logps"] = scores["second_log_probs"]
        if "rewards" in self._needs:
            output["rewards"] = self._own_rewards(len(output["advantages"]))
        if any(method.overrides("group_advantages") for method in self.methods):
            self._apply_group_hooks(output, scores)
        for method in self.methods:
            if self.model.training and "auxiliary_rollouts" in method.needs:
                self._add_auxiliary(inputs, method)
        return output

    def _apply_group_hooks(self, output: dict[str, Any], scores: dict[str, Tensor]) -> None:
        if not scores and "rollout_entropy" in self._needs:
            scores = self._score_rollouts(output)
        mask = loss_mask(output).bool()
        rollouts = Rollouts(
            advantages=output["advantages"].unsqueeze(1).expand(output["completion_ids"].shape),
            mask=mask,
            logps=scores.get("logps"),
            entropy=scores.get("entropy"),
            sum_sq_probs=scores.get("sum_sq_probs"),
            sum_sq_probs_log_probs=scores.get("sum_sq_probs_log_probs"),
            world=self._world,
        )
        for method in self.methods:
            if not method.overrides("group_advantages"):
                continue
            advantages, kept = method.group_advantages(rollouts), method.group_mask(rollouts)
            self._log_values(named_metrics(method, rollouts), rollouts.mask)
            rollouts = replace(rollouts, advantages=advantages, mask=kept)
        output["advantages"] = rollouts.advantages.contiguous()
        if rollouts.mask is not mask:
            # The tool mask takes tokens out of the loss and its denominators, and leaves attention as it is.
            output["tool_mask"] = rollouts.mask.to(output["completion_mask"].dtype)
            output["num_items_in_batch"] = self._world.sum(loss_mask(output).sum())

    def _score_rollouts(self, output: dict[str, Any]) -> dict[str, Tensor]:
        """(B, T) statistics of the policy that has just generated, by one forward."""
        training = self.model.training
        self._scores = []
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            self._get_per_token_logps_and_entropies(
                self.model,
                **forward_inputs(output),
                batch_size=self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size,
            )
        (scores,), self._scores = self._scores, None
        return scores

    def _own_rewards(self, rows: int) -> Tensor:
        """(rows,) weighted sums of the rewards last computed, of this process' sequences."""
        rewards = (self._rewards * self.reward_weights.to(self._rewards.device)).nansum(dim=1)
        start = self.accelerator.process_index * rows
        return rewards[start : start + rows]

    @contextmanager
    def _generating_at(self, temperature: float) -> Iterator[None]:
        """Samples at a temperature relative to the ordinary one, and leaves no trace in what is logged."""
        engine = self.vllm_generation if self.use_vllm else self.generation_config
        ordinary, engine.temperature = engine.temperature, engine.temperature * temperature
        logged = deepcopy((self._metrics, self._logs))
        try:
            yield
        finally:
            engine.temperature = ordinary
            self._metrics, self._logs = logged

    def _add_auxiliary(self, inputs: list[dict[str, Any]], method: Method) -> None:
        """Generates and scores what `method` asks for, in as many parts as the generation batch will have."""
        steps = self.args.steps_per_generation
        temperature, share = method.auxiliary_rollouts()
        rows = whole_groups(len(inputs), share, self.num_generations, steps)
        with self._generating_at(temperature):
            output = super()._generate_and_score_completions(inputs[:rows])
        output["rewards"] = self._own_rewards(rows)
        parts = split_tensor_dict(split_pixel_values_by_grid(output), steps)
        self._auxiliary[method.name] = [unsplit_pixel_values_by_grid(part) for part in parts]
