# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rollouts that branch inside TRL's tool loop: the same number per prompt, some of which share a beginning.

TRL's loop runs one round per call here: it runs the tools of all active rows and asks for their next turns. In that
request the branches of the round join the batch, so no tool runs twice and the engine is not called once more. A place
of a prompt is free until a branch takes it. The free places of a prompt without active rows are sampled from the
prompt.

With ZeRO-3 and FSDP all processes must generate in step. As in TRL's own loop, nothing here ensures that they do.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from trl.trainer import grpo_trainer

from ..methods import Method
from .environments import branch_environment
from .places import Places


# TRL's `_generate_single_turn`, which also gives the entropies (nats) of the tokens.
Sample = Callable[..., tuple[list[list[int]], list[list[float]] | None, list[list[float]]]]
ENDED = {"role": "assistant", "content": ""}  # a message that calls no tool


def rows_of(fields: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """The entries of some rows of inputs that a tokenizer returns beside the token ids."""
    return {
        key: values[rows] if isinstance(values, Tensor) else [values[row] for row in rows]
        for key, values in fields.items()
    }


class BranchedRollouts:
    """The rollouts of one generation batch. N rows, G of each prompt.

    Args:
        trainer: TRL's trainer.
        method: decides how many rows begin at the prompt, and which turns branch.
        batch: integers that identify the generation batch in the run.

    Attributes:
        ids, masks, values, messages: what TRL's loop knows of each row: completion tokens, 1 at the policy's own, a
            value per token (`None` without), and the messages of the completion.
        live: rows whose last turn called a tool that has not run.
        calls: calls of the engine.
    """

    def __init__(self, trainer: Any, method: Method, batch: tuple[int, int]):
        self.trainer, self.method, self.batch = trainer, method, batch
        self.limit = trainer.max_tool_calling_iterations
        self.views: list[list[dict]] | None = None  # what TRL's loop sees of the messages, while it runs
        self.live: set[int] = set()
        self.calls = 0

    def logs(self, length: int) -> dict[str, Tensor]:
        """What happened, for [`reduce_metrics`]. `length` is the T of (N, T) tensors."""
        return self.places.logs(length) | {"engine_calls": torch.tensor(self.calls)}

    def turn(self, sample: Sample, prompt_ids, images, fields, num_generations, **kwargs) -> tuple[list, list | None]:
        """TRL's `_generate_single_turn`: of a round of its tool loop, or of the first turn."""
        if self.views is not None:
            return self._next_turns(sample, prompt_ids, images, fields, num_generations, **kwargs)
        return self._first_turns(sample, prompt_ids, images, fields)

    def run_tools(
        self, stock: Callable, sample: Sample, prompts, prompt_ids, completion_ids, completions, values, images, fields
    ) -> tuple:
        """TRL's `_tool_call_loop`. All places are taken when it returns."""
        self.ids, self.values, self.messages = completion_ids, values, completions
        self.masks = [[1] * len(ids) for ids in completion_ids]
        self.images: list[list] = [[] for _ in completion_ids]
        self.counts = [0, 0]
        for row in self.places.first:
            self._keep_if_calling(row)
        one_round = (stock, prompts, images, fields)
        if self.places.probes:
            while active := self._active():
                self._round(active, *one_round)
            self._open(sample, self.places.more_roots())
        while True:
            self._open(sample, self.places.left_over(self._active()))
            if not (active := self._active()):
                break
            self._round(active, *one_round)
        assert all(self.places.turns), "a placeholder was left among the rollouts"
        return self.masks, self.messages, self.ids, self.values, *self.counts, self.images

    def _sample(self, sample: Sample, prompts: list, *args: Any, **kwargs: Any) -> tuple[list, list | None, list]:
        self.calls += 1
        return sample(prompts, *args, **kwargs)

    def _active(self) -> list[int]:
        return sorted(row for row in self.live if len(self.places.turns[row]) <= self.limit)

    def _keep_if_calling(self, row: int) -> None:
        if self.messages[row][-1].get("tool_calls"):
            self.live.add(row)

    # Rows that begin at the prompt

    def _first_turns(self, sample: Sample, prompts: list, images: Any, fields: dict) -> tuple[list, list | None]:
        """The first turns of the roots. All other rows get a placeholder, which parses to a message without a call."""
        trainer, count = self.trainer, len(prompts)
        self.prompts, self.fields = prompts, fields
        vocabulary = trainer.model.config.get_text_config().vocab_size
        draw = (*self.batch, trainer._world.rank * count)
        self.places = Places(self.method, trainer.num_generations, count, vocabulary, draw)
        first = self.places.first
        roots = len(first) * trainer.num_generations // count
        ids: list = [[trainer._tokenizer.eos_token_id] for _ in range(count)]
        values: list = [[0.0] for _ in range(count)]
        found, own, entropies = self._sample(
            sample, [prompts[row] for row in first], images, rows_of(fields, first), roots
        )
        for index, row in enumerate(first):
            ids[row] = found[index]
            values[row] = None if own is None else own[index]
            self.places.add_turn(row, entropies[index])
        return ids, None if own is None else values

    def _open(self, sample: Sample, places: list[int]) -> None:
        """Samples the first turns of rows that begin at the prompt later than the others."""
        if not places:
            return
        prompts = [self.prompts[place] for place in places]
        found, values, entropies = self._sample(sample, prompts, None, rows_of(self.fields, places), 1)
        for index, (place, ids) in enumerate(zip(places, found, strict=True)):
            self.ids[place], self.masks[place] = ids, [1] * len(ids)
            if values is not None:
                self.values[place] = values[index]
            self.places.add_turn(place, entropies[index])
            self.messages[place] = [self._parse(place, self.prompts[place], ids)]
            self._keep_if_calling(place)

    def _parse(self, row: int, prefix: list[int], ids: list[int]) -> dict[str, Any]:
        """The message of a turn, as TRL's loop reads it."""
        trainer = self.trainer
        tools = trainer.tools
        if trainer.environment_factories is not None:
            tools = trainer._env_tools[trainer._batch_environments[row]]
        return grpo_trainer.parse_response(trainer._tokenizer, ids, prefix=prefix, tools=tools)

    # Rounds of TRL's loop

    def _round(self, active: list[int], stock: Callable, prompts: list, images: Any, fields: dict) -> None:
        """One round of TRL's loop, for the active rows alone."""
        trainer, before = self.trainer, [len(ids) for ids in self.ids]
        self.views = [[self.messages[row][-1]] if row in active else [ENDED] for row in range(len(self.ids))]
        self.active = active
        self.continued: list[int] = []
        trainer.max_tool_calling_iterations = 1
        try:
            masks, views, self.ids, self.values, calls, failures, shown = stock(
                prompts, self.prompts, self.ids, self.views, self.values, images, fields
            )
        finally:
            trainer.max_tool_calling_iterations, self.views = self.limit, None
        self.counts = [self.counts[0] + calls, self.counts[1] + failures]
        self.live -= set(active)  # a row whose tool result did not fit has ended
        for row in self.continued:
            self.masks[row] = self.masks[row] + masks[row][before[row] :]
            self.messages[row] = self.messages[row] + views[row][1:]
            self.images[row] = self.images[row] + shown[row]
            self._keep_if_calling(row)

    def _next_turns(self, sample: Sample, contexts: list, images: Any, fields: dict, *args: Any, **kwargs: Any):
        """The turns after tool results that TRL's loop asks for, and with them those of the branches.

        TRL has taken back the messages of rows that do not fit. All others have a context, in their order.
        """
        rows = self.continued = [row for row in self.active if len(self.views[row]) > 1]
        births = self.places.births(rows)
        batch = [*range(len(rows)), *(rows.index(parent) for parent, _ in births)]
        ids, values, entropies = self._sample(
            sample, [contexts[place] for place in batch], images, rows_of(fields, batch), *args, **kwargs
        )
        for index, place in enumerate(batch):
            room = self.trainer.max_completion_length - len(contexts[place]) + len(self.prompts[rows[place]])
            ids[index], entropy = ids[index][:room], entropies[index][:room]
            if values is not None:
                values[index] = values[index][:room]
            if index < len(rows):
                self.places.add_turn(rows[index], entropy)
            else:
                own = None if values is None else values[index]
                self._bear(*births[index - len(rows)], contexts[place], ids[index], own, entropy)
        return ids[: len(rows)], None if values is None else values[: len(rows)]

    def _bear(
        self, parent: int, place: int, context: list, sampled: list, own: list | None, entropies: list[float]
    ) -> None:
        """Puts a branch of `parent` into `place`. The parent is as it was before this round, but for its tool results.

        Args:
            parent: the row that branches.
            place: the row of the branch.
            context: prompt, completion so far, and tool results.
            sampled: the branch's own turn.
            own: a value for each of its tokens.
            entropies: of its tokens.
        """
        ids = context[len(self.prompts[parent]) :]
        tools = len(ids) - len(self.ids[parent])
        self.ids[place] = ids + sampled
        self.masks[place] = self.masks[parent] + [0] * tools + [1] * len(sampled)
        if own is not None:
            self.values[place] = self.values[parent] + [0.0] * tools + own
        self.messages[place] = deepcopy(self.messages[parent] + self.views[parent][1:])
        self.messages[place] += [self._parse(place, context, sampled)] if sampled else []
        self.images[place] = list(self.images[parent])
        self.places.add_branch(parent, place, entropies, len(ids))
        branch_environment(self.trainer, parent, place)
        self._keep_if_calling(place)
