# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`--dry_run` checks a recipe on any machine, all errors show at once, recipes of other commands are recognized."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import transformers
import yaml

from trl_entropy import METHODS, cli
from trl_entropy.commands import data, launch
from trl_entropy.commands.grpo import KINDS
from trl_entropy.commands.help import our_fields
from trl_entropy.commands.recipes import names_in


ROOT = Path(__file__).parents[2]
COMMANDS = {"tip": "distillation"}  # of recipes for another command than `grpo`
RECIPES = [name for name in names_in() if name != "kappa_sft" and not name.startswith("quickstart")]
GOOD = dict(
    model_name_or_path="some/model",
    dataset_name="some/data",
    reward_funcs=["accuracy_reward"],
    methods=["clip-cov", "Steer"],
    output_dir="out",
    bf16=True,
)


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """`call(command, *flags, key=value, ...)` with a recipe of these keys -> (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(launch, "launch_command", lambda arguments: pytest.fail("started processes"))
    monkeypatch.setattr(data, "load_dataset", lambda *_, **__: pytest.fail("loaded data"))
    monkeypatch.setattr(
        transformers.PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded a model")
    )

    def call(command, *flags, **keys):
        Path("recipe.yaml").write_text(yaml.safe_dump({**GOOD, **keys}))
        words = flags if "--config" in flags else ("--config", "recipe.yaml", *flags)
        try:
            status = cli.main([command, *words])
        except SystemExit as stop:
            status = stop.code
        return status, *capfd.readouterr()

    return call


def test_dry_run_says_what_would_run(call):
    status, out, _ = call("grpo", "--dry_run", "--num_processes", "2", max_steps=5, kappa_mode="freeze")
    assert status == 0 and out == (
        "trl-entropy grpo: would run methods clip_cov, steer, kappa freeze, model some/model, dataset some/data, "
        "5 steps, 2 processes, output in out.\n"
    )
    assert not Path("out").exists()


def test_processes_are_counted_as_the_launch_would(call):
    """Two completions fit two processes of one completion each, and not one process."""
    small = dict(per_device_train_batch_size=1, steps_per_generation=1, num_generations=2)
    status, out, _ = call("grpo", "--dry-run", "--accelerate_config", "cpu_two_processes", **small)
    assert status == 0 and "2 processes" in out
    status, _, error = call("grpo", "--dry-run", **small)
    assert status == 2 and "generation" in error


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_passes(call, name):
    command = COMMANDS.get(name, "grpo")
    status, out, error = call(command, "--config", name, "--dry_run")
    assert (status, error) == (0, "") and out.startswith(f"trl-entropy {command}: would run ")


@pytest.mark.parametrize(
    ("keys", "messages"),
    [
        (
            dict(foo=1, max_steps="many", clip_cov_ratio=2.0, reward_funcs=["acuracy_reward"]),
            ["Unknown key `foo` in", "`max_steps` in", "`reward_funcs` has the unknown", "`clip_cov_ratio` must be"],
        ),
        (
            dict(methods=["clip_cof", "canom"], dataset_name="a b", model_name_or_path="./none"),
            ["`model_name_or_path` must be", "a b", "the unknown name 'clip_cof'", "the unknown name 'canom'"],
        ),
        (
            dict(kappa_mode="lora", kappa_top_p=2.0, num_generations=1),
            ["`kappa_top_p` must be", "`use_peft` must be true", "`num_generations` must be an integer >= 2, got 1."],
        ),
        (dict(reward_funcs=["no.such"], fused_head=False, methods=["siren"]), ["which cannot", "`fused_head` must"]),
    ],
)
@pytest.mark.parametrize("flags", [["--dry_run"], []], ids=["dry", "parse"])
def test_all_errors_at_once_in_this_order(call, keys, messages, flags, monkeypatch):
    if not flags:
        monkeypatch.setattr(cli, "main", lambda words: cli_main(words, launch=False))
    status, out, error = call("grpo", *flags, **keys)
    assert status == 2 and out.count("would run") == 0
    last = error.splitlines()[-1]
    places = [last.find(message) for message in messages]
    assert -1 not in places and places == sorted(places), last


cli_main = cli.main


def test_error_of_transformers_comes_last_and_nothing_after_warnings(tmp_path):
    """In a process of its own, as a user sees it on a machine without accelerator."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**GOOD, "clip_cov_ratio": 2.0, "epsilon": 0.1}))
    command = [sys.executable, "-m", "trl_entropy.cli", "grpo", "--config", str(tmp_path / "recipe.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Warning" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("trl-entropy grpo: error: `clip_cov_ratio` must be")
    assert last.index("clip_cov_ratio") < last.index("bf16")


@pytest.mark.parametrize(
    ("command", "recipe", "right"),
    [
        ("grpo", "tip", "`trl-entropy distillation`"),
        ("grpo", "kappa_sft", "`accelerate launch recipes/kappa_sft.py`"),
        ("distillation", "clip_cov", "`trl-entropy grpo`"),
    ],
)
def test_recipe_of_another_command(call, command, recipe, right):
    status, _, error = call(command, "--config", recipe)
    assert status == 2 and f"{recipe}.yaml is a recipe for {right}, which has the fields `" in error
    assert error.splitlines()[-1].endswith(f"This is trl-entropy {command}.")


def test_misspelled_keys_are_no_recipe_of_another_command(call):
    _, _, error = call("grpo", tip_ration=0.5, teacher_model_name_or_path="x")
    assert "Unknown key `tip_ration`" in error and "is a recipe for" not in error


def flags(text):
    """The flags that a help describes, by the names that begin its lines."""
    return set(re.findall(r"^  --([\w-]+)", text, flags=re.MULTILINE))


def test_help_shows_our_fields_first_and_help_all_the_rest(call):
    status, out, _ = call("grpo", "--help")
    assert status == 0 and out.startswith("usage: trl-entropy grpo --config FILE")
    places = [out.index(title) for title in ("\nentropy:", "\nclip_cov: ", "\nsteer: ", "\nkappa (")]
    assert places == sorted(places)
    ours, all_fields = set(our_fields(KINDS)), {field.name for kind in KINDS for field in fields(kind) if field.init}
    theirs = all_fields - ours
    assert flags(out) == ours
    assert {"methods", "fused_head", "kappa_mode"} < set(our_fields(KINDS))
    for name, method in METHODS.items():
        assert f"\n{name}: {method.summary}" in out or not method.config.__dataclass_fields__
    status, whole, _ = call("grpo", "--help-all")
    assert status == 0 and whole.startswith("usage: trl-entropy grpo [-h] [--")
    assert {flag for flag in flags(whole) if not flag.startswith("no_")} == ours | theirs | {"help-all"}
    assert {"learning_rate", "num_generations", "model_name_or_path", "dataset_name", "lora_r", "beta"} <= theirs


def test_no_command_says_what_is_missing(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    error = capsys.readouterr().err
    assert error.startswith("trl-entropy: error: a command is missing: one of grpo, distillation, kappa, ")
    assert error.count("\n") == 1 and all(name in error for name in cli.COMMANDS)


def test_a_method_that_needs_tools(call):
    status, _, error = call("grpo", "--dry_run", methods=["spear"])
    assert status == 2 and "`spear_tools_only` must be false without `tools`" in error
    status, out, _ = call("grpo", "--dry_run", methods=["spear"], spear_tools_only=False)
    assert status == 0 and "methods spear" in out
