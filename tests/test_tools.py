# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The calculator for recipes of agents, and tools by dotted path."""

import pytest
from transformers.utils import get_json_schema

from trl_entropy.commands.rewards import imported
from trl_entropy.rewards import answer_line_accuracy_reward
from trl_entropy.tools import calculator


@pytest.mark.parametrize(
    "expression, value",
    [
        ("(3 + 4) * 2 ** 5", "224"), ("-7 // 2", "-4"), ("7 % 4 - +1", "2"), (" 1 / 8 ", "0.125"),
        ("1e3 * 2", "2000.0"), ("2 ** -1", "0.5"), ("2 ** 900 // 2 ** 899", "2"),
    ],
)  # fmt: skip
def test_values(expression, value):
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression, reason",
    [
        ("__import__('os')", 'only arithmetic with numbers can be computed, got "__import__'),
        ("x + 1", "only arithmetic with numbers can be computed, got 'x'"),
        ("'a' * 3", "only arithmetic"),
        ("True + 1", "only arithmetic"),
        ("1 << 3", "only arithmetic"),
        ("9 ** 9 ** 9", r"a power must have at most 1000 bits, got 9 \*\* 387420489"),
        ("1" * 201, "must have at most 200 characters, got 201"),
    ],
)
def test_all_else_is_refused(expression, reason):
    with pytest.raises(ValueError, match=reason):
        calculator(expression)
    with pytest.raises(SyntaxError):
        calculator("1 +")


def test_the_model_is_told_how_to_call_it():
    schema = get_json_schema(calculator)["function"]
    assert schema["parameters"]["required"] == ["expression"] and "parentheses" in str(schema["parameters"])


@pytest.mark.parametrize(
    "name, reason",
    [
        ("calculator", "`tools` must have dotted paths, such as `trl_entropy.tools.calculator`, got 'calculator'"),
        ("trl_entropy.tools.abacus", "`tools` has 'trl_entropy.tools.abacus', which cannot be imported: module"),
        ("no_such_module.calculator", "which cannot be imported: No module named 'no_such_module'"),
        (
            "trl_entropy.tools.LONGEST",
            "`tools` must name functions or classes, got 'trl_entropy.tools.LONGEST', which",
        ),
    ],
)
def test_wrong_paths(name, reason):
    with pytest.raises(ValueError, match=reason):
        imported("tools", name)
    assert imported("tools", "trl_entropy.tools.calculator") is calculator


def test_the_last_message_of_an_agent_is_scored():
    said = {"role": "assistant", "content": "Answer: 3"}
    result = {"role": "tool", "name": "calculator", "content": "18"}
    completions = [[said, result, {"role": "assistant", "content": "So.\nAnswer: 18"}], [said, result]]
    assert answer_line_accuracy_reward(completions, solution=[r"\boxed{18}"] * 2)[0] == 1.0
