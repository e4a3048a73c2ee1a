# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`Generation`: one batch of rollouts, from its prompts to TRL's output, with the old policy's entropies.

If a generation batch serves more than one update, TRL scores its rollouts before it asks for rewards. Its fused head
always computes entropies, so they are free then. Otherwise we make TRL run the same pass when entropies are needed:
one forward without gradient on the inputs that TRL builds, which the loss does not see. With `record_entropies` the
entropies are recorded during generation instead, without another pass. A run uses only one of these sources.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..functional import run_counts
from ..methods import Method
from .branches import BranchedRollouts
from .prefill import whole_turns
from .recording import recording, recording_top
from .rewards import COLUMNS, checking_rewards


TABLE_COLUMNS = {"token_entropy_mean": torch.mean, "token_entropy_max": torch.amax}
GIVEN_APART = ("prompt", "completion", "completion_ids")  # columns that TRL passes to rewards separately


def trl_scores(trainer: Any) -> bool:
    """Whether TRL itself makes a pass of the old policy over the rollouts."""
    updates = trainer.args.steps_per_generation * trainer.num_iterations
    corrects = trainer.use_vllm and trainer.vllm_importance_sampling_correction
    return trainer.args.gradient_accumulation_steps % updates != 0 or corrects


def wants_entropies(trainer: Any) -> bool:
    """Whether a reward function or a method needs the old policy's entropies."""
    return "token_entropies" in trainer._rewards.columns or "rollout_entropy" in trainer._needs


def scores_rollouts(trainer: Any) -> bool:
    """Whether the old policy's entropies are known before the first update of a generation batch."""
    return trl_scores(trainer) or wants_entropies(trainer)


