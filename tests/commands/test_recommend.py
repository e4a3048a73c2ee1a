# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy recommend`: a first choice, the numbers for a batch, and a recipe that passes `--dry_run`."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from accelerate import PartialState

from trl_entropy import METHODS, EntropyDistillationConfig, EntropyGRPOConfig, cli
from trl_entropy.advice.cases import CASES
from trl_entropy.advice.recommend import recommend, two_digits_up
from trl_entropy.commands.methods import known_to_advice
from trl_entropy.commands.recipes import names_in


FACTS, DEFAULTS = known_to_advice()
BASE = dict(
    model_name_or_path="some/model", dataset_name="some/data", reward_funcs=["accuracy_reward"], output_dir="out"
)
STUDENT = dict(model_name_or_path="a/b", teacher_model_name_or_path="a/c", dataset_name="a/d", output_dir="out")
SEVERAL = dict(steps_per_generation=4)


def found_for(task="math", **recipe):
    base = STUDENT if task == "distillation" else BASE
    return recommend(task, {**base, **recipe}, FACTS, DEFAULTS)


def printed(capsys, *words):
    capsys.readouterr()
    assert cli.main(["recommend", *words]) == 0
    return capsys.readouterr().out


# Numbers


@pytest.mark.parametrize(
    ("rows", "length", "ratio", "taken"),
    [
        (2, 700, 0.00072, 1),  # 1 / 1400 is 0.000714, rounded up to two digits
        (8, 256, 0.00049, 1),  # 1 / 2048
        (8, 512, 0.00025, 1),  # 1 / 4096
        (8, 1024, 0.0002, 1),  # 8192 tokens: the paper's 2e-4 takes 1.6
        (8, 16384, 0.0002, 26),
    ],
)
def test_ratio_for_a_micro_batch(rows, length, ratio, taken):
    found = found_for(per_device_train_batch_size=rows, max_completion_length=length, num_generations=2)
    assert found.choice.name == "`clip_cov`" and found.changed == {"methods": ["clip_cov"], "clip_cov_ratio": ratio}
    assert ratio * rows * length >= 1
    tokens = rows * length
    assert found.batch == [
        f"A micro-batch has at most {tokens} tokens, in {rows} completions of {length}.",
        f"`clip_cov_ratio` {ratio:g} takes {taken} of {tokens} tokens.",
        "A generation batch serves 1 optimizer step.",
    ]


def test_two_digits():
    assert [two_digits_up(value) for value in (0.5, 1.0, 1 / 1400, 1 / 2048, 7.63e-6, 0.00099)] == [
        *(0.5, 1.0, 0.00072, 0.00049, 7.7e-6, 0.00099)
    ]


def test_ratio_in_a_recipe_is_kept_if_it_acts_and_raised_if_not():
    small = dict(methods=["Clip-Cov"], max_completion_length=100, per_device_train_batch_size=4)
    assert found_for(**small, clip_cov_ratio=0.05).changed == {}
    found = found_for(**small, clip_cov_ratio="2e-4")  # which YAML reads as text
    assert found.in_place and found.changed == {"clip_cov_ratio": 0.0025}
    assert found.problems == [
        "`clip_cov_ratio` 0.0002 of at most 400 tokens (4 completions of `max_completion_length` 100) is 0.08, less "
        "than one token. Method 'clip_cov' takes one token all the same, whatever the ratio is. The smallest ratio "
        "that acts is 0.0025."
    ]


def test_what_to_watch_is_what_the_method_says_of_itself():
    assert found_for().watch == [
        "If `clip_cov/kept_fraction` stays at 1, lower `clip_cov_low`: no covariance lies between the two bounds."
    ]
    assert found_for(**SEVERAL).watch == []


def test_scope_world_counts_the_tokens_of_all_processes():
    batch = dict(
        methods=["clip_cov"], clip_cov_scope="world", per_device_train_batch_size=1, max_completion_length=500
    )
    assert found_for(**batch, num_processes=4).changed == {"clip_cov_ratio": 0.0005}  # 1 / 2000


def test_share_of_a_distillation():
    found = found_for("distillation", tip_ratio=0.25, max_completion_length=1001)
    assert found.in_place and found.changed == {"tip_divergence_clip_quantile": 0.98}
    assert found.batch[1] == "`tip_ratio` 0.25 keeps at most 250 tokens of each rollout."
    found = found_for("distillation", tip_rule="none")
    assert not found.in_place and found.changed == {"tip_rule": "soft_or", "tip_ratio": 0.5}
    found = found_for("distillation", tip_ratio=1)
    assert found.problems == ["`tip_rule` 'soft_or' does nothing, since `tip_ratio` 1 keeps all tokens."]
    assert found.changed == {"tip_rule": "soft_or", "tip_ratio": 0.5}


