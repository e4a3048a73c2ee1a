# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""docs/write_a_method.md, walked step by step: its files are written, installed and run, its outputs compared."""

import inspect
import json
import re
import runpy
from pathlib import Path

import datasets
import pytest
from setuptools import build_meta
from support.packages import SETTINGS, site, write_run

from trl_entropy import METHODS, cli
from trl_entropy.methods import REGISTRY, Method


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "write_a_method.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
OUTPUTS = [text for language, text in BLOCKS if language == ""]
# Blocks by the file that the line before them names.
FILES = dict(re.findall(r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE))
SCALED_DOWN = {name: value for name, value in SETTINGS.items() if name != "reward_funcs"}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The folder of the page's package. Its entry point is made by the build backend that the page names."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "my_methods" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    assert 'build-backend = "setuptools.build_meta"' in FILES["pyproject.toml"]
    build_meta.prepare_metadata_for_build_wheel(str(tmp_path))
    with site(tmp_path):
        yield tmp_path


def train(capfd, *flags):
    """Status and standard error of the page's recipe, scaled down."""
    settings = [f"--{name}={value}" for name, value in SCALED_DOWN.items()]
    try:
        status = cli.main(
            ["grpo", "--config", "w_reinforce.yaml", *settings, "--reward_funcs", "even_rewards.even", *flags],
            launch=False,
        )
    except SystemExit as stop:
        status = stop.code
    return status, capfd.readouterr().err


def test_files_are_those_of_the_page():
    assert [*FILES] == ["my_methods/w_reinforce.py", "pyproject.toml", "w_reinforce.yaml", "test_w_reinforce.py"]
    assert len(OUTPUTS) == 2 and len(BLOCKS) == len(FILES) + len(OUTPUTS) + 1


def test_package_is_listed_trains_and_names_a_misspelt_key(installed, monkeypatch, capfd):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(installed / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    REGISTRY.load_entry_points()
    assert cli.main(["methods", "w_reinforce"]) == 0
    assert capfd.readouterr().out == OUTPUTS[0]

    write_run(installed)
    status, text = train(capfd)
    assert status == 0, text
    paper = METHODS["w_reinforce"].paper
    state = json.loads((installed / "out" / "trainer_state.json").read_text())
    first, second, _ = state["log_history"]
    metrics = set(re.findall(r"`(w_reinforce/\w+)`", PAGE))
    for line in (first, second):
        assert {key for key in line if key.startswith("w_reinforce/")} == metrics != set()
        assert 0 < line["w_reinforce/positive_fraction"] < 1 and line["w_reinforce/advantage_mean"] < 0
    card = (installed / "out" / "README.md").read_text()
    assert paper.url in card and paper.bibtex in card

    recipe = Path("w_reinforce.yaml")
    recipe.write_text(recipe.read_text().replace("w_reinforce_weight", "w_reinforce_wieght"))
    status, text = train(capfd)
    assert status == 2 and OUTPUTS[1] in text


def test_class_is_registered_in_a_script(installed):
    (script,) = (text for _, text in BLOCKS if text not in FILES.values() and text not in OUTPUTS)
    names = {}
    exec(script, names)
    assert METHODS["w_reinforce"] is names["WReinforce"] and names["args"].w_reinforce_weight == 0.2


def test_its_tests_pass(installed):
    found = runpy.run_path(str(installed / "test_w_reinforce.py"))
    tests = [value for name, value in found.items() if name.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        test()


def test_table_has_every_hook():
    hooks = {name for name, value in vars(Method).items() if name[0] != "_" and inspect.isroutine(value)}
    section = PAGE.split("## Hooks")[1].split("##")[0]
    helpers = {"overrides", "prefixed", "require", "ratio_rows", "count_draw"}  # called by methods and trainers
    assert set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)) == hooks - helpers


def test_exercises_are_not_methods_yet():
    names = set(re.findall(r"^\* `(\w+)`", PAGE.split("## Exercises")[1], flags=re.MULTILINE))
    assert names == {"asym_grpo", "lp_reg", "bapo", "adaptive_clip", "era"} and not names & set(METHODS)
