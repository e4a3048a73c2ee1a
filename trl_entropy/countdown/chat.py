# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Countdown with a calculator: conversations in which the policy calls a tool for each running total.

    prompt      <user> n 2 4 6 9 t 17 : <eos> <assistant>
    completion  <call> calculator expression 4 * 6 </call> <eos> <tool> 24 <eos> <assistant>
                <call> calculator expression 24 - 9 </call> <eos> <tool> 15 <eos> <assistant>
                <call> calculator expression 15 + 2 </call> <eos> <tool> 17 <eos> <assistant>
                4 * 6 - 9 + 2 <eos>

Only the last message is verified. The chat template and the response template make this TRL's own loop: it parses
calls, runs the tool and appends the results.
"""

from typing import Any

from .task import FAILED, OPERATIONS, TOTALS, running_totals


USER, ASSISTANT, TOOL, CALL, END_OF_CALL = "<user>", "<assistant>", "<tool>", "<call>", "</call>"
WORDS = [USER, ASSISTANT, TOOL, CALL, END_OF_CALL, "calculator", "expression", FAILED]
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> "
    "{% for call in message.tool_calls or [] %}<call> {{ call.function.name }}"
    "{% for key, value in call.function.arguments.items() %} {{ key }} {{ value }}{% endfor %} </call> {% endfor %}"
    "{{ message.content }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": ASSISTANT,
    "fields": {
        "tool_calls": {
            "open_pattern": r"<call> (?P<name>\w+) expression ",
            "close_pattern": r" </call>\s*",
            "repeats": True,
            "content": "text",
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": {"expression": "{content}"}},
            },
        },
        "content": {"close_pattern": r"<eos>\s*", "content": "text"},
    },
}


def calculator(expression: str) -> str:
    """
    Computes with two numbers.

    Args:
        expression: A number, an operation (+, - or *) and a number, with spaces between.

    Returns:
        The result, or "no" if it is not from 0 to 30 or the expression cannot be read.
    """
    words = expression.split()
    numbers = words[::2]
    if len(words) != 3 or words[1] not in OPERATIONS or not all(word.isdigit() for word in numbers):
        return FAILED
    totals = running_totals([int(word) for word in numbers], [words[1]])
    return FAILED if totals is None else str(totals[-1])


def conversation(prompt: str, answer: str) -> list[dict[str, Any]]:
    """A prompt, a call of the calculator for each operation of `answer` with its result, and the answer."""
    words = answer.split()
    totals = running_totals([int(word) for word in words[::2]], words[1::2])
    if totals is None:
        raise ValueError(f"answer={answer!r} leaves the totals {TOTALS[0]} to {TOTALS[-1]} of the calculator")
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    before = words[0]
    for symbol, number, total in zip(words[1::2], words[2::2], totals, strict=True):
        function = {"name": "calculator", "arguments": {"expression": f"{before} {symbol} {number}"}}
        call = {"type": "function", "function": function}
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "calculator", "content": str(total)},
        ]
        before = str(total)
    return [*messages, {"role": "assistant", "content": answer}]
