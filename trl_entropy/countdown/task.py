# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Countdown with a running total: a verifiable task with many right answers per prompt, all of which can be listed.

Four different numbers from 1 to 9 and a target. An answer takes every number once and works from left to right with
`+`, `-` and `*`, as on a pocket calculator without precedence; the running total stays between 0 and 30:

    prompt      n 2 4 6 9 t 17 :
    completion  <think> 4 * 6 = 24 - 9 = 15 + 2 = 17 </think> 4 * 6 - 9 + 2

Only what follows `</think>` is verified. A prompt has about twelve right answers (four at least), so pass@k and the
share of the right answers that a policy still finds say how much of its diversity is left.

The task `attempts` is a variant whose length can shrink: three numbers, and a thought that may try chains which miss the
target before it writes the one that works. Nothing is lost without them:

    prompt      n 2 4 9 t 17 :
    completion  <think> try 2 + 4 = 6 + 9 = 15 no try 9 * 2 = 18 - 4 = 14 no 4 * 2 = 8 + 9 = 17 </think> 4 * 2 + 9
"""

import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations, product
from typing import NamedTuple
from zlib import crc32

from datasets import Dataset


NUMBERS = range(1, 10)
NUMBERS_PER_PROMPT = 4
TOTALS = range(31)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
MIN_SOLUTIONS = 4
HELD_OUT_ONE_IN = 8
END_OF_THOUGHT = "</think>"
ATTEMPT, FAILED = "try", "no"


@dataclass(frozen=True)
class Task:
    """A variant of Countdown.

    Attributes:
        numbers: how many a prompt gives.
        min_solutions: right answers that a prompt has at least.
        attempts: chains that miss the target which a thought may hold, before the one that works.
    """

    numbers: int = NUMBERS_PER_PROMPT
    min_solutions: int = MIN_SOLUTIONS
    attempts: int = 0

    @property
    def completion_length(self) -> int:
        """Words of the longest completion, with the token that ends it.

        `<think>`; chains of a first number and four words for each further one, all but the last between `try` and
        `no`; `</think>`; the answer and the end.
        """
        chain = 1 + 4 * (self.numbers - 1)
        return 1 + self.attempts * (chain + 2) + chain + 1 + (2 * self.numbers - 1) + 1


TASKS = {"chain": Task(), "attempts": Task(numbers=3, min_solutions=1, attempts=2)}
CHAIN = TASKS["chain"]


class Prompt(NamedTuple):
    """One problem: the numbers in rising order, and the value that an answer must reach."""

    numbers: tuple[int, ...]
    target: int

    @property
    def text(self) -> str:
        return f"n {' '.join(map(str, self.numbers))} t {self.target} :"

    @property
    def held_out(self) -> bool:
        """Whether the prompt is kept for evaluation: a hash of its text, the same on every machine and in every run."""
        return crc32(self.text.encode()) % HELD_OUT_ONE_IN == 0


def running_totals(numbers: Sequence[int], operators: Sequence[str]) -> list[int] | None:
    """The totals after each of the operators, one fewer than `numbers`; `None` if one of them leaves `TOTALS`."""
    totals = [numbers[0]]
    for symbol, number in zip(operators, numbers[1:], strict=True):
        total = OPERATIONS[symbol](totals[-1], number)
        if total not in TOTALS:
            return None
        totals.append(total)
    return totals[1:]


@cache
def _answers_by_target(numbers: tuple[int, ...]) -> dict[int, tuple[str, ...]]:
    found = defaultdict(list)
    for order in sorted(set(permutations(numbers))):
        for operators in product(OPERATIONS, repeat=len(numbers) - 1):
            totals = running_totals(order, operators)
            if totals:
                words = [str(order[0])]
                for symbol, number in zip(operators, order[1:], strict=True):
                    words += [symbol, str(number)]
                found[totals[-1]].append(" ".join(words))
    return {target: tuple(answers) for target, answers in found.items()}


def solutions(numbers: Sequence[int], target: int) -> tuple[str, ...]:
    """Every right answer to a prompt, as the text that stands after `</think>`, in a fixed order."""
    return _answers_by_target(tuple(sorted(numbers))).get(target, ())


def misses(numbers: Sequence[int], target: int) -> tuple[str, ...]:
    """Every answer with totals within bounds that reaches another target, as `solutions` writes those that reach it."""
    other = _answers_by_target(tuple(sorted(numbers)))
    return tuple(answer for total in sorted(other) if total != target for answer in other[total])


def worked_out(answer: str) -> str:
    """An answer with its running totals: `4 * 2 + 9` -> `4 * 2 = 8 + 9 = 17`."""
    words = answer.split()
    thought = [words[0]]
    totals = running_totals([int(word) for word in words[::2]], words[1::2])
    if totals is None:
        raise ValueError(f"answer={answer!r} leaves the totals {TOTALS[0]} to {TOTALS[-1]} that a chain can write")
    for symbol, number, total in zip(words[1::2], words[2::2], totals, strict=True):
        thought += [symbol, number, "=", str(total)]
    return " ".join(thought)


def chain(answer: str, failed: Sequence[str] = ()) -> str:
    """The completion that works out `failed` answers, then the one given, and then states that."""
    attempts = "".join(f"{ATTEMPT} {worked_out(attempt)} {FAILED} " for attempt in failed)
    return f"<think> {attempts}{worked_out(answer)} {END_OF_THOUGHT} {answer}"


def read_answer(completion: str, numbers: Sequence[int], target: int) -> str | None:
    """The answer after the first `</think>`, words separated by one space, or `None` if it is not right."""
    _, marker, rest = completion.partition(END_OF_THOUGHT)
    words = rest.split()
    operands, operators = words[::2], words[1::2]
    if not marker or sorted(operands) != sorted(map(str, numbers)) or len(operators) != len(operands) - 1:
        return None
    if any(symbol not in OPERATIONS for symbol in operators):
        return None
    totals = running_totals([int(word) for word in operands], operators)
    return " ".join(words) if totals and totals[-1] == target else None


def verify(completion: str, numbers: Sequence[int], target: int) -> bool:
    """Whether a completion answers rightly: each number once, the totals within bounds, the target reached."""
    return read_answer(completion, numbers, target) is not None


def countdown_reward(completions: list[str], numbers: list[Sequence[int]], target: list[int], **kwargs) -> list[float]:
    """TRL reward function: 1.0 for each right completion and 0.0 for each other one."""
    return [float(verify(*row)) for row in zip(completions, numbers, target, strict=True)]


def prompts(held_out: bool, task: Task = CHAIN) -> list[Prompt]:
    """All prompts of a task, of the held-out part or of the part to train on."""
    every = (
        Prompt(numbers, target)
        for numbers in combinations(NUMBERS, task.numbers)
        for target in TOTALS
        if len(solutions(numbers, target)) >= task.min_solutions
    )
    return [prompt for prompt in every if prompt.held_out is held_out]


def countdown_dataset(held_out: bool = False, task: Task = CHAIN) -> Dataset:
    """The prompts as TRL takes them: `prompt` (plain text) and the columns `numbers` and `target` of the reward."""
    rows = prompts(held_out, task)
    return Dataset.from_dict(
        {
            "prompt": [row.text for row in rows],
            "numbers": [list(row.numbers) for row in rows],
            "target": [row.target for row in rows],
        }
    )
