# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Entropies of the policy that generated, where rewards are made, and the rewards of methods.

TRL scores what it generates, before it asks for rewards, wherever a generation batch serves more updates than one. Its
fused head computes entropies in any case, so that there they are free. Elsewhere it is made to run that same pass: one
forward without gradient, with the inputs that TRL builds, and the loss learns nothing of it. With `record_entropies`
they are taken there from generation, and no such pass is made. All entropies of a run are of one kind.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..settings import one_reward
from .recording import recording


# What a reward function may take beside what TRL gives: one list per completion, one value per token of it.
COLUMNS = ("token_entropies", "token_mask")
TABLE_COLUMNS = {"token_entropy_mean": torch.mean, "token_entropy_max": torch.amax}
GIVEN_APART = ("prompt", "completion", "completion_ids")  # columns that TRL does not pass on to reward functions


def columns_taken(function: Any) -> set[str]:
    """Those of `COLUMNS` that a reward function names among its parameters. A reward model names none."""
    return (
        set()
        if isinstance(function, torch.nn.Module)
        else set(COLUMNS) & inspect.signature(function).parameters.keys()
    )


def named(function: Callable, name: str) -> Callable:
    """`function` under the name by which TRL is to log it."""

    def reward(**columns: Any) -> list[float | None]:
        return function(**columns)

    reward.__name__ = name
    return reward


