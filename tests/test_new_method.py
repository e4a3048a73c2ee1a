# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A new method takes four files: module, name in `methods/__init__.py`, test, recipe. All other tests find it."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support import registry

from trl_entropy.methods import METHODS, Method


ROOT = Path(__file__).parents[1]
LICENSE = "# Copyright 2026 The trl-entropy Authors.\n# SPDX-License-Identifier: Apache-2.0\n"
ADDED = {
    "trl_entropy/methods/damp.py",
    "trl_entropy/methods/__init__.py",
    "tests/methods/test_damp.py",
    "recipes/damp.yaml",
}
PAGES = {"README.md", "docs/methods.md", "docs/which_method.md", "docs/compatibility.md"}  # that `make tables` writes
MODULE = '''"""Damp: multiplies positive advantages by a share."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..paper import Paper
from ..settings import ratio
from .base import Method


@dataclass
class DampConfig:
    damp_share: float = field(default=0.5, metadata={"help": "Damp: factor of positive advantages."})


def damp_weights(advantages: Tensor, share: float) -> Tensor:
    """(B, T) `share` at positive advantages, else 1."""
    return torch.where(advantages > 0, share, 1.0)


class Damp(Method):
    """Multiplies positive advantages by a share."""

    name = "damp"
    config = DampConfig
    summary = "multiplies positive advantages by a share"
    checked_against = "nothing, as no paper has it"
    paper = Paper("2601.00001", "Damped Advantages", "@article{damp, journal = {arXiv preprint arXiv:2601.00001}}")

    def __init__(self, config):
        self.share = ratio(config, "damp_share")

    def token_advantages(self, tokens):
        weights = damp_weights(tokens.advantages, self.share)
        return tokens.advantages * weights, {"weight_mean": weights}
'''
TEST = """import torch
from support import registry
from support.fuzzing import ADVANTAGES, SHARES, covers, draw_shape, draw_tensor
from support.registry import MethodSettings
from support.sharded_processes import method_sets

from trl_entropy.methods.damp import damp_weights


METHOD_SETTINGS = {"damp": MethodSettings(reaches="batch")}


def test_damp_is_listed_with_the_others():
    lists = (registry.together_sets()[0], registry.forward_sets()[0], registry.world_run(), method_sets())
    assert all("damp" in names for names in lists)


def test_weights_of_damp():
    assert damp_weights(torch.tensor([-2.0, 0.0, 2.0]), 0.5).tolist() == [1.0, 1.0, 0.5]


@covers(damp_weights)
def weights_of_damp(draw):
    share = draw(SHARES)
    found = damp_weights(draw_tensor(draw, draw_shape(draw), ADVANTAGES), share)
    assert ((found == 1) | (found == torch.tensor(share))).all()
"""
# Tests that must have run for the method, by name.
EXPECTED = {
    "test_each_method_has_its_parts[damp]",
    "test_methods_know_tensors_and_nothing_of_the_host[damp]",
    "test_each_method_is_run[damp]",
    "test_two_iterations[damp]",
    "test_methods_take_turns_in_the_order_in_which_they_are_listed[together]",
    "test_neutral_advantages_stay_neutral[damp]",
    "test_a_method_leaves_its_tokens_alone[damp]",
    "test_resumed_run_equals_uninterrupted_run[damp]",
    "test_killed_run[damp]",
    "test_property[weights_of_damp]",
    "test_every_pure_function_is_searched",
    "test_every_method_is_cited_by_its_own_paper[together]",
    "test_no_field_takes_a_value_of_another_type[damp_share]",
    "test_recipes_are_found",
    "test_recipe_of_a_method_cites_its_paper_and_every_number[damp]",
    "test_recipe_that_cites_code_has_a_preset_of_it[damp]",
    "test_committed_matrix_has_each_method_and_is_made_of_the_outcomes",
    "test_committed_scores_are_those_of_the_document",
    "test_table_of_methods_is_that_of_the_registry[README.md]",
    "test_table_of_methods_is_that_of_the_registry[docs/methods.md]",
    "test_table_of_methods_is_that_of_the_registry[docs/which_method.md]",
    "test_each_method_is_a_choice",
    "test_each_method_says_what_it_was_checked_against",
    "test_stored_descriptions_are_those_of_the_methods",
    "test_weights_of_damp",
    "test_damp_is_listed_with_the_others",
}


