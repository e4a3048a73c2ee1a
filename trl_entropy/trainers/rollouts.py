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
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from ..methods import Method
from ..tokens import Rollouts
from .metrics import named_metrics
from .scoring import ScoringHooks


# The inputs of a forward that TRL stores with the rollouts, beside the token ids and masks.
FORWARD_KEYS = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)
# What a forward of the loss knows of the policy that generated, by its name in the statistics of a pass.
OLD_STATISTICS = {"old_entropies": "entropy", "old_second_logps": "second_log_probs"}


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


def opening_of(prompt: str | list[dict[str, Any]]) -> str:
    """The text with which a conversation's last turn begins where that is the assistant's, else nothing."""
    if not isinstance(prompt, list) or prompt[-1]["role"] != "assistant":
        return ""
    content = prompt[-1]["content"]
    return content if isinstance(content, str) else ""


def opened(completion: list[dict[str, Any]], opening: str) -> list[dict[str, Any]]:
    """The messages of a completion, of which the first goes on from `opening`."""
    first, *others = completion
    return [{**first, "content": opening + (first["content"] or "")}, *others]


def whole_groups(rows: int, share: float, group: int, steps: int) -> int:
    """How many of `rows` sequences make up about `share` of them in whole groups and in `steps` equal parts."""
    unit = math.lcm(group, steps)
    return min(rows, math.ceil(share * rows / unit) * unit)


class RolloutHooks(ScoringHooks):
    """The part of the trainer that acts once per generation batch. Mixed in before TRL's trainer."""

    def _generate_and_score_completions(self, inputs):
        for method in self.methods:
            inputs = method.prompts(inputs, (self.args.seed, self.state.global_step), self.model.training)
        output, scores = self._roll_out(inputs)
        if "old_per_token_logps" in output:  # else the forward of the loss is that of the policy that generated
            output |= {key: scores[name] for key, name in OLD_STATISTICS.items() if name in scores}
        if "rewards" in self._needs:
            output["rewards"] = self._own_rewards(len(output["advantages"])).nan_to_num()
        if any(method.overrides(hook) for method in self.methods for hook in ("group_advantages", "rollout_metrics")):
            self._apply_group_hooks(output, scores)
        for method in self.methods:
            if self.model.training and "auxiliary_rollouts" in method.needs:
                self._add_auxiliary(inputs, method)
        return output

    def _tokenize_prompts(self, prompts):
        """Also takes conversations that a method has ended with the opening of the turn that the policy is to write."""
        openings = self._openings(prompts)
        if not any(openings):
            return super()._tokenize_prompts(prompts)
        prompts = [prompt[:-1] if opening else prompt for prompt, opening in zip(prompts, openings, strict=True)]
        ids, images, fields = super()._tokenize_prompts(prompts)
        added = self._tokenizer(openings, add_special_tokens=False)["input_ids"]
        fields = {  # those of a processor, per token, for prompts of text only
            key: [[*row, *[0] * len(more)] for row, more in zip(rows, added, strict=True)]
            for key, rows in fields.items()
        }
        return [[*row, *more] for row, more in zip(ids, added, strict=True)], images, fields

    def _openings(self, prompts: list) -> list[str]:
        """What a method has each assistant's turn begin with; nothing where no method changes prompts."""
        changes = any(method.overrides("prompts") for method in self.methods)
        return [opening_of(prompt) if changes else "" for prompt in prompts]

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """Rewards see the turn of the assistant whole, its opening included."""
        openings = self._openings(prompts)
        if any(openings):
            completions = [opened(*pair) if pair[1] else pair[0] for pair in zip(completions, openings, strict=True)]
            prompts = [prompt[:-1] if opening else prompt for prompt, opening in zip(prompts, openings, strict=True)]
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _apply_group_hooks(self, output: dict[str, Any], scores: dict[str, Tensor]) -> None:
        mask = loss_mask(output).bool()
        length = mask.size(1)
        rollouts = Rollouts(
            advantages=output["advantages"].unsqueeze(1).expand(mask.shape),
            mask=mask,
            generated=self._generated_mask(length, mask.device, tools=False),
            completion_ids=output["completion_ids"],
            rewards=self._own_rewards(len(mask)),
            reward_columns=dict(
                zip(self.reward_func_names, self._own_rows(self._given_rewards, len(mask)).T, strict=True)
            ),
            num_generations=self.num_generations if self.model.training else self.num_generations_eval,
            logps=scores.get("logps"),
            entropy=scores.get("entropy"),
            sum_sq_probs=scores.get("sum_sq_probs"),
            sum_sq_probs_log_probs=scores.get("sum_sq_probs_log_probs"),
            on_policy="old_per_token_logps" not in output,
            training=self.model.training,
            batch=self._batches_made(),
            world=self._world,
        )
        changed = False
        for method in self.methods:
            acted = rollouts
            if method.overrides("group_advantages"):
                advantages, kept = method.group_advantages(rollouts), method.group_mask(rollouts)
                self._log_values(named_metrics(method, rollouts), rollouts.mask)
                acted, changed = replace(rollouts, advantages=advantages, mask=kept), True
            found = method.rollout_metrics(rollouts)
            self._log_values({f"{method.name}/{key}": value for key, value in found.items()}, rollouts.mask)
            rollouts = acted
        if changed:
            output["advantages"] = rollouts.advantages.contiguous()
            self._log_advantages(rollouts)
        if rollouts.mask is not mask:
            # The tool mask takes tokens out of the loss and its denominators, and leaves attention as it is.
            output["tool_mask"] = rollouts.mask.to(output["completion_mask"].dtype)
            output["num_items_in_batch"] = self._world.sum(loss_mask(output).sum())

    def _batches_made(self) -> int:
        """Generation batches before the present one, also those before a run was resumed."""
        steps = self.args.gradient_accumulation_steps
        forwards = self.state.global_step * steps + self._step % steps
        return forwards // (self.args.steps_per_generation * self.num_iterations)

    def _log_advantages(self, rollouts: Rollouts) -> None:
        """Puts the advantages that are used in the place of those that TRL has logged: the mean of each completion."""
        total = rollouts.advantages.double().masked_fill(~rollouts.generated, 0).sum(1)
        used = self._world.gather((total / rollouts.generated.sum(1).clamp(min=1)).float()).tolist()
        logged = self._logs["advantages"]
        for _ in range(min(len(used), len(logged))):
            logged.pop()
        logged.extend(used)

    def _own_rewards(self, rows: int) -> Tensor:
        """(rows,) weighted sums of the rewards last computed, of this process' sequences; NaN where none was given."""
        rewards = (self._rewards * self.reward_weights.to(self._rewards.device)).nansum(dim=1)
        rewards = rewards.masked_fill(self._rewards.isnan().all(dim=1), torch.nan)
        return self._own_rows(rewards, rows)

    def _own_rows(self, values: Tensor, rows: int) -> Tensor:
        """The `rows` sequences of this process, of what is known of all."""
        return values[self._world.rank * rows :][:rows]

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
            output, _ = self._roll_out(inputs[:rows])
        output["rewards"] = self._own_rewards(rows).nan_to_num()
        parts = split_tensor_dict(split_pixel_values_by_grid(output), steps)
        self._auxiliary[method.name] = [unsplit_pixel_values_by_grid(part) for part in parts]
