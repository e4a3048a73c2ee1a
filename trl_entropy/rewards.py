# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reward functions that TRL lacks, built on TRL's."""

import re
from typing import Any

from trl.rewards import accuracy_reward


ANSWER_LINE = re.compile(r"answer[ \t*]*:[\s*]*([^\n]+)", re.IGNORECASE)
DELIMITED = re.compile(r"(?:\$\$?|\\\(|\\\[)(.+?)(?:\$\$?|\\\)|\\\])")
OPENING = ("", "$$", r"\[", r"\(")  # the line is empty, or displayed math starts on the next


def solution_of(ground_truth: str | int | float) -> str:
    r"""An answer in a box, as TRL's math rewards read it.

    Outside a box or `$...$` math-verify reads numbers only: `\frac{1}{2}`, `[0, 1]` and `Evelyn` give nothing or one
    of their digits.
    """
    answer = str(ground_truth).strip()
    return answer if r"\boxed" in answer else rf"\boxed{{{answer}}}"


def box_answer_line(text: str) -> str:
    r"""The answer after the last `Answer:` of a completion, in a box. Text without one is returned unchanged.

    >>> box_answer_line("So 9 + 9 = 18.\n**Answer:** $18$.")
    '\\boxed{18}'
    """
    lines = ANSWER_LINE.findall(text)
    if not lines:
        return text
    answer = lines[-1].rstrip(" \t\r*.").lstrip(" \t*")
    if answer in OPENING:
        return text
    delimited = DELIMITED.fullmatch(answer)
    return solution_of(delimited[1] if delimited else answer)


def answer_line_accuracy_reward(
    completions: list[list[dict[str, str]]], solution: list[str], **kwargs: Any
) -> list[float | None]:
    """[`~trl.rewards.accuracy_reward`] for prompts that ask for a last line `Answer: ...`, as DAPO's and GSM8K's do.

    TRL's reward reads answers only in a box or in LaTeX delimiters, so a correct `Answer: 18` gets 0. Here the last
    `Answer:` counts as a box. Completions without one are scored unchanged.

    Args:
        completions: B conversations, whose last message is scored: of an agent, the one after all tool results.
        solution: B right answers.
        **kwargs: passed on to TRL's reward.
    """
    last = [completion[-1] for completion in completions]
    boxed = [[{**message, "content": box_answer_line(message["content"])}] for message in last]
    return accuracy_reward(boxed, solution, **kwargs)
