# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Templates put a prompt into a format, and score completions by it."""

from collections import Counter

import pytest
from hypothesis import strategies as st
from support.fuzzing import covers

from trl_entropy.methods import prompt_templates
from trl_entropy.methods.prompt_templates import TEMPLATES, Template, read_template


LINED = "<think>\nx\n</think>\n<answer>\ny\n</answer>"
PLAIN = "<think>x</think><answer>y</answer>"


@pytest.mark.parametrize(
    "name, text, score",
    [
        ("lines", LINED, 1.0),
        ("lines", PLAIN, 0.0),
        ("tags", PLAIN, 1.0),
        ("tags", LINED, 1.0),
        ("tags", PLAIN + "<think>", 0.75),
        ("tags", "<think>x</think>", 0.5),
        ("tags_opened", "x</think><answer>y</answer>", 1.0),
        ("tags_opened", "x</think>y", 1 / 3),
        ("lines_opened", LINED.removeprefix("<think>\n"), 1.0),
        ("lines_opened", "x</think><answer>", 0.0),
        ("phrase", "So. The final answer is 3.", 1.0),
        ("phrase", "The final answer is 3. The final answer is 3.", 0.0),
        ("phrase", "3", 0.0),
        ("checked", "<solution>1</solution><check>\nLet me verify it.</check>", 1.0),
        ("checked", "<solution>1</solution><check>Fine</check>", 0.75),
        ("checked_opened", "1</solution><check>\nLet me verify it.</check>", 1.0),
        ("boxed", "anything", 1.0),
        ("boxed_opened", "", 1.0),
    ],
)
def test_format_scores(name, text, score):
    assert TEMPLATES[name].score(text) == pytest.approx(score)


def test_templates():
    """Thirteen templates. Five are free form. In four, the prefill contains one of the phrases."""
    assert len(TEMPLATES) == 13
    assert Counter(len(template.markers) for template in TEMPLATES.values()) == {0: 5, 1: 2, 3: 3, 4: 3}
    for name, template in TEMPLATES.items():
        text = template.apply("What is 1+1?")
        assert text.count("What is 1+1?") == 1 and "\\boxed{" in text and "{prompt}" not in text
        assert text.endswith(template.prefill) and name.endswith("_opened") == bool(template.prefill)
    assert len({template.apply("p") for template in TEMPLATES.values()}) == 13


def test_conversations():
    template = Template(system="S", user="Q: {prompt}!", prefill="O")
    prompt = [
        {"role": "system", "content": "old"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c {x}"},
    ]
    assert template.apply(prompt) == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "Q: c {x}!"},
        {"role": "assistant", "content": "O"},
    ]
    assert prompt[3]["content"] == "c {x}"
    blocks = [{"type": "image", "image": None}, {"type": "text", "text": "a"}]
    put = Template(user="Q: {prompt}").apply([{"role": "user", "content": blocks}])
    assert put == [{"role": "user", "content": [blocks[0], {"type": "text", "text": "Q: a"}]}]
    assert Template().apply(prompt) == prompt


def test_template_of_ones_own():
    assert read_template("own", {"system": "S", "markers": ["a"]}) == Template(system="S", markers=("a",))
    assert read_template("own", {}) == Template()


# Searched by test_fuzzing.py


TEXTS = st.text("w{} \n<think>/", max_size=12)


@covers(prompt_templates.read_template)
def templates(draw):
    fields = {"user": draw(TEXTS) + "{prompt}", "markers": draw(st.lists(TEXTS.filter(bool), max_size=3))}
    template = prompt_templates.read_template("own", fields)
    assert 0 <= template.score(draw(TEXTS)) <= 1
    prompt = draw(TEXTS)
    conversation = [{"role": "user", "content": prompt}]
    assert prompt in template.apply(prompt) and prompt in template.apply(conversation)[-1]["content"]
    assert conversation == [{"role": "user", "content": prompt}]
