# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The quickstart from its recipe to its table and plot, with a handful of steps of a smaller model."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from trl_entropy.commands.quickstart import CACHES, RECIPE, RECIPES, build_parser, config_for, main, run
from trl_entropy.commands.quickstart_common import BadRecipe, read_recipe
from trl_entropy.countdown import grpo
from trl_entropy.countdown.model import WarmStart, load_warm_start
from trl_entropy.countdown.report import COLUMNS, closing, table
from trl_entropy.countdown.task import TASKS
from trl_entropy.report.runs import read_runs
from trl_entropy.report.summary import named_methods


TINY = WarmStart(hidden_size=32, layers=1, steps=20, batch_size=32)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Arguments and results of one run of eight optimizer steps."""
    folder = tmp_path_factory.mktemp("quickstart")
    words = ["--steps=8", "--seed=3", f"--output={folder / 'out'}", f"--cache={folder / 'cache'}"]
    arguments = build_parser().parse_args([*words, "--set", "per_device_train_batch_size=32"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "EVALUATIONS", 2)
        return arguments, run(arguments, TINY)


def test_table_has_a_number_in_every_cell(quick):
    rows = quick[1]["rows"]
    assert list(rows) == ["before", "stock", "clip_cov"]
    for scores in rows.values():
        assert set(scores) == set(COLUMNS)
        assert all(math.isfinite(value) and value >= 0 for value in scores.values())
        assert 0 < scores["entropy"] < math.log(43)
    lines = table(rows).splitlines()
    assert lines[0].split() == list(COLUMNS)
    assert [line.split()[0] for line in lines[1:]] == ["before", "stock", "clip_cov"]
    assert {len(line.split()) for line in lines[1:]} == {1 + len(COLUMNS)}
    assert all(8 <= scores["length"] <= 23 for scores in rows.values())


def test_trajectories_begin_before_and_end_after_the_run(quick):
    rows, trajectories = quick[1]["rows"], quick[1]["trajectories"]
    for label in ("stock", "clip_cov"):
        first, middle, last = trajectories[label]
        assert [point["step"] for point in (first, middle, last)] == [0, 4, 8]
        assert all(first[key] == rows["before"][key] and last[key] == rows[label][key] for key in grpo.POINT)


def test_last_lines_compare_with_stock_at_equal_pass_at_1():
    row = {"entropy": 0.1, "pass@1": 0.3, "pass@16": 0.6}
    rows = {
        "before": {"entropy": 0.2, "pass@1": 0.1, "pass@16": 0.8},
        "stock": row,
        "clip_cov": {"entropy": 0.15, "pass@1": 0.2, "pass@16": 0.75},
        "epo": {"entropy": 0.15, "pass@1": 0.4, "pass@16": 0.5},
    }
    points = [{"pass@1": 0.1, "pass@16": 0.8}, {"pass@1": 0.3, "pass@16": 0.6}]
    found = closing(
        {"rows": rows, "history": {"stock": [], "clip_cov": [], "epo": []}, "trajectories": {"stock": points}}
    )
    assert found.splitlines() == [
        "stock: entropy 0.200 to 0.100, pass@1 0.100 to 0.300, pass@16 0.800 to 0.600.",
        "clip_cov: entropy 0.200 to 0.150, pass@1 0.100 to 0.200, pass@16 0.800 to 0.750 (+0.150 pass@16 against "
        "the end of stock, +0.050 where stock had this pass@1).",
        "epo: entropy 0.200 to 0.150, pass@1 0.100 to 0.400, pass@16 0.800 to 0.500 (-0.100 pass@16 against the end "
        "of stock, which never had this pass@1).",
    ]


def test_results_are_written(quick):
    arguments, results = quick
    assert json.loads((arguments.output / "results.json").read_text()) == results
    image = (arguments.output / "quickstart.png").read_bytes()
    assert image.startswith(b"\x89PNG") and 10_000 < len(image) < 120_000
    for label in ("stock", "clip_cov"):
        assert load_warm_start(arguments.output / label)[0].config.hidden_size == 32
    stock, method = read_runs([arguments.output / label for label in ("stock", "clip_cov")])
    assert stock.series("step", "entropy")[1] == [point["entropy"] for point in results["history"]["stock"]]
    assert (named_methods(stock), named_methods(method), method.steps) == ("none", "clip_cov", 8)


def test_the_method_ran_in_its_run_alone(quick):
    history = quick[1]["history"]
    assert [point["step"] for point in history["stock"]] == [4, 8]
    assert not any(key.startswith("clip_cov/") for key in history["stock"][0])
    kept = history["clip_cov"][0]["clip_cov/kept_fraction"]
    assert 0.98 - 1e-3 < kept <= 1
    # The first completions of both runs are those of the warm start, from the same seed.
    assert history["stock"][0]["reward"] == history["clip_cov"][0]["reward"]


@pytest.mark.slow
def test_a_task_with_attempts_and_several_methods(tmp_path):
    words = ["--task=attempts", "--compare", "pear", "canon", "--steps=4", f"--output={tmp_path / 'out'}"]
    words += [f"--cache={tmp_path / 'cache'}", "--set", "canon_metric=length", "--set", "canon_alpha=0.9"]
    arguments = build_parser().parse_args([*words, "--set", "per_device_train_batch_size=16"])
    results = run(arguments, replace(TINY, steps=5, task=TASKS["attempts"]))
    assert list(results["rows"]) == ["before", "stock", "pear", "canon"]
    assert all(7 < scores["length"] <= 39 for scores in results["rows"].values())
    (first,) = results["history"]["pear"]
    assert first["pear/think_entropy"] > 0 and not any(key.startswith("canon/") for key in first)
    assert results["history"]["canon"][0]["canon/mu"] == 1
    own = yaml.safe_load((tmp_path / "out" / "canon" / "recipe.yaml").read_text())
    assert own["methods"] == ["canon"] and (own["canon_metric"], own["canon_alpha"]) == ("length", 0.9)
    assert own["max_completion_length"] == TASKS["attempts"].completion_length


def test_each_task_has_a_recipe_and_a_cache_of_its_own():
    assert set(RECIPES) == set(CACHES) == set(TASKS)
    for name, task in TASKS.items():
        settings = read_recipe(RECIPES[name], {})
        assert settings["max_completion_length"] == task.completion_length
        assert Path(settings["model_name_or_path"]) == CACHES[name] / "model"
        assert Path(settings["dataset_name"]) == CACHES[name] / "data"


def test_settings_reach_the_trainer(tmp_path):
    settings = read_recipe(RECIPE, {"learning_rate": "3e-4"})
    config = config_for(settings, ["clip_cov"], tmp_path / "method")
    assert (config.learning_rate, config.clip_cov_ratio, config.methods) == (3e-4, 0.02, ["clip_cov"])
    assert (config.generation_batch_size, config.steps_per_generation, config.loss_type) == (512, 4, "dapo")
    stock = config_for(settings, [], tmp_path / "stock")
    assert stock.methods == [] and stock.clip_cov_ratio == 2e-4 and stock.output_dir == str(tmp_path / "stock")
    assert stock.bf16 is stock.gradient_checkpointing is False and stock.use_cpu


def test_each_run_leaves_a_recipe_of_its_own(quick):
    arguments = quick[0]
    recipe = yaml.safe_load((arguments.output / "stock" / "recipe.yaml").read_text())
    assert recipe["methods"] == [] and not any(key.startswith("clip_cov") for key in recipe)
    assert (recipe["seed"], recipe["max_steps"], recipe["per_device_train_batch_size"]) == (3, 8, 32)
    assert Path(recipe["model_name_or_path"], "model.safetensors").exists()
    assert Path(recipe["dataset_name"], "train.parquet").exists()
    assert recipe["reward_funcs"] == ["trl_entropy.countdown.countdown_reward"]


def test_each_model_has_a_card(quick):
    arguments, results = quick
    for label in ("stock", "clip_cov"):
        card = ModelCard.load(arguments.output / label / "README.md")
        measured = {
            entry.metric_type: entry.metric_value for entry in card.data.eval_results if entry.dataset_split == "test"
        }
        assert measured == pytest.approx({key: results["rows"][label][key] for key in measured}, rel=1e-5)
        assert {"pass@1", "pass@16", "entropy"} <= set(measured)
        recipe = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
        assert recipe["reward_funcs"] == ["trl_entropy.countdown.countdown_reward"]
        assert (recipe["seed"], recipe["max_steps"]) == (3, 8)
        assert ("clip_cov" in card.data.tags) == ("clip_cov_ratio" in recipe) == (label == "clip_cov")
        assert (arguments.output / label / "entropy.png").exists()
        assert str(arguments.output.parent) not in card.content


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "learning_rat=1"], "Unknown key `learning_rat` in .*: did you mean `learning_rate`"),
        (["--set", "clip_cov_share=1"], "Unknown key `clip_cov_share` in "),
        (["--steps", "3"], "max_steps=3 logs nothing: give at least logging_steps=4"),
        (["--set", "learning_rate"], "'learning_rate' is not name=value"),
        (["--compare", "clip_cow"], "invalid choice: 'clip_cow'"),
        (["--method", "clip_cov"], "trl-entropy quickstart: error: --method is now --compare\n"),
        (["--set", "a=["], r"argument --set: 'a=\[' is not name=value with a value in YAML: while parsing"),
        (["--set", "methods={a: b}"], "error: methods={'a': 'b'}: the quickstart compares stock GRPO with one method"),
        (["--set", "methods=3"], "error: methods=3: the quickstart compares"),
        (["--set", "methods=[]"], r"error: methods=\[\]: the quickstart compares"),
        (["--set", "methods=clip_cow"], "unknown name 'clip_cow'. Did you mean 'clip_cov'"),
        (
            ["--set", "reward_weights={a: b}"],
            "`reward_weights` in .* must be a list, each entry a number, got {'a': 'b'}",
        ),
        (["--config", "nothing.yaml"], "error: config='nothing.yaml' does not exist"),
        (["--config", "quickstrat"], "no recipe has this name. Did you mean 'quickstart'"),
    ],
)
def test_bad_settings_end_the_command(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*words, f"--output={tmp_path}"])
    assert re.search(message, capsys.readouterr().err)


def test_bad_recipes_are_named(tmp_path):
    with pytest.raises(BadRecipe, match="config='nothing.yaml' does not exist"):
        read_recipe(Path("nothing.yaml"), {})
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(BadRecipe, match="must hold a mapping of settings, got list"):
        read_recipe(tmp_path / "list.yaml", {})
    (tmp_path / "list.yaml").write_text("a: [")
    with pytest.raises(BadRecipe, match="is not valid YAML: while parsing a flow node"):
        read_recipe(tmp_path / "list.yaml", {})
