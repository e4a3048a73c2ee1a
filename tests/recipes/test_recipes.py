# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Each recipe parses, has no setting without effect, and begins with its paper and its launch command."""

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from support.registry import settings_of
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

from trl_entropy import METHODS, EntropyDistillationConfig
from trl_entropy.commands.arguments import StrictParser
from trl_entropy.commands.grpo import KINDS as GRPO_KINDS
from trl_entropy.commands.rewards import reward_by_name
from trl_entropy.commands.tools import tool_by_name
from trl_entropy.kappa.config import KappaTune
from trl_entropy.methods.tip import Tip


ROOT = Path(__file__).parents[2]
EXPERIMENTS = ("benchmarks", "real_model")  # scripts with plans of their own
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name not in EXPERIMENTS)
ACCELERATE = [path for path in RECIPES if path.parent.name == "accelerate"]
DISTILLATION = [path for path in RECIPES if "teacher_model_name_or_path:" in path.read_text()]
SFT = ROOT / "recipes" / "kappa_sft.yaml"
TRAINING = [path for path in RECIPES if path not in (*ACCELERATE, *DISTILLATION, SFT)]
PUBLISHED = [path for path in TRAINING if path.stem in METHODS]
GPUS = 8
RUN = ("logging_steps", "save_steps", "seed")  # change nothing about the method
BATCHES = {name: settings_of(name).batches for name in METHODS if settings_of(name).batches}


DISTILLATION_KINDS = (ScriptArguments, EntropyDistillationConfig, ModelConfig, DatasetMixtureConfig)


def parse(path):
    parser = StrictParser(DISTILLATION_KINDS if path in DISTILLATION else GRPO_KINDS, prog="test")
    return parser.parse(["--config", str(path), "--use_cpu", "true", "--bf16", "false"])


def header(path):
    """The comments with which a file begins."""
    return re.match(r"(?:#.*\n|\n)*", path.read_text())[0]


def test_recipes_are_found():
    assert {path.stem for path in PUBLISHED} == set(METHODS) >= set(BATCHES)
    assert ACCELERATE and len(RECIPES) == len(ACCELERATE) + len(TRAINING) + len(DISTILLATION) + 1
    assert "tip" in [path.stem for path in DISTILLATION]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_recipe_parses_without_a_setting_that_does_nothing(path):
    script_args, training_args, model_args, dataset_args = parse(path)
    assert model_args.model_name_or_path and bool(script_args.dataset_name) != bool(dataset_args.datasets)
    assert training_args.methods or training_args.kappa_mode != "none"
    assert all(callable(reward_by_name(name)) for name in script_args.reward_funcs)
    assert all(tool_by_name(name).__doc__ for name in script_args.tools or [])
    assert training_args._idle_warnings() == []
    assert training_args._inert_warnings([METHODS[name](training_args) for name in training_args.methods]) == []


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_recipe_opens_with_its_launch_command(path):
    assert f"trl-entropy grpo --config {path.stem}" in header(path)
    assert "What to expect:" in header(path)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_recipe_of_a_method_cites_its_paper_and_every_number(path):
    method = METHODS[path.stem]
    _, training_args, _, _ = parse(path)
    assert training_args.methods == [method.name]
    assert method.paper.title in header(path) and method.paper.url in header(path)
    launch = f"accelerate launch --num_processes {GPUS} -m trl_entropy.cli grpo --config {path.stem}\n"
    assert launch in header(path)
    assert numbers_without_source(path) == []


def numbers_without_source(path):
    lines = {line.split(":")[0]: line for line in path.read_text().splitlines()}
    numbers = [
        key
        for key, value in yaml.safe_load(path.read_text()).items()
        if type(value) in (int, float) and key not in RUN
    ]
    assert len(numbers) > 10
    return [key for key in numbers if "  # " not in lines[key]]


def test_recipe_of_a_script():
    """`test_cli.py` runs it."""
    for script in ("recipes/kappa_sft.py", "-m trl_entropy.recipes.kappa_sft"):
        assert f"accelerate launch --num_processes {GPUS} {script} --config kappa_sft\n" in header(SFT)
    assert "What to expect:" in header(SFT) and KappaTune.paper.url in header(SFT)


@pytest.mark.parametrize("path", DISTILLATION, ids=lambda path: path.stem)
def test_recipe_of_distillation(path):
    script_args, training_args, model_args, dataset_args = parse(path)
    assert model_args.model_name_or_path and training_args.teacher_model_name_or_path
    assert bool(script_args.dataset_name) != bool(dataset_args.datasets)
    assert training_args._inert_warnings(Tip(training_args)) == []
    assert f"trl-entropy distillation --config {path.stem}" in header(path)
    assert "What to expect:" in header(path)
    if path.stem == Tip.name:  # the others are of tasks of our own
        assert Tip.paper.title in header(path) and Tip.paper.url in header(path)
        assert numbers_without_source(path) == []


def test_batch_of_tip_is_that_of_the_paper():
    _, args, _, _ = parse(ROOT / "recipes" / "tip.yaml")
    assert GPUS * args.per_device_train_batch_size * args.gradient_accumulation_steps == 8
    # and so is what its scores are normalized over
    assert args.tip_scope == "world" and args.gradient_accumulation_steps == 1


@pytest.mark.parametrize("name", BATCHES)
def test_batches_are_those_of_the_authors(name):
    _, args, _, _ = parse(ROOT / "recipes" / f"{name}.yaml")
    update, generation = BATCHES[name]
    assert GPUS * args.per_device_train_batch_size * args.gradient_accumulation_steps == update
    assert GPUS * args.per_device_train_batch_size * args.steps_per_generation == generation
    assert generation % args.num_generations == 0
    if METHODS[name].acts_on_ratio:
        assert generation > update


def preset_of(path):
    """The settings in the header that repeat the authors' code: none if the authors released none."""
    return dict(re.findall(r"^#   ([a-z0-9_]+): ([^\s#]+)", header(path), flags=re.MULTILINE))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_recipe_that_cites_code_has_a_preset_of_it(path):
    named = any(key.startswith(f"{path.stem}_") for key in preset_of(path))
    assert named or ("[code]" not in path.read_text() and not preset_of(path))


@pytest.mark.parametrize("path", [path for path in PUBLISHED if preset_of(path)], ids=lambda path: path.stem)
def test_parity_preset_parses(path, tmp_path):
    """The settings in the comment that repeats the released code."""
    preset = preset_of(path)
    recipe = yaml.safe_load(path.read_text()) | {key: yaml.safe_load(value) for key, value in preset.items()}
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(recipe))
    _, training_args, _, _ = parse(tmp_path / "preset.yaml")
    assert training_args._idle_warnings() == []
    for key, value in preset.items():
        assert getattr(training_args, key) == yaml.safe_load(value)


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_config_loads_and_opens_with_its_launch_command(path):
    config = load_config_from_file(str(path))
    assert config.num_processes > 1 and config.num_machines == 1
    assert f"--accelerate_config {path.stem}" in header(path)
    if path.stem.startswith("cpu_"):
        assert config.use_cpu is True and config.mixed_precision == "no"
        assert config.distributed_type == "MULTI_GPU"  # what starts several processes; test_cli.py runs it
