# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from hypothesis import strategies as st
from support import cases
from support.fuzzing import covers
from support.registry import MethodSettings
from support.tiny import build_dataset, build_model, build_tokenizer
from trl import DatasetMixtureConfig, ModelConfig
from trl.scripts.grpo import GRPOScriptArguments

from trl_entropy import EntropyGRPOConfig
from trl_entropy.commands.arguments import StrictParser
from trl_entropy.methods import build_methods, prompt_augmentation
from trl_entropy.methods.prompt_augmentation import drawn
from trl_entropy.methods.prompt_templates import Template


METHOD_SETTINGS = {"prompt_augmentation": MethodSettings(batches=(256, 1024))}


def test_draws_depend_on_their_arguments_alone():
    digest = hashlib.blake2b(b"7 3 w1 w2", digest_size=8).digest()
    assert drawn(13, (7, 3), "w1 w2") == int.from_bytes(digest, "big") % 13
    assert drawn(13, (7, 3), [{"role": "user", "content": "w1 w2"}]) == drawn(13, (7, 3), "w1 w2")
    with_image = [
        {"role": "user", "content": [{"type": "image", "image": object()}, {"type": "text", "text": "w1 w2"}]}
    ]
    assert drawn(13, (7, 3), with_image) == drawn(13, (7, 3), "w1 w2")
    code = (
        "from trl_entropy.methods.prompt_augmentation import drawn; print([drawn(13, (7, s), 'a b') "
        "for s in range(9)])"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": "5", "PYTHONPATH": "."}
    )
    assert other.stdout.strip() == str([drawn(13, (7, s), "a b") for s in range(9)])


def test_draws_are_uniform():
    counts = Counter(drawn(13, (0, step), f"prompt {index}") for step in range(26) for index in range(100))
    chi_squared = sum((counts[k] - 200) ** 2 / 200 for k in range(13))
    assert chi_squared < 32.9  # exceeded by a uniform draw once in a thousand


def test_a_group_shares_its_template_and_evaluation_has_one():
    method = cases.build("prompt_augmentation", prompt_augmentation_eval="tags")
    rows = [{"prompt": f"p{index}", "level": index} for index in range(6) for _ in range(4)]
    found = method.prompts(rows, (0, 5), True)
    assert rows[0] == {"prompt": "p0", "level": 0} and all(
        row["level"] == index // 4 for index, row in enumerate(found)
    )
    names = [row["format_name"] for row in found]
    assert all(len(set(names[start : start + 4])) == 1 for start in range(0, 24, 4)) and len(set(names)) > 2
    halves = method.prompts(rows[:10], (0, 5), True) + method.prompts(
        rows[10:], (0, 5), True
    )  # as two processes would
    assert halves == found
    assert [row["format_name"] for row in method.prompts(rows, (0, 6), True)] != names
    assert {row["format_name"] for row in method.prompts(rows, (0, 5), False)} == {"tags"}


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(templates={}), "`prompt_augmentation_templates` must be a mapping of names to templates, got {}."),
        (
            dict(templates={"a": {"usr": "x"}}),
            "`prompt_augmentation_templates` entry 'a' must be a mapping of system, user, prefill, "
            "markers, got {'usr': 'x'}.",
        ),
        (
            dict(templates={"a": {"user": "x"}}),
            "`prompt_augmentation_templates` entry 'a' must have {prompt} in `user`, got 'x'.",
        ),
        (
            dict(templates={"a": {"markers": "x"}}),
            "`prompt_augmentation_templates` entry 'a' must hold texts, and a list of texts as `markers`, "
            "got {'markers': 'x'}.",
        ),
        (dict(templates={"a": {}}, eval="b"), "`prompt_augmentation_eval` must be one of the templates 'a', got 'b'."),
        (dict(format_weight=-1), "`prompt_augmentation_format_weight` must be a finite number >= 0, got -1."),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError) as error:
        cases.build("prompt_augmentation", **{f"prompt_augmentation_{key}": value for key, value in fields.items()})
    assert str(error.value) == message


OWN = {
    "even": {"user": "{prompt} w8", "markers": ["w3", "w4"]},
    "odd": {"system": "w9", "prefill": "w10", "markers": ["w3"]},
}


def test_training_with_templates_of_ones_own(make_trainer):
    """Rewards are for the formats, at half weight. The table shows the prompts that were completed."""
    trainer = make_trainer(
        methods=["prompt_augmentation", "empg"],
        prompt_augmentation_templates=OWN,
        steps_per_generation=8,
        prompt_augmentation_format_weight=0.5,
        max_steps=1,
        eval_dataset=build_dataset(4),
        per_device_eval_batch_size=4,
    )
    trainer.train()
    names, expected = [], []
    for prompt, completion in zip(trainer._logs["prompt"], trainer._logs["completion"], strict=True):
        name = "odd" if prompt.startswith("w9\n\n") else "even"
        assert prompt.endswith("\n\nw10") if name == "odd" else prompt.endswith(" w8")
        words = completion.split()
        markers = OWN[name]["markers"]
        text = " ".join(words)
        names.append(name)
        expected.append(0.5 * sum(text.count(marker) == 1 for marker in markers) / len(markers))
    assert list(trainer._logs["rewards"]["prompt_augmentation"]) == pytest.approx(expected)
    assert set(names) == {"even", "odd"} and len(set(expected)) > 1
    row = trainer.state.log_history[0]
    assert row["prompt_augmentation/share_odd"] == pytest.approx(names.count("odd") / len(names))
    assert row["prompt_augmentation/entropy_odd"] > 0 and row["prompt_augmentation/entropy_even"] > 0
    metrics = trainer.evaluate()
    assert metrics["eval_prompt_augmentation/share_even"] == 1


