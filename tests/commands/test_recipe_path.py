# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Recipes and accelerate configs by name: the file found, and the error for an unknown name."""

from pathlib import Path

import pytest

from trl_entropy import cli
from trl_entropy.commands import launch
from trl_entropy.commands.recipes import RECIPES, accelerate_config_path, names_in, recipe_path


ROOT = Path(__file__).parents[2]


def test_names_are_those_of_the_files():
    assert RECIPES == ROOT / "recipes"
    for folder in ("", "accelerate"):
        assert sorted(names_in(folder).values()) == sorted((RECIPES / folder).glob("*.yaml"))
        assert all(path.stem == name for name, path in names_in(folder).items())


@pytest.mark.parametrize("given", ["clip_cov", "clip_cov.yaml", Path("clip_cov")])
def test_recipe_by_name_from_any_folder(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_path(given) == ROOT / "recipes" / "clip_cov.yaml"


def test_a_file_wins_over_a_name_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("clip_cov").mkdir()  # such as the output of an earlier run
    assert recipe_path("clip_cov") == ROOT / "recipes" / "clip_cov.yaml"
    Path("clip_cov.yaml").write_text("methods: []")
    assert recipe_path("clip_cov.yaml") == Path("clip_cov.yaml")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("clip_cof", " Did you mean 'clip_cov'?"),
        ("KL-Cov", ""),
        ("kl-cov", " Did you mean 'kl_cov'?"),
        ("zzz", ""),
        ("recipes/clip_cov.yaml", " Did you mean 'clip_cov'?"),  # the path in a checkout
    ],
)
def test_unknown_recipe_is_one_line(given, hint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["grpo", "--config", given])
    assert capsys.readouterr().err == (
        f"trl-entropy grpo: error: config='{given}' does not exist: No such file or directory, and no recipe has this "
        f"name.{hint} Recipes: {', '.join(names_in())}.\n"
    )


def test_recipe_by_name_is_parsed_before_the_launch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(launch, "launch_command", calls.append)
    monkeypatch.setattr(launch.os, "environ", dict(launch.os.environ))
    words = ["grpo", "--config", "clip_cov", "--accelerate_config", "cpu_two_processes", "--max_steps", "2"]
    assert cli.main(words) == 0
    (arguments,) = calls
    assert Path(arguments.config_file) == ROOT / "recipes" / "accelerate" / "cpu_two_processes.yaml"
    assert arguments.training_script_args == ["grpo", "--config", "clip_cov", "--max_steps", "2"]


def test_accelerate_configs_of_trl_and_files_are_left_to_trl(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert accelerate_config_path("zero2") == "zero2"
    assert accelerate_config_path("cpu_two_processes.yaml") == str(RECIPES / "accelerate" / "cpu_two_processes.yaml")
    Path("cpu_two_processes").write_text("num_processes: 2")
    assert accelerate_config_path("cpu_two_processes") == "cpu_two_processes"