# The first choice


@pytest.mark.parametrize("task", ["math", "lora", "small_gpu", "cpu"])
def test_first_choice_against_collapse(task):
    """Clip-higher needs several updates, Clip-Cov several completions in a micro-batch."""
    assert found_for(task).choice.methods == ("clip_cov",)
    assert found_for(task, **SEVERAL).choice.settings == {"epsilon_high": 0.28}
    assert found_for(task, **SEVERAL, epsilon_high=0.3).choice.methods == ("clip_cov",)
    assert found_for(task, **SEVERAL, methods=["kl_cov"]).choice.methods == ("clip_cov",)  # which sets the clip itself
    assert found_for(task, **SEVERAL, loss_type="sapo").choice.methods == ("clip_cov",)
    assert found_for(task, num_iterations=2).choice.settings == {"epsilon_high": 0.28}
    assert found_for(task, per_device_train_batch_size=1).choice.methods == ("clip_b",)


def test_one_completion_on_each_of_several_processes():
    found = found_for(per_device_train_batch_size=1, num_processes=8, max_completion_length=1000)
    assert found.choice.methods == ("clip_cov",)
    assert found.changed == {"methods": ["clip_cov"], "clip_cov_scope": "world", "clip_cov_ratio": 0.0002}


def test_other_methods_make_room_with_their_fields():
    old = dict(methods=["epo", "m2po"], epo_coef=0.1, m2po_budget=0.1, siren_coef=0.2)
    found = found_for(**old, entropy_keep=0.7, entropy_keep_knob="epo_coef", learning_rate=1e-6)
    assert found.removed == ["entropy_keep_knob", "epo_coef", "m2po_budget", "siren_coef"]
    assert found.recipe == {**BASE, "entropy_keep": 0.7, "learning_rate": 1e-6, "methods": ["clip_cov"]}
    found = found_for("shorter", **old, entropy_keep=0.7)
    assert "entropy_keep" in found.removed and found.recipe == {**BASE, "methods": ["pear"]}
    assert "siren_coef" in found_for(**SEVERAL, siren_coef=0.2).removed  # also with a first choice that adds no method


def test_methods_that_do_nothing_go_if_the_first_choice_is_a_setting():
    found = found_for("cpu", methods=["epo", "siren"], epo_coef=0.0, **SEVERAL)
    assert not found.choice.methods and found.recipe["methods"] == ["siren"]
    assert "epo_coef" in found.removed and "epo_coef" not in found.recipe
    assert any("Method 'epo' does nothing" in problem for problem in found.problems)
    kept = found_for("cpu", methods=["epo"], epo_coef=0.1, **SEVERAL)
    assert kept.recipe["methods"] == ["epo"] and kept.recipe["epo_coef"] == 0.1 and "methods" not in kept.changed


def test_a_recipe_of_its_own_kind_keeps_what_it_sets():
    found = found_for("lora", lora_r=8)
    assert found.changed["use_peft"] is True and "lora_r" not in found.changed
    assert found.recipe["lora_r"] == 8 and found.recipe["lora_alpha"] == 64
    assert "lora_target_modules" not in found_for("lora", use_peft=True, kappa_mode="lora").changed
    assert not {"use_peft", "lora_r"} & found_for("small_gpu", use_peft=False).changed.keys()
    found = found_for("cpu", use_vllm=True, vllm_mode="colocate", bf16=True)
    assert found.removed == ["vllm_mode"] and found.changed.items() >= {"use_vllm": False, "bf16": False}.items()


def test_fields_that_a_method_needs():
    found = found_for("shorter", reward_funcs=["think_format_reward", "trl.rewards.accuracy_reward"])
    assert found.changed["pear_reward"] == "accuracy_reward"
    found = found_for("agents", importance_sampling_level="sequence")
    assert found.changed == {"methods": ["agentic_aepo"], "agentic_aepo_keep_gradient": False}


@pytest.mark.parametrize("task", CASES)
def test_recipe_of_a_case_has_its_first_choice(task):
    case = CASES[task]
    recipe = yaml.safe_load(names_in()[case.recipe].read_text())
    found = recommend(task, recipe, FACTS, DEFAULTS)
    assert found.in_place and found.changed == {} and found.removed == [] and found.problems == []
    assert found.recipe == recipe
    assert all(recipe.get(key) == value for key, value in case.suggests.items())
    assert all(recipe.get(key, False) == value for key, value in case.requires.items())


