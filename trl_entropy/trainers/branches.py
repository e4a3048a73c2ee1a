# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rollouts that branch inside TRL's tool loop: the same number per prompt, some of which share a beginning.

TRL's loop runs one round per call here: it runs the tools of all active rows and asks for their next turns. In that
request the branches of the round join the batch, so no tool runs twice and the engine is not called once more. A place
of a prompt is free until a branch takes it. The free places of a prompt without active rows are sampled from the
prompt.

With ZeRO-3 and FSDP all processes must generate in step. As in TRL's own loop, nothing here ensures that they do.
"""

import math
import random
from collections.abc import Callable
from copy import deepcopy
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from trl.trainer import grpo_trainer

from ..methods import Method
from ..turns import Turn
from .environments import branch_environment


TOP_PATHS = 3
Sample = Callable[..., tuple[list[list[int]], list[list[float]] | None, list[list[float]]]]


def rows_of(fields: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """The entries of some rows of inputs that a tokenizer returns beside the token ids."""
    return {
        key: values[rows] if isinstance(values, Tensor) else [values[row] for row in rows]
        for key, values in fields.items()
    }


class BranchedRollouts:
    """The rollouts of one generation batch. N rows, G of each prompt; places of a prompt are taken in order.

    Args:
        trainer: TRL's trainer.
        method: decides how many rows begin at the prompt, and which turns branch.
        batch: integers that identify the generation batch in the run.

    Attributes:
        ids, masks, values, messages: what TRL's loop knows of each row: completion tokens, 1 at the policy's own, a
            value per token (`None` without), and the messages of the completion.
        turns: entropy of each turn on the row's path.
        free: by prompt, the places that no row has taken yet.
        live: rows whose last turn called a tool that has not run.
        sharing: tokens that a row has from its parent.
        logs: what happened, for metrics.
    """

    def __init__(self, trainer: Any, method: Method, batch: tuple[int, int]):
        self.trainer, self.method, self.plan, self.batch = trainer, method, method.plan, batch
        self.group = trainer.num_generations
        self.vocabulary = trainer.model.config.get_text_config().vocab_size
        self.limit = trainer.max_tool_calling_iterations
        self.views: list[list[dict]] | None = None  # what TRL's loop sees of the messages, while it runs
        self.calls = 0

    # The first turn

    def turn(self, sample: Sample, prompt_ids, images, fields, num_generations, **kwargs) -> tuple[list, list | None]:
        """TRL's `_generate_single_turn`: of a round of its tool loop, or of the first turn."""
        if self.views is not None:
            return self._next_turns(sample, prompt_ids, images, fields, num_generations, **kwargs)
        count = len(prompt_ids)
        self.prompts, self.fields = prompt_ids, fields
        self.free: dict[int, list[int]] = {}
        chosen = self.method.roots(self.group, None)
        self.probes = chosen is None
        roots = 1 if chosen is None else chosen
        first = [row for row in range(count) if row % self.group < roots]
        for prompt in range(count // self.group):
            self.free[prompt] = [prompt * self.group + place for place in range(roots, self.group)]
        self._start(count)
        placeholder = self.trainer._tokenizer.eos_token_id  # a turn without a call, which a row replaces
        ids: list = [[placeholder] for _ in range(count)]
        values: list = [[0.0] for _ in range(count)]
        found, own, entropies = self._sample(
            sample, [prompt_ids[row] for row in first], images, rows_of(fields, first), roots
        )
        for row, tokens, entropy, place in zip(first, found, entropies, range(len(first)), strict=True):
            ids[row] = tokens
            values[row] = None if own is None else own[place]
            self.turns[row] = [self.method.turn_entropy(entropy, self.vocabulary)]
        return ids, None if own is None else values

    def _start(self, count: int) -> None:
        """Nothing has happened yet."""
        self.turns: list[list[float]] = [[] for _ in range(count)]
        self.sharing = [0] * count
        self.live: set[int] = set()
        self.consecutive = [0] * count  # per row, the same in all rows of a prompt with `per_prompt`
        self.events: list[frozenset[int]] = [frozenset()] * count  # branchings on the row's path
        self.deltas: list[list[float]] = [[] for _ in range(count)]
        prompts = range(count // self.group)
        self.branched = dict.fromkeys(prompts, 0)  # turns that branched
        self.probed: list[tuple[float, float]] = []  # with probes: entropy of the first turn, and mean of all
        self.roots = {prompt: self.group - len(self.free[prompt]) for prompt in prompts}

    def _sample(self, sample: Sample, prompts: list, *args: Any, **kwargs: Any) -> tuple[list, list | None, list]:
        self.calls += 1
        return sample(prompts, *args, **kwargs)

    # The loop

    def run_tools(
        self, stock: Callable, sample: Sample, prompts, prompt_ids, completion_ids, completions, values, images, fields
    ) -> tuple:
        """TRL's `_tool_call_loop`. A prompt's free places are taken when it returns."""
        self.ids, self.values, self.messages = completion_ids, values, completions
        self.masks = [[1] * len(ids) for ids in completion_ids]
        self.counts, self.images = [0, 0], [[] for _ in completion_ids]
        self.live = {row for row, turns in enumerate(self.turns) if turns and completions[row][-1].get("tool_calls")}
        one_round = (stock, prompts, images, fields)
        if self.probes:
            parked, self.free = self.free, {prompt: [] for prompt in self.free}
            while active := self._active():
                self._round(active, *one_round)
            self._take_roots(sample, parked)
        while self._refill(sample) or self._active():
            if active := self._active():
                self._round(active, *one_round)
        assert all(self.turns), "a placeholder was left among the rollouts"
        return self.masks, self.messages, self.ids, self.values, *self.counts, self.images

    def _active(self) -> list[int]:
        return sorted(row for row in self.live if len(self.turns[row]) <= self.limit)

    def _round(self, active: list[int], stock: Callable, prompts: list, images: Any, fields: dict) -> None:
        """One round of TRL's loop, for the active rows alone."""
        trainer, before = self.trainer, [len(ids) for ids in self.ids]
        ended: list[dict] = [{"role": "assistant", "content": ""}]
        self.views = [[self.messages[row][-1]] if row in active else ended for row in range(len(self.ids))]
        self.active, self.continued = active, []
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

    def _keep_if_calling(self, row: int) -> None:
        if self.messages[row][-1].get("tool_calls"):
            self.live.add(row)

    def _next_turns(self, sample: Sample, contexts: list, images: Any, fields: dict, *args: Any, **kwargs: Any):
        """The turns after tool results that TRL's loop asks for, and with them those of the branches.

        TRL has taken back the messages of rows that do not fit. All others have a context, in their order.
        """
        rows = self.continued = [row for row in self.active if len(self.views[row]) > 1]
        births = self._births(rows)
        batch = [*range(len(rows)), *(rows.index(parent) for parent, _ in births)]
        ids, values, entropies = self._sample(
            sample, [contexts[place] for place in batch], images, rows_of(fields, batch), *args, **kwargs
        )
        for index, place in enumerate(batch):
            room = self.trainer.max_completion_length - len(contexts[place]) + len(self.prompts[rows[place]])
            ids[index] = ids[index][:room]
            if values is not None:
                values[index] = values[index][:room]
            entropy = self.method.turn_entropy(entropies[index][:room], self.vocabulary)
            if index < len(rows):
                self.turns[rows[index]] = [*self.turns[rows[index]], entropy]
            else:
                own = None if values is None else values[index]
                self._bear(*births[index - len(rows)], contexts[place], ids[index], own, entropy)
        return ids[: len(rows)], None if values is None else values[: len(rows)]

    # Branches

    def _births(self, rows: list[int]) -> list[tuple[int, int]]:
        """Parent and place of each new branch of a round, in order."""
        births, before = [], dict(self.branched)
        for row in rows:
            free = self.free[row // self.group]
            if free and self._branches(row):
                taken, self.free[row // self.group] = free[: self.plan.width - 1], free[self.plan.width - 1 :]
                births += [(row, place) for place in taken]
                self.events[row] |= {sum(self.branched.values())}
                self.branched[row // self.group] += 1
                self.consecutive[row] += not self.plan.per_prompt
            elif not self.plan.per_prompt:
                self.consecutive[row] = 0
        if self.plan.per_prompt:
            for prompt in {row // self.group for row in rows}:
                after = self.consecutive[prompt * self.group] + 1 if self.branched[prompt] > before[prompt] else 0
                self.consecutive[prompt * self.group : (prompt + 1) * self.group] = [after] * self.group
        return births

    def _branches(self, row: int) -> bool:
        """Whether a row branches after its last turn."""
        turns = self.turns[row]
        place = self.trainer._world.rank * len(self.ids) + row
        draw = random.Random(repr((*self.batch, place, len(turns)))).random()
        self.deltas[row].append(turns[-1] - turns[0])
        return self.method.branches(Turn(turns[-1], turns[0], self.consecutive[row], draw))

    def _bear(self, parent: int, place: int, context: list, sampled: list, own: list | None, entropy: float) -> None:
        """Puts a branch of `parent` into `place`. The parent is as it was before this round, but for its tool results.

        Args:
            parent: the row that branches.
            place: the row of the branch.
            context: prompt, completion so far, and tool results.
            sampled: the branch's own turn.
            own: a value for each of its tokens.
            entropy: of that turn.
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
        self.turns[place] = [*self.turns[parent][:-1], entropy]  # the parent has its own turn of this round
        self.consecutive[place], self.events[place] = self.consecutive[parent], self.events[parent]
        self.sharing[place] = len(ids)
        branch_environment(self.trainer, parent, place)
        self._keep_if_calling(place)

    # New roots

    def _take_roots(self, sample: Sample, parked: dict[int, list[int]]) -> None:
        """Once the first row of each prompt has ended: samples as many roots as its turns call for."""
        opened = []
        for prompt, places in parked.items():
            turns = self.turns[prompt * self.group]
            self.roots[prompt] = roots = self.method.roots(self.group, turns)
            self.probed.append((turns[0], fmean(turns)))
            opened += places[: roots - 1]
            self.free[prompt] = places[roots - 1 :]
        self._open(sample, opened)

    def _refill(self, sample: Sample) -> bool:
        """Samples the free places of prompts without an active row from the prompt. Whether there were any."""
        busy = {row // self.group for row in self._active()}
        opened = []
        for prompt, places in self.free.items():
            if places and prompt not in busy:
                opened += places
                self.free[prompt] = []
        self._open(sample, opened)
        return bool(opened)

    def _open(self, sample: Sample, places: list[int]) -> None:
        """Samples the first turn of rows that begin at the prompt."""
        if not places:
            return
        prompts = [self.prompts[place] for place in places]
        found, values, entropies = self._sample(sample, prompts, None, rows_of(self.fields, places), 1)
        for index, (place, ids) in enumerate(zip(places, found, strict=True)):
            self.ids[place], self.masks[place] = ids, [1] * len(ids)
            if values is not None:
                self.values[place] = values[index]
            self.turns[place] = [self.method.turn_entropy(entropies[index], self.vocabulary)]
            self.messages[place] = [self._parse(place, self.prompts[place], ids)]
            self._keep_if_calling(place)

    def _parse(self, row: int, prefix: list[int], ids: list[int]) -> dict[str, Any]:
        """The message of a turn, as TRL's loop reads it."""
        trainer = self.trainer
        tools = trainer.tools
        if trainer.environment_factories is not None:
            tools = trainer._env_tools[trainer._batch_environments[row]]
        return grpo_trainer.parse_response(trainer._tokenizer, ids, prefix=prefix, tools=tools)

    # Metrics

    def logs(self, length: int) -> dict[str, Tensor]:
        """What happened, for [`reduce_metrics`]. `length` is the T of (N, T) tensors."""
        rows = range(len(self.ids))
        shared = torch.tensor(self.sharing).unsqueeze(1) > torch.arange(length)
        branches = torch.tensor([count > 0 for count in self.sharing]).view(-1, self.group).sum(1)
        roots = torch.tensor([*self.roots.values()])
        logs = {
            "roots": roots,
            "branches": branches,
            "refilled": self.group - roots - branches,
            "shared_fraction": shared,
            "entropy_delta": torch.tensor([delta for row in rows for delta in self.deltas[row]]),
            "on_top_path_fraction": torch.tensor([self._on_top_paths(prompt) for prompt in self.roots]),
            "engine_calls": torch.tensor(self.calls),
        }
        if self.probes:
            logs |= dict(zip(("root_entropy", "turn_entropy"), torch.tensor(self.probed).T, strict=True))
        return logs

    def _on_top_paths(self, prompt: int) -> float:
        """Share of a prompt's branchings that are on its fullest paths; NaN if it has none."""
        paths = sorted(self.events[prompt * self.group : (prompt + 1) * self.group], key=len, reverse=True)
        total = len(frozenset().union(*paths))
        return len(frozenset().union(*paths[:TOP_PATHS])) / total if total else math.nan
