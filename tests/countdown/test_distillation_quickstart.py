# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The quickstart for distillation from its recipe to its table and plot, with a handful of steps of smaller models."""

import json
import math
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from trl_entropy.commands import quickstart_distillation
from trl_entropy.commands.quickstart_common import read_recipe
from trl_entropy.commands.quickstart_distillation import RECIPE, build_parser, config_for, main, run, selection
from trl_entropy.countdown import distillation
from trl_entropy.countdown.distillation import Selection
from trl_entropy.countdown.model import WarmStart, load_warm_start
from trl_entropy.countdown.report import DISTILLATION_COLUMNS as COLUMNS
from trl_entropy.countdown.report import divergence, table
from trl_entropy.countdown.task import countdown_dataset, prompts
from trl_entropy.methods.tip import Tip
from trl_entropy.report.runs import read_runs
from trl_entropy.report.summary import named_methods


STARTS = {
    "student": WarmStart(hidden_size=32, layers=1, steps=5, batch_size=16),
    "teacher": WarmStart(hidden_size=48, layers=1, steps=15, batch_size=16),
}
RUNS = ["all", "soft_or 50%", "soft_or 20%", "random 50%"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Arguments and results of four runs of two optimizer steps, judged on a few of the held-out prompts."""
    folder = tmp_path_factory.mktemp("distillation")
    words = ["--steps=2", "--seed=3", "--add=random:0.5", f"--output={folder / 'out'}", f"--cache={folder / 'cache'}"]
    words += ["--set", "per_device_train_batch_size=8", "--set", "logging_steps=1"]
    arguments = build_parser().parse_args(words)
    with pytest.MonkeyPatch.context() as patch:
        for module in (quickstart_distillation, distillation):
            patch.setattr(module, "prompts", lambda held_out: prompts(held_out)[:12])
        patch.setattr(distillation, "countdown_dataset", lambda **part: countdown_dataset(**part).take(12))
        return arguments, run(arguments, STARTS)


def test_table_has_a_number_in_every_cell_of_a_run(quick):
    rows = quick[1]["rows"]
    assert list(rows) == ["student", "teacher", *RUNS]
    assert all(set(rows[label]) >= set(COLUMNS) for label in RUNS)
    assert all(math.isfinite(value) and value >= 0 for scores in rows.values() for value in scores.values())
    lines = table(rows, COLUMNS).splitlines()
    assert lines[0].split() == list(COLUMNS) and len({len(line) for line in lines}) == 1
    assert lines[1].split()[:2] == ["student", "-"] and lines[3].split()[0] == "all"
    assert lines[3].split()[1] == f"{rows['all']['divergence']:.3f}"


def test_the_report_tells_runs_apart(quick):
    runs = read_runs([quick[0].output / label for label in ("all", "soft_or-50")])
    assert [named_methods(run) for run in runs] == ["none", "tip"]


def test_each_run_has_a_card(quick):
    arguments, results = quick
    card = ModelCard.load(arguments.output / "soft_or-50" / "README.md")
    found = {
        entry.metric_type: entry.metric_value for entry in card.data.eval_results if entry.dataset_split == "test"
    }
    assert found == pytest.approx({key: results["rows"]["soft_or 50%"][key] for key in found}, rel=1e-5)
    assert {"divergence", "pass@1"} <= set(found) and "seconds" not in found and "tip" in card.data.tags
    assert Tip.paper.bibtex in card.text and str(arguments.output.parent) not in card.content
    other = ModelCard.load(arguments.output / "all" / "README.md")
    assert "tip" not in other.data.tags and Tip.paper.arxiv not in other.text


def test_results_are_written(quick):
    arguments, results = quick
    assert json.loads((arguments.output / "results.json").read_text()) == results
    image = (arguments.output / "quickstart.png").read_bytes()
    assert image.startswith(b"\x89PNG") and 10_000 < len(image) < 120_000
    for folder in ("all", "soft_or-50", "soft_or-20", "random-50"):
        assert load_warm_start(arguments.output / folder)[0].config.hidden_size == 32
        assert (arguments.output / folder / "trainer_state.json").exists()


def test_each_run_kept_its_share(quick):
    """Completions have at most 23 tokens, so rounding down removes up to one token of each."""
    history = quick[1]["history"]
    kept = {label: history[label][0]["tip/kept_fraction"] for label in RUNS}
    assert kept["all"] == 1 and 0.45 < kept["soft_or 50%"] == kept["random 50%"] <= 0.5
    assert 0.12 < kept["soft_or 20%"] <= 0.2
    # The first completions of all runs are those of the same student, from the same seed.
    assert len({history[label][0]["num_tokens"] for label in RUNS}) == 1
    assert history["all"][0]["loss"] == pytest.approx(divergence(history["all"][0]), rel=1e-5)


def test_divergence_of_all_tokens_by_hand():
    point = {"tip/kept_fraction": 0.25, "tip/divergence_kept_mean": 2.0, "tip/divergence_dropped_mean": 0.4}
    assert divergence(point) == pytest.approx(0.8)
    assert divergence({"tip/kept_fraction": 1.0, "tip/divergence_kept_mean": 0.3}) == 0.3
    assert divergence({"tip/kept_fraction": 0.5}) is None


def test_settings_reach_the_trainer(tmp_path):
    settings = read_recipe(RECIPE, {"learning_rate": "3e-4"})
    config = config_for(settings, Selection("entropy", 0.3), tmp_path / "entropy")
    assert (config.learning_rate, config.tip_rule, config.tip_ratio, config.beta) == (3e-4, "entropy", 0.3, 1.0)
    stock = config_for(settings | {"tip_min_tokens": 2}, Selection("none"), tmp_path / "all")
    assert (stock.tip_rule, stock.tip_min_tokens) == ("none", 1) and stock.output_dir == str(tmp_path / "all")
    assert stock.bf16 is stock.gradient_checkpointing is False and stock.use_cpu


def test_each_run_leaves_a_recipe_of_its_own(quick):
    arguments = quick[0]
    recipe = yaml.safe_load((arguments.output / "all" / "recipe.yaml").read_text())
    assert [key for key in recipe if key.startswith("tip_")] == ["tip_rule"] and recipe["tip_rule"] == "none"
    assert (recipe["seed"], recipe["max_steps"], recipe["per_device_train_batch_size"]) == (3, 2, 8)
    assert Path(recipe["teacher_model_name_or_path"], "model.safetensors").exists()
    assert Path(recipe["dataset_name"], "train.parquet").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "tip_share=1"], "Unknown key `tip_share` in "),
        (["--steps", "3"], "max_steps=3 logs nothing: give at least logging_steps=4"),
        (["--add", "entropi:0.5"], "'entropi:0.5' is not RULE:RATIO, RULE one of bottom, divergence, entropy"),
        (["--add", "random:half"], "'random:half' is not RULE:RATIO, as in random:0.5"),
        (["--add", "random:2"], "`tip_ratio` must be a ratio"),
    ],
)
def test_bad_settings_end_the_command(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*words, f"--output={tmp_path}"])
    assert re.search(message, capsys.readouterr().err)


def test_selections_have_labels():
    assert selection("q3:0.1") == Selection("q3", 0.1) and selection("q3:0.1").label == "q3 10%"
    assert Selection("none").label == "all" and Selection("none").settings == {"tip_rule": "none"}