@pytest.mark.parametrize("task", CASES)
def test_the_last_choice_of_a_case_always_applies(task):
    assert CASES[task].choices[-1].applies(None)
    assert {name for choice in CASES[task].choices for name in choice.methods} <= METHODS.keys()


# What does nothing

INERT = [
    dict(methods=["kl_cov"]),
    dict(methods=["ce_gppo", "m2po"], use_vllm=True),
    dict(methods=["clip_cov"], per_device_train_batch_size=1, gradient_accumulation_steps=2),
    dict(methods=["clip_cov"], max_completion_length=16),
    dict(methods=["clip_v"], clip_v_max_ratio=1e-5, **SEVERAL),
    dict(methods=["epo"], epo_coef=0, siren_coef=0.5),
    dict(methods=["simko"], simko_mix=0.0, simko_penalty=1),
    dict(methods=["agentic_aepo"], agentic_aepo_coef=0, agentic_aepo_keep_gradient=False),
    dict(methods=["aepo"], aepo_target_entropy=0.5, aepo_mode="reweight", aepo_gain=0.0),
    dict(methods=["clip_cov"], scale_rewards="none", **SEVERAL),
    dict(methods=["erc"], generation_batch_size=8),
]


@pytest.mark.parametrize("recipe", INERT, ids=lambda recipe: "+".join(recipe["methods"]))
def test_problems_are_those_that_the_config_warns_of(recipe, caplog, tmp_path):
    PartialState()  # without which accelerate's loggers do not log
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=2, **recipe)
    warned = [record.getMessage().removeprefix("[RANK 0] ") for record in caplog.records]
    found = found_for(**recipe, num_generations=2).problems
    assert found and set(found) <= set(warned)


def test_clip_higher_without_a_ratio():
    assert found_for(epsilon_high=0.28).problems == [
        "`epsilon_high` 0.28 does nothing: each generation batch serves one optimizer step, so the ratio is 1 and "
        "nothing is clipped."
    ]
    assert found_for(epsilon_high=0.28, **SEVERAL).problems == []


def test_all_defaults_of_distillation_do_something(tmp_path):
    assert found_for("distillation").problems == []
    long = dict(tip_min_tokens=64, max_completion_length=64)
    config = EntropyDistillationConfig(str(tmp_path), use_cpu=True, bf16=False, **long)
    (problem,) = found_for("distillation", **long).problems
    assert "`tip_min_tokens` (64) is not below" in problem and config.tip_min_tokens == 64


# The output


BATCHES = [
    dict(per_device_train_batch_size=rows, max_completion_length=length, **more)
    for rows in (1, 2, 8, 64)
    for length in (64, 1000, 16384)
    for more in ({}, dict(gradient_accumulation_steps=8, steps_per_generation=16), dict(num_iterations=3))
]
OLD = [
    dict(methods=["kl_cov"], kl_cov_ratio=1e-4),
    dict(methods=["siren", "epo"], entropy_keep=0.7, entropy_keep_knob="siren_coef", entropy_keep_range=[0.1, 2.0]),
    dict(methods=["entropic"], entropic_target=0.5, reward_funcs=["think_format_reward", "accuracy_reward"]),
    dict(methods=["clip_cov"], clip_cov_ratio="2e-4", importance_sampling_level="sequence", **SEVERAL),
    dict(methods=[], entropy_keep=0.7, kappa_mode="lora", use_peft=True),
]


@pytest.mark.parametrize("task", CASES)
def test_recipe_passes_the_dry_run(task, tmp_path, monkeypatch, capsys):
    """For all cases, many batches and recipes with other methods. Nothing that is printed does nothing."""
    monkeypatch.chdir(tmp_path)
    base = {**(STUDENT if task == "distillation" else BASE), "num_generations": 2}
    if task == "distillation":
        del base["num_generations"]
    keys = {"steps_per_generation", "num_iterations"} if task == "distillation" else set()
    recipes = [*BATCHES, *(OLD if task != "distillation" else [dict(tip_rule="none"), dict(tip_ratio=0.1)])]
    command = ["distillation" if task == "distillation" else "grpo", "--config", "new.yaml", "--dry_run"]
    for recipe in recipes:
        mine = {**base, **{key: value for key, value in recipe.items() if key not in keys}}
        Path("mine.yaml").write_text(yaml.safe_dump(mine))
        Path("new.yaml").write_text(printed(capsys, "--task", task, "--config", "mine.yaml"))
        assert cli.main(command + ["--num_processes", "2"]) == 0, mine
        new = yaml.safe_load(Path("new.yaml").read_text())
        again = recommend(task, new, FACTS, DEFAULTS)
        assert again.problems == [] and (again.changed == {} or "epsilon_high" in again.recipe), mine