def add_method(root):
    """Writes the four files."""
    (root / "trl_entropy" / "methods" / "damp.py").write_text(LICENSE + MODULE)
    (root / "tests" / "methods" / "test_damp.py").write_text(LICENSE + TEST)
    face = root / "trl_entropy" / "methods" / "__init__.py"
    lines = face.read_text().splitlines(keepends=True)
    # Beside each line that names Steer, one that names the new method.
    twice = [
        line + line.replace("steer", "damp").replace("Steer", "Damp") if "Steer" in line else line for line in lines
    ]
    assert len("".join(twice).splitlines()) == len(lines) + 3
    face.write_text("".join(twice))
    recipe = (root / "recipes" / "steer.yaml").read_text()
    _, settings = re.split(r"\n\n(?=# Model and data)", recipe)
    settings = re.sub(r"(?m)^steer_.*\n", "", settings).replace(
        "methods: [steer]", "methods: [damp]\ndamp_share: 0.5  # [ours]"
    )
    (root / "recipes" / "damp.yaml").write_text(
        "# Damped Advantages\n#   https://huggingface.co/papers/2601.00001\n#\n"
        "#   trl-entropy grpo --config damp --accelerate_config multi_gpu\n"
        "#   accelerate launch --num_processes 8 -m trl_entropy.cli grpo --config damp\n#\n"
        "# What to expect: less.\n\n" + settings.replace("[code]", "[ours]").replace("runs/steer", "runs/damp")
    )


def files_of(root):
    """The hash of every file, by its path; not of what tools leave in folders with a dot."""
    paths = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    paths = [path for path in paths if not any(part[0] == "." or part == "__pycache__" for part in path.parts)]
    return {path.as_posix(): hashlib.sha256((root / path).read_bytes()).hexdigest() for path in paths}


def changed(before, after):
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


# The tests of the new method, and those of all methods together, without most of those that train.
CHOSEN = (
    "(damp and not robustness and not ddp and not many_examples) or each_method_is_run or two_iterations and damp or "
    "every_pure_function or committed or test_pages or stored_descr or recipes_are_found or "
    "together and not together-2 and (turns or cited)"
)


@pytest.mark.slow
def test_a_new_method_of_four_files(tmp_path):
    root = tmp_path / "copy"
    left_out = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "shared", "wandb", "build", "dist")
    shutil.copytree(ROOT, root, ignore=left_out)
    before = files_of(root)
    add_method(root)
    assert changed(before, files_of(root)) == ADDED
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
    run = dict(cwd=root, env=environment, capture_output=True, text=True, timeout=1200)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", CHOSEN, "tests"]
    result = subprocess.run([*command, f"--junitxml={tmp_path / 'report.xml'}"], **run)
    assert result.returncode == 0, result.stdout[-6000:]
    cases = ElementTree.parse(tmp_path / "report.xml").iter("testcase")
    assert EXPECTED <= {case.get("name") for case in cases if not case.findall("skipped")}
    assert "README.md does not list 'damp' yet: run `make tables`." in result.stdout
    assert "The stored descriptions lack 'damp' yet: run `make tables`." in result.stdout
    assert "docs/which_method.md does not say when to choose 'damp'." in result.stdout
    assert changed(before, files_of(root)) == ADDED

    # The pages follow by one command.
    subprocess.run([sys.executable, "-m", "tests.support.tables"], **run, check=True)
    assert changed(before, files_of(root)) == ADDED | PAGES | {"trl_entropy/commands/methods.json"}
    rows = {
        "README.md": "| `damp` | [Damped Advantages](https://huggingface.co/papers/2601.00001) |",
        "docs/methods.md": "| `damp` | advantages, in every forward | - | nothing, as no paper has it |",
        "docs/which_method.md": "| `damp` | acts |  | nothing | not measured | not measured here |",
        "docs/compatibility.md": "| `damp` | not tested |",
    }
    assert rows.keys() == PAGES
    for page, row in rows.items():
        assert row in (root / page).read_text()


class Needy(Method):
    """Cannot be built with the defaults."""

    name = "needy"
    paper = METHODS["clip_cov"].paper

    def __init__(self, config):
        raise ValueError("`needy_target` must be a number, got None.")


class Lonely(Method):
    """Can be combined with only one other method."""

    name = "lonely"
    paper = METHODS["clip_cov"].paper
    excludes = {name: "it is lonely" for name in METHODS if name != "epo"}

    def token_advantages(self, tokens):
        return tokens.advantages, {}


@pytest.fixture
def registered(monkeypatch):
    """`registered(Method)` puts a method into the registry until the test ends."""
    caches = (registry.settings_of, registry.untested, registry.together_sets, registry.group_runs)

    def register(method):
        monkeypatch.setitem(METHODS, method.name, method)
        for cached in caches:
            cached.cache_clear()

    yield register
    for cached in caches:
        cached.cache_clear()


def test_a_method_that_cannot_be_built_says_that_it_is_not_tested(registered):
    before = registry.together_sets()
    registered(Needy)
    reason = registry.untested()["needy"]
    assert reason.startswith("needy: not tested, because `needy_target` must be a number, got None. (see")
    assert registry.together_sets() == before


def test_a_method_that_excludes_others_gets_a_set_of_its_own(registered):
    before = registry.together_sets()
    others = registry.untested()
    assert set(others) == {"branching"}  # which needs tools, and has runs of its own
    registered(Lonely)
    assert registry.untested() == others and registry.together_sets() == [*before, ["epo", "lonely"]]
    assert "lonely" in [param.id for param in registry.method_sets()]