class ScoringHooks:
    """The part of the trainer that scores rollouts. Mixed in before TRL's trainer."""

    def _set_up_rewards(self) -> None:
        """Adds the rewards of methods to those of the user. Called once TRL's trainer is built."""
        names = list(self.reward_func_names)
        self._shaped: dict[str, int] = {}
        self._columns = set().union(*map(columns_taken, self.reward_funcs))
        self._generated: tuple[list, list, list | None] | None = None
        for method in self.methods:
            method.check_rewards(names)
            if not method.overrides("reward"):
                continue
            self._columns |= columns_taken(method.reward)
            if method.shapes_reward:
                shaped = one_reward(method.shaped_reward, f"{method.name}_reward", names)
                self._shaped[method.name] = names.index(shaped)
                continue
            # New lists: those that TRL holds are the user's.
            self.reward_funcs = [*self.reward_funcs, named(method.reward, method.name)]
            self.reward_func_names = [*self.reward_func_names, method.name]
            self.reward_processing_classes = [*self.reward_processing_classes, None]
            self.reward_weights = torch.cat([self.reward_weights, torch.ones(1)])

    @property
    def _wants_entropies(self) -> bool:
        return "token_entropies" in self._columns or "rollout_entropy" in self._needs

    @property
    def _trl_scores(self) -> bool:
        """Whether TRL scores the rollouts of its own accord."""
        updates = self.args.steps_per_generation * self.num_iterations
        corrects = self.use_vllm and self.vllm_importance_sampling_correction
        return self.args.gradient_accumulation_steps % updates != 0 or corrects

    @property
    def _records(self) -> bool:
        """Whether entropies are those recorded while generating: only where a pass would have to be added for them."""
        return self.args.record_entropies and self._wants_entropies and not self._trl_scores

    def _roll_out(self, inputs: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """TRL's rollouts, and (B, T) statistics of the policy that generated them where a pass over them was made."""
        scored, iterations = self._trl_scores, self.num_iterations
        reads = bool(self.methods) or self._wants_entropies or self.log_completions
        self._scores = [] if reads else None
        if self._wants_entropies and not scored and not self._records:
            self.num_iterations = self.args.gradient_accumulation_steps + 1  # from which TRL infers that it must score
        try:
            output = super()._generate_and_score_completions(inputs)
            # TRL scores the rollouts before it asks a reference model.
            scores = self._scores[0] if reads and "old_per_token_logps" in output else {}
        finally:
            self.num_iterations, self._scores = iterations, None
        if not scored:
            output.pop("old_per_token_logps", None)  # the ratio of such updates is 1, not 1 up to rounding
        if self._records:
            scores = {"entropy": self._recorded_entropy(output["completion_ids"].size(1))}
        return output, scores

    def _generate(self, prompts):
        output = super()._generate(prompts)
        self._generated = output[:3]
        if self._records:
            self._recorded = output[4]
            output = (*output[:4], None, *output[5:])
        return output

    def _generate_single_turn(self, *args, **kwargs):
        if not self._records:
            return super()._generate_single_turn(*args, **kwargs)
        with recording(self.accelerator.unwrap_model(self.model), self.temperature) as recorder:
            ids, _ = super()._generate_single_turn(*args, **kwargs)
        # TRL carries a value for each token, the log-probability in vLLM, through its loop of tools.
        return ids, recorder.rows(ids)

    def _recorded_entropy(self, length: int) -> Tensor:
        """(B, length) entropies that were recorded, 0 at padding and at the results of tools."""
        entropy = torch.zeros(len(self._recorded), length)
        for row, values in zip(entropy, self._recorded, strict=True):
            row[: len(values)] = torch.tensor(values)
        return entropy.to(self.accelerator.device)

    def _rollout_entropy(self) -> Tensor:
        """(B, T) entropies of the last completions while they are being rewarded, from the one source of the run."""
        if self._records:
            return self._recorded_entropy(max(map(len, self._recorded)))
        return self._scores[0]["entropy"]

    def _generated_mask(self, length: int, device: torch.device, tools: bool = True) -> Tensor:
        """(B, length) bool: the tokens of the last completions, truncated ones too; without `tools` only the policy's."""
        _, ids, tool_masks = self._generated
        mask = torch.zeros(len(ids), length, dtype=torch.bool)
        for row, tokens in enumerate(ids):
            own = [1] * len(tokens) if tools or tool_masks is None else tool_masks[row]
            mask[row, : len(tokens)] = torch.tensor(own, dtype=torch.bool)
        return mask.to(device)

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        """Sees truncated completions too while it scores, although TRL hides from attention what the loss leaves out."""
        forward = super()._get_per_token_logps_and_entropies
        scores = self._scores is not None and not self._scores  # the first pass is that of the policy
        read = self._wants_entropies or self.log_completions
        if not (scores and read and self._trl_scores and self.mask_truncated_completions):
            return forward(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        counted = attention_mask[:, -logits_to_keep:]
        whole = torch.cat(
            [attention_mask[:, :-logits_to_keep], self._generated_mask(logits_to_keep, counted.device).to(counted)], 1
        )
        logps, entropy, aux_loss = forward(model, input_ids, whole, logits_to_keep, *args, **kwargs)
        return logps.masked_fill(counted == 0, 0), entropy, aux_loss

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        if self._columns:
            inputs = self._with_columns(inputs)
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.log_completions and self._trl_scores:  # made to or not: else the first pass may be the reference's
            self._log_entropies()
        columns = {key: [row[key] for row in inputs] for key in inputs[0] if key not in GIVEN_APART}
        columns |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids_list}
        rows = slice(len(prompts) * self._world.rank, len(prompts) * (self._world.rank + 1))
        self._given_rewards = rewards
        for method in self.methods:
            if method.name in self._shaped:
                index = self._shaped[method.name]
                # The dataset's columns may have any names.
                own = {"rewards": rewards[rows, index].tolist(), "prompt_ids": self._generated[0]}
                shaped = method.reward(**{**columns, **own})
                shaped = [math.nan if value is None else value for value in shaped]
                rewards = rewards.clone()
                rewards[:, index] = self._world.gather(rewards.new_tensor(shaped))
        self._rewards = rewards
        return rewards

    def _log_entropies(self) -> None:
        """Adds to TRL's table of completions the entropies of each, in nats; none where the policy wrote no token."""
        entropy = self._scores[0]["entropy"]
        own = self._generated_mask(entropy.size(1), entropy.device, tools=False)
        written = [values[mask] for values, mask in zip(entropy.detach().float(), own, strict=True)]
        for column, reduce in TABLE_COLUMNS.items():
            if column not in self._pending_extra_logs:  # a reward function may log a column of this name
                self._pending_extra_logs[column] = [reduce(v).item() if len(v) else None for v in written]

    def _with_columns(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Copies of the rows with the `COLUMNS` asked for. Raises `ValueError` where the dataset has one of the name."""
        if taken := [column for column in COLUMNS if column in self._columns and column in inputs[0]]:
            raise ValueError(
                f"A reward function takes `{taken[0]}`, which is also a column of the dataset: rename it."
            )
        lengths = [len(ids) for ids in self._generated[1]]
        own = self._generated_mask(max(lengths), self.accelerator.device, tools=False)
        found = {"token_mask": own.tolist()}
        if "token_entropies" in self._columns:
            entropy = self._rollout_entropy()[:, : own.size(1)]
            found["token_entropies"] = entropy.float().masked_fill(~own, 0).tolist()
        return [
            {**row, **{column: found[column][index][:length] for column in self._columns}}
            for index, (row, length) in enumerate(zip(inputs, lengths, strict=True))
        ]
