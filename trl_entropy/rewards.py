# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reward functions that TRL lacks, made of TRL's own."""

import re
from typing import Any

from trl.rewards import accuracy_reward


ANSWER_LINE = re.compile(r"answer[ \t*]*:[\s*]*([^\n]+)", re.IGNORECASE)
DELIMITED = re.compile(r"(?:\$\$?|\\\(|\\\[)(.+?)(?:\$\$?|\\\)|\\\])")
OPENING = ("", "$$", r"\[", r"\(")  # nothing on this line, or mathematics displayed below it


def solution_of(ground_truth: str | int | float) -> str:
    r"""An answer as TRL's math rewards can read it: in a box.

    Outside a box or `$...$` math-verify reads numbers only: `\frac{1}{2}`, `[0, 1]` or `Evelyn` come out as nothing
    or as one of their digits.
    """
    answer = str(ground_truth).strip()
    return answer if r"\boxed" in answer else rf"\boxed{{{answer}}}"


def box_answer_line(text: str) -> str:
    r"""A completion whose answer stands after its last `Answer:` -> that answer in a box; other text as it is.

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

    TRL's reward reads answers in a box or in LaTeX delimiters only, so that an obedient `Answer: 18` gets 0. Here the
    last `Answer:` counts as a box. Completions without one are scored as they are.
    """
    boxed = [[{**completion[0], "content": box_answer_line(completion[0]["content"])}] for completion in completions]
    return accuracy_reward(boxed, solution, **kwargs)
