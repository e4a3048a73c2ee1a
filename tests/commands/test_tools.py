# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tools by name, the calculator, and that `trl-entropy grpo` hands them to the trainer."""

from types import SimpleNamespace

import pytest
from transformers.utils import get_json_schema

from trl_entropy.commands import grpo
from trl_entropy.commands.rewards import imported
from trl_entropy.commands.script_arguments import AgentScriptArguments
from trl_entropy.commands.tools import TOOLS, tool_by_name
from trl_entropy.rewards import answer_line_accuracy_reward
from trl_entropy.tools import calculator


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("(3 + 4) * 12", "84"),
        (" 10 / 4 ", "2.5"),
        ("1 / 3", "0.333333333333"),
        ("123456789 * 987654321", "121932631112635269"),
        ("-7 // 2 + 7 % 4 - +1", "-2"),
        ("1 / 0", "Error: division by zero"),
        ("2 ** 9999999", "Error: only numbers, parentheses and + - * / // % are known"),
        ("__import__('os')", "Error: only numbers, parentheses and + - * / // % are known"),
        ("True + 1", "Error: only numbers, parentheses and + - * / // % are known"),
        ("1 +" * 100, "Error: an expression has at most 200 characters"),
    ],
)
def test_calculator(expression, result):
    assert calculator(expression) == result


@pytest.mark.parametrize("expression", ["", "1 +", "x", None, "(" * 150])
def test_calculator_says_what_is_wrong(expression):
    assert calculator(expression).startswith("Error: ")


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_tools_have_a_schema(tool):
    """As the chat template reads it: a description, and one of each argument."""
    schema = get_json_schema(tool)["function"]
    assert schema["description"] and all(about["description"] for about in schema["parameters"]["properties"].values())


def test_tool_by_name():
    assert tool_by_name("calculator") is calculator
    assert tool_by_name("trl_entropy.tools.calculator") is calculator


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "calculater",
            "`tools` has the unknown name 'calculater'. Did you mean 'calculator'? Known: calculator, or a",
        ),
        ("no.such", "`tools` has 'no.such', which cannot be imported: No module named 'no'."),
        (
            "trl_entropy.tools.LONGEST",
            "`tools` must name functions or classes, got 'trl_entropy.tools.LONGEST', which",
        ),
    ],
)
def test_unknown_tools(name, message):
    with pytest.raises(ValueError) as error:
        tool_by_name(name)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("given", "expected"), [(["calculator"], [calculator]), (None, None)])
def test_the_trainer_gets_them(monkeypatch, given, expected):
    built = {}
    monkeypatch.setattr(grpo, "EntropyGRPOTrainer", lambda **arguments: built.update(arguments))
    for name in ("check_processes", "train_and_save", "model_kwargs", "get_peft_config", "get_quantization_config"):
        monkeypatch.setattr(grpo, name, lambda *arguments: None)
    monkeypatch.setattr(grpo, "load_splits", lambda *arguments: ([{"prompt": "1 + 1?"}], None))
    script = AgentScriptArguments(dataset_name="x", reward_funcs=["accuracy_reward"], tools=given)
    model = SimpleNamespace(model_name_or_path="m", model_revision="main")
    grpo.train(grpo_parser(), script, SimpleNamespace(model_init_kwargs=None), model, None)
    assert built["tools"] == expected and built["model"] == "m"


def grpo_parser():
    from trl_entropy.commands.parser import CommandParser

    return CommandParser()


def test_the_last_message_of_an_agent_is_scored():
    said = {"role": "assistant", "content": "Answer: 3"}
    result = {"role": "tool", "name": "calculator", "content": "18"}
    completions = [[said, result, {"role": "assistant", "content": "So.\nAnswer: 18"}], [said, result]]
    assert answer_line_accuracy_reward(completions, solution=[r"\boxed{18}"] * 2)[0] == 1.0


def test_environments_are_given_by_dotted_path():
    assert imported("trl_entropy.tools.calculator", "environment_factory") is calculator
    with pytest.raises(ValueError, match="`environment_factory` must have dotted paths, got 'calculator'"):
        imported("calculator", "environment_factory")
