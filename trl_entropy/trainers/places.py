# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which of a prompt's places are taken, by rows that begin at the prompt or by branches of others."""

import math
import random
from collections.abc import Iterable
from statistics import fmean

import torch
from torch import Tensor

from ..methods import Method
from ..turns import Turn


TOP_PATHS = 3


class Places:
    """The places of one generation batch on this process: N rows, G of each prompt. Places are taken in order.

    Args:
        method: decides how many rows begin at the prompt, and which turns branch.
        group: G.
        count: N.
        vocabulary: number of words of the model.
        draw: integers that identify the generation batch in the run, and the process' first row in it.

    Attributes:
        turns: entropy of each turn on the path of each row; empty for a place that is not taken.
        free: by prompt, the places that wait for a branch.
        parked: by prompt, the places that wait until the first row, a probe, has ended.
        sharing: tokens that a row has from its parent.
        consecutive: how often a row's path, or its prompt's rounds, branched last without a break.
        paths: the branchings on each row's path.
    """

    def __init__(self, method: Method, group: int, count: int, vocabulary: int, draw: tuple[int, int, int]):
        self.method, self.plan, self.group, self.vocabulary, self.draw = method, method.plan, group, vocabulary, draw
        self.turns: list[list[float]] = [[] for _ in range(count)]
        self.sharing, self.consecutive = [0] * count, [0] * count
        self.paths: list[frozenset[int]] = [frozenset()] * count
        self.deltas: list[float] = []
        self.probed: list[tuple[float, float]] = []  # of probes: entropy of the first turn, and mean of all
        chosen = method.roots(group, None)
        self.probes = chosen is None
        roots = 1 if chosen is None else chosen
        prompts = range(count // group)
        waiting = {prompt: list(range(prompt * group + roots, (prompt + 1) * group)) for prompt in prompts}
        nothing: dict[int, list[int]] = {prompt: [] for prompt in prompts}
        self.free, self.parked = (nothing, waiting) if self.probes else (waiting, nothing)
        self.roots, self.branched = dict.fromkeys(prompts, roots), dict.fromkeys(prompts, 0)
        self.first = [row for row in range(count) if row % group < roots]

    def add_turn(self, row: int, entropies: list[float]) -> None:
        """A row has one more turn, with these entropies (nats) of its tokens."""
        self.turns[row] = [*self.turns[row], self.method.turn_entropy(entropies, self.vocabulary)]

    def add_branch(self, parent: int, place: int, entropies: list[float], sharing: int) -> None:
        """A branch with a last turn of its own. The parent already has its own turn of this round."""
        self.turns[place] = self.turns[parent][:-1]
        self.add_turn(place, entropies)
        self.consecutive[place], self.paths[place] = self.consecutive[parent], self.paths[parent]
        self.sharing[place] = sharing

    def births(self, rows: list[int]) -> list[tuple[int, int]]:
        """Rows that have just called tools -> parent and place of each new branch, in order."""
        found, before = [], dict(self.branched)
        for row in rows:
            prompt = row // self.group
            if self.free[prompt] and self._branches(row):
                width = self.plan.width - 1
                taken, self.free[prompt] = self.free[prompt][:width], self.free[prompt][width:]
                found += [(row, place) for place in taken]
                self.paths[row] |= {sum(self.branched.values())}
                self.branched[prompt] += 1
                self.consecutive[row] += not self.plan.per_prompt
            elif not self.plan.per_prompt:
                self.consecutive[row] = 0
        if self.plan.per_prompt:
            for prompt in {row // self.group for row in rows}:
                first = prompt * self.group
                after = self.consecutive[first] + 1 if self.branched[prompt] > before[prompt] else 0
                self.consecutive[first : first + self.group] = [after] * self.group
        return found

    def _branches(self, row: int) -> bool:
        turns, (seed, batch, first) = self.turns[row], self.draw
        draw = random.Random(repr((seed, batch, first + row, len(turns)))).random()
        self.deltas.append(turns[-1] - turns[0])
        return self.method.branches(Turn(turns[-1], turns[0], self.consecutive[row], draw))

    def more_roots(self) -> list[int]:
        """Once the probes have ended: the places of the other rows that begin at the prompt."""
        found = []
        for prompt, places in self.parked.items():
            turns = self.turns[prompt * self.group]
            self.roots[prompt] = roots = self.method.roots(self.group, turns)
            self.probed.append((turns[0], fmean(turns)))
            found += places[: roots - 1]
            self.free[prompt] = places[roots - 1 :]
        return found

    def left_over(self, active: Iterable[int]) -> list[int]:
        """The free places of prompts without an active row. They are no longer free."""
        busy = {row // self.group for row in active}
        prompts = [prompt for prompt in self.free if prompt not in busy]
        found = [place for prompt in prompts for place in self.free[prompt]]
        self.free |= {prompt: [] for prompt in prompts}
        return found

    def logs(self, length: int) -> dict[str, Tensor]:
        """What happened, for [`reduce_metrics`]. `length` is the T of (N, T) tensors."""
        sharing = torch.tensor(self.sharing)
        branches = (sharing > 0).view(-1, self.group).sum(1)
        roots = torch.tensor([*self.roots.values()])
        logs = {
            "roots": roots,
            "branches": branches,
            "refilled": self.group - roots - branches,
            "shared_fraction": sharing.unsqueeze(1) > torch.arange(length),
            "entropy_delta": torch.tensor(self.deltas),
            "on_top_path_fraction": torch.tensor([self._on_top_paths(prompt) for prompt in self.roots]),
        }
        if self.probes:
            logs |= dict(zip(("root_entropy", "turn_entropy"), torch.tensor(self.probed).T, strict=True))
        return logs

    def _on_top_paths(self, prompt: int) -> float:
        """Share of a prompt's branchings that are on its fullest paths; NaN if it has none."""
        paths = sorted(self.paths[prompt * self.group : (prompt + 1) * self.group], key=len, reverse=True)
        total = len(frozenset().union(*paths))
        return len(frozenset().union(*paths[:TOP_PATHS])) / total if total else math.nan
