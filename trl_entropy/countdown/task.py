# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Countdown with a running total: a verifiable task whose prompts have many right answers, all of them known.

A prompt has four different numbers from 1 to 9 and a target. An answer uses every number once and computes from left
to right with `+`, `-` and `*`, without precedence. The running total stays between 0 and 30:

    prompt      n 2 4 6 9 t 17 :
    completion  <think> 4 * 6 = 24 - 9 = 15 + 2 = 17 </think> 4 * 6 - 9 + 2

Only the text after `</think>` is verified. A prompt has about twelve right answers, at least four, so pass@k and the
coverage of right answers show how diverse a policy still is.

In the task `attempts` completions can get shorter: a prompt has three numbers, and a thought may try chains that miss
the target before the chain that reaches it. A policy loses nothing without them:

    prompt      n 2 4 9 t 17 :
    completion  <think> try 2 + 4 = 6 + 9 = 15 no try 9 * 2 = 18 - 4 = 14 no 4 * 2 = 8 + 9 = 17 </think> 4 * 2 + 9

In the task `tools` the policy does not compute. It calls a calculator for each running total, see [`chat`].
"""

import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations, product
from typing import Any, NamedTuple
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
Completion = str | list[dict[str, Any]]  # text, or the messages of an agent


@dataclass(frozen=True)
class Task:
    """A variant of Countdown.

    Attributes:
        numbers: numbers in a prompt.
        min_solutions: least number of right answers of a prompt.
        attempts: most chains in a thought that miss the target, before the chain that reaches it.
        tools: whether a calculator is called for each running total. A completion is then a conversation.
    """

    numbers: int = NUMBERS_PER_PROMPT
    min_solutions: int = MIN_SOLUTIONS
    attempts: int = 0
    tools: bool = False

    @property
    def completion_length(self) -> int:
        """Tokens of the longest completion, including the end token.

        `<think>`, chains with one word for the first number and four for each other, all but the last between `try`
        and `no`, `</think>`, the answer, and the end. With tools, for each operation a call of eight words and a
        result of four instead, and then the answer and the end.
        """
        if self.tools:
            return (self.numbers - 1) * (8 + 4) + (2 * self.numbers - 1) + 1
        chain = 1 + 4 * (self.numbers - 1)
        return 1 + self.attempts * (chain + 2) + chain + 1 + (2 * self.numbers - 1) + 1


TASKS = {
    "chain": Task(),
    "attempts": Task(numbers=3, min_solutions=1, attempts=2),
    "tools": Task(tools=True),
}
CHAIN = TASKS["chain"]


class Prompt(NamedTuple):
    """One problem: the numbers in increasing order, and the target."""

    numbers: tuple[int, ...]
    target: int

    @property
    def text(self) -> str:
        return f"n {' '.join(map(str, self.numbers))} t {self.target} :"

    @property
    def held_out(self) -> bool:
        """Whether the prompt is for evaluation. A hash of its text decides, the same on every machine."""
        return crc32(self.text.encode()) % HELD_OUT_ONE_IN == 0


def running_totals(numbers: Sequence[int], operators: Sequence[str]) -> list[int] | None:
    """The total after each operator, one fewer than `numbers`; `None` if a total is not in `TOTALS`."""
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
    """Every right answer to a prompt, as the text after `</think>`, in a fixed order."""
    return _answers_by_target(tuple(sorted(numbers))).get(target, ())


def misses(numbers: Sequence[int], target: int) -> tuple[str, ...]:
    """Every answer that reaches another target, with totals within bounds, written as in `solutions`."""
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
    """A completion: a thought with the `failed` answers and then `answer` worked out, and after it the answer."""
    attempts = "".join(f"{ATTEMPT} {worked_out(attempt)} {FAILED} " for attempt in failed)
    return f"<think> {attempts}{worked_out(answer)} {END_OF_THOUGHT} {answer}"


def answer_of(completion: Completion) -> str:
    """What is verified: the text after the first `</think>`, or the last message of a conversation.

    Empty without a `</think>`, or if the last message is a call or a tool's result.
    """
    if isinstance(completion, str):
        return completion.partition(END_OF_THOUGHT)[2]
    last = completion[-1]
    return last["content"] if last["role"] == "assistant" and not last.get("tool_calls") else ""


def read_answer(completion: Completion, numbers: Sequence[int], target: int) -> str | None:
    """The answer of a completion, with single spaces, or `None` if it is wrong."""
    words = answer_of(completion).split()
    operands, operators = words[::2], words[1::2]
    if sorted(operands) != sorted(map(str, numbers)) or len(operators) != len(operands) - 1:
        return None
    if any(symbol not in OPERATIONS for symbol in operators):
        return None
    totals = running_totals([int(word) for word in operands], operators)
    return " ".join(words) if totals and totals[-1] == target else None


def verify(completion: Completion, numbers: Sequence[int], target: int) -> bool:
    """Whether a completion's answer is right: each number once, totals within bounds, target reached."""
    return read_answer(completion, numbers, target) is not None


def countdown_reward(
    completions: Sequence[Completion], numbers: list[Sequence[int]], target: list[int], **kwargs
) -> list[float]:
    """TRL reward function: 1.0 for a right completion, 0.0 for a wrong one."""
    return [float(verify(*row)) for row in zip(completions, numbers, target, strict=True)]


def prompts(held_out: bool, task: Task = CHAIN) -> list[Prompt]:
    """All held-out or all training prompts of a task."""
    every = (
        Prompt(numbers, target)
        for numbers in combinations(NUMBERS, task.numbers)
        for target in TOTALS
        if len(solutions(numbers, target)) >= task.min_solutions
    )
    return [prompt for prompt in every if prompt.held_out is held_out]


def countdown_dataset(held_out: bool = False, task: Task = CHAIN) -> Dataset:
    """A dataset for TRL: `prompt`, and `numbers` and `target` for the reward.

    A prompt is plain text, or a conversation in a task with tools.
    """
    rows = prompts(held_out, task)
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": row.text}] if task.tools else row.text for row in rows],
            "numbers": [list(row.numbers) for row in rows],
            "target": [row.target for row in rows],
        }
    )