class Generation:
    """One call of TRL's `_generate_and_score_completions`. B completions of this process, T tokens.

    Attributes:
        wanted: whether a reward function or a method needs the old policy's entropies.
        records: whether entropies are recorded during generation.
        scored: whether the old policy makes a pass over the rollouts.
        made_to_score: whether it makes that pass only because we make TRL run it.
        reads: whether the statistics of that pass are kept.
        prompt_ids, completion_ids, tool_masks: one list per completion, once generated.
        scores: (B, T) log-probabilities, entropies (nats) and statistics of the old policy, once known.
        given_rewards, rewards: (all completions, reward functions) before and after methods have shaped them.
        logs: log values of the methods' rewards and rollouts.
        branched: the rollouts, if they branch.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.wanted = wants_entropies(trainer)
        asked = bool(trainer.methods) or trainer.log_completions or trainer._thermostat is not None
        self.reads = self.wanted or asked
        stock = trl_scores(trainer)
        self.records = trainer.args.record_entropies and self.wanted and not stock
        self.scored = stock or (self.wanted and not self.records)
        self.made_to_score = self.scored and not stock
        self.prompt_ids: list[list[int]] = []
        self.completion_ids: list[list[int]] = []
        self.tool_masks: list[list[int]] | None = None
        self.scores: dict[str, Tensor] = {}
        self.logs: dict[str, Tensor] = {}
        self.branched: BranchedRollouts | None = None

    # Around TRL's steps

    def roll_out(self, stock: Callable, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's `_generate_and_score_completions` for dataset rows, with a scoring pass if one is needed."""
        trainer, iterations = self.trainer, self.trainer.num_iterations
        outer, trainer._generation = trainer._generation, self
        if self.made_to_score:
            trainer.num_iterations = trainer.args.gradient_accumulation_steps + 1  # so TRL decides to score
        try:
            output = stock(rows)
        finally:
            trainer.num_iterations, trainer._generation = iterations, outer
        if self.made_to_score:
            output.pop("old_per_token_logps", None)  # the ratio of such updates must be exactly 1, not up to rounding
        if self.records:
            self.scores = {"entropy": self._recorded_entropy(output["completion_ids"].size(1))}
        return output

    def generate(self, stock: Callable, prompts: list) -> tuple:
        """TRL's `_generate`. Keeps the token ids, and the recorded entropies."""
        output = stock(prompts)
        self.prompt_ids, self.completion_ids, self.tool_masks = output[:3]
        if self.branched is not None:
            self.logs |= self.branched.method.prefixed(self.branched.logs(self.length))
        if not self.records:
            return output
        self._recorded = output[4]
        return (*output[:4], None, *output[5:])

    def generate_turn(self, stock: Callable, *args: Any, **kwargs: Any) -> tuple[list, list | None]:
        """TRL's `_generate_single_turn`, with recorded entropies as the values per token.

        TRL carries one value per token through its tool loop. With vLLM that is the token's log-probability.
        """
        if self.branched is not None:
            return self.branched.turn(partial(self.sample, stock), *args, **kwargs)
        if not self.records:
            return stock(*args, **kwargs)
        return self.sample(stock, *args, **kwargs)[:2]

    def sample(self, stock: Callable, *args: Any, **kwargs: Any) -> tuple[list, list | None, list]:
        """The token ids and values of `generate_turn`, and the entropies (nats) of the tokens."""
        trainer = self.trainer
        if trainer.use_vllm:
            with recording_top(trainer.vllm_generation, self.branched.method.plan.top_logprobs) as entropies:
                ids, values = stock(*args, **kwargs)
            return ids, values, entropies
        model = trainer.accelerator.unwrap_model(trainer.model)
        asker = () if self.records else (f"method {self.branched.method.name!r}",)
        with recording(model, trainer.temperature, *asker) as recorder:
            ids, values = stock(*args, **kwargs)
        entropies = recorder.rows(ids)
        return ids, entropies if self.records else values, entropies

    def run_tools(self, stock: Callable, single_turn: Callable, *args: Any) -> tuple:
        """TRL's `_tool_call_loop`. Rollouts may branch in it; `single_turn` is TRL's `_generate_single_turn`."""
        if self.branched is None:
            return stock(*args)
        return self.branched.run_tools(stock, partial(self.sample, single_turn), *args)

    def is_scoring_pass(self, model: Any) -> bool:
        """Whether the next forward of `model` is the old policy's pass over the rollouts, before the reference's."""
        return self.reads and self.scored and not self.scores and model is self.trainer.model

    def attention_mask(self, attention_mask: Tensor, length: int) -> Tensor:
        """The attention mask (B, L) of the scoring pass, which ends in `length` completion tokens.

        TRL hides truncated completions, which the loss leaves out, from attention. Their entropies are needed too.
        """
        if not self._sees_truncated:
            return attention_mask
        generated = self.generated_mask(length, attention_mask.device).to(attention_mask)
        return torch.cat([attention_mask[:, :-length], generated], 1)

    def keep_scores(self, logps: Tensor, entropy: Tensor, statistics: dict[str, Tensor], mask: Tensor) -> Tensor:
        """Keeps the results of the scoring pass, all (B, T) -> log-probabilities for TRL, 0 outside its `mask`."""
        logps = logps.masked_fill(mask[:, -logps.size(1) :] == 0, 0) if self._sees_truncated else logps
        self.scores = {"logps": logps, "entropy": entropy, **statistics}
        return logps

    @property
    def _sees_truncated(self) -> bool:
        return (self.wanted or self.trainer.log_completions) and self.trainer.mask_truncated_completions

    def reward(self, stock: Callable, rows: list, prompts: list, completions: list, completion_ids: list) -> Tensor:
        """TRL's `_calculate_rewards`. Rewards see whole turns and the requested columns; then methods shape them.

        Returns:
            (all completions, reward functions) rewards; NaN for a missing one.
        """
        trainer = self.trainer
        if trainer._changes_prompts:
            prompts, completions = whole_turns(prompts, completions)
        rows = self._with_columns(rows, trainer._rewards.columns)
        with checking_rewards(trainer):
            rewards = stock(rows, prompts, completions, completion_ids)
        if trainer.log_completions and self.scored:
            self._log_entropies()
        self.given_rewards = rewards
        columns = {key: [row[key] for row in rows] for key in rows[0] if key not in GIVEN_APART}
        columns |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        for method, index in trainer._rewards.shaped:
            own = self.own_rows(rewards[:, index], len(prompts)).tolist()
            shaped = self.ask(method, **{**columns, "rewards": own, "prompt_ids": self.prompt_ids})
            shaped = rewards.new_tensor([math.nan if value is None else value for value in shaped])
            rewards = rewards.clone()
            rewards[:, index] = trainer._world.gather(shaped)
        self.rewards = rewards
        return rewards

    def ask(self, method: Method, **columns: Any) -> list[float | None]:
        """The rewards of a method. The old policy's entropies replace a dataset column `old_entropy`."""
        old_entropy = self.entropy(self.length) if self.records or self.scores else None
        rewards, logs = method.reward(**{**columns, "old_entropy": old_entropy})
        self.logs |= method.prefixed(logs)
        return rewards

    # Facts about the rollouts

    @property
    def length(self) -> int:
        """T, the length to which TRL pads the completions."""
        multiple = self.trainer.pad_to_multiple_of or 1
        return math.ceil(max(map(len, self.completion_ids)) / multiple) * multiple

    def generated_mask(self, length: int, device: torch.device, tools: bool = True) -> Tensor:
        """(B, length) bool: tokens of all completions, truncated ones too. Without `tools`, only the policy's own."""
        mask = torch.zeros(len(self.completion_ids), length, dtype=torch.bool)
        for row, tokens in enumerate(self.completion_ids):
            own = [1] * len(tokens) if tools or self.tool_masks is None else self.tool_masks[row]
            mask[row, : len(tokens)] = torch.tensor(own, dtype=torch.bool)
        return mask.to(device)

    def tool_calls(self, length: int, device: torch.device) -> Tensor | None:
        """(B,) answered tool calls of each completion; `None` if the policy wrote all tokens."""
        if self.tool_masks is None:
            return None
        own = self.generated_mask(length, device, tools=False)
        return run_counts(self.generated_mask(length, device) & ~own)

    def entropy(self, length: int) -> Tensor:
        """(B, length) entropies of the old policy in nats, from the run's source."""
        return self._recorded_entropy(length) if self.records else self.scores["entropy"][:, :length]

    def _recorded_entropy(self, length: int) -> Tensor:
        """(B, length) recorded entropies in nats, 0 at padding and at tool results."""
        entropy = torch.zeros(len(self._recorded), length)
        for row, values in zip(entropy, self._recorded, strict=True):
            row[: len(values)] = torch.tensor(values)
        return entropy.to(self.trainer.accelerator.device)

    def own_rewards(self, rows: int) -> Tensor:
        """(rows,) weighted sums of the rewards of this process' completions; NaN if no function gave one."""
        return self.own_rows(self.all_rewards(), rows)

    def all_rewards(self) -> Tensor:
        """(N,) the same for the completions of all processes."""
        weights = self.trainer.reward_weights.to(self.rewards.device)
        return (self.rewards * weights).nansum(dim=1).masked_fill(self.rewards.isnan().all(dim=1), torch.nan)

    def own_rows(self, values: Tensor, rows: int) -> Tensor:
        """The `rows` entries of this process, out of those of all processes."""
        return values[self.trainer._world.rank * rows :][:rows]

    def _with_columns(self, rows: list[dict[str, Any]], wanted: set[str]) -> list[dict[str, Any]]:
        """Copies of the rows plus the requested `COLUMNS`. Raises `ValueError` if the dataset already has one."""
        if not wanted:
            return rows
        if taken := [column for column in COLUMNS if column in wanted and column in rows[0]]:
            raise ValueError(
                f"A reward function takes `{taken[0]}`, which is also a column of the dataset: rename it."
            )
        lengths = [len(ids) for ids in self.completion_ids]
        own = self.generated_mask(max(lengths), self.trainer.accelerator.device, tools=False)
        found = {"token_mask": own.tolist()}
        if "token_entropies" in wanted:
            found["token_entropies"] = self.entropy(own.size(1)).float().masked_fill(~own, 0).tolist()
        return [
            {**row, **{column: found[column][index][:length] for column in wanted}}
            for index, (row, length) in enumerate(zip(rows, lengths, strict=True))
        ]

    def _log_entropies(self) -> None:
        """Adds the entropies of each completion, in nats, to TRL's table; `None` if the policy wrote none of it."""
        entropy = self.scores["entropy"]
        own = self.generated_mask(entropy.size(1), entropy.device, tools=False)
        written = [values[mask] for values, mask in zip(entropy.detach().float(), own, strict=True)]
        for column, reduce in TABLE_COLUMNS.items():
            if column not in self.trainer._pending_extra_logs:  # a reward function may log a column of this name
                self.trainer._pending_extra_logs[column] = [reduce(v).item() if len(v) else None for v in written]