def test_templates_from_a_recipe(tmp_path):
    lines = (Path(__file__).parents[2] / "recipes" / "prompt_augmentation.yaml").read_text()
    own = {"prompt_augmentation_templates": OWN, "prompt_augmentation_eval": "odd"}
    (tmp_path / "recipe.yaml").write_text(lines + yaml.safe_dump(own))
    parser = StrictParser((GRPOScriptArguments, EntropyGRPOConfig, ModelConfig, DatasetMixtureConfig), prog="test")
    _, config, _, _ = parser.parse(["--config", str(tmp_path / "recipe.yaml"), "--use_cpu", "true", "--bf16", "false"])
    (method,) = build_methods(config)
    assert method.templates["odd"] == Template(system="w9", prefill="w10", markers=("w3",)) and method.fixed == "odd"


CHAT = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <eos> {% endfor %}{% if "
    "add_generation_prompt %}w20 {% endif %}"
)


def test_a_prefill_continues_the_turn_of_the_assistant(make_trainer, monkeypatch):
    from support import tiny

    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT
    monkeypatch.setattr(tiny, "build_tokenizer", lambda: tokenizer)
    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": "w1 w2"}]] * 4})
    trainer = make_trainer(
        methods=["prompt_augmentation"], prompt_augmentation_templates={"odd": OWN["odd"]}, train_dataset=dataset,
        model=build_model(),
    )  # fmt: skip
    seen = []
    trainer.reward_funcs[0] = lambda prompts, completions, **columns: seen.append((prompts, completions)) or [0.0] * 4
    output = trainer._generate_and_score_completions([dataset[0]] * 4)
    ((prompts, completions),) = seen  # rewards see whole turns
    assert all([message["role"] for message in prompt] == ["system", "user"] for prompt in prompts)
    assert all(message["content"].startswith("w10") for (message,) in completions)
    words = tokenizer.convert_ids_to_tokens(output["prompt_ids"][0])
    assert words[-2:] == ["w20", "w10"] and words.count("<eos>") == 2 and "w9" in words
    assert torch.equal(output["prompt_ids"][0], output["prompt_ids"][3])


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"prompt": [{"role": "user", "content": None}]},
            "needs a user message with text, got [{'role': 'user', 'content': None}].",
        ),
        (
            {"prompt": [{"role": "system", "content": "x"}]},
            "needs a user message with text, got [{'role': 'system', 'content': 'x'}].",
        ),
        (
            {"prompt": "x", "format_name": "y"},
            "adds a column `format_name`, but the dataset already has one: rename it.",
        ),
    ],
)
def test_rows_that_no_template_fits(row, message):
    with pytest.raises(ValueError) as error:
        cases.build("prompt_augmentation").prompts([row], (0, 0), True)
    assert str(error.value) == f"Method 'prompt_augmentation' {message}"


def test_a_message_that_calls_a_tool_has_no_text():
    calls = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": []},
        {"role": "user", "content": "b"},
    ]
    (row,) = cases.build("prompt_augmentation").prompts([{"prompt": calls}], (0, 0), True)
    assert len(row["prompt"]) >= 3


def test_what_a_tool_wrote_is_no_format():
    method = cases.build("prompt_augmentation", prompt_augmentation_templates={"a": {"markers": ["w5"]}})
    method.setup(build_tokenizer().decode)
    for kept, score in (([True, True, True], 0.0), ([True, False, True], 1.0), ([False, False, True], 0.0)):
        assert method.reward([[7, 7, 4]], [kept], ["a"])[0] == [score]


class Room:
    def reset(self, **columns):
        return "You are in a room."


def test_environments_write_prompts_themselves(make_trainer):
    with pytest.raises(ValueError, match="`methods` must not list 'prompt_augmentation' with `environment_factory`"):
        make_trainer(methods=["prompt_augmentation"], environment_factory=Room)


# Searched by test_fuzzing.py


TEXTS = st.text("w{} \n<think>/", max_size=12)


@covers(prompt_augmentation.drawn, prompt_augmentation.texts_of, prompt_augmentation.has_images)
def template_draws(draw):
    prompt = draw(TEXTS)
    conversation = [{"role": "user", "content": prompt}]
    assert prompt_augmentation.texts_of([{"type": "text", "text": prompt}, {"type": "image"}]) == [prompt]
    count, place = draw(st.integers(1, 20)), (draw(st.integers(0, 99)), draw(st.integers(0, 99)))
    assert not prompt_augmentation.has_images({"prompt": prompt})
    mixed = [*conversation, {"role": "user", "content": [{"type": "text", "text": prompt}, {"type": "image"}]}]
    assert prompt_augmentation.has_images({"prompt": mixed}) and not prompt_augmentation.has_images(
        {"prompt": mixed[:1]}
    )
    assert 0 <= prompt_augmentation.drawn(count, place, prompt) < count
    assert prompt_augmentation.drawn(count, place, prompt) == prompt_augmentation.drawn(count, place, conversation)