@pytest.mark.parametrize("task", CASES)
def test_without_a_recipe_it_prints_that_of_the_case(task, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = printed(capsys, "--task", task)
    assert text.startswith(f"# Task {task}: {CASES[task].title}. First choice: ")
    assert yaml.safe_load(text) == yaml.safe_load(names_in()[CASES[task].recipe].read_text())
    assert max(len(line) for line in text.splitlines() if line.startswith("#")) <= 110
    Path("new.yaml").write_text(text)
    assert cli.main([CASES[task].command, "--config", "new.yaml", "--dry_run"]) == 0


@pytest.mark.parametrize(
    ("keys", "task"),
    [
        (dict(teacher_model_name_or_path="x", use_peft=True), "distillation"),
        (dict(tools=["calculator"], use_cpu=True), "agents"),
        (dict(use_cpu=True, use_peft=True), "cpu"),
        (dict(use_peft=True), "lora"),
        (dict(use_peft=False), "math"),
    ],
)
def test_task_of_a_recipe(keys, task, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump({**BASE, **keys}))
    assert json.loads(printed(capsys, "--config", "mine.yaml", "--json"))["task"] == task


def test_json_has_all_that_the_text_has(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mine = {**BASE, "methods": ["kl_cov"], "kl_cov_coef": 0.5}
    Path("mine.yaml").write_text(yaml.safe_dump(mine))
    text = printed(capsys, "--config", "mine.yaml")
    found = json.loads(printed(capsys, "--config", "mine.yaml", "--json"))
    assert found["first"]["choice"] == "clip_cov" and not found["first"]["in_place"]
    assert found["based_on"] == "mine.yaml" and found["command"] == "grpo" and found["removed"] == ["kl_cov_coef"]
    assert found["recipe"] == yaml.safe_load(text)
    flat = " ".join(text.replace("\n#", "").split())
    shown = (
        [found["first"][key] for key in ("why", "evidence", "cost")]
        + found["batch"]
        + found["watch"]
        + found["does_nothing"]
    )
    assert all(" ".join(part.rstrip(".").split()) in flat for part in shown)
    assert "which mine.yaml does not have" in flat and "Removed: kl_cov_coef" in flat


def test_it_starts_without_torch():
    """In less than a second; the limit here leaves room for a busy machine."""
    code = "import sys; from trl_entropy.cli import main; main(['recommend']); print('torch' in sys.modules)"
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False" and time.perf_counter() - begin < 3


@pytest.mark.parametrize(
    ("task", "recipe", "message"),
    [
        ("math", dict(methods=["clip_cof"]), "`methods` has the unknown name 'clip_cof'. Did you mean 'clip_cov'?"),
        ("math", dict(per_device_train_batch_size=0), "`per_device_train_batch_size` must be an integer >= 1, got 0."),
        ("math", dict(num_iterations="two"), "`num_iterations` must be an integer >= 1, got 'two'."),
        ("math", dict(max_completion_length=1.5), "`max_completion_length` must be an integer >= 1, got 1.5."),
        ("math", dict(epsilon=[1]), "`epsilon` must be a number >= 0, got [1]."),
        ("math", dict(num_processes="all"), "`num_processes` must be an integer >= 1, got 'all'."),
        ("distillation", BASE, "`teacher_model_name_or_path` must be set with task 'distillation', which distills"),
        ("cpu", STUDENT, "The task must be 'distillation' for a recipe with `teacher_model_name_or_path`, got 'cpu'."),
        ("lora", dict(kappa_mode="freeze"), "`kappa_mode` must be 'none' or 'lora' with task 'lora', got 'freeze'."),
    ],
)
def test_a_wrong_recipe_is_one_line(task, recipe, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["recommend", "--config", "mine.yaml", "--task", task])
    error = capsys.readouterr().err
    assert error.startswith(f"trl-entropy recommend: error: {message}") and error.count("\n") == 1


def test_an_unknown_recipe_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["recommend", "--config", "clip_cof"])
    assert "Did you mean 'clip_cov'? Recipes: " in capsys.readouterr().err
